// What a kernel is given, and the table of kernels that each ISA fills.
//
// Sizes and strides count elements. Who calls a kernel has checked them: the pointers cover what
// the shapes say, and no output overlaps another array.
#pragma once

#include <cstdint>

#include "../core/convolution.h"
#include "../core/parallel.h"
#include "../core/recurrence.h"
#include "../core/stored.h"

namespace seqkernels {

template <class T>
struct RecurrenceInput {
    const T* data;         // (T, N, I), unit stride between inputs
    int64_t stride_step;   // of packed sequences not read
    int64_t stride_batch;  // between rows
};

// Sequences are packed where batch_sizes are given: of each step, in order of time, only the
// samples that it has, the longest first. What is said to be (T, N, ...) then is (rows, ...), as
// many rows as batch_sizes add up to.

template <class T>
struct RecurrenceForward {
    RecurrenceShape shape;
    RecurrenceInput<T> input;
    const T* initial_hidden;  // (N, H) contiguous, or null for zeros
    const T* initial_cell;    // (N, H) contiguous, or null for zeros; null without a cell state
    Matrix weight_ih;         // (G H, I)
    Matrix weight_hh;         // (G H, H)
    const T* bias_ih;         // (G H,) contiguous, or null
    const T* bias_hh;         // (G H,) contiguous, or null
    const int64_t* lengths;   // (N,) contiguous, or null
    // (T,) contiguous, at least 1, none larger than the one before, the first N; or null. Then
    // there are no lengths.
    const int64_t* batch_sizes;
    T* output;              // (T, N, H), written whole
    int64_t output_stride;  // between its rows, H or more
    T* final_hidden;        // (N, H) contiguous, or null if it is not wanted
    T* final_cell;          // (N, H) contiguous; null without a cell state
    // (T, N, G H) contiguous: where an LSTM leaves the gates after their activations for the
    // backward, given together with `cells`, else null. Not written where lengths end.
    Accumulator<T>* gates;
    Accumulator<T>* cells;  // (T, N, H) contiguous: every cell state, for the backward; or null
    // Of a call on one thread, while others run: how many steps of the input another one has made,
    // and where to say how many of the output there are. Null where all are there, and nobody waits
    // (of 16-bit types, and of a single step, always).
    const AwaitedCount* input_steps;
    AwaitedCount* output_steps;
};

template <class T>
struct RecurrenceBackward {
    RecurrenceShape shape;
    RecurrenceInput<T> input;
    const T* initial_hidden;  // (N, H) contiguous, or null for zeros
    const T* initial_cell;    // (N, H) contiguous, or null for zeros; null without a cell state
    Matrix weight_ih;
    Matrix weight_hh;
    const int64_t* lengths;
    const int64_t* batch_sizes;
    const T* output;              // (T, N, H), as the forward wrote it
    const Accumulator<T>* gates;  // (T, N, G H), as the forward left it; not read without a cell
                                  // state
    const Accumulator<T>* cells;  // (T, N, H); null without a cell state
    const T* grad_output;         // (T, N, H) contiguous, or null for zeros
    const T* grad_final_hidden;   // (N, H) contiguous, or null for zeros
    const T* grad_final_cell;     // (N, H) contiguous, or null for zeros
    T* grad_input;                // (T, N, I) contiguous, written whole; or null
    T* grad_initial_hidden;       // (N, H) contiguous, or null
    T* grad_initial_cell;         // (N, H) contiguous, or null; null without a cell state
    T* grad_weight_ih;            // (G H, I) contiguous, written whole; or null
    T* grad_weight_hh;            // (G H, H) contiguous, written whole; or null
    T* grad_bias;                 // (G H,), the gradient of either bias, written whole; or null
};

template <class T>
struct Operations {
    using Number = T;

    void (*convolution_forward)(const ConvolutionForward<T>&, int threads);
    void (*convolution_backward)(const ConvolutionBackward<T>&, int threads);
    // Several calls over the same input and lengths, all pooled over time.
    void (*convolution_bank_forward)(const ConvolutionForward<T>* calls, int64_t count,
                                     int threads);
    // Of several such calls the sum of their gradients of the input, into the grad_input of the
    // first; nothing where that is null.
    void (*convolution_bank_input_gradient)(const ConvolutionBackward<T>* calls, int64_t count,
                                            int threads);
    void (*recurrence_forward)(const RecurrenceForward<T>&, int threads);
    void (*recurrence_backward)(const RecurrenceBackward<T>&, int threads);
};

template <class T>
struct Kernels : Operations<T> {
    // sigmoid and tanh over `count` contiguous numbers, for the tests of the vector math
    void (*sigmoid)(const T* source, T* target, int64_t count);
    void (*tanh)(const T* source, T* target, int64_t count);
    // what the machine can do, for the benchmark: see machine_rates.h
    double (*multiply_adds)(int64_t repetitions, T* result);
    void (*read_all)(const T* source, int64_t count, T* result);
};

template <class T>
struct SixteenBitKernels : Operations<T> {
    // conversions of `count` contiguous numbers, for their tests
    void (*widen)(const T* source, float* target, int64_t count);
    void (*narrow)(const float* source, T* target, int64_t count);
};

// How float32 is multiplied where there is a choice: in bfloat16 planes (tile_product.h), three of
// which hold a number whole, or by vectors.
enum class FloatPrecision { highest, high, medium };

struct KernelTable {
    Kernels<float> float32;
    Operations<float> float32_high, float32_medium;
    Kernels<double> float64;
    SixteenBitKernels<Bfloat16> bfloat16;
    SixteenBitKernels<Float16> float16;
    // For the benchmark: `repetitions` rounds of products of ones in bfloat16 as they are summed up
    // in float32, in registers; null where there is no such instruction. Returns the FLOPs done;
    // *result is one of the sums.
    double (*bfloat16_products)(int64_t repetitions, float* result) = nullptr;

    template <class T>
    const auto& of() const {
        if constexpr (std::is_same_v<T, float>) {
            return float32;
        } else if constexpr (std::is_same_v<T, double>) {
            return float64;
        } else if constexpr (std::is_same_v<T, Bfloat16>) {
            return bfloat16;
        } else {
            return float16;
        }
    }
    template <class T>
    const Operations<T>& at(FloatPrecision precision) const {
        if constexpr (std::is_same_v<T, float>) {
            if (precision == FloatPrecision::high) return float32_high;
            if (precision == FloatPrecision::medium) return float32_medium;
        }
        return of<T>();
    }
};

// One per translation unit.
const KernelTable* scalar_kernels();
const KernelTable* avx2_kernels();
const KernelTable* avx512_kernels();
const KernelTable* avx512_bf16_kernels();
const KernelTable* amx_kernels();

}  // namespace seqkernels
