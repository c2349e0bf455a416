// The CUDA kernels of the convolution, on an emulated GPU.
#include "convolution_problem.h"
#include "cuda/convolution.h"
#include "cuda/device.h"

namespace seqkernels::testing {
namespace {

using cuda::How;
using cuda::Kernels;
using cuda::emulated::Order;

template <class T>
void run_on_gpu(const Problem& exact, const How& how, double tolerance) {
    // Exactly as large as asked for, so that a sanitizer sees what goes beyond.
    const auto with_scratch = [](int64_t bytes, auto&& run) {
        std::vector<char> memory(static_cast<std::size_t>(bytes) + 256);
        const auto address = reinterpret_cast<uintptr_t>(memory.data());
        char* aligned = memory.data() + (256 - address % 256) % 256;
        std::memset(aligned, 0x7F, static_cast<std::size_t>(bytes));
        run(cuda::Where{0, nullptr, aligned});
    };
    const auto forward = [&](const auto& call) {
        with_scratch(cuda::scratch_bytes(call, how, 0),
                     [&](const auto& where) { cuda::convolution_forward(call, how, where); });
    };
    const auto backward = [&](const auto& call) {
        cuda::convolution_backward(call, how, cuda::Where{0, nullptr, nullptr});
    };
    run_case<T>(exact, forward, backward, tolerance);
}

template <class T>
double tolerance() {
    return (is_sixteen_bit<T> ? 2 : 32) * epsilon<T>();
}

// Cases that reach every path of the tiled kernels: both tiles, every way to read the input,
// several tiles and chunks, split pools, pools within a tile and beyond one. Sums are large here,
// where the slopes of tanh and sigmoid are all rounding.
std::vector<Case> tiled_cases() {
    using A = Activation;
    return {
        // rows aligned to 16, 8 and 4 bytes, or none; with zeros before the first number
        {shape_of(2, 30, 40, 20, 3, 1, 2, 1, 0, 0, A::relu), false, true},
        {shape_of(2, 30, 20, 20, 3, 1, 2, 1, 0, 0, A::relu), false, false},
        {shape_of(2, 30, 14, 20, 3, 1, 1, 1, 0, 0, A::relu), false, false},
        {shape_of(2, 30, 13, 20, 3, 2, 1, 2, 0, 0, A::relu), false, true},
        // a run for each tap
        {shape_of(2, 40, 72, 20, 3, 1, 2, 2, 0, 0, A::identity), false, true},
        // channels first
        {shape_of(2, 40, 70, 20, 2, 1, 1, 1, 0, 0, A::identity), true, true},
        // wide tiles, several of them, split and not
        {shape_of(1, 540, 24, 70, 2, 1, 0, 1, 0, 0, A::relu), false, false},
        {shape_of(5, 150, 24, 130, 2, 1, 1, 1, 0, 0, A::identity), false, true},
        {shape_of(4, 140, 9, 130, 2, 1, 1, 1, 0, 0, A::identity), true, true},
        // pools within wide and narrow tiles, and larger than a tile
        {shape_of(3, 150, 24, 130, 3, 1, 1, 1, 2, 2, A::relu), false, true},
        {shape_of(2, 100, 24, 20, 3, 1, 1, 1, 5, 3, A::relu), true, true},
        {shape_of(1, 300, 8, 20, 3, 1, 1, 1, 90, 40, A::relu), false, false},
        // more filters than a tile, no channel
        {shape_of(2, 20, 16, 200, 1, 3, 0, 1, 0, 0, A::relu), false, false},
        {shape_of(2, 9, 0, 5, 2, 1, 0, 1, 0, 0, A::identity), false, false},
    };
}

// As GPUs may: threads in either order, since each hides some missing barrier, and blocks all at
// once or a few that take what there is by turns.
class Turns {
 public:
    ~Turns() { set(Order::forwards, 0x7FFFFFFF); }
    void next() {
        ++turn_;
        set(turn_ % 2 == 0 ? Order::forwards : Order::backwards,
            turn_ / 2 % 2 == 0 ? 3 : 0x7FFFFFFF);
    }

 private:
    static void set(Order order, int64_t most_blocks) {
        cuda::emulated::order = order;
        cuda::emulated::most_blocks = most_blocks;
    }
    int turn_ = 0;
};

template <class T>
void run_in_tiles(const Problem& exact, Turns& turns) {
    turns.next();
    run_on_gpu<T>(exact, How{Kernels::fast, false}, tolerance<T>());
    if (std::is_same_v<T, float>) {
        turns.next();
        run_on_gpu<T>(exact, How{Kernels::fast, true}, 2 * epsilon<Float16>());
    }
}

TEST(emulated_cuda_convolution_agrees_with_its_definition) {
    Turns turns;
    for (const Case& test : cases()) {
        const Problem exact(test);
        const auto run = [&](auto element) {
            using T = decltype(element);
            turns.next();
            run_on_gpu<T>(exact, How{Kernels::simple, false}, tolerance<T>());
        };
        run(float());
        run(double());
        run(Bfloat16());
        run(Float16());
        run_in_tiles<float>(exact, turns);
        run_in_tiles<Bfloat16>(exact, turns);
    }
}

TEST(emulated_cuda_convolution_in_tiles_agrees_with_its_definition) {
    Turns turns;
    for (const Case& test : tiled_cases()) {
        const Problem exact(test);
        run_in_tiles<float>(exact, turns);
        run_in_tiles<Bfloat16>(exact, turns);
        run_in_tiles<Float16>(exact, turns);
    }
}

}  // namespace
}  // namespace seqkernels::testing
