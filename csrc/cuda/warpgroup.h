// What a kernel of Hopper's warpgroup instructions is written with beyond device.h: products that
// four warps (128 threads) compute together, asynchronously, from operands in shared memory.
//
// These instructions are in code for sm_90a alone: kernels leave their use out of other code by
// SEQKERNELS_LACKS_WARPGROUPS.
//
// tests/emulated_cuda/cuda/warpgroup.h has the same names for a processor without a GPU.
#pragma once

#include "device.h"

#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SEQKERNELS_LACKS_WARPGROUPS
#endif

namespace seqkernels::cuda {

constexpr int warpgroup_threads = 128;

// Whether a device runs these instructions, and this build has code for it.
inline bool has_warpgroup_products(int device) { return runs_code_for_sm90a(device); }

// A value on which all lanes agree, so that the compiler knows it: where it sees branches that may
// part a warp, it has products wait for each other.
__device__ inline int agreed(int value) { return __shfl_sync(0xFFFFFFFFu, value, 0); }

// A barrier of one warpgroup.
__device__ inline void wait_for_warpgroup() {
    asm volatile("bar.sync %0, 128;\n" ::"r"(1 + threadIdx.x / warpgroup_threads) : "memory");
}

// copy_async for what is read once: 16 bytes pass L1 by.
template <int bytes>
__device__ inline void copy_async_once(void* target, const void* source, int valid) {
    if constexpr (bytes == 16) {
        asm volatile(
            "cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(target)),
            "l"(source), "r"(valid)
            : "memory");
    } else {
        copy_async<bytes>(target, source, valid);
    }
}

// What this thread has written to shared memory, its copies that have arrived included, is there
// for products that are begun after a barrier.
__device__ inline void show_to_products() {
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// An operand: rows of 128 bytes from `address` in shared memory on, which lie as piece_at in tile.h
// says from an address that is a multiple of 1024. It may begin at any row, and at any 32 bytes of
// it (measured on an H200: the pieces' places follow from the whole address). Adding n moves it on
// by 16 n bytes. These are the lower bits of the descriptor that PTX knows, the others always the
// same: reckoned with alone they cost half the instructions.
__device__ inline uint32_t operand_at(uint32_t address) {
    constexpr uint32_t unused = 1u << 16;
    return unused | address >> 4;
}

__device__ inline uint64_t descriptor_of(uint32_t operand) {
    constexpr uint32_t swizzle_of_128_bytes = 1u << 30;
    constexpr uint32_t eight_rows = 1024 / 16;
    return uint64_t{swizzle_of_128_bytes | eight_rows} << 32 | operand;
}

// The compiler is not to move what it does with sums across the instructions around it.
template <int count>
__device__ inline void hold(float (&sums)[count]) {
#pragma unroll
    for (float& sum : sums) asm volatile("" : "+f"(sum)::"memory");
}

// Before the first product after sums were read or written.
template <int count>
__device__ inline void begin_products(float (&sums)[count]) {
    hold(sums);
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

// Where a loop or a branch comes between products: the compiler puts this there by itself, and says
// so (C7519), or, where it does not see that all threads come along, has products wait (C7520).
__device__ inline void continue_products() {
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

// Ends a group of products.
__device__ inline void commit_products() {
    asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

// Waits for all of them: sums are there, and the operands' memory is free of this warp's products.
template <int count>
__device__ inline void wait_for_products(float (&sums)[count]) {
    asm volatile("wgmma.wait_group.sync.aligned 0;\n" ::: "memory");
    hold(sums);
}

// sums (64, n) = left (64, 16) right (n, 16)^T, added to them where `adds` is not 0; n = 2 count.
// Of the warpgroup's thread t = 32 w + l sums[i] is of row 16 w + l / 4 + 8 (i / 2 mod 2) and
// column 8 (i / 4) + 2 (l mod 4) + i mod 2. Not to be touched before wait_for_products.
template <class T>
__device__ inline void multiply_in_warpgroup(float (&sums)[64], uint32_t left, uint32_t right,
                                             int adds) {
    if constexpr (std::is_same_v<T, Bfloat16>) {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, "
            "%30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "
            "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, "
            "%58, %59, %60, %61, %62, %63}, "
            "%64, %65, p, 1, 1, 0, 0;\n}\n"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]),
              "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]), "+f"(sums[8]), "+f"(sums[9]),
              "+f"(sums[10]), "+f"(sums[11]), "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]),
              "+f"(sums[15]), "+f"(sums[16]), "+f"(sums[17]), "+f"(sums[18]), "+f"(sums[19]),
              "+f"(sums[20]), "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]), "+f"(sums[24]),
              "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]), "+f"(sums[28]), "+f"(sums[29]),
              "+f"(sums[30]), "+f"(sums[31]), "+f"(sums[32]), "+f"(sums[33]), "+f"(sums[34]),
              "+f"(sums[35]), "+f"(sums[36]), "+f"(sums[37]), "+f"(sums[38]), "+f"(sums[39]),
              "+f"(sums[40]), "+f"(sums[41]), "+f"(sums[42]), "+f"(sums[43]), "+f"(sums[44]),
              "+f"(sums[45]), "+f"(sums[46]), "+f"(sums[47]), "+f"(sums[48]), "+f"(sums[49]),
              "+f"(sums[50]), "+f"(sums[51]), "+f"(sums[52]), "+f"(sums[53]), "+f"(sums[54]),
              "+f"(sums[55]), "+f"(sums[56]), "+f"(sums[57]), "+f"(sums[58]), "+f"(sums[59]),
              "+f"(sums[60]), "+f"(sums[61]), "+f"(sums[62]), "+f"(sums[63])
            : "l"(descriptor_of(left)), "l"(descriptor_of(right)), "r"(adds));
    } else {
        static_assert(std::is_same_v<T, Float16>);
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, "
            "%30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "
            "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, "
            "%58, %59, %60, %61, %62, %63}, "
            "%64, %65, p, 1, 1, 0, 0;\n}\n"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]),
              "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]), "+f"(sums[8]), "+f"(sums[9]),
              "+f"(sums[10]), "+f"(sums[11]), "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]),
              "+f"(sums[15]), "+f"(sums[16]), "+f"(sums[17]), "+f"(sums[18]), "+f"(sums[19]),
              "+f"(sums[20]), "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]), "+f"(sums[24]),
              "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]), "+f"(sums[28]), "+f"(sums[29]),
              "+f"(sums[30]), "+f"(sums[31]), "+f"(sums[32]), "+f"(sums[33]), "+f"(sums[34]),
              "+f"(sums[35]), "+f"(sums[36]), "+f"(sums[37]), "+f"(sums[38]), "+f"(sums[39]),
              "+f"(sums[40]), "+f"(sums[41]), "+f"(sums[42]), "+f"(sums[43]), "+f"(sums[44]),
              "+f"(sums[45]), "+f"(sums[46]), "+f"(sums[47]), "+f"(sums[48]), "+f"(sums[49]),
              "+f"(sums[50]), "+f"(sums[51]), "+f"(sums[52]), "+f"(sums[53]), "+f"(sums[54]),
              "+f"(sums[55]), "+f"(sums[56]), "+f"(sums[57]), "+f"(sums[58]), "+f"(sums[59]),
              "+f"(sums[60]), "+f"(sums[61]), "+f"(sums[62]), "+f"(sums[63])
            : "l"(descriptor_of(left)), "l"(descriptor_of(right)), "r"(adds));
    }
}

template <class T>
__device__ inline void multiply_in_warpgroup(float (&sums)[32], uint32_t left, uint32_t right,
                                             int adds) {
    if constexpr (std::is_same_v<T, Bfloat16>) {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, "
            "%30, %31}, "
            "%32, %33, p, 1, 1, 0, 0;\n}\n"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]),
              "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]), "+f"(sums[8]), "+f"(sums[9]),
              "+f"(sums[10]), "+f"(sums[11]), "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]),
              "+f"(sums[15]), "+f"(sums[16]), "+f"(sums[17]), "+f"(sums[18]), "+f"(sums[19]),
              "+f"(sums[20]), "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]), "+f"(sums[24]),
              "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]), "+f"(sums[28]), "+f"(sums[29]),
              "+f"(sums[30]), "+f"(sums[31])
            : "l"(descriptor_of(left)), "l"(descriptor_of(right)), "r"(adds));
    } else {
        static_assert(std::is_same_v<T, Float16>);
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, "
            "%30, %31}, "
            "%32, %33, p, 1, 1, 0, 0;\n}\n"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]),
              "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]), "+f"(sums[8]), "+f"(sums[9]),
              "+f"(sums[10]), "+f"(sums[11]), "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]),
              "+f"(sums[15]), "+f"(sums[16]), "+f"(sums[17]), "+f"(sums[18]), "+f"(sums[19]),
              "+f"(sums[20]), "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]), "+f"(sums[24]),
              "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]), "+f"(sums[28]), "+f"(sums[29]),
              "+f"(sums[30]), "+f"(sums[31])
            : "l"(descriptor_of(left)), "l"(descriptor_of(right)), "r"(adds));
    }
}

template <class T>
__device__ inline void multiply_in_warpgroup(float (&sums)[16], uint32_t left, uint32_t right,
                                             int adds) {
    if constexpr (std::is_same_v<T, Bfloat16>) {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
            "%16, %17, p, 1, 1, 0, 0;\n}\n"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]),
              "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]), "+f"(sums[8]), "+f"(sums[9]),
              "+f"(sums[10]), "+f"(sums[11]), "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]),
              "+f"(sums[15])
            : "l"(descriptor_of(left)), "l"(descriptor_of(right)), "r"(adds));
    } else {
        static_assert(std::is_same_v<T, Float16>);
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
            "%16, %17, p, 1, 1, 0, 0;\n}\n"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]),
              "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]), "+f"(sums[8]), "+f"(sums[9]),
              "+f"(sums[10]), "+f"(sums[11]), "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]),
              "+f"(sums[15])
            : "l"(descriptor_of(left)), "l"(descriptor_of(right)), "r"(adds));
    }
}

template <class T>
__device__ inline void multiply_in_warpgroup(float (&sums)[8], uint32_t left, uint32_t right,
                                             int adds) {
    if constexpr (std::is_same_v<T, Bfloat16>) {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7}, "
            "%8, %9, p, 1, 1, 0, 0;\n}\n"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]),
              "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7])
            : "l"(descriptor_of(left)), "l"(descriptor_of(right)), "r"(adds));
    } else {
        static_assert(std::is_same_v<T, Float16>);
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7}, "
            "%8, %9, p, 1, 1, 0, 0;\n}\n"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]),
              "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7])
            : "l"(descriptor_of(left)), "l"(descriptor_of(right)), "r"(adds));
    }
}

}  // namespace seqkernels::cuda
