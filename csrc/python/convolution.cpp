// Face of the CPU's convolution kernels.
#include <cstdint>
#include <string>
#include <vector>

#include "convolution_face.h"
#include "cpu/isa.h"
#include "cpu_where.h"
#include "module.h"

namespace seqkernels {
namespace {

struct Cpu {
    using Where = CpuWhere;

    static const int64_t* lengths(const OptionalView& view, int64_t batch, int64_t longest) {
        return expect_lengths(view, batch, longest);
    }

    template <class T>
    static void forward(const ConvolutionForward<T>& call, const CpuWhere& where, int) {
        const CpuPlace place = place_of(where);
        const pybind11::gil_scoped_release release;
        active_kernels().at<T>(place.precision).convolution_forward(call, place.threads);
    }

    template <class T>
    static void backward(const ConvolutionBackward<T>& call, const CpuWhere& where, int) {
        const CpuPlace place = place_of(where);
        const pybind11::gil_scoped_release release;
        active_kernels().at<T>(place.precision).convolution_backward(call, place.threads);
    }
};

using Face = ConvolutionFace<Cpu>;

// What lies in an array of all convolutions of a bank for one of them: columns [first, first +
// filters) of (N, F).
TensorView columns_of(const TensorView& all, int64_t first, int64_t filters) {
    TensorView part = all;
    part.sizes[1] = filters;
    const int64_t offset = first * all.strides[1];
    with_element_type("output", all, [&](auto element) {
        part.data = static_cast<decltype(element)*>(all.data) + offset;
    });
    return part;
}

// The same of one after another, (N * F,), contiguous.
TensorView block_of(const char* name, const TensorView& all, int64_t batch, int64_t first,
                    int64_t filters, int64_t of_all) {
    expect_contiguous(name, all, DataType::int32, {checked_product({batch, of_all})});
    TensorView part = all;
    part.data = static_cast<int32_t*>(all.data) + batch * first;
    part.dimensions = 2;
    part.sizes[0] = batch;
    part.sizes[1] = part.strides[0] = filters;
    part.strides[1] = 1;
    return part;
}

void expect_count(const char* name, std::size_t given, std::size_t count) {
    if (given != count) {
        throw std::invalid_argument(std::string(name) + ": expected " + std::to_string(count) +
                                    ", one for each weight, got " + std::to_string(given));
    }
}

using Geometries = std::vector<GivenGeometry>;

const TensorView& weight_of(const TensorViews& weights, std::size_t i) {
    if (!weights.views[i]) throw pybind11::type_error("weights: expected tensors, got None");
    return *weights.views[i];
}

// Filters of all weights, whose shapes are checked; geometries are over all time.
int64_t filters_of_bank(const TensorView& input, const TensorViews& weights,
                        const Geometries& geometries, const std::string& activation) {
    const std::size_t count = weights.views.size();
    expect_at_least("weights: count", static_cast<int64_t>(count), 1);
    expect_count("geometries", geometries.size(), count);
    int64_t filters = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const ConvolutionShape shape =
            checked_shape(input, weight_of(weights, i), Face::unpacked(geometries[i]), activation);
        filters = checked_sum(filters, shape.filters);
        if (shape.pool_size != 0) {
            throw std::invalid_argument(
                "geometries: expected pooling over all time, got a pool of " +
                std::to_string(shape.pool_size));
        }
    }
    return filters;
}

// Several convolutions of the same input, each pooled over all time, the filters of all side by
// side: output (N, F), argmax (N * F,), of one convolution after another (N, its filters).
void bank_forward(const TensorView& input, const TensorViews& weights, const TensorViews& biases,
                  const OptionalView& lengths, const TensorView& output, const OptionalView& argmax,
                  const Geometries& geometries, const std::string& activation,
                  const CpuWhere& where) {
    const int64_t filters = filters_of_bank(input, weights, geometries, activation);
    const int64_t batch = input.sizes[0];
    const std::size_t count = weights.views.size();
    if (!biases.views.empty()) expect_count("biases", biases.views.size(), count);
    expect("output", output, input.dtype, {batch, filters});
    expect_distinct_elements("output", output);
    const CpuPlace place = place_of(where);
    with_element_type("input", input, [&](auto element) {
        using T = decltype(element);
        std::vector<ConvolutionForward<T>> calls;
        calls.reserve(count);
        int64_t first = 0;
        for (std::size_t i = 0; i < count; ++i) {
            const TensorView& weight = weight_of(weights, i);
            const int64_t own = weight.sizes[0];
            const OptionalView bias = biases.views.empty() ? OptionalView() : biases.views[i];
            const OptionalView winners =
                argmax ? block_of("argmax", *argmax, batch, first, own, filters) : OptionalView();
            calls.push_back(Face::forward_call<T>(input, weight, bias, lengths,
                                                  columns_of(output, first, own), winners,
                                                  geometries[i], activation));
            first += own;
        }
        const pybind11::gil_scoped_release release;
        active_kernels()
            .at<T>(place.precision)
            .convolution_bank_forward(calls.data(), static_cast<int64_t>(count), place.threads);
    });
}

// Their gradients; grad_input is the sum of all.
void bank_backward(const TensorView& grad_output, const TensorView& output,
                   const TensorView& argmax, const TensorView& input, const TensorViews& weights,
                   const OptionalView& lengths, const OptionalView& grad_input,
                   const TensorViews& grad_weights, const TensorViews& grad_biases,
                   const Geometries& geometries, const std::string& activation,
                   const CpuWhere& where) {
    const int64_t filters = filters_of_bank(input, weights, geometries, activation);
    const int64_t batch = input.sizes[0];
    const std::size_t count = weights.views.size();
    expect_count("grad_weights", grad_weights.views.size(), count);
    expect_count("grad_biases", grad_biases.views.size(), count);
    expect("grad_output", grad_output, input.dtype, {batch, filters});
    expect("output", output, input.dtype, {batch, filters});
    const CpuPlace place = place_of(where);
    with_element_type("input", input, [&](auto element) {
        using T = decltype(element);
        std::vector<ConvolutionBackward<T>> calls;
        calls.reserve(count);
        int64_t first = 0;
        for (std::size_t i = 0; i < count; ++i) {
            const TensorView& weight = weight_of(weights, i);
            const int64_t own = weight.sizes[0];
            calls.push_back(Face::backward_call<T>(
                columns_of(grad_output, first, own), columns_of(output, first, own),
                block_of("argmax", argmax, batch, first, own, filters), input, weight, lengths,
                grad_input, grad_weights.views[i], grad_biases.views[i], geometries[i],
                activation));
            first += own;
        }
        const pybind11::gil_scoped_release release;
        const Operations<T>& kernels = active_kernels().at<T>(place.precision);
        kernels.convolution_bank_input_gradient(calls.data(), static_cast<int64_t>(count),
                                                place.threads);
        for (ConvolutionBackward<T>& call : calls) {
            call.grad_input = nullptr;
            kernels.convolution_backward(call, place.threads);
        }
    });
}

}  // namespace

void define_convolution(pybind11::module_& module) {
    Face::define(module);
    module.def("conv1d_max_pool_bank_forward", &bank_forward);
    module.def("conv1d_max_pool_bank_backward", &bank_backward);
}

}  // namespace seqkernels
