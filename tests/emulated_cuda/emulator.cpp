// The fibers behind cuda/device.h.
#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "cuda/device.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace seqkernels::cuda::emulated {

namespace {

constexpr std::size_t stack_bytes = 64 * 1024;

struct Copy {
    void* target;
    const void* source;
    int bytes;
    int valid;
};

// Where a thread of control goes on. Contexts begin it; from then on jumps, which make no system
// calls.
using Place = jmp_buf;

struct Fiber {
    ucontext_t context;
    Place place;
    bool is_begun = false;
    std::unique_ptr<char[]> stack = std::make_unique<char[]>(stack_bytes);
    std::vector<std::vector<Copy>> groups;  // the last is the open one
    void* sanitizer_stack = nullptr;
    bool is_waiting = false;
    bool gave_way = false;
    bool is_done = false;
};

// Blocks that run at the same time: one after another they are alone, cooperating ones all at once.
struct Block {
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::unique_ptr<void, void (*)(void*)> shared{nullptr, std::free};
    int64_t index = 0;
    int arrived = 0;
    std::vector<int> warp_arrived;
    std::vector<void*> brought;
};

struct Machine {
    std::vector<Block> blocks;
    int running_blocks = 0;
    int threads = 0;
    int current_block = 0;
    int current = 0;  // thread of the block
    const std::function<void()>* kernel = nullptr;
    std::exception_ptr failure;
    Place scheduler;
    void* scheduler_sanitizer_stack = nullptr;
    const void* scheduler_stack = nullptr;
    std::size_t scheduler_stack_size = 0;
};
Machine machine;

void to_fiber(Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&machine.scheduler_sanitizer_stack, fiber.stack.get(),
                                   stack_bytes);
#endif
    if (_setjmp(machine.scheduler) == 0) {
        if (fiber.is_begun) _longjmp(fiber.place, 1);
        fiber.is_begun = true;
        setcontext(&fiber.context);
    }
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(machine.scheduler_sanitizer_stack, nullptr, nullptr);
#endif
}

void to_scheduler(Fiber& fiber, bool is_last) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(is_last ? nullptr : &fiber.sanitizer_stack,
                                   machine.scheduler_stack, machine.scheduler_stack_size);
#else
    (void)is_last;
#endif
    if (_setjmp(fiber.place) == 0) _longjmp(machine.scheduler, 1);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber.sanitizer_stack, &machine.scheduler_stack,
                                    &machine.scheduler_stack_size);
#endif
}

Block& current_block() { return machine.blocks[static_cast<std::size_t>(machine.current_block)]; }
Fiber& current() { return *current_block().fibers[static_cast<std::size_t>(machine.current)]; }

void wait_to_be_released() {
    Fiber& mine = current();
    mine.is_waiting = true;
    to_scheduler(mine, false);
    if (machine.failure) std::rethrow_exception(machine.failure);
}

void release(int begin, int end) {
    for (int i = begin; i < end; ++i) {
        current_block().fibers[static_cast<std::size_t>(i)]->is_waiting = false;
    }
}

void run_fiber() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack,
                                    &machine.scheduler_stack_size);
#endif
    Fiber& mine = current();
    try {
        (*machine.kernel)();
        for (const auto& group : mine.groups) {
            if (!group.empty()) throw std::logic_error("a thread ended before its copies");
        }
    } catch (...) {
        if (!machine.failure) machine.failure = std::current_exception();
    }
    mine.is_done = true;
    to_scheduler(mine, true);
}

void prepare(Fiber& fiber) {
    fiber.is_waiting = fiber.gave_way = fiber.is_done = fiber.is_begun = false;
    fiber.groups.assign(1, {});
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = stack_bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
}

void fill_with_noise(void* memory, std::size_t bytes) {
    static std::mt19937 generator(7);
    for (std::size_t i = 0; i < bytes; ++i) static_cast<char*>(memory)[i] = char(generator());
}

// In order or backwards.
int64_t in_turn(int64_t i, int64_t count) { return order == Order::forwards ? i : count - 1 - i; }

// Gives every thread of the current block that can go on a turn; returns how many ended.
int64_t turn_of_block(bool& went_on) {
    int64_t ended = 0;
    for (int i = 0; i < machine.threads; ++i) {
        machine.current = static_cast<int>(in_turn(i, machine.threads));
        Fiber& fiber = current();
        // After a failure those that wait go on, to unwind.
        if (fiber.is_done || fiber.gave_way || (fiber.is_waiting && !machine.failure)) continue;
        threadIdx.x = static_cast<unsigned>(machine.current);
        went_on = true;
        to_fiber(fiber);
        if (fiber.is_done) ++ended;
    }
    return ended;
}

// Gives every running block a turn, in which it gets as far as it can without the others: who does
// not wait for them finds what they have not written. Returns how many threads ended.
int64_t turn_of_all(bool& went_on) {
    int64_t ended = 0;
    for (int64_t b = 0; b < machine.running_blocks; ++b) {
        machine.current_block = static_cast<int>(in_turn(b, machine.running_blocks));
        blockIdx.x = static_cast<unsigned>(current_block().index);
        bool block_went_on = true;
        while (block_went_on) {
            block_went_on = false;
            ended += turn_of_block(block_went_on);
            went_on = went_on || block_went_on;
        }
        for (const auto& fiber : current_block().fibers) fiber->gave_way = false;
    }
    return ended;
}

void run_blocks(int64_t first, int64_t count, std::size_t shared_bytes) {
    machine.running_blocks = static_cast<int>(count);
    for (int64_t b = 0; b < count; ++b) {
        Block& block = machine.blocks[static_cast<std::size_t>(b)];
        block.index = first + b;
        block.arrived = 0;
        block.warp_arrived.assign(static_cast<std::size_t>(machine.threads / warp_threads), 0);
        block.brought.assign(static_cast<std::size_t>(machine.threads), nullptr);
        fill_with_noise(block.shared.get(), shared_bytes < 4096 ? shared_bytes : 4096);
        for (int i = 0; i < machine.threads; ++i)
            prepare(*block.fibers[static_cast<std::size_t>(i)]);
    }
    int64_t running = count * machine.threads;
    while (running > 0) {
        bool went_on = false;
        running -= turn_of_all(went_on);
        if (!went_on && !machine.failure) {
            machine.failure = std::make_exception_ptr(
                std::logic_error("threads wait for others that have ended"));
        }
    }
    if (machine.failure) {
        const std::exception_ptr failure = machine.failure;
        machine.failure = nullptr;
        std::rethrow_exception(failure);
    }
}

void perform(const Copy& copy) {
    if (copy.valid > 0) {
        std::memcpy(copy.target, copy.source, static_cast<std::size_t>(copy.valid));
    }
    std::memset(static_cast<char*>(copy.target) + copy.valid, 0,
                static_cast<std::size_t>(copy.bytes - copy.valid));
}

}  // namespace

void run(int64_t blocks, int64_t at_once, int threads, int64_t shared_bytes,
         const std::function<void()>& kernel) {
    if (threads % warp_threads != 0) throw std::logic_error("blocks are to be of whole warps");
    // Exactly as large as asked for, so that a sanitizer sees what goes beyond.
    constexpr std::size_t alignment = 128;
    const std::size_t bytes =
        (static_cast<std::size_t>(shared_bytes) + alignment - 1) / alignment * alignment;
    while (static_cast<int64_t>(machine.blocks.size()) < at_once) machine.blocks.emplace_back();
    for (int64_t b = 0; b < at_once; ++b) {
        Block& block = machine.blocks[static_cast<std::size_t>(b)];
        while (static_cast<int>(block.fibers.size()) < threads) {
            block.fibers.push_back(std::make_unique<Fiber>());
        }
        block.shared.reset(std::aligned_alloc(alignment, bytes));
        fill_with_noise(block.shared.get(), bytes);
    }
    machine.threads = threads;
    machine.kernel = &kernel;
    blockDim.x = static_cast<unsigned>(threads);
    gridDim.x = static_cast<unsigned>(blocks);
    const int64_t groups = (blocks + at_once - 1) / at_once;
    for (int64_t group = 0; group < groups; ++group) {
        const int64_t first = in_turn(group, groups) * at_once;
        run_blocks(first, blocks - first < at_once ? blocks - first : at_once, bytes);
    }
    for (Block& block : machine.blocks) block.shared.reset();
}

char* shared_memory() { return static_cast<char*>(current_block().shared.get()); }

void give_way() {
    Fiber& mine = current();
    mine.gave_way = true;
    to_scheduler(mine, false);
    if (machine.failure) std::rethrow_exception(machine.failure);
}

void meet(void* brought, void (*compute)(void* const (&all)[warp_threads])) {
    const int warp = machine.current / warp_threads;
    const int first = warp * warp_threads;
    current_block().brought[static_cast<std::size_t>(machine.current)] = brought;
    if (++current_block().warp_arrived[static_cast<std::size_t>(warp)] < warp_threads) {
        wait_to_be_released();
        return;
    }
    current_block().warp_arrived[static_cast<std::size_t>(warp)] = 0;
    void* all[warp_threads];
    std::memcpy(all, current_block().brought.data() + first, sizeof all);
    compute(all);
    release(first, first + warp_threads);
}

void copy(void* target, const void* source, int bytes, int valid) {
    const auto misplaced = [&](const void* pointer) {
        return reinterpret_cast<uintptr_t>(pointer) % static_cast<unsigned>(bytes) != 0;
    };
    if (misplaced(target) || misplaced(source)) throw std::logic_error("cp.async: misaligned");
    if (valid < 0 || valid > bytes) throw std::logic_error("cp.async: a size that is out of range");
    current().groups.back().push_back({target, source, bytes, valid});
}

void commit() { current().groups.emplace_back(); }

void wait(int pending) {
    auto& groups = current().groups;
    while (static_cast<int>(groups.size()) - 1 > pending) {
        for (const Copy& copy : groups.front()) perform(copy);
        groups.erase(groups.begin());
    }
}

}  // namespace seqkernels::cuda::emulated

void __syncthreads() {
    using namespace seqkernels::cuda::emulated;
    if (++current_block().arrived < machine.threads) {
        wait_to_be_released();
        return;
    }
    current_block().arrived = 0;
    release(0, machine.threads);
}

void __syncwarp() {
    seqkernels::cuda::emulated::meet(nullptr,
                                     [](void* const(&)[seqkernels::cuda::warp_threads]) {});
}
