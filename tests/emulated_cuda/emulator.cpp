// The fibers behind cuda/device.h.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "cuda/cluster.h"
#include "cuda/warpgroup.h"

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

// A thread's part of a warpgroup's product. Its sums are out of reach until it is waited for.
struct Product {
    float* visible;
    int count;  // of sums
    uint32_t left;
    uint32_t right;
    bool adds;
    WidenNumbers widen;
};

// Where a thread of control goes on. Contexts begin it; from then on jumps, which make no system
// calls. Before the library's AddressSanitizer makes some, which take half of the time, so there
// the compiler's own are used, in functions that it does not watch. (Otherwise they are not: GCC 12
// loses the place where it has nothing to do behind it.)
#if defined(__SANITIZE_ADDRESS__)
using Place = void* [5];
#else
using Place = jmp_buf;
#endif

struct Fiber {
    ucontext_t context;
    Place place;
    bool is_begun = false;  // It serves one thread after another: to begin takes system calls.
    // Not made zero: that would take its memory at once.
    std::unique_ptr<char[]> stack{new char[stack_bytes]};
    std::vector<std::vector<Copy>> groups;  // the last is the open one
    bool has_unshown_copies = false;        // that have arrived since show_to_products
    bool may_begin_products = false;        // since begin_products
    std::vector<Product> products;          // begun and not waited for
    std::vector<float> sums;                // of theirs
    std::size_t committed_products = 0;
    void* sanitizer_stack = nullptr;
    bool is_waiting = false;
    bool gave_way = false;
    bool is_done = false;
};

struct NumberedBarrier {
    int arrived = 0;
    std::vector<int> waiting;
};
constexpr std::size_t numbered_barriers = 16;

// Blocks that run at the same time: one after another they are alone, cooperating ones all at once.
struct Block {
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::unique_ptr<void, void (*)(void*)> shared{nullptr, std::free};
    int64_t index = 0;
    int arrived = 0;
    std::vector<int> warp_arrived;
    std::vector<NumberedBarrier> barriers;
    std::vector<int> warpgroup_arrived;
    std::vector<std::vector<uint64_t>> operands;  // of each warpgroup's products, as they began
    std::vector<void*> brought;
};

struct Machine {
    std::vector<Block> blocks;
    int running_blocks = 0;
    int threads = 0;
    int met = 0;      // threads of a cluster: the running blocks
    int meeting = 0;  // how often they have
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

void run_fiber();

void begin(Fiber& fiber) {
    fiber.is_begun = true;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = stack_bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
    setcontext(&fiber.context);
}

#if defined(__SANITIZE_ADDRESS__)
// Who calls these must take all registers for lost that a call may change: noipa.
[[gnu::noipa, gnu::no_sanitize_address]] void to_fiber(Fiber& fiber) {
    __sanitizer_start_switch_fiber(&machine.scheduler_sanitizer_stack, fiber.stack.get(),
                                   stack_bytes);
    if (__builtin_setjmp(machine.scheduler) == 0) {
        if (fiber.is_begun) __builtin_longjmp(fiber.place, 1);
        begin(fiber);
    }
    __sanitizer_finish_switch_fiber(machine.scheduler_sanitizer_stack, nullptr, nullptr);
}

[[gnu::noipa, gnu::no_sanitize_address]] void to_scheduler(Fiber& fiber) {
    __sanitizer_start_switch_fiber(&fiber.sanitizer_stack, machine.scheduler_stack,
                                   machine.scheduler_stack_size);
    if (__builtin_setjmp(fiber.place) == 0) __builtin_longjmp(machine.scheduler, 1);
    __sanitizer_finish_switch_fiber(fiber.sanitizer_stack, &machine.scheduler_stack,
                                    &machine.scheduler_stack_size);
}
#else
void to_fiber(Fiber& fiber) {
    if (_setjmp(machine.scheduler) == 0) {
        if (fiber.is_begun) _longjmp(fiber.place, 1);
        begin(fiber);
    }
}

void to_scheduler(Fiber& fiber) {
    if (_setjmp(fiber.place) == 0) _longjmp(machine.scheduler, 1);
}
#endif

Block& current_block() { return machine.blocks[static_cast<std::size_t>(machine.current_block)]; }
Fiber& current() { return *current_block().fibers[static_cast<std::size_t>(machine.current)]; }

void wait_to_be_released() {
    Fiber& mine = current();
    mine.is_waiting = true;
    to_scheduler(mine);
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
    for (;;) {
        try {
            (*machine.kernel)();
            for (const auto& group : mine.groups) {
                if (!group.empty()) throw std::logic_error("a thread ended before its copies");
            }
            if (!mine.products.empty()) {
                throw std::logic_error("a thread ended before its products");
            }
        } catch (...) {
            if (!machine.failure) machine.failure = std::current_exception();
        }
        mine.is_done = true;
        to_scheduler(mine);
    }
}

void prepare(Fiber& fiber) {
    fiber.is_waiting = fiber.gave_way = fiber.is_done = false;
    fiber.groups.assign(1, {});
    fiber.has_unshown_copies = fiber.may_begin_products = false;
    fiber.products.clear();
    fiber.committed_products = 0;
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
    machine.met = machine.meeting = 0;
    for (int64_t b = 0; b < count; ++b) {
        Block& block = machine.blocks[static_cast<std::size_t>(b)];
        block.index = first + b;
        block.arrived = 0;
        block.warp_arrived.assign(static_cast<std::size_t>(machine.threads / warp_threads), 0);
        block.warpgroup_arrived.assign(
            static_cast<std::size_t>(machine.threads / warpgroup_threads + 1), 0);
        block.operands.assign(block.warpgroup_arrived.size(), {});
        block.barriers.assign(numbered_barriers, {});
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

char* shared_memory_of(int block) {
    if (block >= machine.running_blocks) throw std::logic_error("a block beyond the cluster");
    return static_cast<char*>(machine.blocks[static_cast<std::size_t>(block)].shared.get());
}

void meet_in_cluster() {
    const int meeting = machine.meeting;
    if (++machine.met == machine.running_blocks * machine.threads) {
        machine.met = 0;
        ++machine.meeting;
    }
    for (int turns = 0; machine.meeting == meeting; ++turns) {
        if (turns > 1'000'000) throw std::logic_error("a block waits for its cluster in vain");
        give_way();
    }
}

void give_way() {
    Fiber& mine = current();
    mine.gave_way = true;
    to_scheduler(mine);
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

void barrier(int number, int threads, bool waits) {
    NumberedBarrier& barrier = current_block().barriers.at(static_cast<std::size_t>(number));
    if (number == 0 || threads % warp_threads != 0) throw std::logic_error("barrier: wrong number");
    if (waits) barrier.waiting.push_back(machine.current);
    if (++barrier.arrived < threads) {
        if (waits) wait_to_be_released();
        return;
    }
    for (const int thread : barrier.waiting) {
        current_block().fibers[static_cast<std::size_t>(thread)]->is_waiting = false;
    }
    barrier = {};
}

void copy(void* target, const void* source, int bytes, int valid) {
    const auto misplaced = [&](const void* pointer) {
        return reinterpret_cast<uintptr_t>(pointer) % static_cast<unsigned>(bytes) != 0;
    };
    if (misplaced(target) || misplaced(source)) throw std::logic_error("cp.async: misaligned");
    if (valid < 0 || valid > bytes) throw std::logic_error("cp.async: a size that is out of range");
    const Copy begun{target, source, bytes, valid};
    if (copies_are_early) perform(begun);
    current().groups.back().push_back(begun);
}

// Most of the emulator's time: not watched, it reads and writes what its callers have made.
#if defined(__SANITIZE_ADDRESS__)
[[gnu::no_sanitize("address", "undefined"), gnu::optimize("O3")]]
#endif
void add_products(const float* left, const float* right, int depth, int columns, float* sums) {
    for (int k = 0; k < depth; ++k) {
        for (int column = 0; column < columns; ++column) {
            sums[column] += left[k] * right[k * columns + column];
        }
    }
}

void commit() { current().groups.emplace_back(); }

void wait(int pending) {
    auto& groups = current().groups;
    while (static_cast<int>(groups.size()) - 1 > pending) {
        for (const Copy& copy : groups.front()) {
            if (!copies_are_early) perform(copy);
        }
        if (!groups.front().empty()) current().has_unshown_copies = true;
        groups.erase(groups.begin());
    }
}

namespace {

// All threads of the warpgroup wait for each other; the last to come calls compute with the first's
// number.
template <class Compute>
void meet_warpgroup(Compute&& compute) {
    const int warpgroup = machine.current / warpgroup_threads;
    const int first = warpgroup * warpgroup_threads;
    if (first + warpgroup_threads > machine.threads) throw std::logic_error("a broken warpgroup");
    int& arrived = current_block().warpgroup_arrived[static_cast<std::size_t>(warpgroup)];
    if (++arrived < warpgroup_threads) {
        wait_to_be_released();
        return;
    }
    arrived = 0;
    compute(first);
    release(first, first + warpgroup_threads);
}

// The base of the block's shared memory: not a multiple of the 1024 that operands lie by.
constexpr uint32_t first_address = 128;

const char* operand_row(uint32_t operand, int row, int piece) {
    const auto start = (operand & 0x3FFF) << 4;
    const uint32_t address = start + static_cast<uint32_t>(row * 128 + piece * 16);
    const uint32_t place = address ^ ((address >> 7 & 7) << 4);
    return emulated::shared_memory() + (place - first_address);
}

// A number that changes with what an operand holds.
uint64_t sum_of(uint64_t seed, uint32_t operand, int rows) {
    for (int row = 0; row < rows; ++row) {
        for (int piece = 0; piece < 2; ++piece) {
            uint64_t halves[2];
            std::memcpy(halves, operand_row(operand, row, piece), sizeof halves);
            for (const uint64_t half : halves) seed = (seed ^ half) * 0x9E3779B97F4A7C15u;
        }
    }
    return seed;
}

uint64_t operands_of(const Product& product) {
    return sum_of(sum_of(1, product.left, 64), product.right, product.count * 2);
}

// What a warpgroup's threads have begun, one product after another.
void perform_products(int first) {
    const auto fiber = [&](int i) -> Fiber& {
        return *current_block().fibers[static_cast<std::size_t>(first + i)];
    };
    const std::size_t count = fiber(0).products.size();
    std::vector<uint64_t>& begun =
        current_block().operands[static_cast<std::size_t>(first / warpgroup_threads)];
    for (int i = 0; i < warpgroup_threads; ++i) {
        if (fiber(i).products.size() != count || fiber(i).committed_products != count) {
            throw std::logic_error("wgmma: threads disagree, or wait for what is not committed");
        }
    }
    for (std::size_t p = 0; p < count; ++p) {
        const Product& leading = fiber(0).products[p];
        const int columns = leading.count * 2;
        for (int i = 0; i < warpgroup_threads; ++i) {
            const Product& product = fiber(i).products[p];
            if (product.left != leading.left || product.right != leading.right ||
                product.adds != leading.adds || product.widen != leading.widen) {
                throw std::logic_error("wgmma: threads disagree");
            }
        }
        // They may be read from when the first thread begins to when the last has waited.
        if (operands_of(leading) != begun[p]) {
            throw std::logic_error("wgmma: operands that are not there yet, or no longer");
        }
        constexpr int depth = 16;
        const auto numbers = [&](uint32_t operand, int row) {
            std::array<float, depth> found;
            for (int piece = 0; piece < 2; ++piece) {
                float half[8];
                leading.widen(operand_row(operand, row, piece), half);
                std::copy(half, half + 8, found.begin() + piece * 8);
            }
            return found;
        };
        std::vector<float> right(static_cast<std::size_t>(depth * columns));
        for (int column = 0; column < columns; ++column) {
            const auto of_column = numbers(leading.right, column);
            for (int k = 0; k < depth; ++k) {
                right[static_cast<std::size_t>(k * columns + column)] =
                    of_column[static_cast<std::size_t>(k)];
            }
        }
        std::vector<float> sums(static_cast<std::size_t>(columns));
        for (int row = 0; row < 64; ++row) {
            const auto sum = [&](int column) -> float& {
                const int thread = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
                const int place = column / 8 * 4 + row % 16 / 8 * 2 + column % 2;
                return fiber(thread).sums[static_cast<std::size_t>(place)];
            };
            for (int column = 0; column < columns; ++column) {
                sums[static_cast<std::size_t>(column)] = leading.adds ? sum(column) : 0;
            }
            add_products(numbers(leading.left, row).data(), right.data(), depth, columns,
                         sums.data());
            for (int column = 0; column < columns; ++column) {
                sum(column) = sums[static_cast<std::size_t>(column)];
            }
        }
    }
    for (int i = 0; i < warpgroup_threads; ++i) {
        Fiber& mine = fiber(i);
        if (count > 0) {
            std::copy(mine.sums.begin(), mine.sums.end(), mine.products[0].visible);
        }
        mine.products.clear();
        mine.committed_products = 0;
        mine.may_begin_products = false;
    }
    begun.clear();
}

}  // namespace

void meet_in_warpgroup() {
    meet_warpgroup([](int) {});
}

void show_copies() { current().has_unshown_copies = false; }

void allow_products() { current().may_begin_products = true; }

void begin_product(float* sums, int count, uint32_t left, uint32_t right, bool adds,
                   WidenNumbers widen) {
    Fiber& mine = current();
    if (!mine.may_begin_products) throw std::logic_error("wgmma: without wgmma.fence");
    if (mine.has_unshown_copies) throw std::logic_error("wgmma: without fence.proxy.async");
    for (const uint32_t operand : {left, right}) {
        if (operand >> 14 != 4 || operand % 2 != 0) {
            throw std::logic_error("wgmma: an operand that is none");
        }
    }
    if (!mine.products.empty() && mine.products[0].visible != sums) {
        throw std::logic_error("wgmma: the emulator knows one set of sums at a time");
    }
    const Product product{sums, count, left, right, adds, widen};
    std::vector<uint64_t>& begun =
        current_block().operands[static_cast<std::size_t>(machine.current / warpgroup_threads)];
    if (begun.size() == mine.products.size()) begun.push_back(operands_of(product));
    if (mine.products.empty()) {
        mine.sums.assign(sums, sums + count);
        std::fill(sums, sums + count, NAN);  // who reads them early finds no number
    }
    mine.products.push_back(product);
}

void commit_products() { current().committed_products = current().products.size(); }

void wait_for_products() { meet_warpgroup(perform_products); }

uint32_t shared_address(const void* pointer) {
    return first_address +
           static_cast<uint32_t>(static_cast<const char*>(pointer) - shared_memory());
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
