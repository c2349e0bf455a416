// Whether a call needs nothing but its kernel: what torch's dispatcher would be asked for.
//
// Of torch only a handful of Python objects is known, which Python hands over when it is imported;
// asking them from here spares a call of a few us the interpreter's steps in between.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

namespace seqkernels {

// Whether a gradient of any of `count` tensors, or None's, is wanted; nothing where more than the
// kernels may be: one is no plain tensor, or a mode, a transform, a trace or forward mode is on. A
// tensor with the negative bit is not plain: its memory holds the values with the other sign.
std::optional<bool> want_gradient(PyObject* const* tensors, Py_ssize_t count);

// torch.empty_like(tensor), and torch.get_num_threads().
pybind11::object empty_like(pybind11::handle tensor);
int thread_count();

}  // namespace seqkernels
