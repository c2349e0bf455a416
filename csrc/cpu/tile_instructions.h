// The instructions of matrix tiles, and of rounding to bfloat16 and multiplying it, written out:
// the compilers' intrinsics do not say that a load reads memory, and no file needs more
// instructions of its compiler than the vectors do, whose code it shares.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace seqkernels {

// once: whether L1 need not keep what is loaded.
template <int tile, bool once = false>
inline void load_tile(const void* source, int64_t stride_bytes) {
    if constexpr (once) {
        asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2"
                     :
                     : "r"(source), "r"(stride_bytes), "i"(tile)
                     : "memory");
    } else {
        asm volatile("tileloadd (%0,%1,1), %%tmm%c2"
                     :
                     : "r"(source), "r"(stride_bytes), "i"(tile)
                     : "memory");
    }
}
template <int tile>
inline void store_tile(void* target, int64_t stride_bytes) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)"
                 :
                 : "r"(target), "r"(stride_bytes), "i"(tile)
                 : "memory");
}
template <int sums, int left, int right>
inline void multiply_tile_pairs() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(left), "i"(right));
}

// In each lane of 32 bits the sum, and the products of two bfloat16 numbers with two others, which
// are added one after the other, denormal ones as zero.
inline __m512 add_pair_products(__m512 sum, __m512i left, __m512i right) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(right), "v"(left));
    return sum;
}

// Numbers rounded to the nearest bfloat16; denormal ones become zero.
inline __m256i rounded_to_bfloat16(__m512 numbers) {
    __m256i rounded;
    asm("vcvtneps2bf16 %1, %0" : "=v"(rounded) : "v"(numbers));
    return rounded;
}
inline __m512i rounded_to_bfloat16(__m512 low, __m512 high) {
    __m512i rounded;
    asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(rounded) : "v"(high), "v"(low));
    return rounded;
}

}  // namespace seqkernels
