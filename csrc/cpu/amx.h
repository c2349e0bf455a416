// Intel's matrix tiles (AMX) with bfloat16 products.
#pragma once

#include <cstdint>

namespace seqkernels {

// The operand of LDTILECFG (Intel's manual, volume 2): eight tiles of 16 rows of 64 bytes.
struct alignas(64) TileConfiguration {
    static constexpr int rows = 16;
    static constexpr int64_t depth = 32;  // bfloat16 numbers of a row
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t height[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Whether processor and kernel have them, and the process may use them: the first call asks Linux
// for permission, which then holds for every thread.
bool has_amx_bfloat16();

// KernelTable's bfloat16_products: `repetitions` rounds of four products of 16 x 32 by 32 x 16
// tiles, each added to a tile of its own of 16 x 16 sums.
double amx_tile_products(int64_t repetitions, float* result);

}  // namespace seqkernels
