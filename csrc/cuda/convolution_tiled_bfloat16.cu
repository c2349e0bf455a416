#include "convolution_tiled.h"

namespace seqkernels::cuda {
namespace {

template <int rows, int columns>
using Product = MatrixUnitProduct<Bfloat16, rows, columns>;

}  // namespace

template <>
void convolution_in_tiles(const ConvolutionForward<Bfloat16>& call, const ConvolutionPlan& plan,
                          bool, Bfloat16* packed, const PartialWinners& partial, void* stream) {
    run_tiled<Bfloat16, Product>(call, plan, packed, partial, stream);
}

}  // namespace seqkernels::cuda
