// The kernels by vectors that kernels in tiles leave work to. kernels_avx512.cpp compiles them for
// all; what includes this need not compile them again.
#pragma once

#include "kernel_table.h"
#include "vector_avx512.h"
#include "weight_gradient.h"

namespace seqkernels {

using FloatVector = Avx512Vector<float>;

extern template void
convolution_forward_of<ConvolutionWindows<FloatVector, VectorProduct<FloatVector>>>(
    const ConvolutionForward<float>&, const uint8_t*, int);
extern template void convolution_backward<FloatVector>(const ConvolutionBackward<float>&, int);
extern template void convolution_backward<FloatVector>(const ConvolutionBackward<Bfloat16>&, int);
extern template void convolution_backward<FloatVector>(const ConvolutionBackward<Float16>&, int);
extern template void convolution_backward_by_winners<FloatVector>(const ConvolutionBackward<float>&,
                                                                  int);
extern template void convolution_backward_by_winners<FloatVector>(
    const ConvolutionBackward<Bfloat16>&, int);
extern template void convolution_backward_by_winners<FloatVector>(
    const ConvolutionBackward<Float16>&, int);
extern template void convolution_bank_input_gradient<FloatVector>(
    const ConvolutionBackward<Bfloat16>*, int64_t, int);
extern template void convolution_bank_input_gradient<FloatVector>(
    const ConvolutionBackward<Float16>*, int64_t, int);
extern template void recurrence_forward_by<FloatVector, VectorProduct<FloatVector>>(
    const RecurrenceForward<float>&, int);
extern template void
recurrence_backward_by<FloatVector, VectorProduct<FloatVector>, WeightGradient<FloatVector>>(
    const RecurrenceBackward<float>&, int);

}  // namespace seqkernels
