#include "convolution_tiled.h"

namespace seqkernels::cuda {

template <>
void convolution_in_tiles(const ConvolutionForward<float>& call, const ConvolutionPlan& plan,
                          bool tf32, const TiledScratch<float>& scratch, void* stream) {
    if (tf32) {
        run_tiled<float, InMatrixUnits<float>::Product>(call, plan, scratch, stream);
    } else {
        run_tiled<float, MultiplyAddProduct>(call, plan, scratch, stream);
    }
}

}  // namespace seqkernels::cuda
