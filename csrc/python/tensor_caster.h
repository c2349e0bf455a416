// Python arrays as TensorView arguments of pybind11 functions.
//
// The view comes from DLPack's C exchange API (the `__dlpack_c_exchange_api__` attribute of a
// tensor's type, torch >= 2.10): no torch header, nothing linked, no ownership taken. It is valid
// for the call.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "core/tensor_view.h"

namespace seqkernels {

// The kind of device (dlpack.h) whose arrays this module takes, and its name for messages: each
// module defines its own.
extern const int32_t module_device_type;
extern const char* const module_device_name;

// The view of a Python array. Returns false for an object that is no such array; raises ValueError
// for one that is not on the module's device, of another dtype than DataType lists, or of too many
// dimensions.
bool view_of(pybind11::handle object, TensorView& view);

// The views of a list or tuple of arrays and Nones, all of which live until the call is over,
// whatever else is done to the list meanwhile.
struct TensorViews {
    pybind11::tuple owners;
    std::vector<std::optional<TensorView>> views;
};

}  // namespace seqkernels

namespace pybind11::detail {

template <>
struct type_caster<seqkernels::TensorView> {
    PYBIND11_TYPE_CASTER(seqkernels::TensorView, const_name("torch.Tensor"));
    bool load(handle source, bool) { return seqkernels::view_of(source, value); }
};

template <>
struct type_caster<seqkernels::TensorViews> {
    PYBIND11_TYPE_CASTER(seqkernels::TensorViews, const_name("list[torch.Tensor | None]"));
    bool load(handle source, bool) {
        if (!PyList_Check(source.ptr()) && !PyTuple_Check(source.ptr())) return false;
        value.owners = tuple(reinterpret_borrow<object>(source));
        for (const handle item : value.owners) {
            seqkernels::TensorView view;
            if (item.is_none()) {
                value.views.emplace_back();
            } else if (seqkernels::view_of(item, view)) {
                value.views.emplace_back(view);
            } else {
                return false;
            }
        }
        return true;
    }
};

}  // namespace pybind11::detail
