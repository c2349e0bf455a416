// How the gradient of a convolution's weights is made in tiles
// (tile_convolution_weight_gradient.h): which part of it each thread makes, and what a unit is
// given of a part.
#pragma once

#include <cstdint>

#include "tile_product.h"

namespace seqkernels {

// Threads share out the gradient, filters by channels in pairs of tiles: each lays out for itself
// what it multiplies, since to fetch it from another core takes longer.
struct TileGradientGrid {
    int64_t filters;
    int64_t channels;

    // Pairs of tiles of the largest of some parts.
    static int64_t pairs_of(int64_t tiles, int64_t parts) {
        return divide_rounding_up(divide_rounding_up(tiles, 2), parts);
    }

    // The one with the least work, in cycles a stretch of 32 positions.
    template <int planes>
    static TileGradientGrid of(int64_t filter_tiles, int64_t channel_tiles, int64_t taps,
                               int64_t threads) {
        constexpr int64_t products = planes * (planes + 1) / 2;
        TileGradientGrid best{1, 1};
        int64_t least = -1;
        for (int64_t parts = 1; parts <= smaller(threads, pairs_of(filter_tiles, 1)); ++parts) {
            const TileGradientGrid grid{
                parts, smaller(threads / parts, larger(1, pairs_of(channel_tiles, 1)))};
            const int64_t filters = pairs_of(filter_tiles, grid.filters);
            const int64_t channels = pairs_of(channel_tiles, grid.channels);
            const int64_t work = filters * channels * taps * products * 64 +
                                 planes * (600 * filters + 400 * channels);
            if (least < 0 || work < least) {
                least = work;
                best = grid;
            }
        }
        return best;
    }
};

// What a unit is given: see AmxUnit::multiply.

// Sums of 32 filters by 32 channels, tile after tile.
struct TilesOfSums {
    static constexpr int64_t rows = TileConfiguration::rows;
    static constexpr int64_t numbers_of_tile = rows * rows;
    static constexpr int64_t numbers = 4 * numbers_of_tile;

    float* first;

    static constexpr bool has_start() { return true; }
    float* start(int r, int v) const { return target(r, v); }
    float* target(int r, int v) const { return first + (2 * r + v) * numbers_of_tile; }
    static constexpr int64_t start_line() { return target_line(); }
    static constexpr int64_t target_line() { return rows * int64_t{sizeof(float)}; }
};

// Filters by positions.
struct TilesOfRows {
    const Bfloat16* first[2];
    int64_t plane;
    int64_t line;
    static constexpr bool follow_on = false;

    const char* at(int r, int64_t block) const {
        return reinterpret_cast<const char*>(first[r] + block * TileConfiguration::depth);
    }
};

// Pairs of positions by channels.
struct TilesOfPairs {
    const Bfloat16* first;
    int64_t beside;
    int64_t plane;
    static constexpr int64_t block = TileConfiguration::depth * TileConfiguration::rows;
};

// Fetches the sums that come next, which have long been left for L2.
class FetchingSums {
 public:
    FetchingSums(const float* next, int64_t turns)
        : next_(next), lines_(divide_rounding_up(4 * TileConfiguration::rows, turns)) {}
    void operator()(int64_t turn) const {
        const float* line = next_ + turn * lines_ * TileConfiguration::rows;
        for (int64_t i = 0; i < lines_; ++i, line += TileConfiguration::rows) {
            _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T0);
        }
    }

 private:
    const float* const next_;
    const int64_t lines_;
};

}  // namespace seqkernels
