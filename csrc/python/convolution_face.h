// Face of the convolution kernels of any device: checks and unpacks views.
//
// A Device says what its kernels are told besides the tensors (Where), how it comes by lengths, and
// runs what has been checked:
//   lengths(view, batch, longest), forward(call, where, device), backward(call, where, device)
#pragma once

#include <array>
#include <string>

#include "core/checked.h"
#include "core/convolution.h"
#include "expect.h"
#include "tensor_caster.h"

namespace seqkernels {

inline Activation activation_named(const std::string& name) {
    if (name == "identity") return Activation::identity;
    if (name == "relu") return Activation::relu;
    if (name == "tanh") return Activation::tanh;
    if (name == "sigmoid") return Activation::sigmoid;
    throw std::invalid_argument("activation: expected identity, relu, tanh or sigmoid, got '" +
                                name + "'");
}

// The integers of a convolution, as Python hands them over.
struct Geometry {
    int64_t stride;
    int64_t padding_left;
    int64_t padding_right;
    int64_t dilation;
    int64_t pool_size;
    int64_t pool_stride;
};

inline ConvolutionShape checked_shape(const TensorView& input, const TensorView& weight,
                                      const Geometry& geometry, const std::string& activation) {
    expect_dimensions("input", input, 3);
    expect_dimensions("weight", weight, 3);
    expect("weight", weight, input.dtype, {weight.sizes[0], input.sizes[2], weight.sizes[2]});
    expect_at_least("kernel_size", weight.sizes[2], 1);
    expect_at_least("stride", geometry.stride, 1);
    expect_at_least("dilation", geometry.dilation, 1);
    expect_at_least("padding_left", geometry.padding_left, 0);
    expect_at_least("padding_right", geometry.padding_right, 0);
    expect_at_least("pool_size", geometry.pool_size, 0);
    expect_at_least("pool_stride", geometry.pool_stride, geometry.pool_size == 0 ? 0 : 1);

    ConvolutionShape shape{};
    shape.batch = input.sizes[0];
    shape.length = input.sizes[1];
    shape.channels = input.sizes[2];
    shape.filters = weight.sizes[0];
    shape.kernel_size = weight.sizes[2];
    shape.stride = geometry.stride;
    shape.padding_left = geometry.padding_left;
    shape.padding_right = geometry.padding_right;
    shape.dilation = geometry.dilation;
    shape.pool_size = geometry.pool_size;
    shape.pool_stride = geometry.pool_stride;
    shape.activation = activation_named(activation);

    // A window's number is stored in 32 bits; with every factor below 2^31, sums of two products of
    // two of them fit in 64.
    expect_32_bits("length", shape.length);
    expect_32_bits("kernel_size", shape.kernel_size);
    expect_32_bits("stride", shape.stride);
    expect_32_bits("dilation", shape.dilation);
    expect_32_bits("padding", shape.padding_left);
    expect_32_bits("padding", shape.padding_right);
    expect_32_bits("pool_size", shape.pool_size);
    expect_32_bits("pool_stride", shape.pool_stride);
    expect_32_bits("length with padding", shape.length + shape.padding_left + shape.padding_right);
    checked_product({shape.batch, shape.length, shape.channels, int64_t(sizeof(double))});
    checked_product({shape.filters, shape.kernel_size, shape.channels, int64_t(sizeof(double))});
    const int64_t windows = shape.windows(shape.length);
    shape.pooled = shape.pool_size == 0 ? 1 : shape.pools(windows);
    checked_product({shape.batch, shape.pooled, shape.filters, int64_t(sizeof(double))});
    return shape;
}

inline SequenceView sequence_view(const TensorView& view) {
    return {{view.data, view.dtype}, view.strides[0], view.strides[1], view.strides[2]};
}

inline ConvolutionWeight weight_view(const TensorView& view) {
    return {{view.data, view.dtype}, view.strides[0], view.strides[1], view.strides[2]};
}

// Dtype and shape of what has a number for each pooled position and filter: (N, P, F), or (N, F)
// where the pooling is over all time.
inline void expect_pooled(const char* name, const TensorView& view, DataType dtype,
                          const ConvolutionShape& shape) {
    if (shape.pool_size == 0) {
        expect(name, view, dtype, {shape.batch, shape.filters});
    } else {
        expect(name, view, dtype, {shape.batch, shape.pooled, shape.filters});
    }
}

// The distance of one pooled position of such a tensor from the next; of a single one any will do.
inline int64_t stride_pooled(const TensorView& view) {
    return view.dimensions == 3 ? view.strides[1] : 0;
}

inline int64_t stride_filter(const TensorView& view) { return view.strides[view.dimensions - 1]; }

// Its data where it is contiguous, null where it is absent.
inline int32_t* winners_data(const char* name, const OptionalView& view,
                             const ConvolutionShape& shape) {
    if (!view) return nullptr;
    expect_pooled(name, *view, DataType::int32, shape);
    expect_contiguous(name, *view);
    return static_cast<int32_t*>(view->data);
}

// stride, padding_left, padding_right, dilation, pool_size, pool_stride
using GivenGeometry = std::array<int64_t, 6>;

template <class Device>
class ConvolutionFace {
    using Where = typename Device::Where;

 public:
    // What a kernel is given of these views, all checked; T: the type of input's elements.
    template <class T>
    static ConvolutionForward<T> forward_call(const TensorView& input, const TensorView& weight,
                                              const OptionalView& bias, const OptionalView& lengths,
                                              const TensorView& output, const OptionalView& argmax,
                                              const GivenGeometry& geometry,
                                              const std::string& activation) {
        const ConvolutionShape shape = checked_shape(input, weight, unpacked(geometry), activation);
        expect_device(input.device, {{"weight", &weight},
                                     {"bias", if_there(bias)},
                                     {"lengths", if_there(lengths)},
                                     {"output", &output},
                                     {"argmax", if_there(argmax)}});
        ConvolutionForward<T> call{};
        call.shape = shape;
        call.input = sequence_view(input);
        call.weight = weight_view(weight);
        call.bias = contiguous_data<T>("bias", bias, input.dtype, {shape.filters});
        call.lengths = Device::lengths(lengths, shape.batch, shape.length);
        expect_pooled("output", output, input.dtype, shape);
        expect_distinct_elements("output", output);
        call.output = static_cast<T*>(output.data);
        call.output_stride_batch = output.strides[0];
        call.output_stride_pooled = stride_pooled(output);
        call.output_stride_filter = stride_filter(output);
        call.argmax = winners_data("argmax", argmax, shape);
        return call;
    }

    template <class T>
    static ConvolutionBackward<T> backward_call(
        const TensorView& grad_output, const TensorView& output, const TensorView& argmax,
        const TensorView& input, const TensorView& weight, const OptionalView& lengths,
        const OptionalView& grad_input, const OptionalView& grad_weight,
        const OptionalView& grad_bias, const GivenGeometry& geometry,
        const std::string& activation) {
        const ConvolutionShape shape = checked_shape(input, weight, unpacked(geometry), activation);
        expect_device(input.device, {{"grad_output", &grad_output},
                                     {"output", &output},
                                     {"argmax", &argmax},
                                     {"weight", &weight},
                                     {"lengths", if_there(lengths)},
                                     {"grad_input", if_there(grad_input)},
                                     {"grad_weight", if_there(grad_weight)},
                                     {"grad_bias", if_there(grad_bias)}});
        ConvolutionBackward<T> call{};
        call.shape = shape;
        call.input = sequence_view(input);
        call.weight = weight_view(weight);
        call.lengths = Device::lengths(lengths, shape.batch, shape.length);
        expect_pooled("grad_output", grad_output, input.dtype, shape);
        expect_pooled("output", output, input.dtype, shape);
        call.argmax = winners_data("argmax", argmax, shape);
        call.grad_output = static_cast<const T*>(grad_output.data);
        call.grad_output_stride_batch = grad_output.strides[0];
        call.grad_output_stride_pooled = stride_pooled(grad_output);
        call.grad_output_stride_filter = stride_filter(grad_output);
        call.output = static_cast<const T*>(output.data);
        call.output_stride_batch = output.strides[0];
        call.output_stride_pooled = stride_pooled(output);
        call.output_stride_filter = stride_filter(output);
        call.grad_input = contiguous_data<T>("grad_input", grad_input, input.dtype,
                                             {shape.batch, shape.length, shape.channels});
        call.grad_weight = contiguous_data<T>("grad_weight", grad_weight, input.dtype,
                                              {shape.filters, shape.channels, shape.kernel_size});
        call.grad_bias = contiguous_data<T>("grad_bias", grad_bias, input.dtype, {shape.filters});
        return call;
    }

    static void forward(const TensorView& input, const TensorView& weight, const OptionalView& bias,
                        const OptionalView& lengths, const TensorView& output,
                        const OptionalView& argmax, const GivenGeometry& geometry,
                        const std::string& activation, const Where& where) {
        with_element_type("input", input, [&](auto element) {
            const auto call = forward_call<decltype(element)>(input, weight, bias, lengths, output,
                                                              argmax, geometry, activation);
            Device::forward(call, where, input.device);
        });
    }

    static void backward(const TensorView& grad_output, const TensorView& output,
                         const TensorView& argmax, const TensorView& input,
                         const TensorView& weight, const OptionalView& lengths,
                         const OptionalView& grad_input, const OptionalView& grad_weight,
                         const OptionalView& grad_bias, const GivenGeometry& geometry,
                         const std::string& activation, const Where& where) {
        with_element_type("input", input, [&](auto element) {
            const auto call = backward_call<decltype(element)>(
                grad_output, output, argmax, input, weight, lengths, grad_input, grad_weight,
                grad_bias, geometry, activation);
            Device::backward(call, where, input.device);
        });
    }

    static Geometry unpacked(const GivenGeometry& g) {
        return {g[0], g[1], g[2], g[3], g[4], g[5]};
    }

    static void define(pybind11::module_& module) {
        module.def("conv1d_max_pool_forward", &forward);
        module.def("conv1d_max_pool_backward", &backward);
    }
};

}  // namespace seqkernels
