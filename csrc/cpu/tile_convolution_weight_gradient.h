// The weight's part of convolution_backward.h with small pools, in tiles, as dense products,
// one a tap j:
//
//   grad_weight[f, c, j] = sum over positions t of g[f][t] x[t + j][c]
//
// where t counts the positions, padding included, of one sample after the other, and g[f][t] is the
// gradient of the window that begins there, zero where it did not win. For strides and dilations of
// 1, and pools that do not overlap. It does pool_stride times the multiply-adds of
// convolution_weight_gradient.h, which visits winners alone, but many more a second.
//
// Blocks of samples are laid out once for all taps: g with filters for rows, x in pairs of
// positions, 16 channels wide, from any of which a tile can be read. Odd taps read another copy of
// g, one position further right, so that they meet the same pairs (from the first copy, one
// position further left, rows would lie across cache lines: a fifth slower). The sums of 32 filters
// by 32 channels by all taps lie in tiles, one after the other, to which stretches of positions
// short enough for L1 are added.
//
// Where the largest g of 16 filters is very small, it is scaled by a power of two. Where it is too
// large or not finite, or the input of 16 channels of a sample is not plain (tile_product.h), all
// is left to convolution_weight_gradient.h; but with one plane it is multiplied as it is: an input
// that is not finite makes gradients of its channel NaN, whether or not its window won, as torch's
// dense ones are, near the ends of a sample at more taps than those.
//
// Scratch, owned by the call, for each thread: its part of the sums, F k C and what fills tiles up;
// of a block g and x in planes; g of a sample.
// Cost: 2 N W F k C FLOPs. Limit: as tile_product.h; the laying out, and its way through L2.
// Measured, GFLOP/s of one core, laying out included (family 6, model 167; 16 samples of 256
// positions of 128 channels, 128 filters of 3, pools of 2): one plane 800, three 255; 336 positions
// of 256 channels, 256 filters of 7, three planes: 310.
// Tried without gain: what is laid out shared by all threads (with three planes two were no faster
// than one); blocks of 1 and 1.5 MiB (5 and 25 % slower); g read filter tile by filter tile (half
// as fast); samples that begin at whole tiles; stretches of 2 and 4 times 32 positions with three
// planes (5 % slower); prefetching x.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "convolution_input.h"
#include "tap_order.h"
#include "tile_planes.h"
#include "tile_product.h"
#include "winner_gradients.h"

namespace seqkernels {

template <class Unit, int planes, class Number>
class TileConvolutionWeightGradient {
    using Product = TileProduct<Unit, planes>;
    using Vector = typename Product::Vector;
    using T = typename Product::T;
    static constexpr int64_t rows = TileConfiguration::rows;
    static constexpr int64_t depth = TileConfiguration::depth;
    static constexpr int64_t sums_numbers = rows * rows;  // of a tile of sums
    static constexpr int64_t tiles_at_once = 4;           // so that a line is read at once

 public:
    TileConvolutionWeightGradient(const ConvolutionBackward<Number>& arguments, const T*,
                                  int threads)
        : call_(arguments),
          shape_(arguments.shape),
          winners_(arguments),
          filter_tiles_(divide_rounding_up(shape_.filters, rows)),
          channel_tiles_(divide_rounding_up(shape_.channels, rows)),
          copies_(smaller(2, shape_.kernel_size)),
          row_(odd_lines(rounded_up(block_positions()) + 2 * depth)),
          positions_(rounded_up(block_positions()) + rounded_up(shape_.kernel_size) + depth),
          starts_(wanted() ? shape_.batch : 0),
          magnitudes_(wanted() ? checked_product({shape_.batch, filter_tiles_}) : 0),
          planes_(wanted() ? most(threads, &TileConvolutionWeightGradient::plane_numbers) : 0),
          numbers_(wanted() ? most(threads, &TileConvolutionWeightGradient::wide_numbers) : 0) {
        int64_t used = 0;
        for (int64_t n = 0; wanted() && n < shape_.batch; ++n) {
            if (used + extent(n) > block_positions()) used = 0;
            starts_.data()[n] = used;
            used += extent(n);
        }
    }

    bool wanted() const { return call_.grad_weight != nullptr; }
    // After all threads have run: whether all is left to others.
    bool is_left_out() const { return is_left_out_; }

    static constexpr bool reads_gradients = false;
    // Before any call of run, with each sample's g, (P, F).
    void prepare(int64_t n, const T* gradients) const {
        if (!wanted() || !Product::cuts) return;
        const int64_t filters = shape_.filters;
        for (int64_t tile = 0; tile < filter_tiles_; ++tile) {
            const __mmask16 there = Vector::first(filters - tile * rows);
            TileMagnitude magnitude;
            for (int64_t pool = 0; pool < shape_.pooled; ++pool) {
                const T* of_tile = gradients + pool * filters + tile * rows;
                magnitude.take({_mm512_maskz_loadu_ps(there, of_tile)});
            }
            magnitudes_.data()[n * filter_tiles_ + tile] = magnitude.bits();
        }
    }

    // A thread's part.
    void run(int thread, int threads, Barrier&) const {
        const Grid grid = grid_for(threads);
        if (!wanted() || thread >= grid.filters * grid.channels) return;
        const Part part = part_of_grid(grid, thread);
        [[maybe_unused]] const typename Product::Session session{};
        std::memset(part.sums, 0, static_cast<std::size_t>(sums_of(grid)) * sizeof(T));
        for (int64_t i = 0; i < part.filters.count(); ++i) part.scales[i] = scale_of(part, i);
        for (int64_t begin = 0, end = 0; begin < shape_.batch; begin = end) {
            for (end = begin + 1; end < shape_.batch && starts_.data()[end] != 0;) ++end;
            for (int64_t n = begin; n < end; ++n) lay_out(part, n);
            const int64_t used = starts_.data()[end - 1] + extent(end - 1);
            clear_ends(part, used);
            add_products(part, divide_rounding_up(used, depth));
        }
        finish(part);
    }

 private:
    static int64_t rounded_up(int64_t positions) {
        return divide_rounding_up(positions, depth) * depth;
    }
    // Rows that begin a power of two apart would push each other out of L1.
    static int64_t odd_lines(int64_t positions) {
        return positions / depth % 2 == 0 ? positions + depth : positions;
    }

    // Windows of a sample up to the last that a pool covers.
    int64_t windows(int64_t n) const {
        const int64_t pools = shape_.pools(shape_.windows(sample_length(shape_, call_.lengths, n)));
        return pools == 0 ? 0 : (pools - 1) * shape_.pool_stride + shape_.pool_size;
    }
    // Positions of a sample that those cover, in whole pairs.
    int64_t extent(int64_t n) const {
        return windows(n) == 0 ? 0 : (windows(n) + shape_.kernel_size) / 2 * 2;
    }
    // Positions of a block: so many that it stays in L2 beside the sums, but a sample at least.
    int64_t block_positions() const {
        constexpr int64_t block_bytes = 512 << 10;
        const int64_t position_bytes = 2 * planes * (shape_.channels + copies_ * shape_.filters);
        const int64_t longest = shape_.padding_left + shape_.length + shape_.padding_right + 1;
        return larger(longest, smaller(checked_product({longest, shape_.batch}),
                                       block_bytes / larger(1, position_bytes)));
    }

    // Threads share out the gradient, filters by channels in pairs of tiles: each lays out for
    // itself what it multiplies, since to fetch it from another core takes longer.
    struct Grid {
        int64_t filters;
        int64_t channels;
    };
    static int64_t pairs_of(int64_t tiles, int64_t parts) {
        return divide_rounding_up(divide_rounding_up(tiles, 2), parts);
    }
    // The one with the least work, in cycles a stretch of 32 positions.
    Grid grid_for(int64_t threads) const {
        constexpr int64_t products = planes * (planes + 1) / 2;
        Grid best{1, 1};
        int64_t least = -1;
        for (int64_t parts = 1; parts <= smaller(threads, pairs_of(filter_tiles_, 1)); ++parts) {
            const Grid grid{parts,
                            smaller(threads / parts, larger(1, pairs_of(channel_tiles_, 1)))};
            const int64_t filters = pairs_of(filter_tiles_, grid.filters);
            const int64_t channels = pairs_of(channel_tiles_, grid.channels);
            const int64_t work = filters * channels * shape_.kernel_size * products * 64 +
                                 planes * (600 * filters + 400 * channels);
            if (least < 0 || work < least) {
                least = work;
                best = grid;
            }
        }
        return best;
    }
    // Scratch of a thread: rows and pairs; sums, scales and g of a sample.
    int64_t row_numbers(const Grid& grid) const {
        return checked_product({pairs_of(filter_tiles_, grid.filters), 2, row_tile()});
    }
    int64_t plane_numbers(const Grid& grid) const {
        return row_numbers(grid) +
               checked_product({pairs_of(channel_tiles_, grid.channels), 2, planes, pairs_plane()});
    }
    int64_t sums_of(const Grid& grid) const {
        return checked_product({pairs_of(filter_tiles_, grid.filters),
                                pairs_of(channel_tiles_, grid.channels), unit_numbers()});
    }
    int64_t wide_numbers(const Grid& grid) const {
        return sums_of(grid) + checked_product({pairs_of(filter_tiles_, grid.filters), 2 * rows,
                                                shape_.pooled + 1});
    }
    // Of all threads, however many are granted.
    int64_t most(int threads,
                 int64_t (TileConvolutionWeightGradient::*of_thread)(const Grid&) const) const {
        int64_t numbers = 0;
        for (int granted = 1; granted <= threads; ++granted) {
            const Grid grid = grid_for(granted);
            numbers = larger(
                numbers, checked_product({grid.filters, grid.channels, (this->*of_thread)(grid)}));
        }
        return numbers;
    }

    // What is a thread's, tiles of filters and channels, and where it works.
    struct Part {
        Range filters;
        Range channels;
        Bfloat16* rows;
        Bfloat16* pairs;
        T* sums;
        T* scales;      // what g of 16 filters is multiplied with
        T* gradients;   // g of a sample, (P, filters)
        Range numbers;  // filters
    };
    Part part_of_grid(const Grid& grid, int64_t thread) const {
        Part part{};
        part.filters = part_of(filter_tiles_, 2, thread / grid.channels, grid.filters);
        part.channels = part_of(channel_tiles_, 2, thread % grid.channels, grid.channels);
        part.rows = planes_.data() + thread * plane_numbers(grid);
        part.pairs = part.rows + row_numbers(grid);
        part.sums = numbers_.data() + thread * wide_numbers(grid);
        part.scales = part.sums + sums_of(grid);
        part.gradients = part.scales + pairs_of(filter_tiles_, grid.filters) * 2 * rows;
        part.numbers = {smaller(shape_.filters, part.filters.begin * rows),
                        smaller(shape_.filters, part.filters.end * rows)};
        return part;
    }

    // 32 filters by 32 channels, or what is left of either.
    int64_t unit_numbers() const { return checked_product({shape_.kernel_size, 4, sums_numbers}); }

    // A copy of the rows of a part's tile of filters, and the pairs of one of channels, from a
    // block's position on.
    int64_t row_tile() const { return checked_product({copies_, planes, rows, row_}); }
    Bfloat16* rows_at(const Part& part, int64_t tile, int64_t copy, int64_t position) const {
        return part.rows + tile * row_tile() + copy * planes * rows * row_ + position;
    }
    int64_t pairs_plane() const { return checked_product({positions_, rows}); }
    Bfloat16* pairs_at(const Part& part, int64_t tile, int64_t position) const {
        return part.pairs + tile * planes * pairs_plane() + position * rows;
    }

    // What g of 16 filters is to be multiplied with so that it can be cut into planes.
    T scale_of(const Part& part, int64_t tile) const {
        uint32_t largest = 0;
        for (int64_t n = 0; Product::cuts && n < shape_.batch; ++n) {
            const uint32_t of_sample =
                magnitudes_.data()[n * filter_tiles_ + part.filters.begin + tile];
            if (of_sample > largest) largest = of_sample;
        }
        TileMagnitude magnitude;
        magnitude.take(Vector::broadcast(float_of_bits(largest)));
        const T scale = magnitude.scale();
        if (scale == T(0)) is_left_out_ = true;
        return scale;
    }

    void lay_out(const Part& part, int64_t n) const {
        winners_.of_sample(n, part.numbers, part.gradients);
        for (int64_t begin = 0; begin < extent(n); begin += depth) {
            for (int64_t tile = 0; tile < part.filters.count(); ++tile) {
                lay_out_gradients(part, n, begin, tile);
            }
            lay_out_input(part, n, begin);
        }
    }

    // Zeros around what samples leave.
    void clear_ends(const Part& part, int64_t used) const {
        const __m512i nothing[rows] = {};
        for (int64_t i = 0; i < part.filters.count() * planes; ++i) {
            const int64_t tile = i / planes, p = i % planes;
            if (copies_ > 1) store_rows(nothing, part, tile, 1, p, 0, 1);
            for (int64_t copy = 0; copy < copies_; ++copy) {
                store_rows(nothing, part, tile, copy, p, used + copy, depth);
            }
        }
        for (int64_t tile = 0; tile < part.channels.count(); ++tile) {
            const int64_t end = rounded_up(used) + shape_.kernel_size;
            for (int64_t position = used; position < end; position += 2) {
                store_pair(part, tile, position, nothing, 1);
            }
        }
    }

    // Up to 32 positions of 16 filters.
    void store_rows(const __m512i* words, const Part& part, int64_t tile, int64_t copy,
                    int64_t plane, int64_t position, int64_t count) const {
        Bfloat16* target = rows_at(part, tile, copy, position) + plane * rows * row_;
        const auto there = static_cast<__mmask32>((uint64_t{1} << count) - 1);
        for (int64_t i = 0; i < rows; ++i) {
            _mm512_mask_storeu_epi16(target + i * row_, there, words[i]);
        }
    }

    // g of up to 32 positions of a sample, 16 filters.
    void lay_out_gradients(const Part& part, int64_t n, int64_t begin, int64_t tile) const {
        const int64_t filters = part.numbers.count(), first = tile * rows;
        const __mmask16 there = Vector::first(filters - first);
        const __m512 factor = _mm512_set1_ps(part.scales[tile]);
        const int32_t* argmax =
            call_.argmax + n * shape_.pooled * shape_.filters + part.numbers.begin + first;
        const int64_t covered = smaller(windows(n) - begin, depth);
        alignas(64) T lines[depth][rows];
        int64_t pool = begin / shape_.pool_stride, i = 0;
        for (int64_t window = pool * shape_.pool_stride - begin; i < covered; ++pool) {
            const __m512i winners = _mm512_maskz_loadu_epi32(there, argmax + pool * shape_.filters);
            const T* gradients = part.gradients + pool * filters + first;
            const __m512 numbers = _mm512_mul_ps(_mm512_maskz_loadu_ps(there, gradients), factor);
            const int64_t end = window + shape_.pool_size, next = window + shape_.pool_stride;
            for (; i < smaller(end, covered); ++i) {
                const __mmask16 wins = _mm512_cmpeq_epi32_mask(
                    winners, _mm512_set1_epi32(static_cast<int32_t>(begin + i)));
                _mm512_store_ps(lines[i], _mm512_maskz_mov_ps(wins, numbers));
            }
            for (; i < smaller(next, covered); ++i) {
                _mm512_store_ps(lines[i], _mm512_setzero_ps());
            }
            window = next;
        }
        for (i = larger(0, i); i < depth; ++i) _mm512_store_ps(lines[i], _mm512_setzero_ps());
        __m512i words[planes][rows];
        for (i = 0; i < rows; ++i) {
            __m512i cut[planes];
            cut_into_pairs(_mm512_load_ps(lines[2 * i]), _mm512_load_ps(lines[2 * i + 1]), cut);
            for (int p = 0; p < planes; ++p) words[p][i] = cut[p];
        }
        for (int p = 0; p < planes; ++p) {
            transpose(words[p]);
            for (int64_t copy = 0; copy < copies_; ++copy) {
                store_rows(words[p], part, tile, copy, p, starts_.data()[n] + begin + copy,
                           smaller(depth, extent(n) - begin));
            }
        }
    }

    // Where 16 channels of a pair of positions go, plane after plane.
    void store_pair(const Part& part, int64_t tile, int64_t position, const __m512i* cut,
                    int64_t stride) const {
        Bfloat16* target = pairs_at(part, tile, position);
        for (int p = 0; p < planes; ++p) {
            _mm512_storeu_si512(target + p * pairs_plane(), cut[p * stride]);
        }
    }

    // Up to 32 positions of a sample, padding included.
    void lay_out_input(const Part& part, int64_t n, int64_t begin) const {
        const SequenceView& input = call_.input;
        const int64_t here = smaller(depth, extent(n) - begin);
        with_numbers<T>(input.numbers, [&](const auto* numbers) {
            const auto* source = numbers + n * input.stride_batch;
            const bool are_lines = input.stride_length == 1 && input.stride_channel != 1;
            const int64_t at_once = are_lines ? 1 : tiles_at_once;
            for (int64_t tile = 0; tile < part.channels.count(); tile += at_once) {
                if (are_lines) {
                    pair_lines(part, n, begin, here, tile, source);
                } else {
                    pair_rows(part, n, begin, here, tile, source);
                }
            }
        });
    }

    void judge(const TileMagnitude& magnitude) const {
        if (Product::cuts && !TileMagnitude::is_plain(magnitude.bits())) is_left_out_ = true;
    }

    // Channels that lie side by side, or anyhow: some tiles of them.
    template <class Stored>
    void pair_rows(const Part& part, int64_t n, int64_t begin, int64_t count, int64_t first,
                   const Stored* source) const {
        const SequenceView& input = call_.input;
        const int64_t length = sample_length(shape_, call_.lengths, n);
        const int64_t tiles = smaller(tiles_at_once, part.channels.count() - first);
        const auto row = [&](int64_t position, int64_t tile) {
            const int64_t own = position - shape_.padding_left;
            const int64_t channel = (part.channels.begin + tile) * rows;
            if (own < 0 || own >= length) return _mm512_setzero_ps();
            const Stored* from =
                source + own * input.stride_length + channel * input.stride_channel;
            const int64_t here = smaller(rows, shape_.channels - channel);
            if (input.stride_channel == 1) return load_masked(from, Vector::first(here));
            alignas(64) T numbers[rows] = {};
            for (int64_t i = 0; i < here; ++i) numbers[i] = widen(from[i * input.stride_channel]);
            return _mm512_load_ps(numbers);
        };
        TileMagnitude magnitudes[tiles_at_once];
        for (int64_t position = begin; position < begin + count; position += 2) {
            for (int64_t i = 0; i < tiles; ++i) {
                const __m512 even = row(position, first + i), odd = row(position + 1, first + i);
                magnitudes[i].take({even});
                magnitudes[i].take({odd});
                __m512i cut[planes];
                cut_into_pairs(even, odd, cut);
                store_pair(part, first + i, starts_.data()[n] + position, cut, 1);
            }
        }
        for (int64_t i = 0; i < tiles; ++i) judge(magnitudes[i]);
    }

    // Positions that lie side by side: one tile of channels.
    template <class Stored>
    void pair_lines(const Part& part, int64_t n, int64_t begin, int64_t count, int64_t tile,
                    const Stored* source) const {
        const int64_t length = sample_length(shape_, call_.lengths, n);
        const int64_t channel = (part.channels.begin + tile) * rows;
        const int64_t channels = smaller(rows, shape_.channels - channel);
        const int64_t own = begin - shape_.padding_left;
        // Those of 16 positions that are real.
        const auto real = [&](int64_t first) {
            return static_cast<__mmask16>(Vector::first(length - first) & ~Vector::first(-first));
        };
        const __mmask16 low_real = real(own), high_real = real(own + rows);
        TileMagnitude magnitude;
        __m512i words[planes][rows];
        for (int64_t i = 0; i < rows; ++i) {
            __m512i cut[planes] = {};
            if (i < channels) {
                const Stored* from = source + (channel + i) * call_.input.stride_channel + own;
                const __m512 low = load_masked(from, low_real);
                const __m512 high = load_masked(from + rows, high_real);
                magnitude.take({low});
                magnitude.take({high});
                cut_into_lines(low, high, cut);
            }
            for (int p = 0; p < planes; ++p) words[p][i] = cut[p];
        }
        judge(magnitude);
        for (int p = 0; p < planes; ++p) transpose(words[p]);
        for (int64_t i = 0; i < count / 2; ++i) {
            store_pair(part, tile, starts_.data()[n] + begin + 2 * i, &words[0][i], rows);
        }
    }

    // Adds what `blocks` times 32 positions contribute, stretch after stretch: as much of g of 32
    // filters, twice, and of x of 32 channels, as L1 holds.
    void add_products(const Part& part, int64_t blocks) const {
        constexpr int64_t stretch = 9 / planes;
        for (int64_t filter = 0; filter < part.filters.count(); filter += 2) {
            for (int64_t block = 0; block < blocks; block += stretch) {
                const int64_t here = smaller(stretch, blocks - block);
                for (int64_t channel = 0; channel < part.channels.count(); channel += 2) {
                    add_unit(part, filter, channel, block, here);
                }
            }
        }
    }

    // Sums of 32 filters by 32 channels, tap after tap.
    T* sums_at(const Part& part, int64_t filter, int64_t channel, int64_t tap) const {
        const int64_t unit =
            filter / 2 * divide_rounding_up(part.channels.count(), 2) + channel / 2;
        return part.sums + unit * unit_numbers() + tap * 4 * sums_numbers;
    }

    void add_unit(const Part& part, int64_t filter, int64_t channel, int64_t block,
                  int64_t blocks) const {
        const auto add = [&](auto height, auto width) {
            for (int64_t tap = 0; tap < shape_.kernel_size; ++tap) {
                add_tiles<height, width>(sums_at(part, filter, channel, tap),
                                         rows_at(part, filter, tap % 2, block * depth),
                                         pairs_at(part, channel, block * depth + tap - tap % 2),
                                         blocks);
            }
        };
        with_constant<2>(smaller(2, part.filters.count() - filter), [&](auto height) {
            with_constant<2>(smaller(2, part.channels.count() - channel),
                             [&](auto width) { add(height, width); });
        });
    }

    // What a unit is given: see AmxUnit::multiply.
    struct Sums {
        T* first;

        static constexpr bool has_start() { return true; }
        T* start(int r, int v) const { return target(r, v); }
        T* target(int r, int v) const { return first + (2 * r + v) * sums_numbers; }
        static constexpr int64_t start_line() { return target_line(); }
        static constexpr int64_t target_line() { return rows * int64_t{sizeof(T)}; }
    };
    struct LeftTiles {
        const Bfloat16* first[2];
        int64_t plane;
        int64_t line;
        static constexpr bool follow_on = false;

        const char* at(int r, int64_t block) const {
            return reinterpret_cast<const char*>(first[r] + block * depth);
        }
    };
    struct RightTiles {
        const Bfloat16* first;
        int64_t beside;
        int64_t plane;
        static constexpr int64_t block = depth * rows;
    };

    // Fetches the sums that come next, which have long been left for L2.
    class FetchingSums {
     public:
        FetchingSums(const T* next, int64_t turns)
            : next_(next), lines_(divide_rounding_up(4 * rows, turns)) {}
        void operator()(int64_t turn) const {
            const T* line = next_ + turn * lines_ * Vector::width;
            for (int64_t i = 0; i < lines_; ++i, line += Vector::width) {
                _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T0);
            }
        }

     private:
        const T* const next_;
        const int64_t lines_;
    };

    // Adds products of `blocks` times 32 positions to R x V tiles of sums.
    template <int R, int V>
    void add_tiles(T* sums, const Bfloat16* left, const Bfloat16* right, int64_t blocks) const {
        constexpr int64_t number_bytes = sizeof(Bfloat16);
        Unit::template multiply<planes, R, V, ReadOnce::neither>(
            Sums{sums}, R * rows,
            LeftTiles{{left, left + row_tile()}, rows * row_ * number_bytes, row_ * number_bytes},
            RightTiles{right, planes * pairs_plane(), pairs_plane()}, blocks * depth, 0,
            FetchingSums(sums + 4 * sums_numbers, blocks));
    }

    // Sums from tiles to where they belong.
    void finish(const Part& part) const {
        const int64_t taps = shape_.kernel_size;
        for (int64_t f = part.numbers.begin; f < part.numbers.end; ++f) {
            const int64_t tile = f / rows - part.filters.begin;
            const Vector inverse = Vector::broadcast(T(1) / part.scales[tile]);
            for (int64_t i = 0; i < part.channels.count(); ++i) {
                const int64_t c = (part.channels.begin + i) * rows;
                T* line = sums_at(part, tile, i, 0) + (tile % 2 * 2 + i % 2) * sums_numbers +
                          f % rows * rows;
                for (int64_t tap = 0; tap < taps; ++tap) {
                    T* of_tap = line + tap * 4 * sums_numbers;
                    (Vector::load(of_tap) * inverse).store(of_tap);
                }
                by_channels<Vector>(line, 4 * sums_numbers, taps,
                                    smaller(rows, shape_.channels - c),
                                    call_.grad_weight + (f * shape_.channels + c) * taps);
            }
        }
    }

    const ConvolutionBackward<Number>& call_;
    const ConvolutionShape& shape_;
    const WinnerGradients<Vector, Number> winners_;
    const int64_t filter_tiles_;
    const int64_t channel_tiles_;
    const int64_t copies_;                // of g
    const int64_t row_;                   // positions of a row of g
    const int64_t positions_;             // of x
    const Scratch<int64_t> starts_;       // of each sample within its block
    const Scratch<uint32_t> magnitudes_;  // (N, tiles of filters)
    // Of each thread: [tile of filters][copy][plane][16][row_], then
    // [tile of channels][plane][positions_ / 2][16][2].
    const Scratch<Bfloat16> planes_;
    // Of each thread: [unit][tap][2][2][16][16], scales, g.
    const Scratch<T> numbers_;
    mutable std::atomic<bool> is_left_out_{false};
};

}  // namespace seqkernels
