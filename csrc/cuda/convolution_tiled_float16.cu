#include "convolution_tiled.h"

namespace seqkernels::cuda {

template <>
void convolution_in_tiles(const ConvolutionForward<Float16>& call, const ConvolutionPlan& plan,
                          bool, const TiledScratch<Float16>& scratch, void* stream) {
    run_tiled<Float16, InMatrixUnits<Float16>::Product>(call, plan, scratch, stream);
}

}  // namespace seqkernels::cuda
