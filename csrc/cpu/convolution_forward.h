// Convolution, bias, activation and max-pooling of a batch of sequences, in one pass.
//
//   output[n, p, f] = max over windows w of pool p of
//                     activation(bias[f] + sum over taps j, channels c of
//                                weight[f, c, j] input[n, w stride + j dilation - padding, c])
//   argmax[n, p, f] = the first such window, -1 where the sample has none (output is then 0)
//
// Shapes, strides and ownership: ConvolutionForward in kernels.h. No output aliases an input.
// Scratch, owned by the call: the packed weights, F k C; k C integers; C zeros, read in place of
// padding; the stretches of the batch (window_stretches.h), and the maxima of samples that are cut,
// 2 F for each part; and for each thread the convolution of one stretch for one panel of filters
// (windowed pooling only); one stretch of input as it is multiplied, channels side by side (only
// where it does not lie so already); in tiles a panel of weights, and two marks for each
// sample.
//
// A window of an (N, L, C) sequence is k C numbers side by side, so the convolution is a product
// whose left operand has row stride `stride C`: it is read where it lies. Only the maximum and its
// window leave the registers. The activations are monotone: the maximum comes first, then bias and
// activation on what is left.
//
// Cost: 2 N W F k C FLOPs, W being the windows of a sample; where pools overlap, up to a third
// more, for the windows that two stretches share; in tiles those of the rows between samples.
// Bytes: the input once; a panel of weights for every tile of windows, from L1 while it fits, else
// from L2. Limit: the multiply-add rate.
//
// Tried without gain, in tiles: all panels while two tiles of rows stay in L1; stretches of two to
// four times the bytes, also where the weights do not fit in L2; fetching the next stretch's input
// meanwhile (each within 2 %, C 128 to 512, one and three planes); copying it meanwhile, position
// by position between the products (three planes: N 64, L 512, C 128 8 % faster, 50 sentences of
// 512 words 5 %, but of 56 words 3 % slower, in one plane 6 %); the maxima of a tile of rows while
// the next is multiplied (up to 4 % slower).
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "convolution_input.h"
#include "pooled_output.h"
#include "product.h"
#include "vector_product.h"
#include "window_depths.h"
#include "window_stretches.h"

namespace seqkernels {

template <class Vector, class Product>
class ConvolutionForwardKernel {
    using T = typename Vector::Element;
    using Left = typename Product::Left;
    using Pooled = PooledOutput<Vector>;
    static constexpr int panel_vectors = Product::vectors;
    static constexpr int64_t panel_width = panel_vectors * Vector::width;
    static constexpr int64_t tile_rows = TileConfiguration::rows;
    static constexpr T minus_infinity = -static_cast<T>(__builtin_inf());

 public:
    // marks: by sample, which ones to compute, for a Product that can multiply all numbers; null
    // for all.
    explicit ConvolutionForwardKernel(const ConvolutionForward<T>& arguments,
                                      const uint8_t* marks = nullptr)
        : call_(arguments),
          marks_(marks),
          shape_(arguments.shape),
          depths_(shape_, Product::depths_at_once),
          layout_{shape_.filters, depths_.count(), panel_vectors, 1},
          pooled_(arguments),
          direct_(is_read_in_place<Left>(shape_, arguments.input) &&
                  (!Product::in_tiles || windows_are_whole())) {}

    void run(int threads) {
        if (shape_.batch == 0 || shape_.filters == 0 || shape_.pooled == 0) return;
        const StretchRule rule =
            stretch_rule<Product>(shape_, call_.lengths, depths_, direct_, threads);
        const Scratch<uint8_t> left_out(Product::is_partial ? shape_.batch : 0);
        const Scratch<uint8_t> wanted(Product::is_partial ? shape_.batch : 0);
        left_out_ = left_out.data();
        if constexpr (Product::is_partial) choose_samples(rule.rows_apart, wanted.data());
        const WindowStretches stretches(shape_, call_.lengths, rule,
                                        Product::is_partial ? wanted.data() : marks_);
        stretches_ = &stretches;
        input_plane_ = input_plane();
        bool is_done = true;
        if (stretches.count() > 0) {
            is_done = compute(threads);
        } else {
            pooled_.clear_missing({0, shape_.batch});
        }
        if constexpr (Product::is_partial) {
            bool some = false;
            for (int64_t n = 0; n < shape_.batch; ++n) some = some || left_out_[n] != 0;
            if (some || !is_done) by_vectors(is_done ? left_out_ : nullptr, threads);
        }
    }

 private:
    // Marks the samples that are computed here and those that are left to vectors.
    void choose_samples(int64_t rows_apart, uint8_t* wanted) const {
        for (int64_t n = 0; n < shape_.batch; ++n) {
            const int64_t windows = shape_.windows(sample_length(shape_, call_.lengths, n));
            wanted[n] = Product::pays_for(windows, rows_apart);
            left_out_[n] = wanted[n] == 0;
        }
    }

    // The samples that Product cannot multiply, or not as fast, by vectors; null for all.
    void by_vectors(const uint8_t* marks, int threads) const {
        ConvolutionForwardKernel<Vector, VectorProduct<Vector>>(call_, marks).run(threads);
    }

    // Returns whether Product can multiply these weights.
    bool compute(int threads) {
        // Stretches are shared out one by one; where they are few, so are the panels of each, those
        // of a single one evenly: every share makes its input ready once more.
        const int64_t panels = layout_.panels(), stretches = stretches_->count();
        const int64_t groups =
            smaller(panels, stretches == 1 ? threads : divide_rounding_up(4 * threads, stretches));
        const int64_t items = checked_product({stretches, groups});

        const Scratch<typename Product::Packed> packed(Product::packed_elements(layout_));
        const Scratch<Left> zeros(shape_.channels + 1);
        for (int64_t c = 0; c < shape_.channels; ++c) zeros.data()[c] = Left{};
        const int64_t private_count = private_elements();
        const Scratch<T> privates(checked_product({private_count, threads}));
        const Scratch<int64_t> places(shape_.kernel_size * shape_.channels);
        const Scratch<int64_t> offsets(depths_.blocks());
        const bool cuts_samples = shape_.pool_size == 0 && stretches_->part_count() > 0;
        const Scratch<T> parts(
            cuts_samples ? checked_product({stretches_->part_count(), part_elements()}) : 0);
        for (int64_t tap = 0; tap < shape_.kernel_size; ++tap) {
            for (int64_t channel = 0; channel < shape_.channels; ++channel) {
                places.data()[channel * shape_.kernel_size + tap] = depths_.place(tap, channel);
            }
        }
        for (int64_t block = 0; block < depths_.blocks(); ++block) {
            offsets.data()[block] = depths_.offset(block);
        }
        packed_ = packed.data();
        zeros_ = zeros.data();
        places_ = places.data();
        offsets_ = offsets.data();
        parts_ = parts.data();

        SharedItems shared(items, threads);
        std::atomic<bool> are_plain{true};
        Barrier barrier;
        run_parallel(threads, [&](int thread, int granted) {
            [[maybe_unused]] const typename Product::Session session{};
            const Private mine = private_of(privates.data() + thread * private_count);
            pooled_.clear_missing(part_of(shape_.batch, 1, thread, granted));
            if (!pack_weight(part_of(panels, 1, thread, granted), mine.panel)) are_plain = false;
            barrier.wait(granted);
            if (!are_plain) return;
            for (int64_t item = shared.take(thread); item >= 0; item = shared.take(thread)) {
                stretch(stretches_->segments(item / groups),
                        part_of(panels, 1, item % groups, groups), mine);
            }
            if (!cuts_samples) return;
            barrier.wait(granted);
            join_parts(part_of(stretches_->segment_count(), 1, thread, granted));
        });
        return are_plain;
    }

    // Tiles read the windows of a sample in place where each fills what is multiplied at once.
    bool windows_are_whole() const {
        return shape_.padding_left == 0 && shape_.padding_right == 0 && depths_.are_whole() &&
               call_.input.stride_length == shape_.channels;
    }

    // Returns whether all panels can be multiplied by Product.
    bool pack_weight(Range panels, T* scratch) const {
        const ConvolutionWeight& weight = call_.weight;
        const int64_t taps = shape_.kernel_size, channels = shape_.channels;
        return Product::pack(packed_, layout_, panels, scratch, [&](T* target, int64_t panel) {
            clear_gaps(target, layout_.units_of(panel) * Vector::width);
            if (weight.stride_tap == 1 && weight.stride_channel == taps) {
                // A filter lies without gaps, channel after channel, and is read as it lies.
                pack_panel(target, layout_, panel, taps * channels,
                           {weight.numbers, weight.stride_filter, 1},
                           [this](int64_t number) { return places_[number]; });
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

    // Zeros for the depths of a packed panel that are of no number.
    void clear_gaps(T* target, int64_t line) const {
        if (!depths_.has_gaps()) return;
        const int64_t first = depths_.place(0, shape_.channels);
        const auto bytes = static_cast<std::size_t>((depths_.pitch() - first) * line) * sizeof(T);
        for (int64_t tap = 0; tap < shape_.kernel_size; ++tap) {
            std::memset(target + depths_.place(tap, shape_.channels) * line, 0, bytes);
        }
    }

    // A thread's own scratch.
    struct Private {
        Vector* convolution;  // of a stretch, for one panel
        T* panel;             // of weights, while they are packed
        Left* input;          // of a stretch
    };
    // Rows that are computed, whole tiles where Product makes no others.
    int64_t computed_rows() const {
        const int64_t rows = stretches_->most_rows();
        return Product::whole_tiles ? divide_rounding_up(rows, tile_rows) * tile_rows : rows;
    }
    int64_t convolution_elements() const {
        return shape_.pool_size == 0 ? 0 : checked_product({computed_rows(), panel_width});
    }
    // Numbers of one plane of a stretch. Matrix tiles read whole blocks of depths, and as many rows
    // as a tile holds.
    int64_t input_plane() const {
        if (direct_ && !Product::in_tiles) return 0;
        const int64_t steps = larger(0, computed_rows() - 1);
        const int64_t positions = checked_product({steps, window_stride()}) +
                                  shape_.dilation * (shape_.kernel_size - 1) + 1;
        const int64_t numbers = checked_product({positions, depths_.pitch()}) + depths_.beyond();
        return divide_rounding_up(numbers, tile_depth) * tile_depth;  // each begins a cache line
    }
    // Positions from a window to the next, where there is one.
    int64_t window_stride() const { return stretches_->most_rows() <= 1 ? 0 : shape_.stride; }
    int64_t private_elements() const {
        constexpr int64_t lefts = sizeof(T) / sizeof(Left);
        const int64_t left = checked_product({Product::left_planes, input_plane_});
        const int64_t count = convolution_elements() + Product::pack_scratch_elements(layout_) +
                              divide_rounding_up(left, lefts);
        return divide_rounding_up(count, 64) * 64;  // threads do not share cache lines
    }
    Private private_of(T* memory) const {
        Private mine{};
        mine.convolution = reinterpret_cast<Vector*>(memory);
        mine.panel = memory + convolution_elements();
        void* rest = mine.panel + Product::pack_scratch_elements(layout_);
        mine.input = static_cast<Left*>(rest);
        return mine;
    }

    // The maxima of a part of a sample, and their windows.
    int64_t maxima_elements() const { return layout_.vectors() * Vector::width; }
    int64_t part_elements() const { return 2 * maxima_elements(); }
    T* maxima_of_part(int64_t part) const { return parts_ + part * part_elements(); }

    // Segment after segment, but that all are rows together where tiles are multiplied whole.
    void stretch(Range segments, Range panels, const Private& mine) const {
        const int64_t together = Product::whole_tiles ? segments.end - segments.begin : 1;
        for (int64_t i = segments.begin; i < segments.end; i += together) {
            const Range of_rows{i, i + together};
            const SampleRows<Left> rows = reach(of_rows, mine.input);
            for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
                if (shape_.pool_size == 0) {
                    max_over_time(rows, of_rows, panel);
                } else {
                    convolve_into_memory(rows, of_rows, panel, mine.convolution);
                    pool_from_memory(of_rows, panel, mine.convolution);
                }
            }
        }
    }

    // What the windows of these segments read: in place, or as it is multiplied in `scratch`. In
    // tiles the first row's window begins at position 0 of the result.
    SampleRows<Left> reach(Range segments, Left* scratch) const {
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
            copy_positions(segment,
                           scratch + (segment.row - first.row) * window_stride() * depths_.pitch());
        }
        const int64_t end = window_start(shape_, first.windows.end - 1) +
                            shape_.dilation * (shape_.kernel_size - 1) + 1;
        return {scratch - (Product::in_tiles ? 0 : start * depths_.pitch()),
                depths_.pitch(),
                {start, end}};
    }

    // The positions that a segment's windows read, with zeros where they reach beyond the sample.
    void copy_positions(const WindowSegment& segment, Left* target) const {
        const int64_t n = segment.sample, pitch = depths_.pitch();
        const int64_t first = window_start(shape_, segment.windows.begin);
        const int64_t last = window_start(shape_, segment.windows.end - 1) +
                             shape_.dilation * (shape_.kernel_size - 1) + 1;
        const int64_t from = smaller(last, larger(first, 0));
        const int64_t to = larger(from, smaller(last, sample_length(shape_, call_.lengths, n)));
        Left* const positions = target + (from - first) * pitch;
        typename Product::Magnitude magnitude;
        pack_positions<Vector, Product>(shape_, call_.input, n, from, to, pitch, positions,
                                        input_plane_, magnitude);
        for (int p = 0; p < Product::left_planes; ++p) {
            clear(target + p * input_plane_, (from - first) * pitch);
            clear(positions + p * input_plane_ + (to - from) * pitch,
                  (last - to) * pitch + depths_.beyond());
        }
        // What tiles make of numbers that are not plain is wrong. All of a sample's segments
        // decide, and what no window reads between them, so that it does not matter where it is
        // cut. One that is read in place where its stretch is its own is never read beyond itself,
        // and is right as it is.
        if constexpr (Product::is_partial) {
            if (direct_) return;
            const int64_t behind = larger(last, 0);
            const int64_t next =
                smaller(next_start(segment), sample_length(shape_, call_.lengths, n));
            if (next > behind) {
                judge_positions<Vector>(shape_, call_.input, n, behind, next, magnitude);
            }
            if (!magnitude.is_plain()) {
                __atomic_store_n(left_out_ + n, uint8_t{1}, __ATOMIC_RELAXED);
            }
        }
    }

    // The first position of the window that the sample's next segment begins with; -1 behind the
    // last segment.
    int64_t next_start(const WindowSegment& segment) const {
        const int64_t windows =
            shape_.windows(sample_length(shape_, call_.lengths, segment.sample));
        if (shape_.pool_size == 0) {
            return segment.windows.end < windows ? window_start(shape_, segment.windows.end) : -1;
        }
        const int64_t next = segment.pools.end * shape_.pool_stride;
        return segment.pools.end < shape_.pools(windows) ? window_start(shape_, next) : -1;
    }

    // Whether what tiles read of windows of a sample, and in place of rows that are missing, lies
    // within the batch.
    bool tiles_are_within(int64_t n, Range windows) const {
        if (!Product::whole_tiles) return true;
        const int64_t rows = divide_rounding_up(windows.count(), tile_rows) * tile_rows;
        const int64_t last = window_start(shape_, windows.begin + rows - 1) +
                             shape_.dilation * (shape_.kernel_size - 1);
        return last * call_.input.stride_length <=
               (shape_.batch - 1 - n) * call_.input.stride_batch +
                   (shape_.length - 1) * call_.input.stride_length;
    }

    static void clear(Left* numbers, int64_t count) {
        std::memset(static_cast<void*>(numbers), 0, static_cast<std::size_t>(count) * sizeof(Left));
    }

    // The convolution of `tile` rows from `row` on with one panel of filters, without bias.
    void convolve(Vector* sums, int tile, int64_t vectors, const SampleRows<Left>& rows,
                  Range segments, int64_t row, const typename Product::Packed* panel) const {
        const int64_t channels = shape_.channels;
        const int64_t taps = shape_.kernel_size;
        if constexpr (Product::in_tiles) {
            const int64_t stride = window_stride() * rows.stride;
            Product::multiply(sums, tile, vectors, rows.rows + row * stride, stride, input_plane_,
                              offsets_, panel, layout_.depth);
            return;
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
                Product::multiply(sums, tile, vectors, pointers, panel, taps * channels);
                return;
            }
            for (int64_t tap = 0; tap < taps; ++tap) {
                for (int m = 0; m < tile; ++m) {
                    const int64_t position = start + m * shape_.stride + tap * shape_.dilation;
                    pointers[m] = rows.has(position) ? rows.at(position) : zeros_;
                }
                const auto* of_tap = panel + tap * channels * vectors * Vector::width;
                Product::multiply(sums, tile, vectors, pointers, of_tap, channels);
            }
        }
    }

    // Any window takes the place of -infinity but one that is itself -infinity: the first window is
    // the winner until another takes its place.
    static void begin_maxima(int64_t first_window, Vector* best, Vector* winner) {
        for (int v = 0; v < panel_vectors; ++v) {
            best[v] = Vector::broadcast(minus_infinity);
            winner[v] = Vector::from_integer(first_window);
        }
    }

    // The maxima of segments over their windows, for one panel.
    void max_over_time(const SampleRows<Left>& rows, Range segments, int64_t panel) const {
        const auto* weights = Product::panel(packed_, layout_, panel);
        const int64_t vectors = layout_.units_of(panel);
        const int64_t first_row = stretches_->segment(segments.begin).row;
        Vector best[panel_vectors], winner[panel_vectors];
        int64_t current = segments.begin;
        begin_maxima(stretches_->segment(current).windows.begin, best, winner);
        Product::for_each_tile(stretches_->rows(segments), [&](int64_t first, int tile) {
            Vector sums[Product::rows * Product::vectors];
            convolve(sums, tile, vectors, rows, segments, first, weights);
            while (current < segments.end) {
                const WindowSegment& segment = stretches_->segment(current);
                const int64_t begins = segment.row - first_row;
                const int64_t ends = begins + segment.windows.count();
                const int64_t end = smaller(ends, first + tile);
                const int64_t begin_row = larger(begins, first);
                if (begin_row < end) {
                    Pooled::template take<panel_vectors>(
                        end - begin_row, vectors,
                        [&](int64_t row, int64_t v) {
                            return sums[(begin_row - first + row) * vectors + v];
                        },
                        [&](int64_t row, int64_t) {
                            return Vector::from_integer(segment.windows.begin + begin_row - begins +
                                                        row);
                        },
                        best, winner);
                }
                if (ends > first + tile) break;
                take_maxima(segment, panel, best, winner);
                if (++current < segments.end) {
                    begin_maxima(stretches_->segment(current).windows.begin, best, winner);
                }
            }
        });
    }

    // The maxima of a segment: a sample's, or those of a part of it.
    void take_maxima(const WindowSegment& segment, int64_t panel, const Vector* best,
                     const Vector* winner) const {
        for (int64_t v = 0; v < layout_.units_of(panel); ++v) {
            const int64_t filter = layout_.first_column(panel) + v * Vector::width;
            if (segment.part < 0) {
                pooled_.finish(segment.sample, 0, filter, best[v], winner[v]);
            } else {
                T* part = maxima_of_part(segment.part) + filter;
                best[v].store(part);
                winner[v].store(part + maxima_elements());
            }
        }
    }

    // The maxima of those samples that are cut whose first parts are among these segments.
    void join_parts(Range segments) const {
        for (int64_t i = segments.begin; i < segments.end; ++i) {
            const WindowSegment& first = stretches_->segment(i);
            if (first.part < 0 || first.windows.begin > 0) continue;
            int64_t end = i;
            while (end < stretches_->segment_count() &&
                   stretches_->segment(end).sample == first.sample) {
                ++end;
            }
            for (int64_t filter = 0; filter < shape_.filters; filter += Vector::width) {
                const T* part = maxima_of_part(first.part) + filter;
                Vector best = Vector::load(part), winner = Vector::load(part + maxima_elements());
                const auto later = [&](int64_t row) { return part + (row + 1) * part_elements(); };
                Pooled::template take<1>(
                    end - i - 1, 1, [&](int64_t row, int64_t) { return Vector::load(later(row)); },
                    [&](int64_t row, int64_t) {
                        return Vector::load(later(row) + maxima_elements());
                    },
                    &best, &winner);
                pooled_.finish(first.sample, 0, filter, best, winner);
            }
        }
    }

    void convolve_into_memory(const SampleRows<Left>& rows, Range segments, int64_t panel,
                              Vector* convolution) const {
        const auto* weights = Product::panel(packed_, layout_, panel);
        const int64_t vectors = layout_.units_of(panel);
        Product::for_each_tile(stretches_->rows(segments), [&](int64_t first, int tile) {
            convolve(convolution + first * vectors, tile, vectors, rows, segments, first, weights);
        });
    }

    void pool_from_memory(Range segments, int64_t panel, const Vector* convolution) const {
        const int64_t vectors = layout_.units_of(panel);
        const int64_t first_row = stretches_->segment(segments.begin).row;
        for (int64_t i = segments.begin; i < segments.end; ++i) {
            const WindowSegment& segment = stretches_->segment(i);
            const int64_t first_window = segment.windows.begin - (segment.row - first_row);
            for (int64_t pool = segment.pools.begin; pool < segment.pools.end; ++pool) {
                const int64_t begin = pool * shape_.pool_stride;
                const Vector* rows = convolution + (begin - first_window) * vectors;
                Vector best[panel_vectors], winner[panel_vectors];
                begin_maxima(begin, best, winner);
                Pooled::template take<panel_vectors>(
                    shape_.pool_size, vectors,
                    [&](int64_t row, int64_t v) { return rows[row * vectors + v]; },
                    [&](int64_t row, int64_t) { return Vector::from_integer(begin + row); }, best,
                    winner);
                for (int64_t v = 0; v < vectors; ++v) {
                    const int64_t filter = layout_.first_column(panel) + v * Vector::width;
                    pooled_.finish(segment.sample, pool, filter, best[v], winner[v]);
                }
            }
        }
    }

    const ConvolutionForward<T>& call_;
    const uint8_t* const marks_;
    const ConvolutionShape& shape_;
    const WindowDepths depths_;
    const PanelLayout<Vector> layout_;
    const Pooled pooled_;
    const bool direct_;  // the input is read in place
    const WindowStretches* stretches_ = nullptr;
    int64_t input_plane_ = 0;
    typename Product::Packed* packed_ = nullptr;
    const Left* zeros_ = nullptr;
    const int64_t* places_ = nullptr;   // where a filter's numbers, as they lie, go when packed
    const int64_t* offsets_ = nullptr;  // of blocks of depths, in a window
    T* parts_ = nullptr;                // the maxima of parts of samples
    uint8_t* left_out_ = nullptr;       // by sample: whether it is left to vectors
};

template <class Vector, class Product = VectorProduct<Vector>>
void convolution_forward(const ConvolutionForward<typename Vector::Element>& arguments,
                         int threads) {
    ConvolutionForwardKernel<Vector, Product>(arguments).run(threads);
}

}  // namespace seqkernels
