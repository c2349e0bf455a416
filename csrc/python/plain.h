// Whether a call needs nothing but its kernel: what torch's dispatcher would be asked for.
//
// Of torch only a handful of Python objects is known, which Python hands over when it is imported;
// asking them from here spares a call of a few us the interpreter's steps in between.
#pragma once

#include <pybind11/pybind11.h>

namespace seqkernels {

// Whether all of `count` arguments are plain tensors, which need no gradient if so asked, or of
// `others`, types, null for None's alone; and no mode, transform or trace is on. A tensor with the
// negative bit is not plain: its memory holds the values with the other sign. Nor, where others may
// be, is what looks like a tensor but has no memory: a batch of gradients, zeros that autograd has
// not made yet, one that a transform has left behind.
bool are_plain(PyObject* const* arguments, Py_ssize_t count, PyObject* others,
               bool without_gradient);

// Whether the tensors, or None, are plain and no derivative of either mode can be wanted.
bool need_only_kernel(PyObject* const* tensors, Py_ssize_t count);

// torch.empty_like(tensor), and torch.get_num_threads().
pybind11::object empty_like(pybind11::handle tensor);
int thread_count();

}  // namespace seqkernels
