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

// Where the processor's kernels multiply otherwise than window by window.
std::vector<Case> cases_of_many_products() {
    using A = Activation;
    return {
        // windows multiplied together
        {shape_of(2, 50, 128, 129, 2, 1, 0, 1, 0, 0, A::relu), false, false},
        {shape_of(3, 70, 64, 65, 4, 1, 2, 1, 3, 3, A::relu), true, true},
        {shape_of(1, 150, 57, 65, 5, 1, 1, 1, 5, 2, A::identity), false, false},
        {shape_of(1, 99, 40, 64, 8, 1, 0, 1, 0, 0, A::identity), true, false},
        {shape_of(2, 31, 130, 68, 3, 1, 2, 1, 1, 1, A::tanh), true, true},
        {shape_of(3, 150, 65, 66, 3, 1, 1, 1, 2, 2, A::relu), true, false},
        {shape_of(2, 40, 128, 128, 2, 1, 0, 1, 1, 1, A::identity), false, true},
        // maxima chosen among rounded products
        {shape_of(2, 80, 48, 35, 3, 2, 3, 2, 0, 0, A::tanh), false, true},
        {shape_of(1, 450, 140, 19, 1, 1, 1, 1, 0, 0, A::relu), true, false},
        // many filters over short samples: the weights' gradient from copies
        {shape_of(17, 12, 35, 85, 3, 1, 0, 1, 0, 0, A::relu), false, true},
        {shape_of(41, 9, 40, 67, 5, 2, 0, 1, 0, 0, A::tanh), true, true},
    };
}

void check_cases(const std::vector<Case>& cases) {
    for (const Case& test : cases) {
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

TEST(convolution_agrees_with_its_definition) { check_cases(cases()); }
TEST(convolution_of_many_products_agrees_with_its_definition) {
    check_cases(cases_of_many_products());
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

// Three convolutions of the same input, of other filters, taps, strides and paddings.
template <class Kernels>
void check_bank(const Kernels& kernels, bool ragged, int threads) {
    using T = typename Kernels::Number;
    using A = Activation;
    std::vector<Problem> problems;
    for (const ConvolutionShape& shape : {shape_of(3, 21, 37, 19, 3, 1, 0, 1, 0, 0, A::relu),
                                          shape_of(3, 21, 37, 5, 2, 2, 3, 4, 0, 0, A::relu),
                                          shape_of(3, 21, 37, 33, 6, 1, 1, 1, 0, 0, A::relu)}) {
        problems.emplace_back(Case{shape, false, ragged});
    }
    std::vector<std::vector<T>> weights, outputs, gradients;
    std::vector<T> grad_input(problems[0].input.size());
    std::vector<double> expected(grad_input.size());
    std::vector<ConvolutionBackward<T>> calls;
    for (const Problem& problem : problems) {
        const ConvolutionShape& s = problem.shape;
        weights.push_back(converted<T>(problem.weight));
        outputs.push_back(converted<T>(problem.output));
        gradients.push_back(converted<T>(problem.grad_output));
        ConvolutionBackward<T> call{};
        call.shape = s;
        call.weight = {weights.back().data(), s.channels * s.kernel_size, s.kernel_size, 1};
        call.lengths = ragged ? problem.lengths.data() : nullptr;
        call.grad_output = gradients.back().data();
        call.output = outputs.back().data();
        call.grad_output_stride_batch = call.output_stride_batch = s.filters;
        call.grad_output_stride_pooled = call.output_stride_pooled = s.filters;
        call.grad_output_stride_filter = call.output_stride_filter = 1;
        call.argmax = problem.argmax.data();
        call.grad_input = grad_input.data();
        calls.push_back(call);
        for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += problem.grad_input[i];
    }
    kernels.convolution_bank_input_gradient(calls.data(), 3, threads);
    CHECK(relative_error(grad_input, expected) <= (is_sixteen_bit<T> ? 2 : 32) * epsilon<T>());
}

TEST(convolutions_of_one_input_add_up_to_its_gradient) {
    for_each_isa([](const std::string&, const KernelTable& table) {
        for (const bool ragged : {false, true}) {
            for (const int threads : {1, 3}) {
                check_bank(table.float32, ragged, threads);
                check_bank(table.float64, ragged, threads);
                check_bank(table.bfloat16, ragged, threads);
                check_bank(table.float16, ragged, threads);
            }
        }
    });
}

}  // namespace
}  // namespace seqkernels::testing
