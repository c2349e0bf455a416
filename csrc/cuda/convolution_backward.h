// Gradients of convolution, bias, activation and max-pooling, from the winning windows alone: as
// csrc/cpu/convolution_backward.h has them, in two launches.
//
// gather_winners: of every sample, pool and filter the gradient and where its window starts, for
// the two that follow once in the order of samples and once in that of filters; and the weights as
// rows of channels.
// winner_gradients: blocks of two kinds.
//   weights: a block sums, for one filter, a stretch of the k C weights over all samples and pools;
//     of those that have a winner each warp takes every eighth, and the warps' sums are added in
//     their order. The block of the first stretch sums the bias too.
//   inputs: a block has a stretch of a sample's positions and of its channels. It lists the winners
//     that reach into it, in the order of pools and filters; a warp's lanes find those that cover
//     each of its positions, and each lane adds them to its own channels.
// So no two threads write one address, and every sum has one order: no atomics.
//
// Shapes, strides and ownership: ConvolutionBackward in csrc/core/convolution.h. Scratch, owned by
// the caller: WinnerScratch. Input that does not lie in rows of whole fours of channels is
// repacked first (convolution_operands.h).
//
// Sums of inputs are kept in shared memory: so a warp has loads for all its positions under way.
//
// Cost: 2 N P F k C FLOPs each. Bytes, from L2: weight N P F k C numbers of input; input N P F k C
// numbers of weights, and N L C written. Limit: pooled over time L2, memory and launches (N 64, L
// 512, C 128, F 128, k 3 in bfloat16: 6, 6 and 8 MB, some 5 us together, and 2 us a launch). A lane
// loads four channels at once, and several winners' before it adds the first: with one number a
// load, and a load waiting for the sum before it, they took 52 us of an H200 there, and 74 us of N
// 50, L 56, C 300, F 100; with both, but a position of an input after the other, 24 and 34 us in
// the second launch and 3 in the first; as it is now 8 and 11 us less.
#pragma once

#include <limits>

#include "convolution_operands.h"
#include "convolution_rules.h"

namespace seqkernels::cuda {

constexpr int backward_warps = 8;
constexpr int backward_threads = backward_warps * warp_threads;
// Columns of a block: weights, or channels. Of them a lane has four side by side.
constexpr int lane_columns = 4;
constexpr int backward_columns = lane_columns * warp_threads;
// Loads that a lane begins before it waits for the first: of 64 bytes in all.
template <class T>
constexpr int loads_of_lane = 16 / static_cast<int>(sizeof(T));
// Positions of a block, an eighth of them for each warp.
constexpr int backward_positions = 64;
constexpr int warp_positions = backward_positions / backward_warps;

// What a pool and filter pass on, to the window that starts there in the sample.
struct WinnerGradient {
    static constexpr int32_t nowhere = std::numeric_limits<int32_t>::min();

    float gradient;
    int32_t start;  // nowhere: there is no winner
};

template <class T>
struct WinnerScratch {
    WinnerGradient* of_samples;  // (N, P, F)
    WinnerGradient* of_filters;  // (F, N, P)
    T* weights;                  // (F, k, channels)
    T* repacked;                 // (N, L, channels), or null
    int64_t channels;            // a multiple of four, those beyond C zero
};

template <class T>
struct alignas(lane_columns * sizeof(T)) Columns {
    T numbers[lane_columns];
};

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
__global__ void gather_winners(ConvolutionBackward<T> call, WinnerScratch<T> scratch) {
    const ConvolutionShape& shape = call.shape;
    const T* weight = static_cast<const T*>(call.weight.numbers.data);
    const int64_t rows = shape.batch * shape.pooled;
    const int64_t winners = rows * shape.filters;
    const int64_t weights = shape.filters * shape.kernel_size * scratch.channels;
    for (int64_t index = thread_in_grid(); index < winners + weights; index += threads_in_grid()) {
        if (index < winners) {
            const int64_t row = index / shape.filters, filter = index - row * shape.filters;
            const int64_t sample = shape.pooled == 1 ? row : row / shape.pooled;
            const int64_t windows = shape.windows(sample_length(shape, call.lengths, sample));
            const PoolGradient<T> own(call, windows, sample, row - sample * shape.pooled, filter);
            WinnerGradient winner{0, WinnerGradient::nowhere};
            if (own.window >= 0) {
                winner = {own.gradient, static_cast<int32_t>(window_start(shape, own.window))};
            }
            scratch.of_samples[index] = winner;
            scratch.of_filters[filter * rows + row] = winner;
        } else {
            const int64_t place = index - winners;
            const int64_t line = place / scratch.channels;
            const int64_t channel = place - line * scratch.channels;
            const int64_t filter = line / shape.kernel_size;
            const int64_t tap = line - filter * shape.kernel_size;
            scratch.weights[place] =
                channel < shape.channels
                    ? weight[filter * call.weight.stride_filter + tap * call.weight.stride_tap +
                             channel * call.weight.stride_channel]
                    : T{};
        }
    }
}

template <class T>
class WinnerGradients {
    using Four = Columns<T>;
    static constexpr int loads_at_once = loads_of_lane<T>;

    struct alignas(lane_columns * sizeof(float)) Sums {
        float numbers[lane_columns];
    };

    // A tap of a filter, F k in all, the gradient that it is multiplied with, and for which of its
    // warp's positions.
    struct WeightLine {
        uint32_t line;
        float gradient;
        int32_t position;
    };

 public:
    struct Shared {
        float gradients[backward_threads];
        int32_t starts[backward_threads];
        int32_t owners[backward_threads];   // weights: the sample; inputs: the filter
        int32_t lengths[backward_threads];  // weights: of the sample
        alignas(16) float sums[backward_positions][backward_columns];  // weights: of the warps
        float biases[backward_warps];
        int counts[backward_warps];
        WeightLine found[backward_warps][2 * warp_threads];  // inputs
    };

    static constexpr int64_t weight_items(const ConvolutionBackward<T>& call,
                                          const WinnerScratch<T>& scratch) {
        if (call.grad_weight == nullptr) return call.grad_bias == nullptr ? 0 : call.shape.filters;
        const int64_t columns = call.shape.kernel_size * scratch.channels;
        return call.shape.filters * larger(1, divide_rounding_up(columns, backward_columns));
    }

    static constexpr int64_t input_items(const ConvolutionBackward<T>& call) {
        const ConvolutionShape& shape = call.shape;
        if (call.grad_input == nullptr) return 0;
        return shape.batch * divide_rounding_up(shape.length, backward_positions) *
               divide_rounding_up(shape.channels, backward_columns);
    }

    __device__ WinnerGradients(const ConvolutionBackward<T>& call, const WinnerScratch<T>& scratch,
                               const InputRows<T>& rows, Shared& shared)
        : call_(call), shape_(call.shape), scratch_(scratch), rows_(rows), shared_(shared) {}

    __device__ void weights(uint32_t item) {
        const int64_t vectors_of_tap = scratch_.channels / lane_columns;
        const int64_t vectors =
            call_.grad_weight == nullptr ? 0 : shape_.kernel_size * vectors_of_tap;
        const auto stretches =
            static_cast<uint32_t>(larger(1, divide_rounding_up(vectors, warp_threads)));
        const int64_t filter = item / stretches;
        const int64_t first_vector = int64_t{item % stretches} * warp_threads;
        const int64_t vector = first_vector + lane_;
        const bool is_column = vector < vectors;
        const int64_t tap = is_column ? vector / vectors_of_tap : 0;
        const auto reach = static_cast<int32_t>(tap * shape_.dilation);
        const T* from =
            rows_.numbers + (is_column ? vector - tap * vectors_of_tap : 0) * lane_columns;
        const int64_t count = shape_.batch * shape_.pooled;
        const WinnerGradient* winners = scratch_.of_filters + filter * count;

        float sum[lane_columns] = {};
        float bias = 0;
        int listed_before = 0;  // modulo the warps
        for (int64_t begin = 0; begin < count; begin += backward_threads) {
            const int64_t row = begin + thread_;
            WinnerGradient winner{0, WinnerGradient::nowhere};
            if (row < count) winner = winners[row];
            const bool has_won = winner.start != WinnerGradient::nowhere;
            const Listing listing(has_won, shared_.counts);
            if (has_won) {
                const int64_t sample = shape_.pooled == 1 ? row : row / shape_.pooled;
                shared_.gradients[listing.place] = winner.gradient;
                shared_.starts[listing.place] = winner.start;
                shared_.owners[listing.place] = static_cast<int32_t>(sample);
                shared_.lengths[listing.place] =
                    static_cast<int32_t>(sample_length(shape_, call_.lengths, sample));
            }
            __syncthreads();
            // Every eighth of the whole list: what has no winner changes no bit of a sum.
            const int first = (warp_ - listed_before + backward_warps) % backward_warps;
            for (int i = first; i < listing.length; i += loads_at_once * backward_warps) {
                add_weights(i, listing.length, is_column, reach, from, sum, bias);
            }
            listed_before = (listed_before + listing.length) % backward_warps;
        }
        if (call_.grad_weight != nullptr) store_weights(filter, first_vector, sum);
        if (call_.grad_bias != nullptr && first_vector == 0) {
            if (lane_ == 0) shared_.biases[warp_] = bias;
            __syncthreads();
            if (thread_ == 0) {
                float total = 0;
                for (const float of_warp : shared_.biases) total += of_warp;
                call_.grad_bias[filter] = narrowed<T>(total);
            }
        }
        __syncthreads();
    }

    __device__ void inputs(uint32_t item) {
        const auto channel_blocks =
            static_cast<uint32_t>(divide_rounding_up(shape_.channels, backward_columns));
        const auto position_blocks =
            static_cast<uint32_t>(divide_rounding_up(shape_.length, backward_positions));
        const uint32_t row = item / channel_blocks;
        const int64_t sample = row / position_blocks;
        const int64_t first = int64_t{row % position_blocks} * backward_positions;
        const int64_t first_channel =
            int64_t{item % channel_blocks} * backward_columns + lane_ * lane_columns;
        const bool is_column = first_channel < scratch_.channels;
        const T* from = scratch_.weights + (is_column ? first_channel : 0);
        const int64_t length = sample_length(shape_, call_.lengths, sample);
        const int64_t end = smaller(length, first + backward_positions);
        const Range pools = first < end ? pools_over(shape_, first, end - 1) : Range{0, 0};
        const int64_t candidates = pools.count() * shape_.filters;
        const WinnerGradient* winners =
            scratch_.of_samples + (sample * shape_.pooled + pools.begin) * shape_.filters;
        const int64_t reach = shape_.dilation * (shape_.kernel_size - 1);
        const auto own_positions = static_cast<int>(
            larger(0, smaller(warp_positions, shape_.length - first - warp_ * warp_positions)));

        int64_t begin = 0;
        do {
            const int64_t candidate = begin + thread_;
            WinnerGradient winner{0, WinnerGradient::nowhere};
            if (candidate < candidates) winner = winners[candidate];
            const int64_t start = winner.start - first;
            const bool is_near = winner.start != WinnerGradient::nowhere && start < end - first &&
                                 start + reach >= 0;
            const Listing listing(is_near, shared_.counts);
            if (is_near) {
                shared_.gradients[listing.place] = winner.gradient;
                shared_.starts[listing.place] = static_cast<int32_t>(start);
                shared_.owners[listing.place] = static_cast<int32_t>(candidate % shape_.filters);
            }
            __syncthreads();
            if (begin == 0) {
                for (int p = 0; p < own_positions; ++p) *sums_of(p) = {};
            }
            begin += backward_threads;
            add_inputs(end - first, listing.length, is_column, from);
            if (begin < candidates) continue;
            for (int p = 0; p < own_positions; ++p) {
                const int64_t position =
                    sample * shape_.length + first + warp_ * warp_positions + p;
                store_input(position, first_channel, *sums_of(p));
            }
        } while (begin < candidates);
        __syncthreads();
    }

 private:
    // Of the list every eighth from `first` on, loads_at_once of them.
    __device__ void add_weights(int first, int listed, bool is_column, int32_t reach, const T* from,
                                float (&sum)[lane_columns], float& bias) const {
        Four numbers[loads_at_once] = {};
        float gradients[loads_at_once];
        bool is_there[loads_at_once];
#pragma unroll
        for (int u = 0; u < loads_at_once; ++u) {
            const int i = first + u * backward_warps;
            const int place = i < listed ? i : first;
            const int64_t position = int64_t{shared_.starts[place]} + reach;
            gradients[u] = i < listed ? shared_.gradients[place] : 0;
            is_there[u] =
                i < listed && is_column && position >= 0 && position < shared_.lengths[place];
            if (is_there[u]) {
                numbers[u] = *reinterpret_cast<const Four*>(
                    from + shared_.owners[place] * rows_.stride_batch +
                    position * rows_.stride_length);
            }
        }
#pragma unroll
        for (int u = 0; u < loads_at_once; ++u) {
            bias += gradients[u];
            if (is_there[u]) add(gradients[u], numbers[u], sum);
        }
    }

    __device__ void store_weights(int64_t filter, int64_t first_vector,
                                  const float (&sum)[lane_columns]) const {
#pragma unroll
        for (int v = 0; v < lane_columns; ++v) {
            shared_.sums[warp_][lane_ * lane_columns + v] = sum[v];
        }
        __syncthreads();
        if (thread_ >= backward_columns) return;
        const int64_t column = first_vector * lane_columns + thread_;
        const int64_t tap = scratch_.channels == 0 ? 0 : column / scratch_.channels;
        const int64_t channel = column - tap * scratch_.channels;
        if (tap >= shape_.kernel_size || channel >= shape_.channels) return;
        float total = 0;
        for (int i = 0; i < backward_warps; ++i) total += shared_.sums[i][thread_];
        call_.grad_weight[(filter * shape_.channels + channel) * shape_.kernel_size + tap] =
            narrowed<T>(total);
    }

    // This lane's sums of a position of its warp.
    __device__ Sums* sums_of(int position) const {
        return reinterpret_cast<Sums*>(shared_.sums[warp_ * warp_positions + position]) + lane_;
    }

    // What the list gives to the warp's positions, those before `end` of the block, in the list's
    // order: position after position the lanes find which of it cover it, and what they found is
    // added when it is enough, or all.
    __device__ void add_inputs(int64_t end, int listed, bool is_column, const T* from) const {
        const auto dilation = static_cast<int32_t>(shape_.dilation);
        const auto taps = static_cast<int32_t>(shape_.kernel_size);
        WeightLine* found = shared_.found[warp_];
        int count = 0;
        for (int p = 0; p < warp_positions; ++p) {
            const int position = warp_ * warp_positions + p;
            if (position >= end) break;
            for (int begin = 0; begin < listed; begin += warp_threads) {
                const int mine = begin + lane_;
                bool covers = false;
                int32_t tap = 0;
                if (mine < listed) {
                    const int32_t offset = position - shared_.starts[mine];
                    tap = dilation == 1 ? offset : offset / dilation;
                    covers = offset >= 0 && tap < taps && tap * dilation == offset;
                }
                const uint32_t covering = lanes_where(covers);
                if (covers) {
                    const auto line =
                        static_cast<uint32_t>(int64_t{shared_.owners[mine]} * taps + tap);
                    found[count + bits_set(covering & ((1u << lane_) - 1))] = {
                        line, shared_.gradients[mine], p};
                }
                count += bits_set(covering);
                if (count <= warp_threads) continue;
                add_found(found, count, is_column, from);
                count = 0;
            }
        }
        add_found(found, count, is_column, from);
    }

    __device__ void add_found(const WeightLine* found, int count, bool is_column,
                              const T* from) const {
        __syncwarp();
        for (int first = 0; first < count; first += loads_at_once) {
            add_lines(found, first, count, is_column, from);
        }
        __syncwarp();
    }

    // loads_at_once of those found, from `first` on.
    __device__ void add_lines(const WeightLine* found, int first, int count, bool is_column,
                              const T* from) const {
        Four numbers[loads_at_once] = {};
#pragma unroll
        for (int u = 0; u < loads_at_once; ++u) {
            if (first + u >= count || !is_column) continue;
            const int64_t line = found[first + u].line;
            numbers[u] = *reinterpret_cast<const Four*>(from + line * scratch_.channels);
        }
#pragma unroll
        for (int u = 0; u < loads_at_once; ++u) {
            if (first + u >= count) continue;
            const WeightLine line = found[first + u];
            Sums sums = *sums_of(line.position);
            add(line.gradient, numbers[u], sums.numbers);
            *sums_of(line.position) = sums;
        }
    }

    __device__ void store_input(int64_t row, int64_t channel, const Sums& sums) const {
        T* to = call_.grad_input + row * shape_.channels + channel;
        Four four;
#pragma unroll
        for (int v = 0; v < lane_columns; ++v) four.numbers[v] = narrowed<T>(sums.numbers[v]);
        const bool is_whole = channel + lane_columns <= shape_.channels;
        if (is_whole && reinterpret_cast<uintptr_t>(to) % sizeof(Four) == 0) {
            *reinterpret_cast<Four*>(to) = four;
            return;
        }
#pragma unroll
        for (int v = 0; v < lane_columns; ++v) {
            if (channel + v < shape_.channels) to[v] = four.numbers[v];
        }
    }

    __device__ static void add(float gradient, const Four& four, float (&sum)[lane_columns]) {
#pragma unroll
        for (int v = 0; v < lane_columns; ++v) sum[v] += gradient * widened(four.numbers[v]);
    }

    const ConvolutionBackward<T>& call_;
    const ConvolutionShape& shape_;
    const WinnerScratch<T>& scratch_;
    const InputRows<T>& rows_;
    Shared& shared_;
    const int thread_ = static_cast<int>(threadIdx.x);
    const int lane_ = static_cast<int>(threadIdx.x) % warp_threads;
    const int warp_ = static_cast<int>(threadIdx.x) / warp_threads;
};

template <class T>
__global__ __launch_bounds__(backward_threads, 3) void winner_gradients(ConvolutionBackward<T> call,
                                                                        WinnerScratch<T> scratch,
                                                                        InputRows<T> rows) {
    using Gradients = WinnerGradients<T>;
    __shared__ typename Gradients::Shared shared;
    Gradients gradients(call, scratch, rows, shared);
    // Of a gradient that fits in memory there are fewer than 2^32 items, of 128 numbers and more.
    const auto input_items = static_cast<uint32_t>(Gradients::input_items(call));
    const auto items = static_cast<uint32_t>(input_items + Gradients::weight_items(call, scratch));
    for (uint32_t item = blockIdx.x; item < items; item += gridDim.x) {
        if (item < input_items) {
            gradients.inputs(item);
        } else {
            gradients.weights(item - input_items);
        }
    }
}

}  // namespace seqkernels::cuda
