// The convolution kernels for CUDA: what csrc/core/convolution.h describes, with every pointer on
// one device and lengths beyond L counting as L, below 0 as 0 (their values are not known to the
// host).
//
// Work is queued in a stream and not waited for. Errors of the runtime are std::runtime_error.
#pragma once

#include <cstdint>

#include "../core/convolution.h"
#include "where.h"

namespace seqkernels::cuda {

struct How {
    Kernels kernels = Kernels::fast;
    bool tf32 = false;  // products of float32 in the matrix units, their operands rounded to TF32
};

template <class T>
int64_t scratch_bytes(const ConvolutionForward<T>& call, const How& how, int device);
template <class T>
void convolution_forward(const ConvolutionForward<T>& call, const How& how, const Where& where);

template <class T>
int64_t scratch_bytes(const ConvolutionBackward<T>& call, const How& how, int device);
template <class T>
void convolution_backward(const ConvolutionBackward<T>& call, const How& how, const Where& where);

}  // namespace seqkernels::cuda
