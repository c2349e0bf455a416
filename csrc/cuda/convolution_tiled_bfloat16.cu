#include "convolution_tiled.h"

namespace seqkernels::cuda {

template <>
void convolution_in_tiles(const ConvolutionForward<Bfloat16>& call, const ConvolutionPlan& plan,
                          bool, const TiledScratch<Bfloat16>& scratch, void* stream) {
    run_tiled<Bfloat16, InMatrixUnits<Bfloat16>::Product>(call, plan, scratch, stream);
}

}  // namespace seqkernels::cuda
