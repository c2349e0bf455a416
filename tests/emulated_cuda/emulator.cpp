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
    bool is_done = false;
};

struct Machine {
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<char> shared;
    char* shared_begin = nullptr;
    int threads = 0;
    int current = 0;
    int block_arrived = 0;
    std::vector<int> warp_arrived;
    std::vector<void*> brought;
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

Fiber& current() { return *machine.fibers[static_cast<std::size_t>(machine.current)]; }

void wait_to_be_released() {
    Fiber& mine = current();
    mine.is_waiting = true;
    to_scheduler(mine, false);
    if (machine.failure) std::rethrow_exception(machine.failure);
}

void release(int begin, int end) {
    for (int i = begin; i < end; ++i)
        machine.fibers[static_cast<std::size_t>(i)]->is_waiting = false;
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
    fiber.is_waiting = fiber.is_done = fiber.is_begun = false;
    fiber.groups.assign(1, {});
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = stack_bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
}

void fill_with_noise(std::vector<char>& memory) {
    static std::mt19937 generator(7);
    for (char& byte : memory) byte = static_cast<char>(generator());
}

void run_block() {
    for (int i = 0; i < machine.threads; ++i) prepare(*machine.fibers[static_cast<std::size_t>(i)]);
    machine.block_arrived = 0;
    machine.warp_arrived.assign(static_cast<std::size_t>(machine.threads / warp_threads), 0);
    machine.brought.assign(static_cast<std::size_t>(machine.threads), nullptr);
    int running = machine.threads;
    while (running > 0) {
        bool went_on = false;
        for (int i = 0; i < machine.threads; ++i) {
            machine.current = order == Order::forwards ? i : machine.threads - 1 - i;
            Fiber& fiber = current();
            // After a failure those that wait go on, to unwind.
            if (fiber.is_done || (fiber.is_waiting && !machine.failure)) continue;
            threadIdx.x = static_cast<unsigned>(machine.current);
            went_on = true;
            to_fiber(fiber);
            if (fiber.is_done) --running;
        }
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

void run(int64_t blocks, int threads, int64_t shared_bytes, const std::function<void()>& kernel) {
    if (threads % warp_threads != 0) throw std::logic_error("blocks are to be of whole warps");
    while (static_cast<int>(machine.fibers.size()) < threads) {
        machine.fibers.push_back(std::make_unique<Fiber>());
    }
    // Exactly as large as asked for, so that a sanitizer sees what goes beyond.
    constexpr std::size_t alignment = 128;
    void* memory =
        std::aligned_alloc(alignment, (static_cast<std::size_t>(shared_bytes) + alignment - 1) /
                                          alignment * alignment);
    const std::unique_ptr<void, void (*)(void*)> owner(memory, std::free);
    machine.shared_begin = static_cast<char*>(memory);
    machine.threads = threads;
    machine.kernel = &kernel;
    blockDim.x = static_cast<unsigned>(threads);
    gridDim.x = static_cast<unsigned>(blocks);
    std::vector<char> noise(static_cast<std::size_t>(shared_bytes));
    fill_with_noise(noise);
    for (int64_t block = 0; block < blocks; ++block) {
        blockIdx.x = static_cast<unsigned>(order == Order::forwards ? block : blocks - 1 - block);
        if (!noise.empty()) std::memcpy(memory, noise.data(), noise.size());
        run_block();
    }
}

char* shared_memory() { return machine.shared_begin; }

void meet(void* brought, void (*compute)(void* const (&all)[warp_threads])) {
    const int warp = machine.current / warp_threads;
    const int first = warp * warp_threads;
    machine.brought[static_cast<std::size_t>(machine.current)] = brought;
    if (++machine.warp_arrived[static_cast<std::size_t>(warp)] < warp_threads) {
        wait_to_be_released();
        return;
    }
    machine.warp_arrived[static_cast<std::size_t>(warp)] = 0;
    void* all[warp_threads];
    std::memcpy(all, machine.brought.data() + first, sizeof all);
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
    if (++machine.block_arrived < machine.threads) {
        wait_to_be_released();
        return;
    }
    machine.block_arrived = 0;
    release(0, machine.threads);
}

void __syncwarp() {
    seqkernels::cuda::emulated::meet(nullptr,
                                     [](void* const(&)[seqkernels::cuda::warp_threads]) {});
}
