// The kernels of the 16-bit types: those of float32, between conversions.
//
// What a float32 kernel packs anyway (a convolution's input, all weights) it is given as it is
// stored, and widens it there; the backward of a convolution reads and writes numbers of its type
// itself, and so do recurrences of bfloat16 in tiles, which multiply it as it is stored. All
// else is widened first, and the results are narrowed at the end.
// So sums, states, gates and running gradients are float32, and each result is rounded once. What
// is read after rounding: by the backward, the output (a recurrence's states, and what derivatives
// are made of); bfloat16 in tiles (tile_product.h), all that is multiplied, and a
// recurrence's gradients of gates where they are summed up as the biases'.
//
// Scratch, owned by the call: the float32 of what is widened and narrowed: a convolution's bias and
// output; a recurrence's input, output, states, biases and all gradients, but for those in tiles.
//
// Cost: the float32 kernel's, and 6 bytes for each number converted.
#pragma once

#include <cstdint>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "convolution_backward.h"
#include "convolution_bank_forward.h"
#include "convolution_bank_input_gradient.h"
#include "convolution_forward.h"
#include "product.h"
#include "recurrence_backward.h"
#include "recurrence_forward.h"

namespace seqkernels {

// Calls function(Range) for parts of [0, count), whole units of them, on several threads if there
// are numbers enough to convert.
template <class Function>
inline void share_out(int64_t count, int64_t unit, int64_t numbers, int threads,
                      Function&& function) {
    constexpr int64_t least_numbers = 1 << 15;  // below, they are converted before threads awake
    run_parallel(numbers < least_numbers ? 1 : threads,
                 [&](int thread, int granted) { function(part_of(count, unit, thread, granted)); });
}

// The float32 of `count` contiguous numbers; null for null.
template <class Vector, class Narrow>
class WidenedNumbers {
 public:
    WidenedNumbers(const Narrow* source, int64_t count, int threads)
        : numbers_(source == nullptr ? 0 : count), is_null_(source == nullptr) {
        if (is_null_) return;
        share_out(count, Vector::width, count, threads, [&](Range part) {
            convert_numbers<Vector>(source + part.begin, numbers_.data() + part.begin,
                                    part.end - part.begin);
        });
    }
    const float* data() const { return is_null_ ? nullptr : numbers_.data(); }

 private:
    const Scratch<float> numbers_;
    const bool is_null_;
};

// Where a kernel leaves `count` numbers for a contiguous target; null for null.
template <class Vector, class Narrow>
class NarrowedNumbers {
 public:
    NarrowedNumbers(Narrow* target, int64_t count)
        : target_(target), count_(target == nullptr ? 0 : count), numbers_(count_) {}
    float* data() const { return target_ == nullptr ? nullptr : numbers_.data(); }
    void finish(int threads) const {
        share_out(count_, Vector::width, count_, threads, [&](Range part) {
            convert_numbers<Vector>(numbers_.data() + part.begin, target_ + part.begin,
                                    part.end - part.begin);
        });
    }

 private:
    Narrow* const target_;
    const int64_t count_;
    const Scratch<float> numbers_;
};

// Pooled outputs, (N, P, F), and strides between them.
struct PooledStrides {
    int64_t batch;
    int64_t pooled;
    int64_t filter;
};

// Calls function(place, strided place) for each row of filters of a contiguous (N, P, F).
template <class Function>
inline void for_each_pooled(const ConvolutionShape& shape, const PooledStrides& strides,
                            int threads, Function&& function) {
    const int64_t rows = shape.batch * shape.pooled;
    share_out(rows, 1, rows * shape.filters, threads, [&](Range part) {
        for (int64_t row = part.begin; row < part.end; ++row) {
            const int64_t place =
                row / shape.pooled * strides.batch + row % shape.pooled * strides.pooled;
            function(row * shape.filters, place);
        }
    });
}

template <class Vector, class Narrow>
inline void narrow_pooled(const ConvolutionShape& shape, const float* source, Narrow* target,
                          const PooledStrides& strides, int threads) {
    for_each_pooled(shape, strides, threads, [&](int64_t contiguous, int64_t strided) {
        const float* from = source + contiguous;
        if (strides.filter == 1) {
            return convert_numbers<Vector>(from, target + strided, shape.filters);
        }
        for (int64_t f = 0; f < shape.filters; ++f) {
            narrow(from[f], target[strided + f * strides.filter]);
        }
    });
}

template <class Vector, class Narrow, class Product>
void sixteen_bit_convolution_forward(const ConvolutionForward<Narrow>& call, int threads) {
    const ConvolutionShape& shape = call.shape;
    const WidenedNumbers<Vector, Narrow> bias(call.bias, shape.filters, threads);
    const Scratch<float> output(checked_product({shape.batch, shape.pooled, shape.filters}));
    ConvolutionForward<float> wide{};
    wide.shape = shape;
    wide.input = call.input;
    wide.weight = call.weight;
    wide.bias = bias.data();
    wide.lengths = call.lengths;
    wide.output = output.data();
    wide.output_stride_batch = shape.pooled * shape.filters;
    wide.output_stride_pooled = shape.filters;
    wide.output_stride_filter = 1;
    wide.argmax = call.argmax;
    convolution_forward<Vector, Product>(wide, threads);
    narrow_pooled<Vector>(
        shape, output.data(), call.output,
        {call.output_stride_batch, call.output_stride_pooled, call.output_stride_filter}, threads);
}

// A sequence batch's float32, (T, N, I) contiguous, or packed as it is.
template <class Vector, class Narrow>
class WidenedSequences {
 public:
    WidenedSequences(const RecurrenceShape& shape, const int64_t* batch_sizes,
                     const RecurrenceInput<Narrow>& input, int threads)
        : shape_(shape), numbers_(checked_product({rows_of(shape, batch_sizes), shape.inputs})) {
        const int64_t rows = rows_of(shape, batch_sizes);
        const int64_t together = batch_sizes == nullptr ? shape.batch : rows;
        share_out(rows, 1, rows * shape.inputs, threads, [&](Range part) {
            for (int64_t row = part.begin; row < part.end; ++row) {
                const Narrow* source = input.data + row / together * input.stride_step +
                                       row % together * input.stride_batch;
                convert_numbers<Vector>(source, numbers_.data() + row * shape.inputs, shape.inputs);
            }
        });
    }
    RecurrenceInput<float> view() const {
        return {numbers_.data(), shape_.batch * shape_.inputs, shape_.inputs};
    }

 private:
    const RecurrenceShape& shape_;
    const Scratch<float> numbers_;
};

template <class Vector, class Narrow, class Product>
void sixteen_bit_recurrence_forward(const RecurrenceForward<Narrow>& call, int threads) {
    if constexpr (Product::template multiplies_as_stored<Narrow>) {
        if (Product::pays_for(call.shape)) {
            return recurrence_forward_by<Vector, Product>(call, threads);
        }
    }
    using Widened = WidenedNumbers<Vector, Narrow>;
    using Narrowed = NarrowedNumbers<Vector, Narrow>;
    const RecurrenceShape& shape = call.shape;
    const int64_t states = shape.batch * shape.hidden, rows = shape.gates() * shape.hidden;
    const WidenedSequences<Vector, Narrow> input(shape, call.batch_sizes, call.input, threads);
    const Widened initial_hidden(call.initial_hidden, states, threads);
    const Widened initial_cell(call.initial_cell, states, threads);
    const Widened bias_ih(call.bias_ih, rows, threads), bias_hh(call.bias_hh, rows, threads);
    const int64_t sequence_rows = rows_of(shape, call.batch_sizes);
    const Scratch<float> output(checked_product({sequence_rows, shape.hidden}));
    const Narrowed final_hidden(call.final_hidden, states), final_cell(call.final_cell, states);
    RecurrenceForward<float> wide{};
    wide.shape = shape;
    wide.input = input.view();
    wide.initial_hidden = initial_hidden.data();
    wide.initial_cell = initial_cell.data();
    wide.weight_ih = call.weight_ih;
    wide.weight_hh = call.weight_hh;
    wide.bias_ih = bias_ih.data();
    wide.bias_hh = bias_hh.data();
    wide.lengths = call.lengths;
    wide.batch_sizes = call.batch_sizes;
    wide.output = output.data();
    wide.output_stride = shape.hidden;
    wide.final_hidden = final_hidden.data();
    wide.final_cell = final_cell.data();
    wide.gates = call.gates;
    wide.cells = call.cells;
    recurrence_forward<Vector, Product>(wide, threads);
    share_out(sequence_rows, 1, sequence_rows * shape.hidden, threads, [&](Range part) {
        for (int64_t row = part.begin; row < part.end; ++row) {
            convert_numbers<Vector>(output.data() + row * shape.hidden,
                                    call.output + row * call.output_stride, shape.hidden);
        }
    });
    for (const Narrowed* result : {&final_hidden, &final_cell}) result->finish(threads);
}

template <class Vector, class Narrow, class Product, class Gradient>
void sixteen_bit_recurrence_backward(const RecurrenceBackward<Narrow>& call, int threads) {
    if constexpr (Product::template multiplies_as_stored<Narrow>) {
        if (Product::pays_for(call.shape)) {
            return recurrence_backward_by<Vector, Product, Gradient>(call, threads);
        }
    }
    using Widened = WidenedNumbers<Vector, Narrow>;
    using Narrowed = NarrowedNumbers<Vector, Narrow>;
    const RecurrenceShape& shape = call.shape;
    const int64_t states = shape.batch * shape.hidden, rows = shape.gates() * shape.hidden;
    const int64_t sequence_rows = rows_of(shape, call.batch_sizes);
    const int64_t outputs = checked_product({sequence_rows, shape.hidden});
    const WidenedSequences<Vector, Narrow> input(shape, call.batch_sizes, call.input, threads);
    const Widened initial_hidden(call.initial_hidden, states, threads);
    const Widened initial_cell(call.initial_cell, states, threads);
    const Widened output(call.output, outputs, threads);
    const Widened grad_output(call.grad_output, outputs, threads);
    const Widened grad_final_hidden(call.grad_final_hidden, states, threads);
    const Widened grad_final_cell(call.grad_final_cell, states, threads);
    const Narrowed grad_input(call.grad_input, checked_product({sequence_rows, shape.inputs}));
    const Narrowed grad_initial_hidden(call.grad_initial_hidden, states);
    const Narrowed grad_initial_cell(call.grad_initial_cell, states);
    const Narrowed grad_weight_ih(call.grad_weight_ih, checked_product({rows, shape.inputs}));
    const Narrowed grad_weight_hh(call.grad_weight_hh, checked_product({rows, shape.hidden}));
    const Narrowed grad_bias(call.grad_bias, rows);
    RecurrenceBackward<float> wide{};
    wide.shape = shape;
    wide.input = input.view();
    wide.initial_hidden = initial_hidden.data();
    wide.initial_cell = initial_cell.data();
    wide.weight_ih = call.weight_ih;
    wide.weight_hh = call.weight_hh;
    wide.lengths = call.lengths;
    wide.batch_sizes = call.batch_sizes;
    wide.output = output.data();
    wide.gates = call.gates;
    wide.cells = call.cells;
    wide.grad_output = grad_output.data();
    wide.grad_final_hidden = grad_final_hidden.data();
    wide.grad_final_cell = grad_final_cell.data();
    wide.grad_input = grad_input.data();
    wide.grad_initial_hidden = grad_initial_hidden.data();
    wide.grad_initial_cell = grad_initial_cell.data();
    wide.grad_weight_ih = grad_weight_ih.data();
    wide.grad_weight_hh = grad_weight_hh.data();
    wide.grad_bias = grad_bias.data();
    recurrence_backward<Vector, Product, Gradient>(wide, threads);
    for (const Narrowed* result : {&grad_input, &grad_initial_hidden, &grad_initial_cell,
                                   &grad_weight_ih, &grad_weight_hh, &grad_bias}) {
        result->finish(threads);
    }
}

// Product: how the forward and recurrences multiply; Gradient: how their weights' gradients are
// made; backward: of a convolution.
template <class Vector, class Narrow, class Product = VectorProduct<Vector>,
          class Gradient = WeightGradient<Vector>,
          void (*backward)(const ConvolutionBackward<Narrow>&,
                           int) = convolution_backward<Vector, Narrow>>
constexpr SixteenBitKernels<Narrow> sixteen_bit_kernels() {
    constexpr auto forward = sixteen_bit_convolution_forward<Vector, Narrow, Product>;
    return {{forward, backward, convolution_bank_in_turns<Narrow, forward>,
             convolution_bank_input_gradient<Vector, Narrow>,
             sixteen_bit_recurrence_forward<Vector, Narrow, Product>,
             sixteen_bit_recurrence_backward<Vector, Narrow, Product, Gradient>},
            convert_numbers<Vector, Narrow, float>,
            convert_numbers<Vector, float, Narrow>};
}

}  // namespace seqkernels
