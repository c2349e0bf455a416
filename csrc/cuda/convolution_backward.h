// Gradients of convolution, bias, activation and max-pooling, from the winning windows alone: as
// csrc/cpu/convolution_backward.h has them, in two kernels.
//
// weight_gradients: a block sums, for one filter, a stretch of the k C weights over all samples and
// pools; of those that have a winner each warp takes every eighth, and the warps' sums are added in
// their order. The block of the first stretch sums the bias too.
// input_gradients: a block has a stretch of a sample's positions and of its channels. It lists the
// winners that reach into it, in the order of pools and filters; each warp adds what falls to its
// own positions, each lane to its own channels. So no two threads write one address, and every sum
// has one order: no atomics.
//
// Shapes, strides and ownership: ConvolutionBackward in csrc/core/convolution.h. No scratch.
//
// Cost: 2 N P F k C FLOPs each. Bytes, from L2: weight N P F k C numbers of input; input N P F k C
// numbers of weights, and N L C written. Limit: pooled over time L2 and launches (N 64, L 512, C
// 128, F 128, k 3 in bfloat16: 6, 6 and 8 MB, some 5 us together at 5 TB/s); with small pools the
// multiply-adds, which the matrix units would do faster on the dense gradient. Channels that do not
// lie side by side cost a sector of 32 bytes each. Compiled and verified by emulation; not timed.
#pragma once

#include "convolution_rules.h"

namespace seqkernels::cuda {

constexpr int backward_warps = 8;
constexpr int backward_threads = backward_warps * warp_threads;
// Columns of a block: weights, or channels. Of them a lane has every 32nd.
constexpr int lane_columns = 4;
constexpr int backward_columns = lane_columns * warp_threads;

// The places of a block's threads in a list of those that enter one, in the order of their numbers.
struct Listing {
    int place;   // this thread's, if it enters
    int length;  // of the list

    // counts: shared, of the block's warps; free again after the next barrier. The barrier within
    // lets nobody write to a list that others still read.
    __device__ Listing(bool enters, int (&counts)[backward_warps]) {
        const int thread = static_cast<int>(threadIdx.x);
        const int lane = thread % warp_threads, warp = thread / warp_threads;
        const uint32_t lanes = lanes_where(enters);
        if (lane == 0) counts[warp] = bits_set(lanes);
        __syncthreads();
        place = bits_set(lanes & ((1u << lane) - 1));
        length = 0;
        for (int i = 0; i < backward_warps; ++i) {
            place += i < warp ? counts[i] : 0;
            length += counts[i];
        }
    }
};

template <class T>
__global__ __launch_bounds__(backward_threads) void weight_gradients(ConvolutionBackward<T> call) {
    using Number = Accumulator<T>;
    __shared__ Number gradients[backward_threads];
    __shared__ int64_t starts[backward_threads];   // of the winning windows, in the sample
    __shared__ int64_t lengths[backward_threads];  // of the sample
    __shared__ int64_t samples[backward_threads];
    __shared__ Number sums[backward_warps][backward_columns];
    __shared__ Number biases[backward_warps];
    __shared__ int counts[backward_warps];
    const ConvolutionShape& shape = call.shape;
    const T* input = static_cast<const T*>(call.input.numbers.data);
    const int thread = static_cast<int>(threadIdx.x);
    const int lane = thread % warp_threads, warp = thread / warp_threads;
    const int64_t columns = call.grad_weight == nullptr ? 0 : shape.kernel_size * shape.channels;
    const int64_t stretches = larger(1, divide_rounding_up(columns, backward_columns));
    const int64_t rows = shape.batch * shape.pooled;

    for (int64_t item = blockIdx.x; item < shape.filters * stretches; item += gridDim.x) {
        const int64_t filter = item / stretches;
        const int64_t first_column = item % stretches * backward_columns;
        int64_t reach[lane_columns];   // from a window's start to the column's position
        int64_t offset[lane_columns];  // and from there to its number
        bool is_column[lane_columns];
        Number sum[lane_columns] = {};
        Number bias = 0;
#pragma unroll
        for (int v = 0; v < lane_columns; ++v) {
            const int64_t column = first_column + lane + v * warp_threads;
            is_column[v] = column < columns;
            const int64_t tap = is_column[v] ? column / shape.channels : 0;
            reach[v] = tap * shape.dilation;
            offset[v] = (column - tap * shape.channels) * call.input.stride_channel;
        }
        int64_t listed_before = 0;
        for (int64_t begin = 0; begin < rows; begin += backward_threads) {
            const int64_t row = begin + thread;
            const int64_t sample = row < rows ? row / shape.pooled : 0;
            int64_t length = 0, start = 0;
            Number gradient = 0;
            bool has_won = false;
            if (row < rows) {
                length = sample_length(shape, call.lengths, sample);
                const PoolGradient<T> own(call, shape.windows(length), sample, row % shape.pooled,
                                          filter);
                gradient = own.gradient;
                start = window_start(shape, own.window);
                has_won = own.window >= 0;
            }
            const Listing listing(has_won, counts);
            if (has_won) {
                gradients[listing.place] = gradient;
                starts[listing.place] = start;
                lengths[listing.place] = length;
                samples[listing.place] = sample;
            }
            __syncthreads();
            // Every eighth of the whole list: what has no winner changes no bit of a sum.
            const int first = static_cast<int>(
                (warp - listed_before % backward_warps + backward_warps) % backward_warps);
#pragma unroll 4
            for (int i = first; i < listing.length; i += backward_warps) {
                const T* from = input + samples[i] * call.input.stride_batch;
                bias += gradients[i];
#pragma unroll
                for (int v = 0; v < lane_columns; ++v) {
                    const int64_t position = starts[i] + reach[v];
                    if (is_column[v] && position >= 0 && position < lengths[i]) {
                        sum[v] += gradients[i] *
                                  widened(from[position * call.input.stride_length + offset[v]]);
                    }
                }
            }
            listed_before += listing.length;
        }
        if (call.grad_weight != nullptr) {
#pragma unroll
            for (int v = 0; v < lane_columns; ++v) sums[warp][lane + v * warp_threads] = sum[v];
            __syncthreads();
            if (thread < backward_columns && first_column + thread < columns) {
                Number total = 0;
                for (const auto& of_warp : sums) total += of_warp[thread];
                call.grad_weight[filter * columns + first_column + thread] = narrowed<T>(total);
            }
        }
        if (call.grad_bias != nullptr && first_column == 0) {
            if (lane == 0) biases[warp] = bias;
            __syncthreads();
            if (thread == 0) {
                Number total = 0;
                for (const Number of_warp : biases) total += of_warp;
                call.grad_bias[filter] = narrowed<T>(total);
            }
        }
        __syncthreads();
    }
}

// Positions of a block of input_gradients, an eighth of them for each warp.
constexpr int backward_positions = 64;
constexpr int warp_positions = backward_positions / backward_warps;

template <class T>
__global__ __launch_bounds__(backward_threads) void input_gradients(ConvolutionBackward<T> call) {
    static_assert(!std::is_same_v<T, double>, "the sums fill 32 KiB of shared memory");
    __shared__ float sums[backward_positions][backward_columns];
    __shared__ float gradients[backward_threads];
    __shared__ int64_t starts[backward_threads];
    __shared__ int64_t filters[backward_threads];
    __shared__ int counts[backward_warps];
    const ConvolutionShape& shape = call.shape;
    const T* weight = static_cast<const T*>(call.weight.numbers.data);
    const int thread = static_cast<int>(threadIdx.x);
    const int lane = thread % warp_threads, warp = thread / warp_threads;
    const int64_t channel_blocks = divide_rounding_up(shape.channels, backward_columns);
    const int64_t position_blocks = divide_rounding_up(shape.length, backward_positions);
    const int64_t reach = shape.dilation * (shape.kernel_size - 1);

    for (int64_t item = blockIdx.x; item < shape.batch * position_blocks * channel_blocks;
         item += gridDim.x) {
        const int64_t first_channel = item % channel_blocks * backward_columns;
        const int64_t first = item / channel_blocks % position_blocks * backward_positions;
        const int64_t sample = item / channel_blocks / position_blocks;
        const int64_t length = sample_length(shape, call.lengths, sample);
        const int64_t windows = shape.windows(length);
        const int64_t end = smaller(length, first + backward_positions);
        const Range pools = first < end ? pools_over(shape, first, end - 1) : Range{0, 0};
        const int64_t candidates = pools.count() * shape.filters;
        // A warp's positions, from `first` on.
        const int64_t own_begin = warp * warp_positions;
        const int64_t own_end = smaller(own_begin + warp_positions, end - first);
        for (int p = warp * warp_positions; p < (warp + 1) * warp_positions; ++p) {
#pragma unroll
            for (int v = 0; v < lane_columns; ++v) sums[p][lane + v * warp_threads] = 0;
        }
        for (int64_t begin = 0; begin < candidates; begin += backward_threads) {
            const int64_t candidate = begin + thread;
            float gradient = 0;
            int64_t start = 0, filter = 0;
            bool is_near = false;
            if (candidate < candidates) {
                filter = candidate % shape.filters;
                const int64_t pool = pools.begin + candidate / shape.filters;
                const PoolGradient<T> own(call, windows, sample, pool, filter);
                gradient = own.gradient;
                start = window_start(shape, own.window) - first;
                is_near = own.window >= 0 && start < end - first && start + reach >= 0;
            }
            const Listing listing(is_near, counts);
            if (is_near) {
                gradients[listing.place] = gradient;
                starts[listing.place] = start;
                filters[listing.place] = filter;
            }
            __syncthreads();
            for (int i = 0; i < listing.length; ++i) {
                // The taps that fall to this warp's positions.
                const int64_t before = own_begin - starts[i], beyond = own_end - starts[i];
                if (beyond <= 0 || before > reach) continue;
                const int64_t first_tap =
                    before <= 0 ? 0 : divide_rounding_up(before, shape.dilation);
                const int64_t end_tap =
                    smaller(shape.kernel_size, divide_rounding_up(beyond, shape.dilation));
                for (int64_t tap = first_tap; tap < end_tap; ++tap) {
                    float* row = sums[starts[i] + tap * shape.dilation];
                    const T* from = weight + filters[i] * call.weight.stride_filter +
                                    tap * call.weight.stride_tap;
#pragma unroll
                    for (int v = 0; v < lane_columns; ++v) {
                        const int column = lane + v * warp_threads;
                        const int64_t channel = first_channel + column;
                        if (channel < shape.channels) {
                            row[column] +=
                                gradients[i] * widened(from[channel * call.weight.stride_channel]);
                        }
                    }
                }
            }
        }
        for (int p = warp * warp_positions; p < (warp + 1) * warp_positions; ++p) {
            if (first + p >= shape.length) break;
            T* row = call.grad_input + (sample * shape.length + first + p) * shape.channels;
#pragma unroll
            for (int v = 0; v < lane_columns; ++v) {
                const int column = lane + v * warp_threads;
                const int64_t channel = first_channel + column;
                if (channel < shape.channels) row[channel] = narrowed<T>(sums[p][column]);
            }
        }
    }
}

}  // namespace seqkernels::cuda
