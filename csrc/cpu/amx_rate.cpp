// Limit: a tile product takes 16 cycles of the one tile unit, 2 * 16 * 16 * 32 FLOPs; four tiles of
// sums hide its latency. Compiled for AMX: nothing here may be called on another processor.
#include <immintrin.h>

#include "amx.h"

namespace seqkernels {
namespace {

constexpr int rows = 16;
constexpr int row_bytes = 64;

}  // namespace

double amx_tile_products(int64_t repetitions, float* result) {
    const TileConfiguration configuration;
    constexpr uint16_t one = 0x3f80;  // 1 in bfloat16
    alignas(64) uint16_t ones[rows * row_bytes / 2];
    for (uint16_t& element : ones) element = one;
    alignas(64) float sums[rows * row_bytes / 4];
    // The intrinsics do not tell the compiler that they read memory.
    asm volatile("" : : "r"(&configuration), "r"(ones) : "memory");
    _tile_loadconfig(&configuration);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, ones, row_bytes);
    _tile_loadd(5, ones, row_bytes);
    _tile_loadd(6, ones, row_bytes);
    _tile_loadd(7, ones, row_bytes);
    for (int64_t i = 0; i < repetitions; ++i) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(3, sums, row_bytes);
    _tile_release();
    *result = sums[rows * row_bytes / 4 - 1];
    return 4.0 * 2 * 16 * 16 * 32 * static_cast<double>(repetitions);
}

}  // namespace seqkernels
