// Face of the CPU's convolution kernels.
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

}  // namespace

void define_convolution(pybind11::module_& module) { ConvolutionFace<Cpu>::define(module); }

}  // namespace seqkernels
