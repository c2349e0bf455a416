#include "convolution_tiled.h"

namespace seqkernels::cuda {
namespace {

template <int rows, int columns>
using Product = MatrixUnitProduct<Float16, rows, columns>;

}  // namespace

template <>
void convolution_in_tiles(const ConvolutionForward<Float16>& call, const ConvolutionPlan& plan,
                          bool, Float16* packed, const PartialWinners& partial, void* stream) {
    run_tiled<Float16, Product>(call, plan, packed, partial, stream);
}

}  // namespace seqkernels::cuda
