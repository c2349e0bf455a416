// The ISAs with a fused multiply-add compute the same bits: every sum is one chain in the same
// order.
#include <algorithm>

#include "check.h"

namespace seqkernels::testing {
namespace {

template <class T>
std::vector<T> convolve(const Kernels<T>& kernels) {
    ConvolutionShape shape{};
    shape.batch = 3, shape.length = 41, shape.channels = 19, shape.filters = 37;
    shape.kernel_size = 3, shape.stride = shape.dilation = 1, shape.pooled = 1;
    shape.padding_left = shape.padding_right = 1;
    shape.activation = Activation::tanh;
    const auto input = random_numbers<T>(3 * 41 * 19, 1),
               weight = random_numbers<T>(37 * 19 * 3, 2), bias = random_numbers<T>(37, 3),
               grad_output = random_numbers<T>(3 * 37, 4);
    std::vector<T> output(3 * 37), grad_input(input.size()), grad_weight(weight.size()),
        grad_bias(37);
    std::vector<int32_t> argmax(3 * 37);
    ConvolutionForward<T> forward{};
    forward.shape = shape;
    forward.input = {input.data(), 41 * 19, 19, 1};
    forward.weight = {weight.data(), 19 * 3, 3, 1};
    forward.bias = bias.data();
    forward.output = output.data();
    forward.output_stride_batch = forward.output_stride_pooled = 37;
    forward.output_stride_filter = 1;
    forward.argmax = argmax.data();
    kernels.convolution_forward(forward, 1);
    ConvolutionBackward<T> backward{};
    backward.shape = shape;
    backward.input = forward.input;
    backward.weight = forward.weight;
    backward.grad_output = grad_output.data();
    backward.output = output.data();
    backward.grad_output_stride_batch = backward.output_stride_batch = 37;
    backward.grad_output_stride_pooled = backward.output_stride_pooled = 37;
    backward.grad_output_stride_filter = backward.output_stride_filter = 1;
    backward.argmax = argmax.data();
    backward.grad_input = grad_input.data();
    backward.grad_weight = grad_weight.data();
    backward.grad_bias = grad_bias.data();
    kernels.convolution_backward(backward, 1);
    for (const auto* part : {&grad_input, &grad_weight, &grad_bias}) {
        output.insert(output.end(), part->begin(), part->end());
    }
    return output;
}

template <class T>
std::vector<T> recur(const Kernels<T>& kernels) {
    const RecurrenceShape shape{6, 7, 21, 35, RecurrentCell::lstm, false};
    const int64_t states = 7 * 35, outputs = 6 * states;
    const auto input = random_numbers<T>(6 * 7 * 21, 1), initial = random_numbers<T>(states, 2),
               weight_ih = random_numbers<T>(140 * 21, 3), bias = random_numbers<T>(140, 5),
               weight_hh = random_numbers<T>(140 * 35, 4), grad = random_numbers<T>(outputs, 6);
    std::vector<T> output(outputs), final_hidden(states), final_cell(states), gates(4 * outputs),
        cells(outputs), grad_input(input.size()), grad_hidden(states), grad_cell(states),
        grad_weight_ih(weight_ih.size()), grad_weight_hh(weight_hh.size()), grad_bias(140);
    RecurrenceForward<T> forward{};
    forward.shape = shape;
    forward.input = {input.data(), 7 * 21, 21};
    forward.initial_hidden = forward.initial_cell = initial.data();
    forward.weight_ih = {weight_ih.data(), 21, 1};
    forward.weight_hh = {weight_hh.data(), 35, 1};
    forward.bias_ih = bias.data();
    forward.output = output.data();
    forward.output_stride = shape.hidden;
    forward.final_hidden = final_hidden.data();
    forward.final_cell = final_cell.data();
    forward.gates = gates.data();
    forward.cells = cells.data();
    kernels.recurrence_forward(forward, 1);
    RecurrenceBackward<T> backward{};
    backward.shape = shape;
    backward.input = forward.input;
    backward.initial_hidden = backward.initial_cell = initial.data();
    backward.weight_ih = forward.weight_ih;
    backward.weight_hh = forward.weight_hh;
    backward.output = output.data();
    backward.gates = gates.data();
    backward.cells = cells.data();
    backward.grad_output = grad.data();
    backward.grad_input = grad_input.data();
    backward.grad_initial_hidden = grad_hidden.data();
    backward.grad_initial_cell = grad_cell.data();
    backward.grad_weight_ih = grad_weight_ih.data();
    backward.grad_weight_hh = grad_weight_hh.data();
    backward.grad_bias = grad_bias.data();
    kernels.recurrence_backward(backward, 1);
    for (const auto* part : {&final_cell, &grad_input, &grad_hidden, &grad_cell, &grad_weight_ih,
                             &grad_weight_hh, &grad_bias}) {
        output.insert(output.end(), part->begin(), part->end());
    }
    return output;
}

TEST(isas_with_fused_multiply_add_agree_to_the_bit) {
    const std::vector<std::string> isas = available_isas();
    if (std::find(isas.begin(), isas.end(), "avx512") == isas.end()) {
        std::puts("skip   this machine has no avx512 to compare with avx2:");
        return;
    }
    const KernelTable &narrow = kernels_of("avx2"), &wide = kernels_of("avx512");
    CHECK(convolve(narrow.float32) == convolve(wide.float32));
    CHECK(convolve(narrow.float64) == convolve(wide.float64));
    CHECK(recur(narrow.float32) == recur(wide.float32));
    CHECK(recur(narrow.float64) == recur(wide.float64));
}

}  // namespace
}  // namespace seqkernels::testing
