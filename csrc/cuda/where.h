// Where the kernels of a call run.
#pragma once

namespace seqkernels::cuda {

struct Where {
    int device;
    void* stream;   // a cudaStream_t
    void* scratch;  // as many bytes as the call's scratch_bytes says, aligned to 16, or null
};

}  // namespace seqkernels::cuda
