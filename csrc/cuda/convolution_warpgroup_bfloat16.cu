#include "convolution_warpgroup.h"

namespace seqkernels::cuda {

template <>
void convolution_in_warpgroups(const ConvolutionForward<Bfloat16>& call,
                               const ConvolutionPlan& plan, const TiledScratch<Bfloat16>& scratch,
                               void* stream) {
    run_warpgroups(call, plan, scratch, stream);
}

}  // namespace seqkernels::cuda
