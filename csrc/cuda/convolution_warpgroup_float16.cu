#include "convolution_warpgroup.h"

namespace seqkernels::cuda {

template <>
void convolution_in_warpgroups(const ConvolutionForward<Float16>& call, const ConvolutionPlan& plan,
                               const TiledScratch<Float16>& scratch, void* stream) {
    run_warpgroups(call, plan, scratch, stream);
}

}  // namespace seqkernels::cuda
