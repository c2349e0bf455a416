// What a kernel whose blocks run in clusters is written with beyond device.h: such blocks run at
// once, side by side, and write to each other's shared memory. In code for sm_90a alone.
//
// tests/emulated_cuda/cuda/cluster.h has the same names for a processor without a GPU.
#pragma once

#include "device.h"

namespace seqkernels::cuda {

// More than 8 run on some GPUs alone.
constexpr int most_blocks_of_cluster = 16;

// A place in the shared memory of a block of the cluster.
using ClusterAddress = uint32_t;

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

// All threads of all blocks of the cluster meet; what was written before is there after.
__device__ inline void meet_in_cluster() {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned;\n" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;\n" ::: "memory");
}

// Where another block has what this one has at a place of its shared memory.
__device__ inline ClusterAddress address_in_cluster(const void* own, int block) {
    uint32_t address;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n"
                 : "=r"(address)
                 : "r"(shared_address(own)), "r"(block));
    return address;
}

// A mailbox counts the bytes that other blocks send here: it opens, again and again by turns, when
// one thread has said how many are expected, and they have come.
struct Mailbox {
    uint64_t state;
};

// One thread, before the blocks meet.
__device__ inline void begin_mailbox(Mailbox& mailbox) {
    asm volatile("mbarrier.init.shared.b64 [%0], 1;\n" ::"r"(shared_address(&mailbox)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}
__device__ inline void expect_bytes(Mailbox& mailbox, int bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;\n" ::"r"(shared_address(&mailbox)),
        "r"(bytes)
        : "memory");
}
// Waits until it has opened for turn 0, 1, ... of which `parity` is turn % 2.
__device__ inline void wait_for_mail(Mailbox& mailbox, int parity) {
    uint32_t is_open;
    do {
        asm volatile(
            "{\n.reg .pred open;\n"
            "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 open, [%1], %2;\n"
            "selp.u32 %0, 1, 0, open;\n}\n"
            : "=r"(is_open)
            : "r"(shared_address(&mailbox)), "r"(parity)
            : "memory");
    } while (is_open == 0);
}
// Sends 16 bytes, at 16 bytes, to a block and its mailbox.
__device__ inline void send(ClusterAddress target, ClusterAddress mailbox,
                            const uint32_t (&words)[4]) {
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
        "[%5];\n" ::"r"(target),
        "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]), "r"(mailbox)
        : "memory");
}

#else

// Kernels with clusters are compiled where there are none, but not launched.
struct Mailbox {
    uint64_t state;
};
__device__ inline void meet_in_cluster() { __trap(); }
__device__ inline ClusterAddress address_in_cluster(const void*, int) { return 0; }
__device__ inline void begin_mailbox(Mailbox&) {}
__device__ inline void expect_bytes(Mailbox&, int) {}
__device__ inline void wait_for_mail(Mailbox&, int) {}
__device__ inline void send(ClusterAddress, ClusterAddress, const uint32_t (&)[4]) {}

#endif

// Blocks in the largest cluster of a kernel that a device has room for, most_blocks_of_cluster at
// the most; 0 where there are none, or this build has no code for them.
template <class Kernel>
int largest_cluster(int device, Kernel* kernel, int threads, int64_t shared_bytes) {
    if (!runs_code_for_sm90a(device)) return 0;
    int size = 0;
    allow_shared_memory(kernel, shared_bytes);
    expect_success(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
                   "size of a cluster");
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(most_blocks_of_cluster);
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    if (cudaOccupancyMaxPotentialClusterSize(&size, kernel, &config) != cudaSuccess) {
        cudaGetLastError();  // parts of a GPU may have no clusters
        return 0;
    }
    return size < most_blocks_of_cluster ? size : most_blocks_of_cluster;
}

}  // namespace seqkernels::cuda
