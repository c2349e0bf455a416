// Convolution, bias, activation and max-pooling of a batch of sequences, in one pass.
//
//   output[n, p, f] = max over windows w of pool p of
//                     activation(bias[f] + sum over taps j, channels c of
//                                weight[f, c, j] input[n, w stride + j dilation - padding, c])
//   argmax[n, p, f] = the first such window, -1 where the sample has none (output is then 0)
//
// Shapes, strides and ownership: ConvolutionForward in kernels.h. No output aliases an input.
// Scratch, owned by the call: the packed weights, F k C; k C integers; C zeros, read in place of
// padding; and for each thread the running maxima of one sample and their windows, 2 F; the
// convolution of one stretch of windows for one panel of filters (windowed pooling only); one
// stretch of input as it is multiplied, channels side by side (only where it does not lie so
// already); in matrix tiles a panel of weights, and a mark for each sample.
//
// A window of an (N, L, C) sequence is k C numbers side by side, so the convolution is a product
// whose left operand has row stride `stride C`: it is read where it lies. Only the maximum and its
// window leave the registers. The activations are monotone: the maximum comes first, then bias and
// activation on what is left.
//
// Cost: 2 N W F k C FLOPs, W being the windows of a sample; where pools overlap, up to a third
// more, for the windows that two stretches share. Bytes: the input once; a panel of weights for
// every tile of windows, from L1 while it fits, else from L2. Limit: the multiply-add rate.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "activation.h"
#include "convolution_input.h"
#include "product.h"
#include "vector_product.h"
#include "window_depths.h"

namespace seqkernels {

// Windows worked on at a stretch, so that their input, and the convolution where it is kept, stay
// in L2 while all panels of filters pass: stretches as even as whole tiles of rows let them be.
template <class Product>
static inline int64_t windows_at_a_stretch(const ConvolutionShape& shape) {
    using T = typename Product::T;
    constexpr int64_t element_bytes = sizeof(T);
    // Cores with matrix tiles have 2 MiB of L2, a half-empty tile costs them as much as a full one.
    constexpr int64_t stretch_bytes = (Product::in_tiles ? 256 : 128) * 1024;
    constexpr int64_t panel_bytes = Product::vectors * Product::Vector::width * element_bytes;
    const int64_t row_bytes = larger(1, shape.channels * element_bytes);
    const int64_t reach = shape.dilation * (shape.kernel_size - 1) + 1;
    const int64_t positions = larger(1, stretch_bytes / row_bytes);
    const int64_t fitting = positions <= reach ? 1 : (positions - reach) / shape.stride + 1;
    const int64_t least = 96;  // below, reading the weights again would cost more
    const int64_t all = larger(1, shape.windows(shape.length));
    if (shape.pool_size == 0) {
        const int64_t stretches = divide_rounding_up(all, larger(least, fitting));
        const int64_t tiles = divide_rounding_up(divide_rounding_up(all, stretches), Product::rows);
        return smaller(all, tiles * Product::rows);
    }
    // The convolution is kept; and where pools overlap, the windows that two stretches share are
    // computed twice: few, against four pools' windows.
    const int64_t kept = stretch_bytes / panel_bytes;
    const int64_t windows = larger(least, smaller(fitting, kept));
    return smaller(all, larger(windows, 4 * shape.pool_size));
}

template <class Vector, class Product>
class ConvolutionForwardKernel {
    using T = typename Vector::Element;
    using Left = typename Product::Left;
    static constexpr int panel_vectors = Product::vectors;
    static constexpr int64_t panel_width = panel_vectors * Vector::width;
    static constexpr int64_t tile_rows = TileConfiguration::rows;
    static constexpr T minus_infinity = -static_cast<T>(__builtin_inf());

 public:
    // marks: by sample, which ones to compute; null for all.
    explicit ConvolutionForwardKernel(const ConvolutionForward<T>& arguments,
                                      const uint8_t* marks = nullptr)
        : call_(arguments),
          marks_(marks),
          shape_(arguments.shape),
          depths_(shape_, Product::in_tiles),
          layout_{shape_.filters, depths_.count(), panel_vectors, 1},
          direct_(is_read_in_place<Left>(shape_, arguments.input) &&
                  (!Product::in_tiles || windows_are_whole_blocks())),
          windows_per_stretch_(windows_at_a_stretch<Product>(shape_)),
          pools_per_stretch_(shape_.pool_size == 0
                                 ? 1
                                 : larger(1, (windows_per_stretch_ - shape_.pool_size) /
                                                     larger(1, shape_.pool_stride) +
                                                 1)),
          input_plane_(input_plane()) {}

    void run(int threads) {
        if (shape_.batch == 0 || shape_.filters == 0 || shape_.pooled == 0) return;
        const int64_t panels = layout_.panels();
        // Samples are shared out one by one; where they are few, so are the panels of a sample.
        const int64_t groups = smaller(panels, divide_rounding_up(4 * threads, shape_.batch));
        const int64_t items = shape_.batch * groups;

        const Scratch<typename Product::Packed> packed(Product::packed_elements(layout_));
        const Scratch<Left> zeros(shape_.channels + 1);
        for (int64_t c = 0; c < shape_.channels; ++c) zeros.data()[c] = Left{};
        const int64_t private_count = private_elements();
        const Scratch<T> privates(checked_product({private_count, threads}));
        const Scratch<int64_t> places(shape_.kernel_size * shape_.channels);
        const Scratch<int64_t> offsets(depths_.blocks());
        const Scratch<uint8_t> left_out(Product::is_partial ? shape_.batch : 0);
        left_out_ = left_out.data();
        if constexpr (Product::is_partial) {
            if (!leave_out_short_samples()) {
                by_vectors(nullptr, threads);
                return;
            }
        }
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

        std::atomic<int64_t> next{0};
        std::atomic<bool> all_left_out{false};
        Barrier barrier;
        run_parallel(threads, [&](int thread, int granted) {
            [[maybe_unused]] const typename Product::Session session{};
            const Private mine = private_of(privates.data() + thread * private_count);
            if (!pack_weight(part_of(panels, 1, thread, granted), mine.panel)) all_left_out = true;
            barrier.wait(granted);
            if (all_left_out) return;
            for (int64_t item = next++; item < items; item = next++) {
                const int64_t n = item / groups;
                if (marks_ != nullptr && marks_[n] == 0) continue;
                if (Product::is_partial && __atomic_load_n(left_out_ + n, __ATOMIC_RELAXED) != 0) {
                    continue;
                }
                sample(n, part_of(panels, 1, item % groups, groups), mine);
            }
        });
        if constexpr (Product::is_partial) {
            bool some = false;
            for (int64_t n = 0; n < shape_.batch; ++n) some = some || left_out_[n] != 0;
            if (some || all_left_out) by_vectors(all_left_out ? nullptr : left_out_, threads);
        }
    }

 private:
    // The samples that Product cannot multiply, or not as fast, by vectors.
    void by_vectors(const uint8_t* marks, int threads) const {
        ConvolutionForwardKernel<Vector, VectorProduct<Vector>>(call_, marks).run(threads);
    }

    // Marks samples whose windows leave tiles empty; returns whether there are others.
    bool leave_out_short_samples() const {
        bool others = false;
        for (int64_t n = 0; n < shape_.batch; ++n) {
            const int64_t windows = shape_.windows(sample_length(shape_, call_.lengths, n));
            const bool pays = Product::pays_for(windows);
            left_out_[n] = !pays;
            others = others || pays;
        }
        return others;
    }

    // Matrix tiles read the windows of a sample in place where each fills blocks of depths.
    bool windows_are_whole_blocks() const {
        return shape_.padding_left == 0 && shape_.padding_right == 0 &&
               depths_.are_whole_blocks() && call_.input.stride_length == shape_.channels;
    }

    // Returns whether all panels can be multiplied by Product.
    bool pack_weight(Range panels, T* scratch) const {
        const ConvolutionWeight& weight = call_.weight;
        const int64_t taps = shape_.kernel_size, channels = shape_.channels;
        return Product::pack(packed_, layout_, panels, scratch, [&](T* target, int64_t panel) {
            if (depths_.has_gaps()) {
                std::memset(target, 0,
                            static_cast<std::size_t>(layout_.depth * layout_.units_of(panel) *
                                                     Vector::width) *
                                sizeof(T));
            }
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

    int64_t windows_in_stretch() const {
        return shape_.pool_size == 0
                   ? windows_per_stretch_
                   : (pools_per_stretch_ - 1) * shape_.pool_stride + shape_.pool_size;
    }

    int64_t positions_in_stretch() const {
        const int64_t spread = checked_product({windows_in_stretch() - 1, shape_.stride});
        return spread + shape_.dilation * (shape_.kernel_size - 1) + 1;
    }

    // A thread's own scratch.
    struct Private {
        T* maxima;       // of all filters
        T* winners;      // their windows
        T* convolution;  // of a stretch, for one panel
        T* panel;        // of weights, while they are packed
        Left* input;     // of a stretch
    };
    int64_t maxima_elements() const { return layout_.vectors() * Vector::width; }
    int64_t convolution_elements() const {
        return shape_.pool_size == 0 ? 0 : checked_product({windows_in_stretch(), panel_width});
    }
    // Numbers of one plane of a stretch. Matrix tiles read whole blocks of depths, and as many rows
    // as a tile holds.
    int64_t input_plane() const {
        if (direct_ && !Product::in_tiles) return 0;
        const int64_t positions = checked_product({positions_in_stretch(), shape_.channels});
        if (!Product::in_tiles) return positions;
        const int64_t windows = windows_in_stretch();
        const int64_t missing = divide_rounding_up(windows, tile_rows) * tile_rows - windows;
        return positions + checked_product({missing, window_stride(), shape_.channels}) +
               tile_depth;
    }
    // Positions from a window to the next, where there is one.
    int64_t window_stride() const { return windows_in_stretch() == 1 ? 0 : shape_.stride; }
    int64_t private_elements() const {
        constexpr int64_t lefts = sizeof(T) / sizeof(Left);
        const int64_t left = checked_product({Product::left_planes, input_plane()});
        const int64_t count = 2 * maxima_elements() + convolution_elements() +
                              Product::pack_scratch_elements(layout_) +
                              divide_rounding_up(left, lefts);
        return divide_rounding_up(count, 64) * 64;  // threads do not share cache lines
    }
    Private private_of(T* memory) const {
        Private mine{};
        mine.maxima = memory;
        mine.winners = mine.maxima + maxima_elements();
        mine.convolution = mine.winners + maxima_elements();
        mine.panel = mine.convolution + convolution_elements();
        void* rest = mine.panel + Product::pack_scratch_elements(layout_);
        mine.input = static_cast<Left*>(rest);
        return mine;
    }

    void sample(int64_t n, Range panels, const Private& mine) {
        const int64_t length = sample_length(shape_, call_.lengths, n);
        const int64_t windows = shape_.windows(length);
        const int64_t pools = shape_.pools(windows);
        if (shape_.pool_size == 0) {
            if (pools > 0) over_time(n, length, windows, panels, mine);
        } else {
            windowed(n, length, pools, panels, mine);
        }
        no_window(n, pools, panels);
    }

    // Max over all windows of a sample.
    void over_time(int64_t n, int64_t length, int64_t windows, Range panels, const Private& mine) {
        T *maxima = mine.maxima, *winners = mine.winners;
        typename Product::Magnitude magnitude;
        for (int64_t begin = 0; begin < windows; begin += windows_per_stretch_) {
            const int64_t end = smaller(windows, begin + windows_per_stretch_);
            const SampleRows<Left> rows = reach(n, length, begin, end, mine.input, magnitude);
            for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
                const int64_t first = layout_.first_column(panel);
                convolve_into_maxima(rows, begin, end, panel, maxima + first, winners + first,
                                     begin == 0);
            }
        }
        mark_unless_plain(n, magnitude);
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
            const int64_t first = layout_.first_column(panel);
            for (int64_t unit = 0; unit < layout_.units_of(panel); ++unit) {
                const int64_t filter = first + unit * Vector::width;
                finish(n, 0, filter, Vector::load(maxima + filter), Vector::load(winners + filter));
            }
        }
    }

    // Max over windows of windows: the convolution of a stretch is kept for one panel of filters.
    void windowed(int64_t n, int64_t length, int64_t pools, Range panels, const Private& mine) {
        typename Product::Magnitude magnitude;
        for (int64_t begin = 0; begin < pools; begin += pools_per_stretch_) {
            const int64_t end = smaller(pools, begin + pools_per_stretch_);
            const int64_t first_window = begin * shape_.pool_stride;
            const int64_t last_window = (end - 1) * shape_.pool_stride + shape_.pool_size;
            const SampleRows<Left> rows =
                reach(n, length, first_window, last_window, mine.input, magnitude);
            for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
                convolve_into_memory(rows, first_window, last_window, panel, mine.convolution);
                for (int64_t pool = begin; pool < end; ++pool) {
                    pool_from_memory(n, pool, first_window, panel, mine.convolution);
                }
            }
        }
        mark_unless_plain(n, magnitude);
    }

    // What tiles have made of numbers that are not plain is wrong. All stretches decide, so that it
    // does not matter how long other samples are; what was read in place is never read beyond
    // itself.
    void mark_unless_plain(int64_t n, const typename Product::Magnitude& magnitude) const {
        if (!Product::is_partial || direct_ || magnitude.is_plain()) return;
        __atomic_store_n(left_out_ + n, uint8_t{1}, __ATOMIC_RELAXED);
    }

    // The rows that windows [begin, end) of a sample read: in place, or as they are multiplied in
    // `scratch`, with zeros where the windows reach beyond the sample. Takes note of their
    // magnitude.
    SampleRows<Left> reach(int64_t n, int64_t length, int64_t begin, int64_t end, Left* scratch,
                           typename Product::Magnitude& magnitude) const {
        const SequenceView& input = call_.input;
        if (direct_ && (!Product::in_tiles || tiles_are_within(n, begin, end))) {
            const Left* numbers = static_cast<const Left*>(input.numbers.data);
            return {numbers + n * input.stride_batch, input.stride_length, {0, length}};
        }
        const int64_t channels = shape_.channels, plane = input_plane_;
        const int64_t first = window_start(shape_, begin);
        const int64_t last =
            window_start(shape_, end - 1) + shape_.dilation * (shape_.kernel_size - 1) + 1;
        const int64_t from = smaller(last, larger(first, 0));
        const int64_t to = larger(from, smaller(last, length));
        Left* const positions = scratch + (from - first) * channels;
        pack_positions<Vector, Product>(shape_, input, n, from, to, positions, plane, magnitude);
        const int64_t beyond = (last - to) * channels + (Product::in_tiles ? tile_depth : 0);
        for (int p = 0; p < Product::left_planes; ++p) {
            clear(scratch + p * plane, (from - first) * channels);
            clear(positions + p * plane + (to - from) * channels, beyond);
        }
        return {scratch - first * channels, channels, {first, last}};
    }

    // Whether what tiles read of the windows [begin, end) of a sample, and in place of rows that
    // are missing, lies within the batch.
    bool tiles_are_within(int64_t n, int64_t begin, int64_t end) const {
        const int64_t rows = divide_rounding_up(end - begin, tile_rows) * tile_rows;
        const int64_t last =
            window_start(shape_, begin + rows - 1) + shape_.dilation * (shape_.kernel_size - 1);
        return last * call_.input.stride_length <=
               (shape_.batch - 1 - n) * call_.input.stride_batch +
                   (shape_.length - 1) * call_.input.stride_length;
    }

    static void clear(Left* numbers, int64_t count) {
        std::memset(static_cast<void*>(numbers), 0, static_cast<std::size_t>(count) * sizeof(Left));
    }

    // The convolution of `tile` windows from `window` on with one panel of filters, without bias.
    void convolve(Vector* sums, int tile, int64_t vectors, const SampleRows<Left>& rows,
                  int64_t window, const typename Product::Packed* panel) const {
        const int64_t channels = shape_.channels;
        const int64_t taps = shape_.kernel_size;
        const int64_t start = window_start(shape_, window);
        if constexpr (Product::in_tiles) {
            Product::multiply(sums, tile, vectors, rows.at(start), window_stride() * rows.stride,
                              input_plane_, offsets_, panel, layout_.depth);
            return;
        } else {
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

    void convolve_into_maxima(const SampleRows<Left>& rows, int64_t begin, int64_t end,
                              int64_t panel, T* maxima, T* winners, bool first_stretch) const {
        const auto* weights = Product::panel(packed_, layout_, panel);
        const int64_t vectors = layout_.units_of(panel);
        Vector best[panel_vectors], winner[panel_vectors];
        for (int64_t v = 0; v < vectors; ++v) {
            // Any window takes the place of -infinity but one that is itself -infinity: the first
            // window is the winner until another takes its place.
            best[v] = first_stretch ? Vector::broadcast(minus_infinity)
                                    : Vector::load(maxima + v * Vector::width);
            winner[v] =
                first_stretch ? Vector::from_integer(0) : Vector::load(winners + v * Vector::width);
        }
        Product::for_each_tile(end - begin, [&](int64_t first, int tile) {
            Vector sums[Product::rows * Product::vectors];
            convolve(sums, tile, vectors, rows, begin + first, weights);
            for (int64_t v = 0; v < vectors; ++v) {
                Vector maximum_so_far = best[v], winner_so_far = winner[v];
                for (int m = 0; m < tile; ++m) {
                    take_maximum(sums[m * vectors + v], Vector::from_integer(begin + first + m),
                                 maximum_so_far, winner_so_far);
                }
                best[v] = maximum_so_far;
                winner[v] = winner_so_far;
            }
        });
        for (int64_t v = 0; v < vectors; ++v) {
            best[v].store(maxima + v * Vector::width);
            winner[v].store(winners + v * Vector::width);
        }
    }

    void convolve_into_memory(const SampleRows<Left>& rows, int64_t begin, int64_t end,
                              int64_t panel, T* convolution) const {
        const auto* weights = Product::panel(packed_, layout_, panel);
        const int64_t vectors = layout_.units_of(panel);
        Product::for_each_tile(end - begin, [&](int64_t first, int tile) {
            Vector sums[Product::rows * Product::vectors];
            convolve(sums, tile, vectors, rows, begin + first, weights);
            for (int64_t i = 0; i < tile * vectors; ++i) {
                sums[i].store(convolution + (first * vectors + i) * Vector::width);
            }
        });
    }

    void pool_from_memory(int64_t n, int64_t pool, int64_t first_window, int64_t panel,
                          const T* convolution) const {
        const int64_t vectors = layout_.units_of(panel);
        const int64_t begin = pool * shape_.pool_stride;
        for (int64_t v = 0; v < vectors; ++v) {
            Vector best = Vector::broadcast(minus_infinity);
            Vector winner = Vector::from_integer(begin);
            for (int64_t window = begin; window < begin + shape_.pool_size; ++window) {
                const int64_t row = window - first_window;
                take_maximum(Vector::load(convolution + (row * vectors + v) * Vector::width),
                             Vector::from_integer(window), best, winner);
            }
            finish(n, pool, layout_.first_column(panel) + v * Vector::width, best, winner);
        }
    }

    static void take_maximum(Vector candidate, Vector window, Vector& best, Vector& winner) {
        const typename Vector::Mask better = replaces_maximum(candidate, best);
        best = select(better, candidate, best);
        winner = select(better, window, winner);
    }

    // Bias and activation of one vector of maxima; writes them and their windows.
    void finish(int64_t n, int64_t pool, int64_t filter, Vector best, Vector winner) const {
        const int64_t count = smaller(Vector::width, shape_.filters - filter);
        if (call_.bias != nullptr) best = best + load_up_to<Vector>(call_.bias + filter, count);
        best = activate(shape_.activation, best);
        T* output = call_.output + n * call_.output_stride_batch +
                    pool * call_.output_stride_pooled + filter * call_.output_stride_filter;
        if (call_.output_stride_filter == 1) {
            store_up_to(best, output, count);
        } else {
            T values[Vector::width];
            best.store(values);
            for (int64_t lane = 0; lane < count; ++lane) {
                output[lane * call_.output_stride_filter] = values[lane];
            }
        }
        if (call_.argmax == nullptr) return;
        T bits[Vector::width];
        winner.store(bits);
        int32_t* argmax = call_.argmax + (n * shape_.pooled + pool) * shape_.filters + filter;
        for (int64_t lane = 0; lane < count; ++lane) {
            typename Vector::Integer window;
            std::memcpy(&window, bits + lane, sizeof window);
            argmax[lane] = static_cast<int32_t>(window);
        }
    }

    // Zeros for the pools from `pools` on, which this sample is too short for.
    void no_window(int64_t n, int64_t pools, Range panels) const {
        const int64_t first = layout_.first_column(panels.begin);
        const int64_t last = smaller(shape_.filters, layout_.first_column(panels.end));
        for (int64_t pool = pools; pool < shape_.pooled; ++pool) {
            T* output =
                call_.output + n * call_.output_stride_batch + pool * call_.output_stride_pooled;
            for (int64_t filter = first; filter < last; ++filter) {
                output[filter * call_.output_stride_filter] = 0;
            }
            if (call_.argmax == nullptr) continue;
            int32_t* argmax = call_.argmax + (n * shape_.pooled + pool) * shape_.filters;
            for (int64_t filter = first; filter < last; ++filter) argmax[filter] = -1;
        }
    }

    const ConvolutionForward<T>& call_;
    const uint8_t* const marks_;
    const ConvolutionShape& shape_;
    const WindowDepths depths_;
    const PanelLayout<Vector> layout_;
    const bool direct_;  // the input is read in place
    const int64_t windows_per_stretch_;
    const int64_t pools_per_stretch_;
    const int64_t input_plane_;
    typename Product::Packed* packed_ = nullptr;
    const Left* zeros_ = nullptr;
    const int64_t* places_ = nullptr;   // where a filter's numbers, as they lie, go when packed
    const int64_t* offsets_ = nullptr;  // of blocks of depths, in a window
    uint8_t* left_out_ = nullptr;       // by sample: whether it is left to vectors
};

template <class Vector, class Product = VectorProduct<Vector>>
void convolution_forward(const ConvolutionForward<typename Vector::Element>& arguments,
                         int threads) {
    ConvolutionForwardKernel<Vector, Product>(arguments).run(threads);
}

}  // namespace seqkernels
