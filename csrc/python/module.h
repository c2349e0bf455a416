// The parts of the Python module.
#pragma once

#include <pybind11/pybind11.h>

namespace seqkernels {

void define_plain(pybind11::module_& module);
void define_convolution(pybind11::module_& module);
void define_recurrence(pybind11::module_& module);
void define_recurrence_results(pybind11::module_& module);
void define_rates(pybind11::module_& module);

}  // namespace seqkernels
