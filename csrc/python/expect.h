// Checks of what Python hands to a kernel: every size, stride and dtype, once, before anything
// runs. Each raises std::invalid_argument (ValueError) that names the argument, what was expected
// and what came.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/tensor_view.h"

namespace seqkernels {

using OptionalView = std::optional<TensorView>;

inline std::string shape_text(const int64_t* sizes, int count) {
    std::string text = "(";
    for (int i = 0; i < count; ++i) text += (i == 0 ? "" : ", ") + std::to_string(sizes[i]);
    return text + ")";
}

inline const char* dtype_name(DataType dtype) {
    switch (dtype) {
        case DataType::float32:
            return "float32";
        case DataType::float64:
            return "float64";
        case DataType::bfloat16:
            return "bfloat16";
        case DataType::float16:
            return "float16";
        case DataType::int32:
            return "int32";
        case DataType::int64:
            return "int64";
    }
    return "unknown";
}

inline void expect_at_least(const char* name, int64_t value, int64_t least) {
    if (value < least) {
        throw std::invalid_argument(std::string(name) + ": expected at least " +
                                    std::to_string(least) + ", got " + std::to_string(value));
    }
}

inline void expect_32_bits(const char* name, int64_t value) {
    constexpr int64_t largest = std::numeric_limits<int32_t>::max();
    if (value > largest) {
        throw std::invalid_argument(std::string(name) + ": expected at most " +
                                    std::to_string(largest) + ", got " + std::to_string(value));
    }
}

inline void expect_dimensions(const char* name, const TensorView& view, int dimensions) {
    if (view.dimensions != dimensions) {
        throw std::invalid_argument(std::string(name) + ": expected " + std::to_string(dimensions) +
                                    " dimensions, got shape " +
                                    shape_text(view.sizes, view.dimensions));
    }
}

// Dtype and shape; strides may be any.
inline void expect(const char* name, const TensorView& view, DataType dtype,
                   std::initializer_list<int64_t> sizes) {
    bool same = view.dtype == dtype && view.dimensions == static_cast<int>(sizes.size());
    for (int i = 0; same && i < view.dimensions; ++i) same = view.sizes[i] == sizes.begin()[i];
    if (!same) {
        throw std::invalid_argument(
            std::string(name) + ": expected " + dtype_name(dtype) + " of shape " +
            shape_text(sizes.begin(), static_cast<int>(sizes.size())) + ", got " +
            dtype_name(view.dtype) + " of shape " + shape_text(view.sizes, view.dimensions));
    }
}

// Elements side by side in the order of the shape.
inline void expect_contiguous(const char* name, const TensorView& view) {
    for (int i = 0; i < view.dimensions; ++i) {
        if (view.sizes[i] == 0) return;
    }
    int64_t stride = 1;
    for (int i = view.dimensions - 1; i >= 0; --i) {
        if (view.sizes[i] != 1 && view.strides[i] != stride) {
            throw std::invalid_argument(std::string(name) + ": expected contiguous strides, got " +
                                        shape_text(view.strides, view.dimensions));
        }
        stride *= view.sizes[i];
    }
}

// Dtype and shape as well.
inline void expect_contiguous(const char* name, const TensorView& view, DataType dtype,
                              std::initializer_list<int64_t> sizes) {
    expect(name, view, dtype, sizes);
    expect_contiguous(name, view);
}

// All that are there on one device.
inline void expect_device(int device,
                          std::initializer_list<std::pair<const char*, const TensorView*>> views) {
    for (const auto& [name, view] : views) {
        if (view != nullptr && view->device != device) {
            throw std::invalid_argument(std::string(name) + ": expected one on device " +
                                        std::to_string(device) + ", that of input, got " +
                                        std::to_string(view->device));
        }
    }
}

inline const TensorView* if_there(const OptionalView& view) { return view ? &*view : nullptr; }

// A tensor that is written with any strides must not hold one element twice.
inline void expect_distinct_elements(const char* name, const TensorView& view) {
    for (int i = 0; i < view.dimensions; ++i) {
        if (view.sizes[i] > 1 && view.strides[i] == 0) {
            throw std::invalid_argument(std::string(name) +
                                        ": expected distinct elements, got strides " +
                                        shape_text(view.strides, view.dimensions));
        }
    }
}

// The (N,) lengths of a batch, each within [0, longest]; null where there are none.
inline const int64_t* expect_lengths(const OptionalView& lengths, int64_t batch, int64_t longest) {
    if (!lengths) return nullptr;
    expect_contiguous("lengths", *lengths, DataType::int64, {batch});
    const int64_t* values = static_cast<const int64_t*>(lengths->data);
    for (int64_t n = 0; n < batch; ++n) {
        if (values[n] < 0 || values[n] > longest) {
            throw std::invalid_argument(
                "lengths: expected values from 0 to " + std::to_string(longest) + ", got " +
                std::to_string(values[n]) + " for sample " + std::to_string(n));
        }
    }
    return values;
}

// Data of a contiguous tensor, null where it is absent.
template <class T>
T* contiguous_data(const char* name, const OptionalView& view, DataType dtype,
                   std::initializer_list<int64_t> sizes) {
    if (!view) return nullptr;
    expect_contiguous(name, *view, dtype, sizes);
    return static_cast<T*>(view->data);
}

// Calls function(T()) with T the element type of `view`.
template <class Function>
void with_element_type(const char* name, const TensorView& view, Function&& function) {
    switch (view.dtype) {
        case DataType::float32:
            function(float());
            return;
        case DataType::float64:
            function(double());
            return;
        case DataType::bfloat16:
            function(Bfloat16());
            return;
        case DataType::float16:
            function(Float16());
            return;
        default:
            throw std::invalid_argument(std::string(name) +
                                        ": expected float32, float64, bfloat16 or float16, got " +
                                        dtype_name(view.dtype));
    }
}

}  // namespace seqkernels
