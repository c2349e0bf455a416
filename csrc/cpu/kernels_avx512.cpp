#include "vector_kernels_avx512.h"

namespace seqkernels {

template void convolution_forward_of<ConvolutionWindows<FloatVector, VectorProduct<FloatVector>>>(
    const ConvolutionForward<float>&, const uint8_t*, int);
template void convolution_backward<FloatVector>(const ConvolutionBackward<float>&, int);
template void convolution_backward<FloatVector>(const ConvolutionBackward<Bfloat16>&, int);
template void convolution_backward<FloatVector>(const ConvolutionBackward<Float16>&, int);
template void convolution_backward_by_winners<FloatVector>(const ConvolutionBackward<float>&, int);
template void convolution_backward_by_winners<FloatVector>(const ConvolutionBackward<Bfloat16>&,
                                                           int);
template void convolution_backward_by_winners<FloatVector>(const ConvolutionBackward<Float16>&,
                                                           int);
template void convolution_bank_input_gradient<FloatVector>(const ConvolutionBackward<Bfloat16>*,
                                                           int64_t, int);
template void convolution_bank_input_gradient<FloatVector>(const ConvolutionBackward<Float16>*,
                                                           int64_t, int);
template void recurrence_forward_by<FloatVector, VectorProduct<FloatVector>>(
    const RecurrenceForward<float>&, int);
template void recurrence_backward_by<FloatVector, VectorProduct<FloatVector>,
                                     WeightGradient<FloatVector>>(const RecurrenceBackward<float>&,
                                                                  int);

const KernelTable* avx512_kernels() { return &TableFor<Avx512Vector>::table; }

}  // namespace seqkernels
