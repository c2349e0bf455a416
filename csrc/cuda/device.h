// What a kernel is written with beyond C++: conversions, copies, exchanges within a warp, matrix
// instructions, launches. Kernels use CUDA's own names for threads, blocks and shared memory.
//
// tests/emulated_cuda/cuda/device.h has the same names for a processor without a GPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../core/data_type.h"

namespace seqkernels::cuda {

constexpr int warp_threads = 32;

__device__ inline float widened(float number) { return number; }
__device__ inline double widened(double number) { return number; }
__device__ inline float widened(Bfloat16 number) {
    return __uint_as_float(uint32_t{number.bits} << 16);
}
__device__ inline float widened(Float16 number) {
    return __half2float(__ushort_as_half(number.bits));
}

__device__ inline uint32_t bits_of(float number) { return __float_as_uint(number); }
__device__ inline float float_of(uint32_t bits) { return __uint_as_float(bits); }

// To the nearest number of type T, ties to even.
template <class T>
__device__ inline T narrowed(Accumulator<T> number) {
    if constexpr (std::is_same_v<T, Bfloat16>) {
        return {__bfloat16_as_ushort(__float2bfloat16_rn(number))};
    } else if constexpr (std::is_same_v<T, Float16>) {
        return {__half_as_ushort(__float2half_rn(number))};
    } else {
        return number;
    }
}

// The block's dynamic shared memory.
__device__ inline char* shared_memory() {
    extern __shared__ __align__(128) char memory[];
    return memory;
}

// The value of the lane whose number differs in the bits of `mask`. All lanes take part.
template <class T>
__device__ inline T from_lane_xor(T value, int mask) {
    return __shfl_xor_sync(0xFFFFFFFFu, value, mask);
}

// The value of a lane. All lanes take part.
template <class T>
__device__ inline T from_lane(T value, int lane) {
    return __shfl_sync(0xFFFFFFFFu, value, lane);
}

// One bit for each lane: whether its condition holds. All lanes take part.
__device__ inline uint32_t lanes_where(bool condition) {
    return __ballot_sync(0xFFFFFFFFu, condition);
}

__device__ inline int bits_set(uint32_t bits) { return __popc(bits); }

__device__ inline uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Begins to copy `bytes` (4, 8 or 16, both sides aligned to as many) into shared memory: the first
// `valid` of them from `source`, zeros for the rest. What was written is there for its own thread
// after wait_for_copies.
template <int bytes>
__device__ inline void copy_async(void* target, const void* source, int valid) {
    static_assert(bytes == 4 || bytes == 8 || bytes == 16);
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(shared_address(target)),
                 "l"(source), "n"(bytes), "r"(valid)
                 : "memory");
}

// Ends a group of copies.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits for all groups but the last `pending`.
template <int pending>
__device__ inline void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory");
}

// Four matrices of 8 rows of 16 bytes. Lane l names row l % 8 of matrix l / 8 in shared memory, and
// gets of each matrix the word l % 4 of row l / 4.
__device__ inline void load_matrices(uint32_t (&words)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same matrices of 16-bit numbers, turned: lane l gets of each, of column l / 4, the numbers of
// rows 2 (l % 4) and the next.
__device__ inline void load_matrices_transposed(uint32_t (&words)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// A float32's bits rounded to the 19 that the matrix units read, ties away from zero.
__device__ inline uint32_t rounded_to_tf32(uint32_t bits) {
    uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(rounded) : "f"(__uint_as_float(bits)));
    return rounded;
}

// sums (16, 8) += left (16, 32 bytes of numbers of type T) right (8, as many)^T, spread over a
// warp: lane l has sums[0], [1] of row l / 4, columns 2 (l % 4) and the next, and sums[2], [3] of
// row l / 4 + 8; and words of the operands as load_matrices gives them, of left the matrices (rows,
// then 16 bytes further), of right the two 16 bytes. float32 numbers are read as TF32.
template <class T>
__device__ inline void multiply_add(float& sum0, float& sum1, float& sum2, float& sum3,
                                    const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
    if constexpr (std::is_same_v<T, Bfloat16>) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
            : "+f"(sum0), "+f"(sum1), "+f"(sum2), "+f"(sum3)
            : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
    } else if constexpr (std::is_same_v<T, Float16>) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
            : "+f"(sum0), "+f"(sum1), "+f"(sum2), "+f"(sum3)
            : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
    } else {
        static_assert(std::is_same_v<T, float>);
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
            : "+f"(sum0), "+f"(sum1), "+f"(sum2), "+f"(sum3)
            : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
    }
}

// Within some units of the last place.
__device__ inline float fast_exp2(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(result) : "f"(x));
    return result;
}
__device__ inline float fast_reciprocal(float x) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(result) : "f"(x));
    return result;
}

// Brings what is there closer: it is read soon.
__device__ inline void prefetch(const void* place) {
    asm volatile("prefetch.global.L2 [%0];\n" ::"l"(place));
}

// Four words, at 16 bytes, that other blocks write meanwhile: each as it was at one time.
__device__ inline void load_from_others(const void* place, uint32_t& word0, uint32_t& word1,
                                        uint32_t& word2, uint32_t& word3) {
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(word0), "=r"(word1), "=r"(word2), "=r"(word3)
                 : "l"(place)
                 : "memory");
}

// Writes a word whole, for other blocks to find.
__device__ inline void store_for_others(uint32_t* place, uint32_t word) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;\n" ::"l"(place), "r"(word) : "memory");
}

// This thread's memory operations before come before those after, for all blocks.
__device__ inline void order_memory() { asm volatile("fence.acq_rel.gpu;\n" ::: "memory"); }

// Barriers of a block by number, 1 to 15, of as many threads: whole warps that wait for all others,
// and such that only tell them that they have come. What was written before is there after.
__device__ inline void barrier_wait(int number, int threads) {
    asm volatile("barrier.cta.sync %0, %1;\n" ::"r"(number), "r"(threads) : "memory");
}
__device__ inline void barrier_arrive(int number, int threads) {
    asm volatile("barrier.cta.arrive %0, %1;\n" ::"r"(number), "r"(threads) : "memory");
}

// Registers of a thread can be changed within a kernel: by all threads of four warps, within what
// the block has.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool registers_can_move = true;
template <int count>
__device__ inline void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(count));
}
template <int count>
__device__ inline void leave_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(count));
}
#else
constexpr bool registers_can_move = false;
template <int count>
__device__ inline void take_registers() {}
template <int count>
__device__ inline void leave_registers() {}
#endif

// A kernel that is launched as one that overlaps starts once all blocks of the one before it have
// come to the first of these, or ended; after the second that one has ended, and what it wrote is
// there. What kernels before that one wrote is there from the beginning.
__device__ inline void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\n");
#endif
}
__device__ inline void wait_for_kernel_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

// What a thread that waits for another block does before it looks again.
__device__ inline void let_others_go_on() {}

// Raises std::runtime_error where a call of the runtime failed.
inline void expect_success(cudaError_t status, const char* what) {
    if (status != cudaSuccess) {
        throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(status));
    }
}

struct LaunchShape {
    int64_t blocks;
    int threads;
    int64_t shared_bytes;
    void* stream;
    bool cooperating = false;
    int cluster = 1;        // blocks of one
    bool overlaps = false;  // the kernel before it, and calls wait_for_kernel_before
};

// Lets a kernel have that much shared memory.
template <class Kernel>
void allow_shared_memory(Kernel* kernel, int64_t bytes) {
    if (bytes <= 48 * 1024) return;
    expect_success(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(bytes)),
                   "shared memory of a kernel");
}

// Starts kernel(arguments...) on the current device, in the stream; raises std::runtime_error where
// that fails. Blocks beyond 2^31 - 1 are left to the kernel's own loop. Cooperating blocks all run
// at once, or the launch fails.
template <class... Parameters>
void launch(const LaunchShape& shape, void (*kernel)(Parameters...),
            std::common_type_t<Parameters>... arguments) {
    allow_shared_memory(kernel, shape.shared_bytes);
    constexpr int64_t most_blocks = 0x7FFFFFFF;
    cudaLaunchConfig_t config{};
    config.gridDim =
        dim3(static_cast<unsigned>(shape.blocks < most_blocks ? shape.blocks : most_blocks));
    config.blockDim = dim3(static_cast<unsigned>(shape.threads));
    config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
    config.stream = static_cast<cudaStream_t>(shape.stream);
    cudaLaunchAttribute attributes[3]{};
    config.attrs = attributes;
    if (shape.cooperating) {
        attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
        attributes[config.numAttrs++].val.cooperative = 1;
    }
    if (shape.cluster > 1) {
        expect_success(
            cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
            "size of a cluster");
        attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
        attributes[config.numAttrs++].val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
    }
    if (shape.overlaps) {
        attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
    expect_success(cudaLaunchKernelEx(&config, kernel, arguments...), "launch of a kernel");
}

// Blocks of a kernel that one multiprocessor holds at once.
template <class Kernel>
int blocks_at_once(Kernel* kernel, int threads, int64_t shared_bytes) {
    allow_shared_memory(kernel, shared_bytes);
    int blocks = 0;
    expect_success(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads,
                                                                 static_cast<size_t>(shared_bytes)),
                   "occupancy of a kernel");
    return blocks;
}

// Kernels start on the current device: raises std::runtime_error where that is another.
inline void expect_current_device(int device) {
    int current = 0;
    expect_success(cudaGetDevice(&current), "current device");
    if (current != device) {
        throw std::runtime_error("CUDA: expected device " + std::to_string(device) +
                                 ", that of the tensors, to be current, got " +
                                 std::to_string(current));
    }
}

// Whether a device is of compute capability 9.0, and this build has code for just that (sm_90a).
inline bool runs_code_for_sm90a(int device) {
#ifdef SEQKERNELS_SM90A
    int major = 0, minor = 0;
    expect_success(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
                   "attributes of a device");
    expect_success(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
                   "attributes of a device");
    return major == 9 && minor == 0;
#else
    (void)device;
    return false;
#endif
}

// Whether a device's blocks can all be made to run at once.
inline bool blocks_can_cooperate(int device) {
    int can = 0;
    expect_success(cudaDeviceGetAttribute(&can, cudaDevAttrCooperativeLaunch, device),
                   "attributes of a device");
    return can != 0;
}

// Shared memory that a block of a device may have.
inline int64_t shared_bytes_of_block(int device) {
    int bytes = 0;
    expect_success(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
                   "attributes of a device");
    return bytes;
}

// Streaming multiprocessors of a device.
inline int multiprocessors(int device) {
    int count = 0;
    expect_success(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
                   "attributes of a device");
    return count;
}

}  // namespace seqkernels::cuda
