// Convolution, bias, activation and max-pooling of a batch of sequences, in one pass.
//
//   output[n, p, f] = max over windows w of pool p of
//                     activation(bias[f] + sum over taps j, channels c of
//                                weight[f, c, j] input[n, w stride + j dilation - padding, c])
//   argmax[n, p, f] = the first such window, -1 where the sample has none (output is then 0)
//
// Shapes, strides and ownership: ConvolutionForward in kernels.h. No output aliases an input.
// Only the maximum and its window leave the registers. The activations are monotone: the maximum
// comes first, then bias and activation on what is left.
//
// Scratch, owned by the call: what the windows need (convolution_windows.h, winograd_windows.h,
// screened_windows.h); the stretches of the batch (window_stretches.h); the maxima of samples that
// are cut (part_maxima.h); two marks for each sample where windows are not multiplied by vectors
// one by one; and for each thread, with windowed pooling, screened windows or weights that are
// packed meanwhile, the convolution of one stretch for one panel of filters, or for some that pass
// together; the maxima of these.
//
// Cost: 2 N W F k C FLOPs, W being the windows of a sample, or as many less as windows together
// save; where pools overlap, up to a third more, for the windows that two stretches share; in tiles
// those of the rows between samples. Bytes: the input once; a panel of weights for every tile of
// windows, from L1 while it fits, else from L2. Limit: the multiply-add rate.
//
// Tried without gain, in tiles: the maxima of a tile of rows while the next is multiplied (up to
// 4 % slower); of even rows and of odd ones apart, so that they wait less for each other (within
// 2 %).
#pragma once

#include <atomic>
#include <cstdint>
#include <type_traits>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "convolution_windows.h"
#include "part_maxima.h"
#include "pooled_output.h"
#include "vector_product.h"
#include "window_stretches.h"
#include "winograd_windows.h"

namespace seqkernels {

// Of products in tiles: screened_windows.h.
template <class Unit, int planes>
class ScreenedWindows;

// marks: by sample, which ones to compute, for windows that can be of any numbers; null for all.
template <class Windows>
void convolution_forward_of(const ConvolutionForward<typename Windows::Vector::Element>& arguments,
                            const uint8_t* marks, int threads);

// Windows: ConvolutionWindows, WinogradWindows or ScreenedWindows.
template <class Windows>
class ConvolutionForwardKernel {
    using Vector = typename Windows::Vector;
    using Product = typename Windows::Product;
    using T = typename Vector::Element;
    using Left = typename Windows::Left;
    using Packed = typename Windows::Packed;
    using Pooled = PooledOutput<Vector>;
    static constexpr int panel_vectors = Product::vectors;
    static constexpr int64_t panel_width = panel_vectors * Vector::width;
    static constexpr T minus_infinity = -static_cast<T>(__builtin_inf());
    // Of what is kept of a stretch's convolution, at most, where that is of several panels.
    static constexpr int64_t kept_bytes = 128 << 10;

 public:
    explicit ConvolutionForwardKernel(const ConvolutionForward<T>& arguments,
                                      const uint8_t* marks = nullptr)
        : call_(arguments),
          marks_(marks),
          shape_(arguments.shape),
          windows_(arguments),
          layout_(windows_.layout()),
          pooled_(arguments) {}

    void run(int threads) {
        if (!run_if_plain(threads, false)) otherwise(marks_, threads);
    }

    // The same, but returns false, with nothing of use computed, where there are weights that
    // cannot be multiplied so. judges: whether weights that no sample is multiplied with are judged
    // too.
    bool run_if_plain(int threads, bool judges) {
        if (shape_.batch == 0 || shape_.filters == 0 || shape_.pooled == 0) return true;
        const StretchRule rule = windows_.rule(threads);
        const Scratch<uint8_t> left_out(Product::is_partial ? shape_.batch : 0);
        const Scratch<uint8_t> wanted(Product::is_partial ? shape_.batch : 0);
        left_out_ = left_out.data();
        if constexpr (Product::is_partial) choose_samples(rule.rows_apart, wanted.data());
        const WindowStretches stretches(shape_, call_.lengths, rule,
                                        Product::is_partial ? wanted.data() : marks_);
        stretches_ = &stretches;
        windows_.take(stretches);
        if (stretches.count() > 0) {
            if (!compute(threads)) return false;
        } else if (judges && !are_weights_plain(threads)) {
            return false;
        } else {
            pooled_.clear_missing({0, shape_.batch});
        }
        if constexpr (Product::is_partial) {
            bool some = false;
            for (int64_t n = 0; n < shape_.batch; ++n) some = some || left_out_[n] != 0;
            if (some) otherwise(left_out_, threads);
        }
        return true;
    }

 private:
    bool are_weights_plain(int threads) const {
        const Scratch<Packed> packed(windows_.packed_elements());
        const Scratch<T> panels(checked_product({panel_elements(), threads}));
        std::atomic<bool> are_plain{true};
        run_parallel(threads, [&](int thread, int granted) {
            const Range mine = part_of(layout_.panels(), 1, thread, granted);
            T* const scratch = panels.data() + thread * panel_elements();
            if (!windows_.pack(packed.data(), mine, scratch)) are_plain = false;
        });
        return are_plain;
    }

    // Marks the samples that are computed here and those that are left to others.
    void choose_samples(int64_t rows_apart, uint8_t* wanted) const {
        for (int64_t n = 0; n < shape_.batch; ++n) {
            const int64_t windows = shape_.windows(sample_length(shape_, call_.lengths, n));
            const bool is_asked_for = marks_ == nullptr || marks_[n] != 0;
            wanted[n] = is_asked_for && windows_.pays_for(windows, rows_apart);
            left_out_[n] = is_asked_for && wanted[n] == 0;
        }
    }

    // The samples that cannot be computed here, or not as fast; null for all.
    void otherwise(const uint8_t* marks, int threads) const {
        convolution_forward_of<typename Windows::Otherwise>(call_, marks, threads);
    }

    // Returns whether these weights can be multiplied here.
    bool compute(int threads) {
        if constexpr (Windows::can_pack_meanwhile) {
            if (windows_.packs_meanwhile()) return compute_while_packing(threads);
        }
        // Stretches are shared out one by one; where they are few, so are the panels of each, those
        // of a single one evenly: every share makes its input ready once more. A thread begins with
        // the panels that it has packed, which its cache holds (a sentence of 100 words, 100
        // filters of 3, two threads: 94 us to 75).
        const int64_t panels = layout_.panels(), stretches = stretches_->count();
        const int64_t groups =
            smaller(panels, stretches == 1 ? threads : divide_rounding_up(4 * threads, stretches));
        const int64_t items = checked_product({stretches, groups});

        const Scratch<Packed> packed(windows_.packed_elements());
        const bool keeps_convolution =
            Windows::are_screened || (shape_.pool_size > 0 && !is_each_window());
        const int64_t private_count = private_elements(keeps_convolution);
        const Scratch<T> privates(checked_product({private_count, threads}));
        const bool cuts_samples = shape_.pool_size == 0 && stretches_->part_count() > 0;
        const PartMaxima<Vector> parts(cuts_samples ? stretches_->part_count() : 0,
                                       layout_.vectors());
        packed_ = packed.data();
        parts_ = &parts;

        SharedItems shared(items, threads);
        std::atomic<bool> are_plain{true};
        Barrier barrier;
        run_parallel(threads, [&](int thread, int granted) {
            [[maybe_unused]] const typename Product::Session session{};
            const Private mine =
                private_of(privates.data() + thread * private_count, keeps_convolution);
            pooled_.clear_missing(part_of(shape_.batch, 1, thread, granted));
            const Range packs = part_of(panels, 1, thread, granted);
            if (!windows_.pack(packed_, packs, mine.panel)) are_plain = false;
            if (stretches == 1 && groups == granted && !cuts_samples) {
                // No thread reads what another has packed, so none waits: 1 to 3 % of the time of
                // one sentence. (If that cannot be multiplied, all is computed otherwise.)
                if (are_plain) stretch(stretches_->segments(0), packs, {}, mine);
                return;
            }
            barrier.wait(granted);
            if (!are_plain) return;
            for (int64_t item = shared.take(thread); item >= 0; item = shared.take(thread)) {
                const int64_t i = item % stretches;
                stretch(stretches_->segments(i), part_of(panels, 1, item / stretches, groups),
                        i + 1 < stretches ? stretches_->segments(i + 1) : Range{}, mine);
            }
            if (!cuts_samples) return;
            barrier.wait(granted);
            parts.join(*stretches_, part_of(stretches_->segment_count(), 1, thread, granted),
                       shape_.filters, pooled_);
        });
        return are_plain;
    }

    // The same of a single stretch, whose weights are multiplied as they are packed.
    bool compute_while_packing(int threads) {
        const int64_t private_count = private_elements(true);
        const Scratch<T> privates(checked_product({private_count, threads}));
        std::atomic<bool> are_plain{true};
        run_parallel(threads, [&](int thread, int granted) {
            const Private mine = private_of(privates.data() + thread * private_count, true);
            pooled_.clear_missing(part_of(shape_.batch, 1, thread, granted));
            const Range panels = part_of(layout_.panels(), 1, thread, granted);
            if (panels.count() == 0) return;
            const Range segments = stretches_->segments(0);
            const auto rows = windows_.ready(segments, mine.input, left_out_);
            for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
                if (!windows_.convolve_while_packing(mine.convolution, rows, segments, panel,
                                                     mine.panel)) {
                    are_plain = false;
                }
                if (shape_.pool_size == 0) {
                    const int64_t vectors = layout_.units_of(panel);
                    max_over_time(segments, {panel, panel + 1}, mine.maxima,
                                  [&](int64_t first, int, int64_t) {
                                      return mine.convolution + first * vectors;
                                  });
                } else {
                    pool_from_memory(segments, panel, mine.convolution);
                }
            }
        });
        return are_plain;
    }

    // Whether every window is a pool.
    bool is_each_window() const { return shape_.pool_size == 1 && shape_.pool_stride == 1; }

    // A thread's own scratch.
    struct Private {
        Vector* convolution;  // of a stretch, for the panels that pass together
        Vector* maxima;       // of these, and their windows
        T* panel;             // of weights, while they are packed
        Left* input;          // of a stretch
        int64_t together;     // panels
    };
    int64_t kept_elements() const {
        return checked_product({windows_.computed_rows(), panel_width});
    }
    // Panels that a tile of rows is multiplied with before the next one is: so many that they and
    // what is kept of their convolution come from L2.
    int64_t panels_together(bool keeps_convolution) const {
        if (!windows_.rows_stay()) return 1;
        const int64_t panels = larger(1, layout_.panels());
        const int64_t packed = windows_.packed_elements() / panels * int64_t{sizeof(Packed)};
        const int64_t kept = kept_elements() * int64_t{sizeof(T)};
        const int64_t passing = Product::cache_bytes / 2 / larger(1, packed);
        const int64_t keeping = keeps_convolution ? kept_bytes / larger(1, kept) : panels;
        return larger(1, smaller(panels, smaller(passing, keeping)));
    }
    int64_t convolution_elements(bool is_kept) const {
        return is_kept ? checked_product({panels_together(true), kept_elements()}) : 0;
    }
    int64_t maxima_elements(bool keeps_convolution) const {
        return panels_together(keeps_convolution) * 2 * panel_width;
    }
    // Whole cache lines, so that what follows begins one.
    int64_t panel_elements() const {
        return divide_rounding_up(windows_.pack_scratch_elements(), 16) * 16;
    }
    int64_t private_elements(bool keeps_convolution) const {
        constexpr int64_t lefts = sizeof(T) / sizeof(Left);
        const int64_t count = convolution_elements(keeps_convolution) +
                              maxima_elements(keeps_convolution) + panel_elements() +
                              divide_rounding_up(windows_.left_elements(), lefts);
        return divide_rounding_up(count, 64) * 64;  // threads do not share cache lines
    }
    Private private_of(T* memory, bool keeps_convolution) const {
        Private mine{};
        mine.convolution = reinterpret_cast<Vector*>(memory);
        T* const maxima = memory + convolution_elements(keeps_convolution);
        mine.maxima = reinterpret_cast<Vector*>(maxima);
        mine.panel = maxima + maxima_elements(keeps_convolution);
        mine.together = panels_together(keeps_convolution);
        void* rest = mine.panel + panel_elements();
        mine.input = static_cast<Left*>(rest);
        return mine;
    }

    // Segment after segment, or the rows of all of them one after another; what the next stretch
    // reads is fetched meanwhile.
    void stretch(Range segments, Range panels, Range next, const Private& mine) const {
        const int64_t tiles =
            divide_rounding_up(stretches_->rows(segments), Windows::most_rows) * panels.count();
        const Fetching fetching = windows_.fetching(next, tiles);
        int64_t turn = 0;
        const auto fetch = [&](int64_t) { fetching(turn++); };
        const int64_t together = Windows::joins_segments ? segments.count() : 1;
        for (int64_t i = segments.begin; i < segments.end; i += together) {
            const Range of_rows{i, i + together};
            const auto rows = windows_.ready(of_rows, mine.input, left_out_);
            for (int64_t panel = panels.begin; panel < panels.end; panel += mine.together) {
                const Range passing{panel, smaller(panels.end, panel + mine.together)};
                if (Windows::are_screened && are_left_out(of_rows)) break;
                Vector sums[Windows::most_rows * panel_vectors];
                const auto sums_of = [&](int64_t first, int tile, int64_t of_panel) {
                    windows_.convolve(sums, tile, rows, of_rows, first, packed_, of_panel, fetch);
                    return sums;
                };
                if (shape_.pool_size == 0 && !Windows::are_screened) {
                    max_over_time(of_rows, passing, mine.maxima, sums_of);
                } else if (shape_.pool_size > 0 && is_each_window()) {
                    each_window(of_rows, passing, sums_of);
                } else {
                    convolve_into_memory(rows, of_rows, passing, mine.convolution, fetch);
                    for (int64_t p = passing.begin; p < passing.end; ++p) {
                        const Vector* const convolution = kept(mine.convolution, p - passing.begin);
                        if constexpr (Windows::are_screened) {
                            screened_maxima(rows, of_rows, p, convolution);
                        } else {
                            pool_from_memory(of_rows, p, convolution);
                        }
                    }
                }
            }
        }
    }

    bool are_left_out(Range segments) const {
        for (int64_t i = segments.begin; i < segments.end; ++i) {
            if (!is_left_out(left_out_, stretches_->segment(i).sample)) return false;
        }
        return true;
    }

    // Any window takes the place of -infinity but one that is itself -infinity: the first window is
    // the winner until another takes its place.
    static void begin_maxima(int64_t first_window, Vector* best, Vector* winner) {
        for (int v = 0; v < panel_vectors; ++v) {
            best[v] = Vector::broadcast(minus_infinity);
            winner[v] = Vector::from_integer(first_window);
        }
    }

    // Calls piece(panel, segment, rows, sums, is_last) for what each segment has of every tile of
    // rows, maybe none, and each panel: the segment's rows, counted from its first, their
    // convolution, and whether no tile has more of them.
    //   sums_of(first, tile, panel): the convolution of a tile of rows
    template <class SumsOf, class Piece>
    void for_each_piece(Range segments, Range panels, SumsOf&& sums_of, Piece&& piece) const {
        const int64_t first_row = stretches_->segment(segments.begin).row;
        int64_t of_tile = segments.begin;
        windows_.for_each_tile(stretches_->rows(segments), [&](int64_t first, int tile) {
            int64_t current = of_tile;
            for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
                const Vector* sums = sums_of(first, tile, panel);
                for (current = of_tile; current < segments.end; ++current) {
                    const WindowSegment& segment = stretches_->segment(current);
                    const int64_t begins = segment.row - first_row;
                    const int64_t ends = begins + segment.windows.count();
                    const Range rows{larger(begins, first), smaller(ends, first + tile)};
                    piece(panel, current, Range{rows.begin - begins, rows.end - begins},
                          sums +
                              (rows.count() > 0 ? rows.begin - first : 0) * layout_.units_of(panel),
                          ends <= first + tile);
                    if (ends > first + tile) break;
                }
            }
            of_tile = current;
        });
    }

    // The maxima of segments over their windows, for some panels.
    //   maxima: panel after panel, the greatest so far and their windows
    template <class SumsOf>
    void max_over_time(Range segments, Range panels, Vector* maxima, SumsOf&& sums_of) const {
        const auto best_of = [&](int64_t panel) {
            return maxima + (panel - panels.begin) * 2 * panel_vectors;
        };
        const auto begin = [&](int64_t segment, int64_t panel) {
            Vector* const best = best_of(panel);
            begin_maxima(stretches_->segment(segment).windows.begin, best, best + panel_vectors);
        };
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
            begin(segments.begin, panel);
        }
        for_each_piece(segments, panels, sums_of,
                       [&](int64_t panel, int64_t i, Range rows, const Vector* sums, bool is_last) {
                           const WindowSegment& segment = stretches_->segment(i);
                           Vector *const best = best_of(panel), *const winner =
                                                                    best + panel_vectors;
                           const int64_t vectors = layout_.units_of(panel);
                           if (rows.count() > 0) {
                               const int64_t first_window = segment.windows.begin + rows.begin;
                               Pooled::template take<panel_vectors>(
                                   rows.count(), vectors,
                                   [&](int64_t row, int64_t v) { return sums[row * vectors + v]; },
                                   [&](int64_t row, int64_t) {
                                       return Vector::from_integer(first_window + row);
                                   },
                                   best, winner);
                           }
                           if (!is_last) return;
                           take_maxima(segment, panel, best, winner);
                           if (i + 1 < segments.end) begin(i + 1, panel);
                       });
    }

    // The same of windows of which only some are multiplied as precisely as is wanted.
    template <class Rows>
    void screened_maxima(const Rows& rows, Range segments, int64_t panel,
                         const Vector* convolution) const {
        windows_.maxima(segments, rows, convolution, panel, left_out_,
                        [&](const WindowSegment& segment, const Vector* best,
                            const Vector* winner) { take_maxima(segment, panel, best, winner); });
    }

    // Pools of one window, for some panels.
    template <class SumsOf>
    void each_window(Range segments, Range panels, SumsOf&& sums_of) const {
        for_each_piece(segments, panels, sums_of,
                       [&](int64_t panel, int64_t i, Range rows, const Vector* sums, bool) {
                           const WindowSegment& segment = stretches_->segment(i);
                           const int64_t vectors = layout_.units_of(panel);
                           const int64_t first = layout_.first_column(panel);
                           for (int64_t row = 0; row < rows.count(); ++row) {
                               const int64_t window = segment.windows.begin + rows.begin + row;
                               const Vector winner = Vector::from_integer(window);
                               for (int64_t v = 0; v < vectors; ++v) {
                                   pooled_.finish(segment.sample, window, first + v * Vector::width,
                                                  sums[row * vectors + v], winner);
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
                parts_->put(segment.part, filter, best[v], winner[v]);
            }
        }
    }

    template <class Rows, class Meanwhile>
    void convolve_into_memory(const Rows& rows, Range segments, Range panels, Vector* convolution,
                              Meanwhile&& meanwhile) const {
        windows_.for_each_tile(stretches_->rows(segments), [&](int64_t first, int tile) {
            for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
                windows_.convolve(
                    kept(convolution, panel - panels.begin) + first * layout_.units_of(panel), tile,
                    rows, segments, first, packed_, panel, meanwhile);
            }
        });
    }

    // Where the convolution of the i-th of the panels that pass together is kept.
    Vector* kept(Vector* convolution, int64_t i) const {
        return convolution + i * (kept_elements() / Vector::width);
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
    Windows windows_;
    const PanelLayout<Vector>& layout_;
    const Pooled pooled_;
    const WindowStretches* stretches_ = nullptr;
    Packed* packed_ = nullptr;
    const PartMaxima<Vector>* parts_ = nullptr;
    uint8_t* left_out_ = nullptr;  // by sample: whether it is left to others
};

template <class Windows>
void convolution_forward_of(const ConvolutionForward<typename Windows::Vector::Element>& arguments,
                            const uint8_t* marks, int threads) {
    ConvolutionForwardKernel<Windows>(arguments, marks).run(threads);
}

// Whether maxima over time may be found among products less precise than wanted.
template <class Product>
constexpr bool can_be_screened = Product::in_tiles && Product::left_planes > 1;

// Calls function(windows), windows being a null pointer to those that a shape's convolution is made
// of.
template <class Vector, class Product, class Function>
auto with_windows_of(const ConvolutionShape& shape, Function&& function) {
    if constexpr (can_be_screened<Product>) {
        using Screened = ScreenedWindows<typename Product::Unit, Product::left_planes>;
        if (Screened::pays_for(shape)) return function(static_cast<Screened*>(nullptr));
    }
    if constexpr (!Product::in_tiles && std::is_same_v<typename Vector::Element, float>) {
        if (WinogradPlan::pays_for(shape)) {
            return function(static_cast<WinogradWindows<Vector>*>(nullptr));
        }
    }
    return function(static_cast<ConvolutionWindows<Vector, Product>*>(nullptr));
}

template <class Vector, class Product = VectorProduct<Vector>>
void convolution_forward(const ConvolutionForward<typename Vector::Element>& arguments,
                         int threads) {
    with_windows_of<Vector, Product>(arguments.shape, [&](auto* windows) {
        using Windows = std::remove_pointer_t<decltype(windows)>;
        convolution_forward_of<Windows>(arguments, nullptr, threads);
    });
}

}  // namespace seqkernels
