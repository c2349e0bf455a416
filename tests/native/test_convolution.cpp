// The convolution kernels against loops over the definition, in arrays of exactly the size they
// need.
#include "convolution_problem.h"

namespace seqkernels::testing {
namespace {

template <class Kernels>
void run_case(const Problem& exact, const Kernels& kernels, int threads) {
    const auto forward = [&](const auto& call) { kernels.convolution_forward(call, threads); };
    const auto backward = [&](const auto& call) { kernels.convolution_backward(call, threads); };
    using T = typename Kernels::Number;
    run_case<T>(exact, forward, backward);
}

TEST(convolution_agrees_with_its_definition) {
    for (const Case& test : cases()) {
        const Problem exact(test);
        for_each_isa([&](const std::string&, const KernelTable& table) {
            for (const int threads : {1, 3}) {
                run_case(exact, table.float32, threads);
                run_case(exact, table.float64, threads);
                run_case(exact, table.bfloat16, threads);
                run_case(exact, table.float16, threads);
            }
        });
    }
}

TEST(convolution_ties_go_to_the_first_window_and_nan_wins) {
    const ConvolutionShape s = shape_of(1, 6, 1, 1, 1, 1, 0, 1, 0, 0, Activation::identity);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const float infinity = std::numeric_limits<float>::infinity();
    struct Expected {
        std::vector<float> input;
        int32_t winner;
    };
    for (const Expected& expected : {Expected{{1, 3, 2, 3, 3, 0}, 1},
                                     {{1, nan, 9, nan, 3, 0}, 1},
                                     {std::vector<float>(6, -infinity), 0},
                                     {{-infinity, -infinity, -5, -6, -5, -7}, 2}}) {
        for_each_isa([&](const std::string&, const KernelTable& table) {
            const float weight = 1;
            float output = 0;
            int32_t argmax = -2;
            ConvolutionForward<float> call{};
            call.shape = s;
            call.input = {expected.input.data(), 6, 1, 1};
            call.weight = {&weight, 1, 1, 1};
            call.output = &output;
            call.output_stride_batch = call.output_stride_pooled = call.output_stride_filter = 1;
            call.argmax = &argmax;
            table.float32.convolution_forward(call, 1);
            CHECK(argmax == expected.winner);
            const float value = expected.input[static_cast<std::size_t>(expected.winner)];
            CHECK(std::isnan(value) ? std::isnan(output) : output == value);
        });
    }
}

}  // namespace
}  // namespace seqkernels::testing
