// Face of the CPU's convolution kernels.
#include "convolution_face.h"
#include "cpu/isa.h"
#include "module.h"

namespace seqkernels {
namespace {

struct Cpu {
    using Where = int;  // threads

    static const int64_t* lengths(const OptionalView& view, int64_t batch, int64_t longest) {
        return expect_lengths(view, batch, longest);
    }

    template <class T>
    static void forward(const ConvolutionForward<T>& call, int threads, int) {
        expect_at_least("threads", threads, 1);
        const pybind11::gil_scoped_release release;
        active_kernels().of<T>().convolution_forward(call, threads);
    }

    template <class T>
    static void backward(const ConvolutionBackward<T>& call, int threads, int) {
        expect_at_least("threads", threads, 1);
        const pybind11::gil_scoped_release release;
        active_kernels().of<T>().convolution_backward(call, threads);
    }
};

}  // namespace

void define_convolution(pybind11::module_& module) { ConvolutionFace<Cpu>::define(module); }

}  // namespace seqkernels
