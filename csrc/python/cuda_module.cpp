#include "cuda_module.h"

PYBIND11_MODULE(SEQKERNELS_CUDA_MODULE, module) {
    using namespace seqkernels;
    module.doc() =
        "The kernels of seqkernels for CUDA. Private: seqkernels.cuda loads it, "
        "seqkernels.functional checks and calls it.";
    module.attr("architectures") = SEQKERNELS_CUDA_ARCHITECTURES;
    module.attr("compiler") = SEQKERNELS_CUDA_COMPILER;
    define_cuda_convolution(module);
    define_cuda_recurrence(module);
}
