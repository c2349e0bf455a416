// The parts of the Python module for CUDA.
#pragma once

#include <pybind11/pybind11.h>

namespace seqkernels {

void define_cuda_convolution(pybind11::module_& module);
void define_cuda_recurrence(pybind11::module_& module);

}  // namespace seqkernels
