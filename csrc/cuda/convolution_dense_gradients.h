// Gradients of a convolution with small pools, as dense products: of the gradient g of every
// window, zero where a window did not win.
//
//   grad_input[n, p, c]  = sum over taps j, filters f of
//                              g[n, p + padding - j dilation, f] weight[f, c, j]
//   grad_weight[f, c, j] = sum over samples n, windows w of
//                              g[n, w, f] input[n, w + j dilation - padding, c]
//
// scatter_gradients writes g, each element once: the sum of what the pools that the window won pass
// on, in the order of pools, in float32 and rounded once; the columns' sums of a stretch of
// windows, for the bias; and the weights, turned. With those the input's gradient is itself a
// convolution, for the forward's kernels (convolution_backward.cu). dense_weight_gradients
// multiplies g with the input where it lies; the depth of the product, the windows of all samples,
// is shared out to `splits` blocks, whose parts add_splits adds in their order.
//
// For strides of 1. An input or a weight that is not finite makes the gradients that it enters NaN,
// as torch's dense ones are, whether or not its window won, a weight those of samples too short for
// a window too; what stands beyond a length is not read.
//
// Shapes, strides and ownership: ConvolutionBackward in csrc/core/convolution.h. Scratch, owned by
// the caller: DenseScratch.
//
// Cost of the weight's: 2 N W F k C FLOPs, the windows of a sample rounded up to 32, F and k C to
// 128. Bytes from L2: 16 KiB for every 2^19 multiply-adds of 16-bit numbers, for half as many of
// float32; and splits F k C sums written and read. Limit: the matrix units, as far as mma.sync
// drives them; float32 the multiply-add rate. N 64, L 512, C 128, F 128, k 3 in bfloat16: 3.2
// GFLOP, 11 us at 300 TFLOP/s; g 25 MB, 6 us; the sums 12 MB each way, 4 us. Measured there with
// pools of 2 on an H200: scatter_gradients 29 us, the weight's products 28, their sums 5.5, the
// input's convolution some 25; by the winners alone 6 ms.
#pragma once

#include <limits>

#include "convolution_operands.h"
#include "convolution_rules.h"
#include "tile.h"

namespace seqkernels::cuda {

// Windows of a block of scatter_gradients, an eighth of them for each warp; a lane has a filter.
constexpr int scattered_windows = 64;

template <class T>
struct DenseScratch {
    int64_t windows;   // W, of a sample of length L
    T* gradients;      // (N, W, filters)
    int64_t filters;   // F in whole 16 bytes, those beyond F zero
    T* turned;         // (C, F, k): the weights, their taps backwards
    int64_t* lengths;  // (N,): windows of each sample
    float* biases;     // (N * stretches, F): sums of scattered_windows each
    float* weights;    // (splits, F, k channels), the last two in whole tiles
    T* repacked;       // (N, L, channels), or null
    int64_t channels;  // in whole copies, those beyond C zero
    int copy_bytes;    // of the input, 16 or 8
    int64_t splits;
    int64_t steps_of_split;  // of dense_depth windows
};

template <class T>
__global__ __launch_bounds__(threads_per_block,
                             4) void scatter_gradients(ConvolutionBackward<T> call,
                                                       DenseScratch<T> scratch) {
    constexpr int warps = threads_per_block / warp_threads;
    constexpr int own_windows = scattered_windows / warps;
    __shared__ float biases[warps][warp_threads];
    const ConvolutionShape& shape = call.shape;
    const T* weight = static_cast<const T*>(call.weight.numbers.data);
    const auto weights = static_cast<uint32_t>(shape.channels * shape.filters * shape.kernel_size);
    const auto taps = static_cast<uint32_t>(shape.kernel_size);
    const auto lines = static_cast<uint32_t>(shape.filters);
    for (int64_t index = thread_in_grid(); index < weights; index += threads_in_grid()) {
        const auto number = static_cast<uint32_t>(index);
        const uint32_t line = number / taps, tap = number % taps;
        scratch.turned[index] = weight[line % lines * call.weight.stride_filter +
                                       line / lines * call.weight.stride_channel +
                                       (taps - 1 - tap) * call.weight.stride_tap];
    }

    const int lane = static_cast<int>(threadIdx.x) % warp_threads;
    const int warp = static_cast<int>(threadIdx.x) / warp_threads;
    const auto all_windows = static_cast<int32_t>(scratch.windows);
    const auto pool_size = static_cast<int32_t>(shape.pool_size);
    const auto pool_stride = static_cast<int32_t>(shape.pool_stride);
    const auto stretches =
        static_cast<uint32_t>(divide_rounding_up(all_windows, scattered_windows));
    const auto filter_blocks =
        static_cast<uint32_t>(divide_rounding_up(scratch.filters, warp_threads));
    // Fewer than 2^32, of 2048 numbers of g.
    const auto items = static_cast<uint32_t>(shape.batch) * stretches * filter_blocks;

    for (uint32_t item = blockIdx.x; item < items; item += gridDim.x) {
        const uint32_t part = item / filter_blocks;
        const int64_t filter = int64_t{item % filter_blocks} * warp_threads + lane;
        const int64_t sample = part / stretches;
        const auto first =
            static_cast<int32_t>(part % stretches * scattered_windows) + warp * own_windows;
        // As shape.windows and shape.pools, of a stride of 1.
        const auto length = static_cast<int32_t>(sample_length(shape, call.lengths, sample));
        const int32_t more = all_windows - static_cast<int32_t>(shape.length);
        const int32_t windows = length + more < 0 ? 0 : length + more;
        const int32_t pools = windows < pool_size ? 0 : (windows - pool_size) / pool_stride + 1;
        const int32_t* argmax = call.argmax + sample * shape.pooled * shape.filters + filter;
        const T* grad = call.grad_output + sample * call.grad_output_stride_batch +
                        filter * call.grad_output_stride_filter;
        const T* output =
            call.output + sample * call.output_stride_batch + filter * call.output_stride_filter;
        const bool is_first = item % (filter_blocks * stretches) == 0;
        if (is_first && threadIdx.x == 0) {
            scratch.lengths[sample] = windows;
        }
        float bias = 0;
#pragma unroll
        for (int w = 0; w < own_windows; ++w) {
            const int32_t window = first + w;
            if (window >= all_windows || filter >= scratch.filters) break;
            float gradient = 0;
            if (filter < shape.filters) {
                const int32_t before = window - pool_size + 1;
                const int32_t last = window / pool_stride;
                for (int32_t pool = before <= 0 ? 0 : (before + pool_stride - 1) / pool_stride;
                     pool <= last && pool < pools; ++pool) {
                    if (argmax[pool * shape.filters] != window) continue;
                    gradient += activation_gradient(
                        shape.activation, widened(grad[pool * call.grad_output_stride_pooled]),
                        widened(output[pool * call.output_stride_pooled]));
                }
            }
            bias += gradient;
            scratch.gradients[(sample * all_windows + window) * scratch.filters + filter] =
                narrowed<T>(gradient);
        }
        biases[warp][lane] = bias;
        __syncthreads();
        if (warp == 0 && filter < shape.filters) {
            float sum = 0;
            for (const auto& of_warp : biases) sum += of_warp[lane];
            scratch.biases[int64_t{part} * shape.filters + filter] = sum;
        }
        __syncthreads();
    }
}

// Tiles of a depth of 32 windows: rows of 128 numbers, of filters or of columns (tap, channel), in
// pieces of 16 bytes, placed so that a warp's accesses fall into different banks: those to a piece
// of 8 rows by ldmatrix, and to words of 4 rows.
constexpr int dense_side = 128;
constexpr int dense_depth = 32;
constexpr int dense_stages = 3;
constexpr int dense_threads = 256;

static constexpr int64_t in_tiles(int64_t numbers) {
    return divide_rounding_up(numbers, dense_side) * dense_side;
}

template <class T>
struct DenseTile {
    static constexpr int elements = piece_bytes / static_cast<int>(sizeof(T));
    static constexpr int pieces = dense_side / elements;
    static constexpr int bytes = dense_depth * dense_side * static_cast<int>(sizeof(T));
    static constexpr int copies = dense_depth * pieces / dense_threads;  // of a thread

    template <class Byte>
    __device__ static Byte* at(Byte* tile, int row, int piece) {
        const int turn = sizeof(T) == 2 ? row & 7 : (row & 3) * 2;
        return tile + (row * pieces + (piece ^ turn)) * piece_bytes;
    }
};

// sums += left^T right, in the matrix units; which of them a thread has is MatrixUnitProduct's.
template <class T>
struct DenseMatrixUnitProduct : MatrixUnitProduct<T, dense_side, dense_side> {
    using Base = MatrixUnitProduct<T, dense_side, dense_side>;
    using Tile = DenseTile<T>;
    static constexpr int side_by_side = 2;  // columns that a thread has

    __device__ static void multiply(const char* left, const char* right,
                                    float (&sums)[Base::rows][Base::columns]) {
        constexpr int depth_of_product = 32 / static_cast<int>(sizeof(T));
        const int first_row = Base::W::row() * Base::warp_rows;
        const int first_column = Base::W::column() * Base::warp_columns;
#pragma unroll 1
        for (int depth = 0; depth < dense_depth; depth += depth_of_product) {
            uint32_t a[Base::rows / 2][4];
            uint32_t b[Base::columns / 4][4];
#pragma unroll
            for (int i = 0; i < Base::rows / 2; ++i) {
                load(a[i], left, depth, first_row + i * 16, true);
            }
#pragma unroll
            for (int j = 0; j < Base::columns / 4; ++j) {
                load(b[j], right, depth, first_column + j * 16, false);
            }
#pragma unroll
            for (int i = 0; i < Base::rows / 2; ++i) {
#pragma unroll
                for (int j = 0; j < Base::columns / 2; ++j) {
                    multiply_add<T>(sums[2 * i][2 * j], sums[2 * i][2 * j + 1],
                                    sums[2 * i + 1][2 * j], sums[2 * i + 1][2 * j + 1], a[i],
                                    b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
                }
            }
        }
    }

 private:
    // Four matrices of 16 numbers across and a product's depth, turned: of left (is_across) the
    // second is beside the first, of right below it.
    __device__ static void load(uint32_t (&words)[4], const char* tile, int depth, int first,
                                bool is_across) {
        const int lane = Base::W::lane();
        if constexpr (sizeof(T) == 2) {
            const int across = is_across ? lane / 8 % 2 : lane / 16;
            const int below = is_across ? lane / 16 : lane / 8 % 2;
            load_matrices_transposed(
                words, Tile::at(tile, depth + below * 8 + lane % 8, first / 8 + across));
        } else {
#pragma unroll
            for (int matrix = 0; matrix < 4; ++matrix) {
                const int across = is_across ? matrix % 2 : matrix / 2;
                const int below = is_across ? matrix / 2 : matrix % 2;
                const int column = first + across * 8 + lane / 4;
                const char* piece =
                    Tile::at(tile, depth + below * 4 + lane % 4, column / Tile::elements);
                words[matrix] = rounded_to_tf32(
                    reinterpret_cast<const uint32_t*>(piece)[column % Tile::elements]);
            }
        }
    }
};

// The same in float32 multiply-adds: a thread has two fours of rows and of columns.
struct DenseMultiplyAddProduct : Warps<dense_side, dense_side> {
    using W = Warps<dense_side, dense_side>;
    using Tile = DenseTile<float>;
    static constexpr int rows = 8, columns = 8, side_by_side = 4;

    __device__ static int row_four() { return W::row() * 4 + W::lane() / 8; }
    __device__ static int column_four() { return W::column() * 8 + W::lane() % 8; }
    __device__ static int row(int i) { return i / 4 * 64 + row_four() * 4 + i % 4; }
    __device__ static int column(int j) { return j / 4 * 64 + column_four() * 4 + j % 4; }

    __device__ static void multiply(const char* left, const char* right,
                                    float (&sums)[rows][columns]) {
        struct alignas(piece_bytes) Four {
            float numbers[4];
        };
#pragma unroll 2
        for (int depth = 0; depth < dense_depth; ++depth) {
            Four a[2], b[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                a[half] =
                    *reinterpret_cast<const Four*>(Tile::at(left, depth, half * 16 + row_four()));
                b[half] = *reinterpret_cast<const Four*>(
                    Tile::at(right, depth, half * 16 + column_four()));
            }
#pragma unroll
            for (int i = 0; i < rows; ++i) {
#pragma unroll
                for (int j = 0; j < columns; ++j) {
                    sums[i][j] = fmaf(a[i / 4].numbers[i % 4], b[j / 4].numbers[j % 4], sums[i][j]);
                }
            }
        }
    }
};

// Brings the tiles of 32 windows, step after step, by copies of g of 16 bytes and of the input of
// `copy_bytes`.
template <class T, int copy_bytes>
class DenseReader {
    using Tile = DenseTile<T>;
    static constexpr int parts = piece_bytes / copy_bytes;
    static constexpr int rows_at_once = dense_threads / Tile::pieces;
    static constexpr int32_t nowhere = std::numeric_limits<int32_t>::min();

 public:
    __device__ DenseReader(const ConvolutionBackward<T>& call, const DenseScratch<T>& scratch,
                           const InputRows<T>& rows, uint32_t first_filter, uint32_t first_column,
                           uint32_t first_step)
        : call_(call),
          shape_(call.shape),
          scratch_(scratch),
          rows_(rows),
          windows_(static_cast<int32_t>(scratch.windows)) {
        const int piece = static_cast<int>(threadIdx.x) % Tile::pieces;
        filter_ = first_filter + piece * Tile::elements;
        const auto channels = static_cast<uint32_t>(scratch.channels);
        const uint32_t columns = static_cast<uint32_t>(shape_.kernel_size) * channels;
#pragma unroll
        for (int i = 0; i < parts; ++i) {
            const uint32_t column =
                first_column + piece * Tile::elements + i * (Tile::elements / parts);
            const auto tap = static_cast<int32_t>(column / channels);
            reach_[i] = column < columns ? tap * static_cast<int32_t>(shape_.dilation) -
                                               static_cast<int32_t>(shape_.padding_left)
                                         : nowhere;
            channel_[i] = static_cast<int32_t>(column % channels);
        }
        const auto steps = static_cast<uint32_t>(divide_rounding_up(windows_, dense_depth));
        sample_ = first_step / steps;
        first_window_ = static_cast<int32_t>(first_step % steps * dense_depth);
        set_length();
    }

    // Begins to bring the next step's.
    __device__ void begin(char* left, char* right) {
        const int piece = static_cast<int>(threadIdx.x) % Tile::pieces;
        const T* gradients = scratch_.gradients + sample_ * windows_ * scratch_.filters;
        const T* input = rows_.numbers + sample_ * rows_.stride_batch;
#pragma unroll
        for (int i = 0; i < Tile::copies; ++i) {
            const int row = static_cast<int>(threadIdx.x) / Tile::pieces + i * rows_at_once;
            const int32_t window = first_window_ + row;
            const bool is_there = window < windows_ && filter_ < scratch_.filters;
            // Where nothing is read the source is still to be an address.
            copy_async<piece_bytes>(
                Tile::at(left, row, piece),
                is_there ? gradients + window * scratch_.filters + filter_ : scratch_.gradients,
                is_there ? piece_bytes : 0);
#pragma unroll
            for (int j = 0; j < parts; ++j) {
                const int32_t position = window + reach_[j];
                const bool is_real = window < windows_ && position >= 0 && position < length_;
                copy_async<copy_bytes>(
                    Tile::at(right, row, piece) + j * copy_bytes,
                    is_real ? input + position * rows_.stride_length + channel_[j] : rows_.numbers,
                    is_real ? copy_bytes : 0);
            }
        }
        first_window_ += dense_depth;
        if (first_window_ >= windows_) {
            first_window_ = 0;
            ++sample_;
            set_length();
        }
    }

 private:
    __device__ void set_length() {
        length_ = sample_ < shape_.batch
                      ? static_cast<int32_t>(sample_length(shape_, call_.lengths, sample_))
                      : 0;
    }

    const ConvolutionBackward<T>& call_;
    const ConvolutionShape& shape_;
    const DenseScratch<T>& scratch_;
    const InputRows<T>& rows_;
    const int32_t windows_;
    int64_t filter_;
    int32_t reach_[parts];  // from a window to the position, or nowhere
    int32_t channel_[parts];
    int64_t sample_;
    int32_t first_window_;
    int32_t length_;  // of the sample
};

template <class T, class Product, int copy_bytes>
__global__ __launch_bounds__(dense_threads, sizeof(T) == 2 ? 2 : 1) void dense_weight_gradients(
    ConvolutionBackward<T> call, DenseScratch<T> scratch, InputRows<T> rows) {
    using Tile = DenseTile<T>;
    static_assert(Product::threads == dense_threads);
    constexpr int side_by_side = Product::side_by_side;
    struct alignas(side_by_side * sizeof(float)) Together {
        float numbers[side_by_side];
    };
    const ConvolutionShape& shape = call.shape;
    char* memory = shared_memory();
    const int64_t columns = shape.kernel_size * scratch.channels;
    const auto column_tiles = static_cast<uint32_t>(divide_rounding_up(columns, dense_side));
    const auto filter_tiles = static_cast<uint32_t>(divide_rounding_up(shape.filters, dense_side));
    const uint32_t tiles = column_tiles * filter_tiles;
    const auto splits = static_cast<uint32_t>(scratch.splits);
    const int64_t all_steps = shape.batch * divide_rounding_up(scratch.windows, dense_depth);
    for (uint32_t item = blockIdx.x; item < tiles * splits; item += gridDim.x) {
        const uint32_t split = item / tiles, tile = item % tiles;
        const uint32_t first_filter = tile / column_tiles * dense_side;
        const uint32_t first_column = tile % column_tiles * dense_side;
        // Each part has as many steps, but for the last ones.
        const auto in_part = static_cast<uint32_t>(scratch.steps_of_split);
        const Range steps{smaller(all_steps, int64_t{split} * in_part),
                          smaller(all_steps, int64_t{split + 1} * in_part)};
        DenseReader<T, copy_bytes> reader(call, scratch, rows, first_filter, first_column,
                                          static_cast<uint32_t>(steps.begin));
        const auto count = static_cast<int>(steps.count());
        int begun = 0;
        const auto begin_next = [&] {
            char* stage = memory + begun % dense_stages * (2 * Tile::bytes);
            if (begun < count) reader.begin(stage, stage + Tile::bytes);
            ++begun;
            commit_copies();
        };
        for (int i = 0; i < dense_stages - 1; ++i) begin_next();
        float sums[Product::rows][Product::columns] = {};
#pragma unroll 1
        for (int step = 0; step < count; ++step) {
            wait_for_copies<dense_stages - 2>();
            __syncthreads();
            begin_next();
            const char* stage = memory + step % dense_stages * (2 * Tile::bytes);
            Product::multiply(stage, stage + Tile::bytes, sums);
        }
        wait_for_copies<0>();
        __syncthreads();
        const int64_t columns_in_tiles = int64_t{column_tiles} * dense_side;
        float* sums_of_tile =
            scratch.weights +
            (int64_t{split} * filter_tiles * dense_side + first_filter) * columns_in_tiles +
            first_column;
#pragma unroll
        for (int i = 0; i < Product::rows; ++i) {
            float* row = sums_of_tile + Product::row(i) * columns_in_tiles;
#pragma unroll
            for (int j = 0; j < Product::columns; j += side_by_side) {
                Together together;
#pragma unroll
                for (int v = 0; v < side_by_side; ++v) together.numbers[v] = sums[i][j + v];
                *reinterpret_cast<Together*>(row + Product::column(j)) = together;
            }
        }
    }
}

// The parts' sums in their order: a thread an element of the weight's gradient; and of the bias's a
// block 32 filters, of whose parts each warp adds every eighth, and the warps' sums in their order.
template <class T>
__global__ __launch_bounds__(threads_per_block) void add_splits(ConvolutionBackward<T> call,
                                                                DenseScratch<T> scratch,
                                                                int64_t bias_blocks) {
    constexpr int warps = threads_per_block / warp_threads;
    __shared__ float biases[warps][warp_threads];
    const ConvolutionShape& shape = call.shape;
    const int lane = static_cast<int>(threadIdx.x) % warp_threads;
    const int warp = static_cast<int>(threadIdx.x) / warp_threads;
    const int64_t columns = in_tiles(shape.kernel_size * scratch.channels);
    const int64_t weights =
        call.grad_weight == nullptr ? 0 : shape.filters * shape.kernel_size * shape.channels;
    const int64_t parts = shape.batch * divide_rounding_up(scratch.windows, scattered_windows);
    const int64_t items = bias_blocks + divide_rounding_up(weights, threads_per_block);
    for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
        if (item < bias_blocks) {
            const int64_t filter = item * warp_threads + lane;
            float sum = 0;
            if (filter < shape.filters) {
#pragma unroll 8
                for (int64_t part = warp; part < parts; part += warps) {
                    sum += scratch.biases[part * shape.filters + filter];
                }
            }
            biases[warp][lane] = sum;
            __syncthreads();
            if (warp == 0 && filter < shape.filters) {
                float total = 0;
                for (const auto& of_warp : biases) total += of_warp[lane];
                call.grad_bias[filter] = narrowed<T>(total);
            }
            __syncthreads();
            continue;
        }
        const int64_t index = (item - bias_blocks) * threads_per_block + threadIdx.x;
        if (index >= weights) continue;
        const int64_t line = index / shape.channels, channel = index - line * shape.channels;
        const int64_t filter = line / shape.kernel_size;
        const int64_t tap = line - filter * shape.kernel_size;
        const float* from = scratch.weights + filter * columns + tap * scratch.channels + channel;
        float sum = 0;
#pragma unroll 8
        for (int64_t split = 0; split < scratch.splits; ++split) {
            sum += from[split * in_tiles(shape.filters) * columns];
        }
        call.grad_weight[(filter * shape.channels + channel) * shape.kernel_size + tap] =
            narrowed<T>(sum);
    }
}

}  // namespace seqkernels::cuda
