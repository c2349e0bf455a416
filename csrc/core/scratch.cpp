#include "scratch.h"

#include <sys/mman.h>

#include <cstdlib>
#include <limits>
#include <mutex>
#include <new>
#include <vector>

#include "checked.h"
#include "parallel.h"

namespace seqkernels {
namespace {

constexpr int64_t least_kept_bytes = 32 << 10;  // below, the system's allocator keeps it anyway
constexpr int64_t most_kept_bytes = int64_t(512) << 20;
constexpr std::size_t most_kept_blocks = 64;
// On most machines; elsewhere nothing but an alignment.
constexpr int64_t huge_page_bytes = int64_t(2) << 20;

#if defined(__SANITIZE_ADDRESS__)
constexpr bool keeps_blocks = false;  // so that a use after the call, or beyond the end, is seen
#else
constexpr bool keeps_blocks = true;
#endif

// Something that is another for every thread that lives.
const void* this_thread() {
    thread_local const char mark = 0;
    return &mark;
}

struct Block {
    void* memory;
    int64_t bytes;
    const void* thread;  // that gave it back
};

// The blocks that are free, the longest unused first. There are only a few of them: a call's
// scratch arrays, times the threads that call at once.
struct Pool {
    std::mutex mutex;
    std::vector<Block> blocks;
    int64_t bytes = 0;

    Pool() { blocks.reserve(most_kept_blocks); }

    // Takes the pool, unless it is busy for longer than others need it, some tens of nanoseconds:
    // who does not get it does without. (A child process forked while another thread had the pool
    // finds it busy for ever.)
    std::unique_lock<std::mutex> take() {
        constexpr int most_tries = 64;
        std::unique_lock<std::mutex> lock(mutex, std::try_to_lock);
        for (int i = 1; !lock && i < most_tries; ++i) {
            relax();
            static_cast<void>(lock.try_lock());
        }
        return lock;
    }

    // The place of a block of so many bytes: one that this thread had last, whose cache may still
    // hold it, or else another's; -1 if there is none.
    int64_t find(int64_t of_bytes) const {
        const void* const own = this_thread();
        int64_t found = -1;
        for (std::size_t place = blocks.size(); place-- > 0;) {
            const Block& block = blocks[place];
            if (block.bytes != of_bytes) continue;
            if (block.thread == own) return static_cast<int64_t>(place);
            if (found < 0) found = static_cast<int64_t>(place);
        }
        return found;
    }

    Block remove(std::size_t place) {
        const Block block = blocks[place];
        blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(place));
        bytes -= block.bytes;
        return block;
    }
};

Pool& pool() {
    static auto& kept = *new Pool();  // never destroyed: threads may outlive static objects
    return kept;
}

// Sizes are rounded up, by an eighth at most, so that a slightly larger call fits as well.
int64_t rounded(int64_t bytes) {
    int64_t unit = cache_line_bytes;
    while (bytes / unit > 8 && bytes >= least_kept_bytes) unit *= 2;
    return (bytes / unit + 1) * unit;
}

void* allocate(int64_t bytes) {
    const bool is_huge = bytes >= huge_page_bytes;
    const int64_t alignment = is_huge ? huge_page_bytes : cache_line_bytes;
    const auto size = static_cast<std::size_t>((bytes + alignment - 1) / alignment * alignment);
    void* memory = std::aligned_alloc(static_cast<std::size_t>(alignment), size);
    if (memory == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    // A wish: without it the same memory in small pages.
    if (is_huge) static_cast<void>(madvise(memory, size, MADV_HUGEPAGE));
#endif
    return memory;
}

}  // namespace

int64_t scratch_bytes(int64_t count, int64_t element_bytes) {
    if (count < 0) throw std::bad_alloc();
    const int64_t bytes = checked_product({count, element_bytes});
    // Half of the range leaves room for rounding up.
    if (bytes > std::numeric_limits<int64_t>::max() / 2) throw std::bad_alloc();
    return bytes;
}

void* take_scratch(int64_t bytes) {
    const int64_t size = rounded(bytes);
    if (keeps_blocks && size >= least_kept_bytes) {
        Pool& kept = pool();
        const std::unique_lock<std::mutex> lock = kept.take();
        const int64_t place = lock ? kept.find(size) : -1;
        if (place >= 0) return kept.remove(static_cast<std::size_t>(place)).memory;
    }
    return allocate(size);
}

void return_scratch(void* memory, int64_t bytes) {
    const int64_t size = rounded(bytes);
    if (!keeps_blocks || size < least_kept_bytes || size > most_kept_bytes) {
        std::free(memory);
        return;
    }
    Pool& kept = pool();
    const std::unique_lock<std::mutex> lock = kept.take();
    if (!lock) {
        std::free(memory);
        return;
    }
    while (kept.blocks.size() == most_kept_blocks || kept.bytes + size > most_kept_bytes) {
        std::free(kept.remove(0).memory);
    }
    kept.blocks.push_back({memory, size, this_thread()});
    kept.bytes += size;
}

int64_t release_scratch() {
    Pool& kept = pool();
    const std::lock_guard<std::mutex> lock(kept.mutex);
    const int64_t released = kept.bytes;
    while (!kept.blocks.empty()) std::free(kept.remove(kept.blocks.size() - 1).memory);
    return released;
}

}  // namespace seqkernels
