#include "convolution_tiled.h"

namespace seqkernels::cuda {
namespace {

template <int rows, int columns>
using Tf32Product = MatrixUnitProduct<float, rows, columns>;

}  // namespace

template <>
void convolution_in_tiles(const ConvolutionForward<float>& call, const ConvolutionPlan& plan,
                          bool tf32, float* packed, const PartialWinners& partial, void* stream) {
    if (tf32) {
        run_tiled<float, Tf32Product>(call, plan, packed, partial, stream);
    } else {
        run_tiled<float, MultiplyAddProduct>(call, plan, packed, partial, stream);
    }
}

}  // namespace seqkernels::cuda
