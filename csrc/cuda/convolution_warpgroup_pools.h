// Small pools of a tile of 64 windows, from the sums that a warpgroup has of it.
//
// Pools of one window, and of two that do not overlap, are taken from the registers where the sums
// are: two windows that follow each other are in lanes that differ by 4. Others come together in
// shared memory, some columns at a time.
//
// Cost: a thread of 128 filters stores 64 numbers for pools of one window, as 8 times 16 bytes
// where the output's filters lie side by side and aligned; for pools of two it exchanges, compares
// and stores half of that. Through shared memory each number is written once and read as often as
// pools cover it, 4 filters at once.
#pragma once

#include "convolution_plan.h"
#include "convolution_rules.h"
#include "cuda/warpgroup.h"
#include "tile.h"

namespace seqkernels::cuda {

// A tile of windows.
struct WindowTile {
    int index;  // among all
    int sample;
    int pool;     // of the sample, or the tile of small ones
    int ordinal;  // among the pool's tiles
    int length;   // of the sample
    int windows;  // of the sample
    int begin;    // the tile's windows
    int end;

    __device__ WindowTile(const WarpgroupPlan& plan, int64_t first)
        : index(static_cast<int>(first)) {
        ordinal = index % plan.tiles_of_pool;
        const int pool_of_all = index / plan.tiles_of_pool;
        pool = pool_of_all % plan.pools;
        sample = pool_of_all / plan.pools;
    }

    __device__ void advance(const WarpgroupPlan& plan) {
        ++index;
        if (++ordinal < plan.tiles_of_pool) return;
        ordinal = 0;
        if (++pool < plan.pools) return;
        pool = 0;
        ++sample;
    }

    // What depends on the sample's length. The sample must be one of the batch.
    template <class T>
    __device__ void measure(const ConvolutionForward<T>& call, const WarpgroupPlan& plan) {
        length = agreed(static_cast<int>(sample_length(call.shape, call.lengths, sample)));
        const int found = length + plan.added_windows;
        windows = found < 0 ? 0 : found;
        const int first = pool * plan.windows_between;
        const int last = first + plan.windows_of_pool;
        begin = first + ordinal * warpgroup_windows;
        end = last < windows ? last : windows;
        // A pool of a set size is there as a whole or not at all.
        const bool is_cut = end < last && call.shape.pool_size != 0 && plan.pools_in_tile == 0;
        if (is_cut || end < begin) end = begin;
        if (end > begin + warpgroup_windows) end = begin + warpgroup_windows;
    }

    __device__ int count() const { return end - begin; }
};

// Where the sums of a thread stand in the tile.
struct TileThread {
    __device__ static int index() { return static_cast<int>(threadIdx.x) % warpgroup_threads; }
    __device__ static int lane() { return index() % warp_threads; }
    __device__ static int warp() { return index() / warp_threads; }
    // The rows are this one and that 8 below it.
    __device__ static int row() { return warp() * 16 + lane() / 4; }
    __device__ static int column(int j) { return j / 2 * 8 + lane() % 4 * 2 + j % 2; }

    template <int count>
    __device__ static float sum(const float (&sums)[count], int half, int j) {
        return sums[j / 2 * 4 + half * 2 + j % 2];
    }
};

template <int count>
struct alignas(count * 4) Words {
    uint32_t words[count];
};

template <class T, int filters>
class SmallPools {
    static constexpr int columns = filters / 4;  // of a thread
    static constexpr int words = columns / 2;    // of two filters side by side
    using Thread = TileThread;

 public:
    __device__ SmallPools(const ConvolutionForward<T>& call, const WarpgroupPlan& plan,
                          int64_t first_filter, char* exchange)
        : call_(call), plan_(plan), first_filter_(first_filter), exchange_(exchange) {
        const ConvolutionShape& shape = call.shape;
        const int64_t size = shape.pool_size;
        is_direct_ =
            size <= 2 && shape.pool_stride == size &&
            (shape.activation == Activation::identity || shape.activation == Activation::relu);
        const auto address = reinterpret_cast<uintptr_t>(call.output);
        for (width_ = 8; width_ > 1; width_ /= 2) {
            if (call.output_stride_filter == 1 && shape.filters % width_ == 0 &&
                address % (width_ * sizeof(T)) == 0 && call.output_stride_batch % width_ == 0 &&
                call.output_stride_pooled % width_ == 0) {
                break;
            }
        }
        const auto place = reinterpret_cast<uintptr_t>(call.argmax);
        for (windows_width_ = 4; windows_width_ > 1; windows_width_ /= 2) {
            if (shape.filters % windows_width_ == 0 && place % (windows_width_ * 4) == 0) break;
        }
    }

    __device__ void store(const WindowTile& tile, const float (&sums)[filters / 2]) const {
        const int first_pool = tile.pool * plan_.pools_in_tile;
        const int left = static_cast<int>(call_.shape.pooled) - first_pool;
        const int pools = left < plan_.pools_in_tile ? left : plan_.pools_in_tile;
        if (!is_direct_) {
            store_by_exchange(tile, sums, first_pool, pools);
        } else if (call_.shape.pool_size == 1) {
            store_ones(tile, sums, first_pool, pools);
        } else {
            store_twos(tile, sums, first_pool, pools);
        }
    }

 private:
    __device__ void store_ones(const WindowTile& tile, const float (&sums)[filters / 2],
                               int first_pool, int pools) const {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float values[columns];
#pragma unroll
            for (int j = 0; j < columns; ++j) values[j] = Thread::sum(sums, half, j);
            const int row = Thread::row() + half * 8;
            store_row(tile, first_pool + row, row < pools, tile.begin + row, 1, values, 0);
        }
    }

    // The lanes of an even window take the two of the upper eight rows, those of an odd one the two
    // of the lower.
    __device__ void store_twos(const WindowTile& tile, const float (&sums)[filters / 2],
                               int first_pool, int pools) const {
        const bool is_odd = Thread::lane() / 4 % 2 != 0;
        float values[columns];
        uint32_t is_second = 0;  // a bit for each column
#pragma unroll
        for (int j = 0; j < columns; ++j) {
            const float upper = Thread::sum(sums, 0, j), lower = Thread::sum(sums, 1, j);
            const float other = from_lane_xor(is_odd ? upper : lower, 4);
            Winner<float> winner{is_odd ? other : upper, 0};
            winner.follow_another(is_odd ? lower : other, 1);
            values[j] = winner.value;
            is_second |= static_cast<uint32_t>(winner.window) << j;
        }
        const int row = Thread::row() / 2 * 2 + (is_odd ? 8 : 0);
        store_row(tile, first_pool + row / 2, row / 2 < pools, tile.begin + row, 2, values,
                  is_second);
    }

    // A pool's winners of all columns that the thread has. All lanes take part, even if theirs are
    // not stored.
    __device__ void store_row(const WindowTile& tile, int pool, bool is_stored, int window,
                              int size, const float (&values)[columns], uint32_t is_second) const {
        const ConvolutionShape& shape = call_.shape;
        const bool is_there = window + size <= tile.windows;
        const bool is_relu = shape.activation == Activation::relu;
        const auto left = static_cast<int>(smaller(filters, shape.filters - first_filter_));
        const T* bias = call_.bias == nullptr ? nullptr : call_.bias + first_filter_;
        uint32_t results[words];
#pragma unroll
        for (int j = 0; j < columns; ++j) {
            const int column = Thread::column(j);
            const bool has_bias = bias != nullptr && column < left;
            float result = values[j] + (has_bias ? widened(bias[column]) : 0);
            if (is_relu && result <= 0) result = 0;  // NaN stays
            const uint32_t bits = is_there ? narrowed<T>(result).bits : 0u;
            if (j % 2 == 0) {
                results[j / 2] = bits;
            } else {
                results[j / 2] |= bits << 16;
            }
        }
        T* output = call_.output + tile.sample * call_.output_stride_batch +
                    pool * call_.output_stride_pooled + first_filter_ * call_.output_stride_filter;
        if (words >= 4 && width_ == 8) {
            // Of four eights of columns, of which four lanes have two each, a lane gets one whole.
            const int own = Thread::lane() % 4;
#pragma unroll
            for (int i = 0; i + 4 <= words; i += 4) {
                Words<4> eight{{results[i], results[i + 1], results[i + 2], results[i + 3]}};
                swap(eight.words[0], eight.words[1], 1);
                swap(eight.words[2], eight.words[3], 1);
                swap(eight.words[0], eight.words[2], 2);
                swap(eight.words[1], eight.words[3], 2);
                const int column = (i + own) * 8;
                if (is_stored && column < left) {
                    *reinterpret_cast<Words<4>*>(output + column) = eight;
                }
            }
        } else if (is_stored) {
#pragma unroll
            for (int i = 0; i < words; ++i) {
                const int column = Thread::column(2 * i);
                if (width_ > 1) {
                    if (column < left) *reinterpret_cast<uint32_t*>(output + column) = results[i];
                    continue;
                }
#pragma unroll
                for (int k = 0; k < 2; ++k) {
                    if (column + k < left) {
                        output[(column + k) * call_.output_stride_filter] =
                            T{static_cast<uint16_t>(results[i] >> 16 * k)};
                    }
                }
            }
        }
        if (call_.argmax == nullptr || !is_stored) return;
        int32_t* argmax =
            call_.argmax + (tile.sample * shape.pooled + pool) * shape.filters + first_filter_;
#pragma unroll
        for (int i = 0; i < words; ++i) {
            const int column = Thread::column(2 * i);
            const auto window_of = [&](int j) {
                return is_there ? window + static_cast<int>(is_second >> j & 1) : -1;
            };
            if (windows_width_ > 1) {
                if (column < left) {
                    *reinterpret_cast<Words<2>*>(argmax + column) = {
                        {static_cast<uint32_t>(window_of(2 * i)),
                         static_cast<uint32_t>(window_of(2 * i + 1))}};
                }
                continue;
            }
            if (column < left) argmax[column] = window_of(2 * i);
            if (column + 1 < left) argmax[column + 1] = window_of(2 * i + 1);
        }
    }

    // The upper of the lanes that differ in the bits of `mask` gives its first for the other's
    // second.
    __device__ static void swap(uint32_t& first, uint32_t& second, int mask) {
        const bool is_upper = (Thread::lane() & mask) != 0;
        const uint32_t got = from_lane_xor(is_upper ? first : second, mask);
        first = is_upper ? got : first;
        second = is_upper ? second : got;
    }

    __device__ void store_by_exchange(const WindowTile& tile, const float (&sums)[filters / 2],
                                      int first_pool, int pools) const {
        constexpr int kept_columns = filters < pooled_columns ? filters : pooled_columns;
        constexpr int fours = kept_columns / 4;
        float* kept = reinterpret_cast<float*>(exchange_);
#pragma unroll 1
        for (int base = 0; base < filters; base += kept_columns) {
            wait_for_warpgroup();  // the columns before have been read
#pragma unroll
            for (int j = 0; j < columns; j += 2) {
                if (j * 4 / kept_columns * kept_columns != base) continue;
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int row = Thread::row() + half * 8;
                    float* to = kept + row * pooled_stride + Thread::column(j) - base;
                    *reinterpret_cast<Words<2>*>(to) = {{bits_of(Thread::sum(sums, half, j)),
                                                         bits_of(Thread::sum(sums, half, j + 1))}};
                }
            }
            wait_for_warpgroup();
            // Neighbouring threads write along the direction in which the output lies.
            const bool along_pools = call_.output_stride_filter != 1;
            constexpr int pools_at_once = warpgroup_threads / fours;
            const int pool_step = along_pools ? warp_threads : pools_at_once;
            const int four_step = along_pools ? warpgroup_threads / warp_threads : fours;
            for (int four = along_pools ? Thread::warp() : Thread::index() % fours; four < fours;
                 four += four_step) {
                for (int pool = along_pools ? Thread::lane() : Thread::index() / fours;
                     pool < pools; pool += pool_step) {
                    store_four(tile, kept + four * 4, first_pool, pool, base + four * 4);
                }
            }
        }
    }

    // The winners of a pool, 4 columns of them.
    __device__ void store_four(const WindowTile& tile, const float* kept, int first_pool, int pool,
                               int column) const {
        const ConvolutionShape& shape = call_.shape;
        const int size = static_cast<int>(shape.pool_size);
        const int first = pool * static_cast<int>(shape.pool_stride);
        const int64_t filter = first_filter_ + column;
        if (filter >= shape.filters) return;
        Winner<float> winners[4];
        if (tile.begin + first + size <= tile.windows) {
            const auto row = [&](int i) {
                return *reinterpret_cast<const Words<4>*>(kept + i * pooled_stride);
            };
            const Words<4> begun = row(first);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                winners[k] = {float_of(begun.words[k]), tile.begin + first};
            }
            for (int i = first + 1; i < first + size; ++i) {
                const Words<4> next = row(i);
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    winners[k].follow_another(float_of(next.words[k]), tile.begin + i);
                }
            }
        }
        if (width_ < 4 || (call_.argmax != nullptr && windows_width_ < 4)) {
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                if (filter + k < shape.filters) {
                    store_winner(call_, tile.sample, first_pool + pool, filter + k, winners[k]);
                }
            }
            return;
        }
        Words<2> results{};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const uint32_t bits = result_of(call_, filter + k, winners[k]).bits;
            results.words[k / 2] |= bits << k % 2 * 16;
        }
        *reinterpret_cast<Words<2>*>(call_.output + tile.sample * call_.output_stride_batch +
                                     (first_pool + pool) * call_.output_stride_pooled + filter) =
            results;
        if (call_.argmax == nullptr) return;
        Words<4> windows;
#pragma unroll
        for (int k = 0; k < 4; ++k) windows.words[k] = static_cast<uint32_t>(winners[k].window);
        *reinterpret_cast<Words<4>*>(
            call_.argmax + (tile.sample * shape.pooled + first_pool + pool) * shape.filters +
            filter) = windows;
    }

    const ConvolutionForward<T>& call_;
    const WarpgroupPlan& plan_;
    int64_t first_filter_;
    char* exchange_;     // of this warpgroup
    bool is_direct_;     // from registers to the output
    int width_;          // filters that can be stored at once
    int windows_width_;  // and of argmax
};

}  // namespace seqkernels::cuda
