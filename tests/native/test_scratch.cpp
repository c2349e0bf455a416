// Scratch memory is kept for the next call of that size, up to a bound, and given back when asked.
#include <cstring>

#include "check.h"
#include "core/parallel.h"
#include "core/scratch.h"

namespace seqkernels::testing {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool keeps_blocks = false;
#else
constexpr bool keeps_blocks = true;
#endif

TEST(scratch_is_kept_and_released) {
    release_scratch();
    void* first = nullptr;
    {
        const Scratch<float> scratch(1 << 20);
        first = scratch.data();
        std::memset(first, 1, std::size_t(4) << 20);
        CHECK(reinterpret_cast<std::uintptr_t>(first) % cache_line_bytes == 0);
        const Scratch<float> other(1 << 20);
        CHECK(other.data() != first);
    }
    if (keeps_blocks) {
        // Two are free; a slightly larger call gets one of them, and no third.
        const Scratch<char> again((4 << 20) + 1000), more(4 << 20);
        CHECK(static_cast<void*>(again.data()) == first ||
              static_cast<void*>(more.data()) == first);
        CHECK(release_scratch() == 0);
    }
    CHECK((release_scratch() >= 8 << 20) == keeps_blocks);
    CHECK(release_scratch() == 0);
}

TEST(a_thread_gets_its_own_scratch_again) {
    release_scratch();
    constexpr int64_t bytes = 100000;
    void* memory[2][2] = {};
    Barrier barrier;
    int granted = 0;
    run_parallel(2, [&](int thread, int threads) {
        if (thread == 0) granted = threads;
        for (const int call : {0, 1}) {
            // In the second call the other way round.
            for (int turn = 0; turn < threads; ++turn) {
                if (turn == (call == 0 ? thread : threads - 1 - thread)) {
                    memory[call][thread] = take_scratch(bytes);
                }
                barrier.wait(threads);
            }
            for (int turn = 0; turn < threads; ++turn) {
                if (turn == thread) return_scratch(memory[call][thread], bytes);
                barrier.wait(threads);
            }
        }
    });
    if (keeps_blocks && granted == 2) {
        CHECK(memory[0][0] != memory[0][1]);
        CHECK(memory[1][0] == memory[0][0] && memory[1][1] == memory[0][1]);
    }
    release_scratch();
}

TEST(scratch_kept_is_bounded) {
    release_scratch();
    const auto use = [](int64_t bytes) { const Scratch<char> scratch(bytes); };
    for (int64_t size = 1; size < 100; ++size) use(size << 20);
    for (int64_t size = 1; size < 100; ++size) use(size << 15);
    use(int64_t(600) << 20);
    CHECK(release_scratch() <= int64_t(512) << 20);
}

TEST(scratch_of_impossible_size_raises) {
    for (const int64_t count : {int64_t(-1), int64_t(1) << 61, int64_t(1) << 62}) {
        bool raised = false;
        try {
            const Scratch<double> scratch(count);
        } catch (const std::exception&) {
            raised = true;
        }
        CHECK(raised);
    }
}

}  // namespace
}  // namespace seqkernels::testing
