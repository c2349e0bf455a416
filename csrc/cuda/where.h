// Which kernels of a convolution run, and where those of any call.
#pragma once

namespace seqkernels::cuda {

// simple: as the definition reads, for every type; the oracle of the others.
// fast: the convolution of float32 and the 16-bit types in tiles, of the latter by products of
// warpgroups where the GPU has them and the shape allows. The rest as simple.
enum class Kernels { simple, fast };

struct Where {
    int device;
    void* stream;   // a cudaStream_t
    void* scratch;  // as many bytes as the call's scratch_bytes says, aligned to 16, or null
};

}  // namespace seqkernels::cuda
