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

    __device__ void advance(const ConvolutionShape& shape, const ConvolutionPlan& plan,
                            int elements) {
        ++index;
        if (plan.is_chunk_of_one_tap) {
            if (++tap == shape.kernel_size) {
                tap = 0;
                channel += elements;
            }
        } else {
            channel += elements;
            run_on(shape);
        }
    }

    // To the tap that a channel beyond the last belongs to.
    __device__ void run_on(const ConvolutionShape& shape) {
        for (; channel >= shape.channels && tap < shape.kernel_size; ++tap)
            channel -= shape.channels;
    }

    // What stands `offset` numbers on in the chunk.
    __device__ Chunk at(const ConvolutionShape& shape, const ConvolutionPlan& plan,
                        int offset) const {
        Chunk place{index, tap, channel + offset};
        if (!plan.is_chunk_of_one_tap) place.run_on(shape);
        return place;
    }
    __device__ bool is_real(const ConvolutionShape& shape) const {
        return tap < shape.kernel_size && channel < shape.channels;
    }
};

// Left tiles: rows of consecutive windows, zero where a position is not real.
template <class T, class Product, int tile, bool is_gathered>
class WindowReader {
    static constexpr int per_piece = piece_bytes / static_cast<int>(sizeof(T));
    static constexpr int vectors = tile * pieces_in_row / Product::threads;  // of a thread

 public:
    __device__ WindowReader(const ConvolutionForward<T>& call, const ConvolutionPlan& plan,
                            int64_t sample, int64_t length)
        : shape_(call.shape),
          view_(call.input),
          plan_(plan),
          numbers_(static_cast<const T*>(call.input.numbers.data)),
          sample_(numbers_ + sample * call.input.stride_batch),
          length_(length) {}

    // Begins to bring a chunk of the windows [first, first + tile), those from `end` on being none.
    __device__ void begin(char* target, int64_t first, int64_t end, const Chunk& chunk) {
#pragma unroll
        for (int i = 0; i < vectors; ++i) {
            const int row = row_of(i), piece = piece_of(i);
            const int64_t window = first + row;
            const int64_t start = window < end ? window_start(shape_, window) : length_;
            if constexpr (is_gathered) {
                gathered_[i] = gather(start, chunk, piece * per_piece);
            } else if (plan_.copy_bytes == 16) {
                copy<16>(piece_at(target, row, piece), start, chunk, piece * per_piece);
            } else if (plan_.copy_bytes == 8) {
                copy<8>(piece_at(target, row, piece), start, chunk, piece * per_piece);
            } else {
                copy<4>(piece_at(target, row, piece), start, chunk, piece * per_piece);
            }
        }
    }

    // Stores what `begin` left in registers.
    __device__ void finish(char* target) const {
        if constexpr (is_gathered) {
#pragma unroll
            for (int i = 0; i < vectors; ++i) {
                *reinterpret_cast<Piece*>(piece_at(target, row_of(i), piece_of(i))) = gathered_[i];
            }
        }
    }

 private:
    // Neighbouring lanes read along the direction in which the numbers lie.
    __device__ bool along_channels() const { return !is_gathered || view_.stride_channel == 1; }
    __device__ int row_of(int i) const {
        const int vector = static_cast<int>(threadIdx.x) + i * Product::threads;
        return along_channels() ? vector / pieces_in_row : vector % tile;
    }
    __device__ int piece_of(int i) const {
        const int vector = static_cast<int>(threadIdx.x) + i * Product::threads;
        return along_channels() ? vector % pieces_in_row : vector / tile;
    }

    __device__ bool is_real(const Chunk& place, int64_t position) const {
        return place.is_real(shape_) && position >= 0 && position < length_;
    }

    template <int bytes>
    __device__ void copy(char* target, int64_t start, const Chunk& chunk, int offset) const {
        constexpr int numbers = bytes / static_cast<int>(sizeof(T));
#pragma unroll
        for (int i = 0; i < piece_bytes / bytes; ++i) {
            if constexpr (numbers > 0) {
                const Chunk place = chunk.at(shape_, plan_, offset + i * numbers);
                const int64_t position = start + place.tap * shape_.dilation;
                const bool is_there = is_real(place, position);
                // Where nothing is read the source is still to be an address.
                const T* from =
                    is_there ? sample_ + position * view_.stride_length + place.channel : numbers_;
                copy_async<bytes>(target + i * bytes, from, is_there ? bytes : 0);
            }
        }
    }

    // A piece of a window, its numbers wherever they lie.
    __device__ Piece gather(int64_t start, const Chunk& chunk, int offset) const {
        union Numbers {
            __device__ Numbers() : piece{} {}
            Piece piece;
            T numbers[per_piece];
        } result;
#pragma unroll
        for (int i = 0; i < per_piece; ++i) {
            const Chunk place = chunk.at(shape_, plan_, offset + i);
            const int64_t position = start + place.tap * shape_.dilation;
            if (is_real(place, position)) {
                result.numbers[i] =
                    sample_[position * view_.stride_length + place.channel * view_.stride_channel];
            }
        }
        return result.piece;
    }

    const ConvolutionShape& shape_;
    const SequenceView& view_;
    const ConvolutionPlan& plan_;
    const T* numbers_;
    const T* sample_;
    int64_t length_;
    Piece gathered_[is_gathered ? vectors : 1];
};

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
        Chunk place;
        if (plan.is_chunk_of_one_tap) {
            place.tap = chunk % shape.kernel_size;
            place.channel = chunk / shape.kernel_size * elements_in_row<T> + offset;
        } else {
            const int64_t number = chunk * elements_in_row<T> + offset;
            place.tap = shape.channels == 0 ? 0 : number / shape.channels;
            place.channel = number - place.tap * shape.channels;
        }
        T number{};
        if (filter < shape.filters && place.is_real(shape)) {
            number = numbers[filter * weight.stride_filter + place.channel * weight.stride_channel +
                             place.tap * weight.stride_tap];
        }
        packed[index] = number;
    }
}

}  // namespace seqkernels::cuda
