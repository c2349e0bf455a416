// Face of the CUDA convolution kernels.
#include "convolution_face.h"
#include "cuda/convolution.h"
#include "cuda_module.h"
#include "cuda_where.h"

namespace seqkernels {
namespace {

namespace py = pybind11;

struct Cuda {
    using Where = CudaWhere;

    // Lengths stay on the device: the kernels bring them into [0, L].
    static const int64_t* lengths(const OptionalView& view, int64_t batch, int64_t) {
        return contiguous_data<int64_t>("lengths", view, DataType::int64, {batch});
    }

    template <class T>
    static void forward(const ConvolutionForward<T>& call, const Where& where, int device) {
        const cuda::How how = how_of(where);
        const int64_t bytes = cuda::scratch_bytes(call, how, device);
        const cuda::Where place = place_of(where, bytes, device);
        const py::gil_scoped_release release;
        cuda::convolution_forward(call, how, place);
    }

    template <class T>
    static void backward(const ConvolutionBackward<T>& call, const Where& where, int device) {
        const cuda::How how = how_of(where);
        const int64_t bytes = cuda::scratch_bytes(call, how, device);
        const cuda::Where place = place_of(where, bytes, device);
        const py::gil_scoped_release release;
        cuda::convolution_backward(call, how, place);
    }

    static cuda::How how_of(const Where& where) {
        return {kernels_named(std::get<2>(where)), std::get<3>(where)};
    }
};

// Bytes of scratch that a call needs, a multiple of 256.
template <template <class> class Call>
int64_t scratch_of(const TensorView& input, const TensorView& weight,
                   const std::array<int64_t, 6>& geometry, const std::string& kernels) {
    const cuda::How how{kernels_named(kernels), false};
    int64_t bytes = 0;
    with_element_type("input", input, [&](auto element) {
        Call<decltype(element)> call{};
        call.shape =
            checked_shape(input, weight, ConvolutionFace<Cuda>::unpacked(geometry), "identity");
        call.input = sequence_view(input);
        bytes = cuda::scratch_bytes(call, how, input.device);
    });
    return bytes;
}

}  // namespace

void define_cuda_convolution(py::module_& module) {
    module.def("conv1d_max_pool_forward_scratch", &scratch_of<ConvolutionForward>);
    module.def("conv1d_max_pool_backward_scratch", &scratch_of<ConvolutionBackward>);
    ConvolutionFace<Cuda>::define(module);
}

}  // namespace seqkernels
