// How the windows of a convolution are multiplied one by one, by vectors or in tiles.
// winograd_windows.h offers the same for neighbouring windows together.
//
// A window of an (N, L, C) sequence is k C numbers side by side, so the convolution is a product
// whose left operand has row stride `stride C`: it is read where it lies, but copied where its
// channels do not lie side by side, and for tiles where they would read beyond it.
//
// Scratch, owned by the call: k C integers, C zeros, read in place of padding. Given to it: the
// packed weights, F k C; for each thread one stretch of input as it is multiplied, if copied, and
// in tiles a panel of weights.
//
// In one plane a panel of more than 512 depths does not stay in L1 while rows pass: two tiles of
// rows mostly do, while as many panels pass as L2 holds (rows_stay). Measured, time over that
// before, of one thread (family 6, model 207, bfloat16, over time): 50 sentences of 56 words, C
// 300, F 100, k 3 0.94, k 5 0.97, N 32, L 512, C 300, F 256, k 3 0.93; but of fewer depths, N 64, L
// 512, C 128, 1.03; and of two threads, 1000 filters of 1500 numbers, 3 MB, all panels at a time
// 1.5. Products alone, k 3: 24.3 us a stretch of 168 rows to 21.0, of which the tile unit needs
// 17.6. In tiles the next stretch's input is fetched into L2 meanwhile: N 64, L 512, C 128, F 128,
// k 3 0.93 to 0.95, N 32 0.95, 50 sentences of 56 words 0.99 to 1 (with AVX512_BF16 no difference).
//
// Tried without gain, in tiles: stretches of two to four times the bytes, also where the weights do
// not fit in L2 (within 2 %, C 128 to 512, one and three planes); copying the next stretch's input
// meanwhile, position by position between the products (three planes: N 64, L 512, C 128 8 %
// faster, 50 sentences of 512 words 5 %, but of 56 words 3 % slower, in one plane 6 %); in one
// plane two tiles of rows at a time by half or a third of the depths, so that the columns stay in
// L1 (C 300 4 % slower to 24 % faster, C 256 14 % slower); in three planes neighbouring windows
// together (winograd_windows.h), their sums cut into planes: errors half as large, but, on a noisy
// machine, N 64, L 512, C 128 8 to 18 % faster, 50 sentences of 56 words at half the speed to 9 %
// faster, one of them at 0.6 of it. The weights of all terms, 1.5 MB of 100 filters of 3, fill L2,
// and 1.75 times as many numbers are cut (of random numbers a core of family 6 model 167 multiplies
// 420 GFLOP/s from L1, 330 from L2, 230 from L3).
#pragma once

#include <cstdint>
#include <cstring>

#include "../core/scratch.h"
#include "convolution_input.h"
#include "kernels.h"
#include "product.h"
#include "vector_product.h"
#include "window_depths.h"
#include "window_stretches.h"

namespace seqkernels {

template <class VectorType, class ProductType>
class ConvolutionWindows {
 public:
    using Vector = VectorType;
    using Product = ProductType;
    using T = typename Vector::Element;
    using Left = typename Product::Left;
    using Packed = typename Product::Packed;
    static constexpr int most_rows = Product::rows;  // of a tile
    static constexpr bool joins_segments = Product::whole_tiles;
    static constexpr bool can_pack_meanwhile = false;
    static constexpr bool are_screened = false;
    using Otherwise = ConvolutionWindows<Vector, VectorProduct<Vector>>;

    // are_even: whether panels of filters are (PanelLayout).
    explicit ConvolutionWindows(const ConvolutionForward<T>& call, bool are_even = false)
        : call_(call),
          shape_(call.shape),
          depths_(shape_, Product::depths_at_once),
          layout_(are_even
                      ? PanelLayout<Vector>::even(shape_.filters, depths_.count(), Product::vectors)
                      : PanelLayout<Vector>{shape_.filters, depths_.count(), Product::vectors, 1}),
          direct_(is_read_in_place<Left>(shape_, call.input) &&
                  (!Product::in_tiles || windows_are_whole())),
          zeros_(shape_.channels + 1),
          places_(shape_.kernel_size * shape_.channels),
          offsets_(depths_.blocks()) {
        for (int64_t c = 0; c < shape_.channels; ++c) zeros_.data()[c] = Left{};
        for (int64_t tap = 0; tap < shape_.kernel_size; ++tap) {
            for (int64_t channel = 0; channel < shape_.channels; ++channel) {
                places_.data()[channel * shape_.kernel_size + tap] = depths_.place(tap, channel);
            }
        }
        for (int64_t block = 0; block < depths_.blocks(); ++block) {
            offsets_.data()[block] = depths_.offset(block);
        }
    }

    const PanelLayout<Vector>& layout() const { return layout_; }
    const WindowDepths& depths() const { return depths_; }

    // cuts_alike: see StretchNeeds.
    StretchRule rule(int threads, bool cuts_alike = false) const {
        StretchNeeds needs{};
        needs.cuts_alike = cuts_alike;
        needs.pitch = depths_.pitch();
        needs.unit = Product::rows;
        needs.together = 1;
        if (Product::whole_tiles) {
            const int64_t beyond = divide_rounding_up(depths_.beyond(), larger(1, depths_.pitch()));
            needs.rows_apart = divide_rounding_up(shape_.reach() + beyond, shape_.stride) - 1;
        }
        needs.is_read_in_place = direct_;
        return stretch_rule<Product>(shape_, call_.lengths, needs, threads);
    }
    // Where Product is partial: whether windows of a sample are multiplied here.
    static bool pays_for(int64_t windows, int64_t rows_apart) {
        return Product::pays_for(windows, rows_apart);
    }

    // Whether a tile of rows is multiplied with several panels before the next one is.
    bool rows_stay() const { return Product::rows_stay(layout_.depth); }

    // The stretches that windows will be of; what follows is called after this.
    void take(const WindowStretches& stretches) {
        stretches_ = &stretches;
        plane_ = plane_numbers();
    }

    int64_t packed_elements() const { return Product::packed_elements(layout_); }
    int64_t pack_scratch_elements() const { return Product::pack_scratch_elements(layout_); }
    // Of a thread's input, if it is copied.
    int64_t left_elements() const { return checked_product({Product::left_planes, plane_}); }
    // Rows that are computed, whole tiles where Product makes no others.
    int64_t computed_rows() const {
        constexpr int64_t tile = Product::whole_tiles ? TileConfiguration::rows : 1;
        return divide_rounding_up(stretches_->most_rows(), tile) * tile;
    }

    // Returns whether all panels can be multiplied by Product.
    bool pack(Packed* packed, Range panels, T* scratch) const {
        const ConvolutionWeight& weight = call_.weight;
        const int64_t taps = shape_.kernel_size, channels = shape_.channels;
        return Product::pack(packed, layout_, panels, scratch, [&](T* target, int64_t panel) {
            clear_gaps(target, layout_.units_of(panel) * Vector::width);
            if (weight.stride_tap == 1 && weight.stride_channel == taps) {
                // A filter lies without gaps, channel after channel, and is read as it lies.
                pack_panel(target, layout_, panel, taps * channels,
                           {weight.numbers, weight.stride_filter, 1},
                           [this](int64_t number) { return places_.data()[number]; });
                return;
            }
            for (int64_t tap = 0; tap < taps; ++tap) {
                pack_panel(target, layout_, panel, channels,
                           {weight.numbers.from(tap * weight.stride_tap), weight.stride_filter,
                            weight.stride_channel},
                           [&](int64_t channel) { return depths_.place(tap, channel); });
            }
        });
    }

    // What the windows of these segments read: in place, or as it is multiplied in `scratch`. In
    // tiles the first row's window begins at position 0 of the result. left_out: by sample, marked
    // if numbers cannot be multiplied here.
    SampleRows<Left> ready(Range segments, Left* scratch, uint8_t* left_out) const {
        const SequenceView& input = call_.input;
        const WindowSegment& first = stretches_->segment(segments.begin);
        const int64_t start = window_start(shape_, first.windows.begin);
        if (direct_ && (!Product::in_tiles ||
                        (segments.count() == 1 && tiles_are_within(first.sample, first.windows)))) {
            const Left* sample =
                static_cast<const Left*>(input.numbers.data) + first.sample * input.stride_batch;
            const int64_t length = sample_length(shape_, call_.lengths, first.sample);
            return {sample + (Product::in_tiles ? start * input.stride_length : 0),
                    input.stride_length,
                    {0, length}};
        }
        for (int64_t i = segments.begin; i < segments.end; ++i) {
            const WindowSegment& segment = stretches_->segment(i);
            copy(segment, scratch + (segment.row - first.row) * window_stride() * depths_.pitch(),
                 left_out);
        }
        const int64_t end = window_start(shape_, first.windows.end - 1) + shape_.reach();
        return {scratch - (Product::in_tiles ? 0 : start * depths_.pitch()),
                depths_.pitch(),
                {start, end}};
    }

    template <class Function>
    static void for_each_tile(int64_t rows, Function&& function) {
        Product::for_each_tile(rows, function);
    }

    // The convolution of `tile` rows from `row` on with one panel of filters, without bias.
    // meanwhile: in tiles, called for each of their blocks of depths.
    template <class Meanwhile>
    void convolve(Vector* sums, int tile, const SampleRows<Left>& rows, Range segments, int64_t row,
                  const Packed* packed, int64_t panel, Meanwhile&& meanwhile) const {
        const int64_t vectors = layout_.units_of(panel);
        const Packed* weights = Product::panel(packed, layout_, panel);
        const int64_t channels = shape_.channels;
        const int64_t taps = shape_.kernel_size;
        if constexpr (Product::in_tiles) {
            const int64_t stride = window_stride() * rows.stride;
            Product::multiply(sums, tile, vectors, rows.rows + row * stride, stride, plane_,
                              offsets_.data(), weights, layout_.depth, meanwhile);
        } else {
            const int64_t window = stretches_->segment(segments.begin).windows.begin + row;
            const int64_t start = window_start(shape_, window);
            const int64_t last_start = start + (tile - 1) * shape_.stride;
            const int64_t span = shape_.dilation * (taps - 1);
            const Left* pointers[Product::rows] = {};
            for (int i = 0; i < tile * vectors; ++i) sums[i] = Vector::broadcast(0);
            if (rows.has(start) && rows.has(last_start + span) && shape_.dilation == 1 &&
                rows.dense(channels)) {
                for (int m = 0; m < tile; ++m) pointers[m] = rows.at(start + m * shape_.stride);
                Product::multiply(sums, tile, vectors, pointers, weights, taps * channels);
                return;
            }
            for (int64_t tap = 0; tap < taps; ++tap) {
                for (int m = 0; m < tile; ++m) {
                    const int64_t position = start + m * shape_.stride + tap * shape_.dilation;
                    pointers[m] = rows.has(position) ? rows.at(position) : zeros_.data();
                }
                const auto* of_tap = weights + tap * channels * vectors * Vector::width;
                Product::multiply(sums, tile, vectors, pointers, of_tap, channels);
            }
        }
    }

    // Asks for what these segments read, where it lies in one piece, while so many tiles of rows
    // are multiplied with panels.
    Fetching fetching(Range segments, int64_t tiles) const {
        const SequenceView& input = call_.input;
        const bool is_one_piece = shape_.channels <= input.stride_length &&
                                  input.stride_channel == 1 &&
                                  input.stride_batch == shape_.length * input.stride_length;
        if (!Product::in_tiles || segments.count() == 0 || !is_one_piece) return {nullptr, 0};
        const auto at = [&](const WindowSegment& segment, int64_t position) {
            const int64_t inside = larger(0, smaller(position, shape_.length));
            const int64_t number =
                segment.sample * input.stride_batch + inside * input.stride_length;
            return static_cast<const char*>(input.numbers.from(number).data);
        };
        const WindowSegment& first = stretches_->segment(segments.begin);
        const WindowSegment& last = stretches_->segment(segments.end - 1);
        const char* const begin = at(first, positions_of(shape_, first).begin);
        const int64_t bytes = at(last, positions_of(shape_, last).end) - begin;
        // Between them may lie samples that are multiplied otherwise.
        Fetching result(begin, smaller(bytes, Product::cache_bytes / 4));
        result.in_turns(tiles * divide_rounding_up(Product::vectors, 2) * depths_.blocks());
        return result;
    }

    // Positions from a window to the next, where there is one.
    int64_t window_stride() const { return stretches_->most_rows() <= 1 ? 0 : shape_.stride; }

 private:
    // Tiles read the windows of a sample in place where each fills what is multiplied at once.
    bool windows_are_whole() const {
        return shape_.padding_left == 0 && shape_.padding_right == 0 && depths_.are_whole() &&
               call_.input.stride_length == shape_.channels;
    }

    // Zeros for the depths of a packed panel that are of no number.
    void clear_gaps(T* target, int64_t line) const {
        if (!depths_.has_gaps()) return;
        const int64_t first = depths_.place(0, shape_.channels);
        const auto bytes = static_cast<std::size_t>((depths_.pitch() - first) * line) * sizeof(T);
        for (int64_t tap = 0; tap < shape_.kernel_size; ++tap) {
            std::memset(target + depths_.place(tap, shape_.channels) * line, 0, bytes);
        }
    }

    // Numbers of one plane of a stretch. Matrix tiles read whole blocks of depths, and as many rows
    // as a tile holds.
    int64_t plane_numbers() const {
        if (direct_ && !Product::in_tiles) return 0;
        const int64_t steps = larger(0, computed_rows() - 1);
        const int64_t positions = checked_product({steps, window_stride()}) + shape_.reach();
        const int64_t numbers = checked_product({positions, depths_.pitch()}) + depths_.beyond();
        return divide_rounding_up(numbers, tile_depth) * tile_depth;  // each begins a cache line
    }

    // The positions that a segment's windows read, with zeros where they reach beyond the sample.
    void copy(const WindowSegment& segment, Left* target, uint8_t* left_out) const {
        const Range positions = positions_of(shape_, segment);
        typename Product::Magnitude magnitude;
        copy_positions<Vector, Product>(call_, segment.sample, positions, depths_.pitch(),
                                        depths_.beyond(), target, plane_, magnitude);
        // One that is read in place where its stretch is its own is never read beyond itself, and
        // is right as it is.
        if constexpr (Product::is_partial) {
            if (direct_) return;
            judge_up_to_next<Vector>(call_, segment, positions.end, magnitude);
            if (!magnitude.is_plain()) leave_out(left_out, segment.sample);
        }
    }

    // Whether what tiles read of windows of a sample, and in place of rows that are missing, lies
    // within the batch.
    bool tiles_are_within(int64_t n, Range windows) const {
        if (!Product::whole_tiles) return true;
        constexpr int64_t tile = TileConfiguration::rows;
        const int64_t rows = divide_rounding_up(windows.count(), tile) * tile;
        const int64_t last = window_start(shape_, windows.begin + rows - 1) + shape_.reach() - 1;
        return last * call_.input.stride_length <=
               (shape_.batch - 1 - n) * call_.input.stride_batch +
                   (shape_.length - 1) * call_.input.stride_length;
    }

    const ConvolutionForward<T>& call_;
    const ConvolutionShape& shape_;
    const WindowDepths depths_;
    const PanelLayout<Vector> layout_;
    const bool direct_;  // the input is read in place
    const Scratch<Left> zeros_;
    const Scratch<int64_t> places_;   // where a filter's numbers, as they lie, go when packed
    const Scratch<int64_t> offsets_;  // of blocks of depths, in a window
    const WindowStretches* stretches_ = nullptr;
    int64_t plane_ = 0;
};

}  // namespace seqkernels
