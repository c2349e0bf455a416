// csrc/cuda/warpgroup.h for a processor without a GPU.
//
// It finds what a GPU may hide: operands that change between the first thread's beginning of a
// product and the end of it, sums that are read before (they are NaN), a missing fence.
#pragma once

#include <cmath>

#include "device.h"

namespace seqkernels::cuda {

constexpr int warpgroup_threads = 128;

namespace emulated {

// Whether the GPU is one with such instructions.
inline bool has_warpgroups = true;

// The numbers in 16 bytes.
using WidenNumbers = void (*)(const char* bytes, float (&numbers)[8]);

void meet_in_warpgroup();
void show_copies();
void allow_products();
void begin_product(float* sums, int count, uint32_t left, uint32_t right, bool adds,
                   WidenNumbers widen);
void commit_products();
void wait_for_products();
uint32_t shared_address(const void* pointer);

}  // namespace emulated

inline bool has_warpgroup_products(int) { return emulated::has_warpgroups; }

inline uint32_t shared_address(const void* pointer) { return emulated::shared_address(pointer); }

inline int agreed(int value) {
    if (from_lane_xor(value, 1) != value) throw std::logic_error("lanes do not agree");
    return value;
}

inline void wait_for_warpgroup() { emulated::meet_in_warpgroup(); }

template <int bytes>
inline void copy_async_once(void* target, const void* source, int valid) {
    copy_async<bytes>(target, source, valid);
}

inline void show_to_products() { emulated::show_copies(); }

inline uint32_t operand_at(uint32_t address) { return 1u << 16 | address >> 4; }

template <int count>
inline void begin_products(float (&)[count]) {
    emulated::allow_products();
}

inline void continue_products() {}

inline void commit_products() { emulated::commit_products(); }

template <int count>
inline void wait_for_products(float (&)[count]) {
    emulated::wait_for_products();
}

template <class T, int count>
inline void multiply_in_warpgroup(float (&sums)[count], uint32_t left, uint32_t right, int adds) {
    emulated::begin_product(
        sums, count, left, right, adds != 0, [](const char* bytes, float (&numbers)[8]) {
            for (int i = 0; i < 8; ++i) {
                const auto* word = reinterpret_cast<const uint32_t*>(bytes) + i / 2;
                numbers[i] = emulated::number_of(*word, i % 2, T{});
            }
        });
}

}  // namespace seqkernels::cuda
