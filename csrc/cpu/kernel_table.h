// The kernels of one ISA, instantiated for its vectors.
#pragma once

#include "convolution_backward.h"
#include "convolution_bank_forward.h"
#include "convolution_bank_input_gradient.h"
#include "convolution_forward.h"
#include "kernels.h"
#include "machine_rates.h"
#include "recurrence_backward.h"
#include "recurrence_forward.h"
#include "sixteen_bit.h"
#include "vector_math.h"

namespace seqkernels {

template <class Vector>
void sigmoid_of(const typename Vector::Element* source, typename Vector::Element* target,
                int64_t count) {
    for (int64_t i = 0; i < count; i += Vector::width) {
        store_up_to(sigmoid(load_up_to<Vector>(source + i, count - i)), target + i, count - i);
    }
}

template <class Vector>
void tanh_of(const typename Vector::Element* source, typename Vector::Element* target,
             int64_t count) {
    for (int64_t i = 0; i < count; i += Vector::width) {
        store_up_to(hyperbolic_tangent(load_up_to<Vector>(source + i, count - i)), target + i,
                    count - i);
    }
}

template <class Vector>
constexpr Kernels<typename Vector::Element> kernels_for() {
    return {{convolution_forward<Vector>, convolution_backward<Vector>,
             convolution_bank_forward<Vector>, convolution_bank_input_gradient<Vector>,
             recurrence_forward<Vector>, recurrence_backward<Vector>},
            sigmoid_of<Vector>,
            tanh_of<Vector>,
            multiply_add_chains<Vector>,
            read_all<Vector>};
}

template <template <class> class VectorOf>
struct TableFor {
    static constexpr KernelTable table{kernels_for<VectorOf<float>>(),
                                       kernels_for<VectorOf<float>>(),
                                       kernels_for<VectorOf<float>>(),
                                       kernels_for<VectorOf<double>>(),
                                       sixteen_bit_kernels<VectorOf<float>, Bfloat16>(),
                                       sixteen_bit_kernels<VectorOf<float>, Float16>()};
};

}  // namespace seqkernels
