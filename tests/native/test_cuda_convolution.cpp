// The CUDA kernels of the convolution, on an emulated GPU.
#include "convolution_problem.h"
#include "cuda/convolution.h"
#include "cuda/device.h"
#include "cuda/warpgroup.h"

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
        with_scratch(cuda::scratch_bytes(call, how, 0),
                     [&](const auto& where) { cuda::convolution_backward(call, how, where); });
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
        // gradients as dense products: overlapping pools and pools with gaps, several tiles and
        // samples of several steps, copies of 16 and 8 bytes and none, little padding and no more
        // than fits
        {shape_of(5, 75, 48, 40, 3, 1, 1, 1, 2, 2, A::relu), false, true},
        {shape_of(2, 160, 36, 33, 5, 1, 2, 2, 3, 1, A::identity), false, true},
        {shape_of(3, 40, 33, 130, 2, 1, 1, 3, 2, 5, A::relu), true, true},
        {shape_of(2, 35, 140, 36, 3, 1, 0, 1, 4, 3, A::identity), false, false},
        {shape_of(0, 35, 32, 32, 3, 1, 0, 1, 2, 2, A::relu), false, false},
        // gradients by winners: more than a block lists at once of filters, and of samples; large
        // pools
        {shape_of(2, 70, 13, 300, 3, 1, 1, 1, 0, 0, A::relu), false, true},
        {shape_of(290, 6, 8, 3, 2, 1, 0, 1, 0, 0, A::identity), false, true},
        {shape_of(3, 150, 130, 40, 3, 2, 1, 2, 30, 20, A::relu), true, true},
        // more filters than a tile, no channel
        {shape_of(2, 20, 16, 200, 1, 3, 0, 1, 0, 0, A::relu), false, false},
        {shape_of(2, 9, 0, 5, 2, 1, 0, 1, 0, 0, A::identity), false, false},
    };
}

// As GPUs may: threads in either order, since each hides some missing barrier, blocks all at once
// or a few that take what there is by turns, and copies that arrive early or late.
class Turns {
 public:
    ~Turns() {
        set(Order::forwards, 0x7FFFFFFF);
        cuda::emulated::copies_are_early = false;
    }
    void next() {
        ++turn_;
        set(turn_ % 2 == 0 ? Order::forwards : Order::backwards,
            turn_ / 2 % 2 == 0 ? 3 : 0x7FFFFFFF);
        cuda::emulated::copies_are_early = turn_ % 3 == 0;
    }

 private:
    static void set(Order order, int64_t most_blocks) {
        cuda::emulated::order = order;
        cuda::emulated::most_blocks = most_blocks;
    }
    int turn_ = 0;
};

// Cases that reach every path of the warpgroups' kernel, which takes 16-bit types where the stride
// is 1: every number of filters a block has, every way to read the input, the last chunk full and
// not, runs that end within a pool and not, pools within a tile and beyond one.
std::vector<Case> warpgroup_cases() {
    using A = Activation;
    return {
        // as in sentences; taps that read far from each other; one tap
        {shape_of(5, 30, 300, 100, 3, 1, 0, 1, 0, 0, A::relu), false, false},
        {shape_of(3, 56, 300, 100, 5, 1, 4, 1, 0, 0, A::relu), false, true},
        {shape_of(2, 130, 24, 40, 5, 1, 8, 16, 0, 0, A::identity), false, true},
        {shape_of(3, 130, 136, 33, 1, 1, 0, 1, 0, 0, A::identity), false, false},
        // repacked; rows aligned to 4 bytes; no channel
        {shape_of(3, 70, 7, 130, 3, 1, 2, 1, 0, 0, A::relu), false, true},
        {shape_of(3, 70, 66, 20, 3, 1, 1, 2, 0, 0, A::relu), false, true},
        {shape_of(2, 70, 40, 20, 2, 1, 1, 1, 0, 0, A::relu), true, true},
        {shape_of(2, 9, 0, 5, 2, 1, 0, 1, 0, 0, A::identity), false, false},
        // many tiles of 128 filters, runs that end within samples
        {shape_of(3, 500, 24, 128, 3, 1, 1, 1, 0, 0, A::identity), false, false},
        {shape_of(5, 300, 72, 120, 2, 1, 1, 1, 0, 0, A::identity), false, true},
        {shape_of(1, 900, 16, 20, 3, 1, 1, 1, 0, 0, A::relu), false, false},
        // room for 2, 3, 4 and more stages
        {shape_of(17, 12, 300, 10, 16, 1, 8, 1, 0, 0, A::relu), false, true},
        {shape_of(17, 12, 300, 10, 12, 1, 8, 1, 0, 0, A::relu), false, true},
        {shape_of(17, 12, 300, 10, 9, 1, 8, 1, 0, 0, A::relu), false, true},
        {shape_of(17, 12, 300, 10, 7, 1, 8, 1, 0, 0, A::relu), false, true},
        // samples with a window and without by turns, several in a run
        {shape_of(40, 13, 24, 40, 3, 1, 0, 1, 0, 0, A::identity), false, true},
        {shape_of(40, 13, 24, 40, 3, 1, 0, 1, 2, 2, A::identity), false, true},
        // more tiles of filters than multiprocessors
        {shape_of(2, 40, 200, 300, 5, 1, 2, 1, 0, 0, A::relu), false, true},
        // small pools, apart and overlapping; larger ones
        {shape_of(3, 150, 24, 130, 3, 1, 1, 1, 2, 2, A::relu), false, true},
        {shape_of(2, 100, 24, 20, 3, 1, 1, 1, 3, 1, A::relu), false, true},
        {shape_of(7, 200, 32, 128, 3, 1, 1, 1, 3, 3, A::identity), false, false},
        {shape_of(2, 300, 8, 20, 3, 1, 1, 1, 90, 40, A::relu), false, true},
        // from registers: pools of one window, and of two whose last is left over; activations
        {shape_of(3, 150, 24, 130, 3, 1, 1, 1, 1, 1, A::relu), false, true},
        {shape_of(2, 97, 24, 40, 3, 1, 1, 1, 1, 1, A::identity), false, true},
        {shape_of(3, 151, 24, 128, 3, 1, 1, 1, 2, 2, A::identity), false, true},
        {shape_of(3, 131, 24, 16, 2, 1, 1, 1, 2, 2, A::relu), true, true},
        {shape_of(5, 300, 72, 120, 2, 1, 1, 1, 2, 2, A::relu), false, true},
        {shape_of(5, 300, 72, 120, 2, 1, 1, 1, 3, 2, A::identity), false, true},
        {shape_of(2, 70, 24, 33, 3, 1, 1, 1, 2, 2, A::tanh), false, true},
        {shape_of(2, 70, 24, 36, 3, 1, 1, 1, 1, 1, A::sigmoid), false, true},
        // filters that do not fit in shared memory: not for this kernel
        {shape_of(1, 32, 500, 20, 30, 1, 0, 1, 0, 0, A::relu), false, false},
    };
}

// Forward of numbers whose sums are exact, so that there are ties; of NaN and infinities.
template <class T>
void check_winners(const ConvolutionShape& shape, bool ragged) {
    const auto draw = [](int64_t count, uint32_t seed, int extremes) {
        std::vector<T> numbers(static_cast<std::size_t>(count));
        for (T& number : numbers) {
            seed = seed * 1664525u + 1013904223u;
            const uint32_t drawn = seed >> 16;
            float value = static_cast<float>(drawn % 3) - 1;
            if (extremes > 0 && drawn % 1009 < static_cast<uint32_t>(extremes)) {
                value = drawn % 2 == 0 ? NAN : -INFINITY;
            }
            number = rounded_to<T>(value);
        }
        return numbers;
    };
    for (const int extremes : {0, 3, 900}) {
        const std::vector<T> input = draw(shape.batch * shape.length * shape.channels, 1, extremes);
        const std::vector<T> weight =
            draw(shape.filters * shape.channels * shape.kernel_size, 2, 0);
        const std::vector<T> bias = draw(shape.filters, 3, 0);
        std::vector<int64_t> lengths;
        for (int64_t n = 0; n < shape.batch; ++n) lengths.push_back(n * 29 % (shape.length + 1));
        const auto outputs = static_cast<std::size_t>(shape.batch * shape.pooled * shape.filters);
        // The simple kernel's, then for each way the output may lie, with argmax and without.
        enum class Layout { simple, filters_last, filters_last_with_gaps, filters_first };
        std::vector<T> expected;
        std::vector<int32_t> expected_windows;
        for (const Layout layout : {Layout::simple, Layout::filters_last,
                                    Layout::filters_last_with_gaps, Layout::filters_first}) {
            const bool is_simple = layout == Layout::simple;
            const bool is_first = layout == Layout::filters_first;
            const int64_t width =
                shape.filters + (layout == Layout::filters_last_with_gaps ? 3 : 0);
            for (const bool has_argmax : {true, false}) {
                if (is_simple && !has_argmax) continue;
                // How the output lies has little to do with what is in it.
                const bool is_usual = layout == Layout::filters_last && has_argmax;
                if (!is_simple && !is_usual && extremes != 3) continue;
                std::vector<T> output(static_cast<std::size_t>(shape.batch * shape.pooled * width));
                std::vector<int32_t> argmax(outputs);
                ConvolutionForward<T> call{};
                call.shape = shape;
                call.input = {input.data(), shape.length * shape.channels, shape.channels, 1};
                call.weight = {weight.data(), shape.channels * shape.kernel_size, shape.kernel_size,
                               1};
                call.bias = bias.data();
                call.lengths = ragged ? lengths.data() : nullptr;
                call.output = output.data();
                call.output_stride_batch = shape.pooled * width;
                call.output_stride_pooled = is_first ? 1 : width;
                call.output_stride_filter = is_first ? shape.pooled : 1;
                call.argmax = has_argmax ? argmax.data() : nullptr;
                const How how{is_simple ? Kernels::simple : Kernels::fast, false};
                std::vector<char> scratch(
                    static_cast<std::size_t>(cuda::scratch_bytes(call, how, 0)) + 256);
                char* aligned =
                    scratch.data() + 256 - reinterpret_cast<uintptr_t>(scratch.data()) % 256;
                cuda::convolution_forward(call, how, cuda::Where{0, nullptr, aligned});
                if (is_simple) {
                    expected = output;
                    expected_windows = argmax;
                    continue;
                }
                if (has_argmax) CHECK(argmax == expected_windows);
                bool are_equal = true;
                for (int64_t i = 0; i < static_cast<int64_t>(outputs); ++i) {
                    const int64_t filter = i % shape.filters,
                                  pool = i / shape.filters % shape.pooled,
                                  sample = i / shape.filters / shape.pooled;
                    const float wanted = widen(expected[static_cast<std::size_t>(i)]);
                    const float found = widen(output[static_cast<std::size_t>(
                        sample * call.output_stride_batch + pool * call.output_stride_pooled +
                        filter * call.output_stride_filter)]);
                    are_equal =
                        are_equal && (wanted == found || (std::isnan(wanted) && std::isnan(found)));
                }
                CHECK(are_equal);
            }
        }
    }
}

template <class T>
void run_in_tiles(const Problem& exact, Turns& turns) {
    for (const bool has_warpgroups : {false, true}) {
        if (has_warpgroups && !is_sixteen_bit<T>) continue;
        cuda::emulated::has_warpgroups = has_warpgroups;
        turns.next();
        run_on_gpu<T>(exact, How{Kernels::fast, false}, tolerance<T>());
    }
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
        if (!is_watched) run_in_tiles<Float16>(exact, turns);
    }
}

TEST(emulated_cuda_convolution_in_warpgroups_agrees_with_its_definition) {
    Turns turns;
    cuda::emulated::has_warpgroups = true;
    for (const Case& test : warpgroup_cases()) {
        const Problem exact(test);
        const bool is_large = test.shape.kernel_size * test.shape.channels > 2000;
        for (int turn = 0; turn < (is_large || is_watched ? 1 : 2); ++turn) {
            turns.next();
            run_on_gpu<Bfloat16>(exact, How{Kernels::fast, false}, tolerance<Bfloat16>());
        }
        if (is_watched) continue;
        turns.next();
        run_on_gpu<Float16>(exact, How{Kernels::fast, false}, tolerance<Float16>());
    }
}

TEST(emulated_cuda_convolution_finds_the_first_of_equal_windows_and_not_a_number) {
    Turns turns;
    using A = Activation;
    for (const bool has_warpgroups : {false, true}) {
        cuda::emulated::has_warpgroups = has_warpgroups;
        for (const bool ragged : {false, true}) {
            for (const ConvolutionShape& shape : {
                     shape_of(5, 200, 8, 40, 3, 1, 1, 1, 0, 0, A::identity),
                     shape_of(3, 400, 4, 128, 2, 1, 1, 1, 0, 0, A::identity),
                     shape_of(2, 100, 8, 40, 3, 1, 1, 1, 3, 2, A::identity),
                     shape_of(2, 300, 8, 40, 3, 1, 1, 1, 100, 50, A::identity),
                     shape_of(3, 101, 8, 128, 3, 1, 1, 1, 2, 2, A::relu),
                     shape_of(3, 100, 8, 35, 3, 1, 1, 1, 2, 2, A::identity),
                     shape_of(3, 77, 8, 36, 3, 1, 1, 1, 1, 1, A::relu),
                     shape_of(2, 80, 8, 33, 3, 1, 1, 1, 1, 1, A::identity),
                     shape_of(2, 90, 8, 66, 3, 1, 1, 1, 4, 4, A::relu),
                 }) {
                turns.next();
                check_winners<Bfloat16>(shape, ragged);
                if (is_watched) continue;
                turns.next();
                check_winners<Float16>(shape, ragged);
            }
        }
    }
}

}  // namespace
}  // namespace seqkernels::testing
