// The operands of the tiled convolution: chunks of its windows, as they are read from a sequence,
// and of its filters, as they are packed.
#pragma once

#include "convolution_plan.h"
#include "convolution_rules.h"
#include "tile.h"

namespace seqkernels::cuda {

// Where a chunk of a window's numbers begins.
struct Chunk {
    int64_t index = 0;
    int64_t tap = 0;
    int64_t channel = 0;

    __device__ void advance(int64_t kernel_size, const ConvolutionPlan& plan, int elements) {
        ++index;
        if (plan.is_chunk_of_one_tap) {
            if (++tap == kernel_size) {
                tap = 0;
                channel += elements;
            }
        } else {
            channel += elements;
            run_on(kernel_size, plan);
        }
    }

    // To the tap that a channel beyond the last belongs to.
    __device__ void run_on(int64_t kernel_size, const ConvolutionPlan& plan) {
        for (; channel >= plan.channels && tap < kernel_size; ++tap) channel -= plan.channels;
    }

    // What stands `offset` numbers on in the chunk.
    __device__ Chunk at(int64_t kernel_size, const ConvolutionPlan& plan, int offset) const {
        Chunk place{index, tap, channel + offset};
        if (!plan.is_chunk_of_one_tap) place.run_on(kernel_size, plan);
        return place;
    }
};

// The input as the tiled kernels read it: rows of plan.channels numbers side by side.
template <class T>
struct InputRows {
    const T* numbers;
    int64_t stride_batch;
    int64_t stride_length;
};

// Left tiles: rows of consecutive windows, zero where a position is not real.
template <class T, class Product, int tile>
class WindowReader {
 public:
    __device__ WindowReader(const ConvolutionShape& shape, const ConvolutionPlan& plan,
                            const InputRows<T>& rows, int64_t sample, int64_t length)
        : shape_(shape),
          plan_(plan),
          numbers_(rows.numbers),
          sample_(rows.numbers + sample * rows.stride_batch),
          stride_(rows.stride_length),
          length_(length) {}

    // Begins to bring a chunk of the windows [first, first + tile), those from `end` on being none.
    __device__ void begin(char* target, int64_t first, int64_t end, const Chunk& chunk) const {
        if (plan_.copy_bytes == 16) {
            copy<16>(target, first, end, chunk);
        } else if (plan_.copy_bytes == 8) {
            copy<8>(target, first, end, chunk);
        } else {
            copy<4>(target, first, end, chunk);
        }
    }

 private:
    template <int bytes>
    __device__ void copy(char* target, int64_t first, int64_t end, const Chunk& chunk) const {
        constexpr int numbers = bytes / static_cast<int>(sizeof(T));
        constexpr int copies_in_piece = piece_bytes / bytes;
#pragma unroll
        for (int i = 0; i < tile * pieces_in_row / Product::threads; ++i) {
            const int vector = static_cast<int>(threadIdx.x) + i * Product::threads;
            const int row = vector / pieces_in_row, piece = vector % pieces_in_row;
            const int64_t window = first + row;
            const int64_t start = window < end ? window_start(shape_, window) : length_;
            char* to = piece_at(target, row, piece);
#pragma unroll
            for (int j = 0; j < copies_in_piece; ++j) {
                const Chunk place =
                    chunk.at(shape_.kernel_size, plan_, (piece * copies_in_piece + j) * numbers);
                const int64_t position = start + place.tap * shape_.dilation;
                const bool is_there = place.tap < shape_.kernel_size &&
                                      place.channel < plan_.channels && position >= 0 &&
                                      position < length_;
                // Where nothing is read the source is still to be an address.
                const T* from = is_there ? sample_ + position * stride_ + place.channel : numbers_;
                copy_async<bytes>(to + j * bytes, from, is_there ? bytes : 0);
            }
        }
    }

    const ConvolutionShape& shape_;
    const ConvolutionPlan& plan_;
    const T* numbers_;
    const T* sample_;
    int64_t stride_;
    int64_t length_;
};

// The input as (N, L, channels), contiguous, zeros beyond C: squares of 32 positions and channels
// through shared memory, read along the direction in which they lie and written along the other.
template <class T>
__global__ void repack_input(ConvolutionShape shape, SequenceView input, int64_t channels,
                             T* target) {
    constexpr int side = warp_threads;
    constexpr int rows_at_once = threads_per_block / warp_threads;
    __shared__ T square[side][side + 1];
    const T* numbers = static_cast<const T*>(input.numbers.data);
    const int lane = static_cast<int>(threadIdx.x) % warp_threads;
    const int warp = static_cast<int>(threadIdx.x) / warp_threads;
    const int64_t channel_squares = divide_rounding_up(channels, side);
    const int64_t position_squares = divide_rounding_up(shape.length, side);
    const bool along_channels = input.stride_channel == 1;
    for (int64_t item = blockIdx.x; item < shape.batch * position_squares * channel_squares;
         item += gridDim.x) {
        const int64_t first_channel = item % channel_squares * side;
        const int64_t first_position = item / channel_squares % position_squares * side;
        const int64_t sample = item / channel_squares / position_squares;
        for (int row = warp; row < side; row += rows_at_once) {
            const int64_t position = first_position + (along_channels ? row : lane);
            const int64_t channel = first_channel + (along_channels ? lane : row);
            T& place = along_channels ? square[row][lane] : square[lane][row];
            place = T{};
            if (position < shape.length && channel < shape.channels) {
                place = numbers[sample * input.stride_batch + position * input.stride_length +
                                channel * input.stride_channel];
            }
        }
        __syncthreads();
        for (int row = warp; row < side; row += rows_at_once) {
            const int64_t position = first_position + row, channel = first_channel + lane;
            if (position < shape.length && channel < channels) {
                target[(sample * shape.length + position) * channels + channel] = square[row][lane];
            }
        }
        __syncthreads();
    }
}

// The input as rows: as it lies, or where there is room for it repacked first.
template <class T>
InputRows<T> input_rows(const ConvolutionShape& shape, const SequenceView& input, int64_t channels,
                        T* repacked, void* stream) {
    if (repacked == nullptr) {
        return {static_cast<const T*>(input.numbers.data), input.stride_batch, input.stride_length};
    }
    const int64_t squares = shape.batch * divide_rounding_up(shape.length, warp_threads) *
                            divide_rounding_up(channels, warp_threads);
    if (squares > 0) {
        launch({squares, threads_per_block, 0, stream}, repack_input<T>, shape, input, channels,
               repacked);
    }
    return {repacked, shape.length * channels, channels};
}

// The filters as right tiles: packed[chunk][filter][number], zeros beyond the last.
template <class T>
__global__ void pack_filters(ConvolutionShape shape, ConvolutionWeight weight, ConvolutionPlan plan,
                             T* packed) {
    const T* numbers = static_cast<const T*>(weight.numbers.data);
    const int64_t filters = plan.filters_padded();
    const int64_t count = plan.chunks * filters * elements_in_row<T>;
    for (int64_t index = thread_in_grid(); index < count; index += threads_in_grid()) {
        const int64_t filter = index / elements_in_row<T> % filters;
        const int64_t chunk = index / elements_in_row<T> / filters;
        const int64_t offset = index % elements_in_row<T>;
        int64_t tap, channel;
        if (plan.is_chunk_of_one_tap) {
            tap = chunk % shape.kernel_size;
            channel = chunk / shape.kernel_size * elements_in_row<T> + offset;
        } else {
            const int64_t place = chunk * elements_in_row<T> + offset;
            tap = place / plan.channels;
            channel = place % plan.channels;
        }
        T number{};
        if (filter < shape.filters && tap < shape.kernel_size && channel < shape.channels) {
            number = numbers[filter * weight.stride_filter + channel * weight.stride_channel +
                             tap * weight.stride_tap];
        }
        packed[index] = number;
    }
}

}  // namespace seqkernels::cuda
