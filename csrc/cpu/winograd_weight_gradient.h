// The weight's part of convolution_backward.h with small pools, by vectors of float32, as dense
// products of windows together (winograd_plan.h):
//
//   grad_weight[f, c, j] = sum over windows w of g[w, f] x[w + j - padding, c]
//
// What windows are made of by the plan, read backwards: with X_t the numbers of a plane that term t
// multiplies, and G_t the sums and differences of the gradients of two or four windows that its
// part goes into,
//   P_t[f, c]            = sum over groups of windows of G_t[f] X_t[c]
//   grad_weight[f, c, j] = sum over terms t of P_t[f, c] times the share of tap j in t
// so a group of four windows of three taps takes 7 multiply-adds in place of 12. For strides and
// dilations of 1. It does pool_stride times the multiply-adds of convolution_weight_gradient.h,
// which visits winners alone, less what windows together save, but many more a second.
//
// Blocks of groups are laid out by all threads, a segment of a sample each at a time; then each
// adds what they give to its filters. Every sum is of blocks in their order: the same bits on every
// run, with any number of threads.
//
// Where a sample's numbers cannot be multiplied so (winograd_planes.h), or a gradient is not finite
// or 2^50 and more, all is left to that.
//
// Errors, root mean square to float64, against that: normal numbers 0.3 to 0.9 times as large,
// positive ones 0.1 to 0.4 (C and F 64 to 300, k 2 to 7). An error is in proportion to the largest
// gradient of its filter times the largest input of its channel in a group of windows, and the
// positions that they read, whether or not the windows met: where a channel holds 1000 at one
// position, hidden beside another that holds as much everywhere, and no window that reads it won, a
// sum of 12 is off by 8e-4 in place of 2e-6.
//
// Scratch, owned by the call: P, F C for each term; G and X of a block; for each thread the planes
// of a segment, its g and that of its pools.
// Cost: 2 N W F k C FLOPs, or as many less as windows together save; the planes of X and the parts
// of G, written once. Limit: the multiply-add rate.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "convolution_input.h"
#include "product.h"
#include "tap_order.h"
#include "window_gradients.h"
#include "winograd_input.h"
#include "winograd_plan.h"

namespace seqkernels {

template <class Vector, class Number>
class WinogradWeightGradient {
    using T = typename Vector::Element;
    static constexpr int tile_rows = Tile<Vector>::rows;

 public:
    WinogradWeightGradient(const ConvolutionBackward<Number>& call, int threads)
        : call_(call),
          shape_(call.shape),
          plan_(shape_),
          together_(plan_.together()),
          gradients_(call),
          forward_(input_of(call)),
          input_(forward_, plan_),
          layout_{shape_.channels, block_groups, Tile<Vector>::vectors, 1},
          filter_pitch_(odd_lines(shape_.filters)),
          plane_(checked_product({segment_groups * together_ + plan_.taps() - 1, plan_.pitch()})),
          sums_(checked_product({plan_.term_count(), shape_.filters, plan_.pitch()})),
          right_(checked_product({plan_.term_count(), layout_.elements()})),
          left_(checked_product({parts(), block_groups, filter_pitch_})),
          private_(checked_product({private_elements(), threads})) {}

    // Whether it is faster so. Measured, times faster than winner by winner, two threads (AMD
    // family 26, AVX-512; AVX2), k 3 to 7, C 64 to 300, F 64 to 256:
    //   pools of 1: 2.2; 1.8. Of 2: 1.11 to 1.28 (C 70, F 64, k 7: 0.94); 0.96 to 1.03 (0.87), and
    //   the same for both, so that bits are. Of 3 (k 3): 0.92; 0.74
    static bool pays_for(const ConvolutionShape& shape) {
        return shape.pool_stride == 1 && shape.pool_size <= largest_dense_pool &&
               shape.windows(shape.length) > 0 && WinogradPlan::pays_for(shape);
    }

    // Returns whether all numbers can be multiplied so; if not, nothing of use is computed.
    bool run(int threads) const {
        std::atomic<bool> are_plain{true};
        Barrier barrier;
        run_parallel(threads, [&](int thread, int granted) {
            const Private mine = private_of(thread);
            const Range filters = part_of(shape_.filters, tile_rows, thread, granted);
            clear_sums(filters);
            for (Place next{}; next.sample < shape_.batch;) {
                next = for_each_segment(next, [&](const Segment& segment) {
                    if (segment.index % granted != thread) return;
                    if (!lay_out(segment, mine)) are_plain = false;
                });
                barrier.wait(granted);
                const int64_t groups = next.groups;
                next.groups = 0;
                if (!are_plain) return;
                add_block(filters, groups);
                barrier.wait(granted);
            }
            write(filters, mine);
        });
        return are_plain;
    }

 private:
    // Groups whose sums are added up at a time: a panel of X of so many stays in L1 while the
    // filters pass.
    static constexpr int64_t block_groups = 128;
    // Groups laid out at a time.
    static constexpr int64_t segment_groups = 16;

    // Some groups of a sample's windows, and where they go in a block.
    struct Segment {
        int64_t index;  // in the block
        int64_t sample;
        Range windows;
        int64_t place;
        int64_t groups;
    };
    // Where a block begins, or has come to.
    struct Place {
        int64_t sample = 0;
        int64_t window = 0;
        int64_t groups = 0;
    };

    // A thread's own scratch.
    struct Private {
        T* planes;
        Vector* largest;
        T* gradients;  // of a segment's windows
        T* pools;
    };

    static ConvolutionForward<T> input_of(const ConvolutionBackward<Number>& call) {
        ConvolutionForward<T> result{};
        result.shape = call.shape;
        result.input = call.input;
        result.lengths = call.lengths;
        return result;
    }

    // Numbers from a row to the next so that rows begin in lines of all places of a cache.
    static int64_t odd_lines(int64_t numbers) {
        constexpr int64_t line = cache_line_bytes / sizeof(T);
        return (divide_rounding_up(numbers, line) | 1) * line;
    }

    int parts() const { return plan_.filters() * plan_.parts(); }

    int64_t positions_of_segment() const { return plane_ / plan_.pitch(); }
    int64_t segment_windows() const { return segment_groups * together_; }
    int64_t private_elements() const {
        const int64_t planes = checked_product({plan_.plane_count(), plane_});
        const int64_t largest = positions_of_segment() * Vector::width;
        const int64_t gradients = checked_product({segment_windows(), shape_.filters});
        const int64_t pools = gradients_.scratch_elements(segment_windows());
        const int64_t count =
            planes + largest + larger(gradients, plan_.taps() * plan_.pitch()) + pools;
        return divide_rounding_up(count, 64) * 64;  // threads do not share cache lines
    }
    Private private_of(int thread) const {
        Private mine{};
        mine.planes = private_.data() + thread * private_elements();
        T* const behind = mine.planes + plan_.plane_count() * plane_;
        mine.largest = reinterpret_cast<Vector*>(behind);
        mine.pools = behind + positions_of_segment() * Vector::width;
        mine.gradients = mine.pools + gradients_.scratch_elements(segment_windows());
        return mine;
    }

    Range positions_of(Range windows) const {
        const int64_t start = window_start(shape_, windows.begin);
        const int64_t groups = divide_rounding_up(windows.count(), together_);
        return {start, start + groups * together_ + plan_.taps() - 1};
    }

    // Calls function(segment) for those of the block that begins there; returns where it ends, with
    // the groups that it has.
    template <class Function>
    Place for_each_segment(Place place, Function&& function) const {
        int64_t index = 0;
        while (place.sample < shape_.batch) {
            const int64_t count = gradients_.windows(place.sample);
            if (place.window >= count) {
                ++place.sample;
                place.window = 0;
                continue;
            }
            const Range windows{place.window, smaller(count, place.window + segment_windows())};
            const int64_t groups = divide_rounding_up(windows.count(), together_);
            if (place.groups + groups > block_groups) break;
            function(Segment{index++, place.sample, windows, place.groups, groups});
            place.groups += groups;
            place.window = windows.end;
        }
        return place;
    }

    // Returns whether its numbers can be multiplied.
    bool lay_out(const Segment& segment, const Private& mine) const {
        return lay_out_input(segment, mine) && lay_out_gradients(segment, mine);
    }

    bool lay_out_gradients(const Segment& segment, const Private& mine) const {
        const int64_t filters = shape_.filters;
        const int64_t behind = segment.groups * together_ - segment.windows.count();
        gradients_.of_windows(segment.sample, segment.windows, mine.gradients, mine.pools);
        std::memset(mine.gradients + segment.windows.count() * filters, 0,
                    static_cast<std::size_t>(behind * filters) * sizeof(T));
        Vector largest = Vector::broadcast(0);
        const T* of_group = mine.gradients;
        for (int64_t m = 0; m < segment.groups; ++m, of_group += together_ * filters) {
            T* const target = left_.data() + (segment.place + m) * filter_pitch_;
            for (int64_t f = 0; f < filters; f += Vector::width) {
                Vector windows[4];
                for (int64_t w = 0; w < together_; ++w) {
                    windows[w] = load_up_to<Vector>(of_group + w * filters + f, filters - f);
                    largest = larger_magnitude(windows[w], largest);
                }
                write_parts(windows, target + f);
            }
        }
        return are_plain(largest);
    }

    bool lay_out_input(const Segment& segment, const Private& mine) const {
        const Range positions = positions_of(segment.windows);
        if (plan_.reads_numbers()) {
            if (!input_.make(segment.sample, positions, mine.planes, plane_, mine.largest)) {
                return false;
            }
            for (int t = 0; t < plan_.term_count(); ++t) lay_out_term(segment, t, mine.planes);
            return true;
        }
        const auto first_of = [&](int t, int64_t) {
            return right_.data() + t * layout_.elements();
        };
        constexpr int64_t panel_columns = Tile<Vector>::vectors * Vector::width;
        const auto place_of = [&](int64_t group, int64_t channel) {
            const int64_t panel = channel / panel_columns;
            return layout_.offset(panel) +
                   (segment.place + group) * layout_.units_of(panel) * Vector::width +
                   channel % panel_columns;
        };
        return input_.make_four_of_three_taps(segment.sample, positions, mine.planes, mine.largest,
                                              first_of, place_of);
    }

    void lay_out_term(const Segment& segment, int t, const T* planes) const {
        const WinogradPlan::Term& term = plan_.term(t);
        const T* row = planes + term.plane * plane_ + term.position * plan_.pitch();
        T* const target = right_.data() + t * layout_.elements();
        for (int64_t m = 0; m < segment.groups; ++m, row += together_ * plan_.pitch()) {
            for (int64_t panel = 0; panel < layout_.panels(); ++panel) {
                const int64_t units = layout_.units_of(panel);
                const T* const from = row + layout_.first_column(panel);
                T* const to =
                    target + layout_.offset(panel) + (segment.place + m) * units * Vector::width;
                for (int64_t i = 0; i < units * Vector::width; i += Vector::width) {
                    Vector::load(from + i).store(to + i);
                }
            }
        }
    }

    // Of the gradients of a group's windows what goes into each part: write_windows of
    // winograd_windows.h read backwards.
    void write_parts(const Vector (&windows)[4], T* target) const {
        using Plan = WinogradPlan;
        const int64_t part_numbers = block_groups * filter_pitch_;
        const auto write = [&](int part, Vector sum) { sum.store(target + part * part_numbers); };
        if (plan_.scheme() == Plan::Scheme::four_of_three_taps) {
            const Vector even = windows[0] + windows[2], odd = windows[1] + windows[3];
            const Vector of_even = windows[0] - windows[2], of_odd = windows[1] - windows[3];
            write(Plan::a, even + odd);
            write(Plan::b, even - odd);
            write(Plan::c, of_even);
            write(Plan::d, of_odd);
            write(Plan::e, of_even + of_odd);
            write(Plan::first_of_four, windows[0]);
            write(Plan::last_of_four, windows[3]);
            return;
        }
        const auto write_two = [&](int filter, Vector first, Vector second) {
            const int begin = filter * plan_.parts();
            write(begin + Plan::both, first + second);
            write(begin + Plan::difference, first - second);
            write(begin + Plan::first, first);
            write(begin + Plan::second, second);
        };
        if (plan_.scheme() == Plan::Scheme::two_windows) {
            write_two(0, windows[0], windows[1]);
            return;
        }
        write_two(0, windows[0] + windows[1], windows[2] + windows[3]);
        write_two(1, windows[0], windows[2]);
        write_two(2, windows[1], windows[3]);
    }

    T* sums_of(int t, int64_t filter) const {
        return sums_.data() + (t * shape_.filters + filter) * plan_.pitch();
    }

    void clear_sums(Range filters) const {
        const auto numbers = static_cast<std::size_t>(filters.count() * plan_.pitch());
        for (int t = 0; t < plan_.term_count(); ++t) {
            std::memset(sums_of(t, filters.begin), 0, numbers * sizeof(T));
        }
    }

    // Adds a block's products to the sums of some filters.
    void add_block(Range filters, int64_t groups) const {
        for (int t = 0; t < plan_.term_count(); ++t) {
            const WinogradPlan::Term& term = plan_.term(t);
            const int part = term.filter * plan_.parts() + term.part;
            const T* const left = left_.data() + part * block_groups * filter_pitch_;
            const T* const right = right_.data() + t * layout_.elements();
            for (int64_t panel = 0; panel < layout_.panels(); ++panel) {
                for_each_tile(filters.count(), tile_rows, [&](int64_t first, int tile) {
                    add_tile(t, filters.begin + first, tile, left, panel,
                             right + layout_.offset(panel), groups);
                });
            }
        }
    }

    void add_tile(int t, int64_t filter, int tile, const T* left, int64_t panel, const T* right,
                  int64_t groups) const {
        const int64_t vectors = layout_.units_of(panel);
        const T* pointers[tile_rows] = {};
        T* rows[tile_rows] = {};
        for (int m = 0; m < tile; ++m) {
            pointers[m] = left + filter + m;
            rows[m] = sums_of(t, filter + m) + layout_.first_column(panel);
            for (int64_t v = 0; v < vectors; ++v) __builtin_prefetch(rows[m] + v * Vector::width);
        }
        Vector sums[most_sums<Vector>];
        for (int i = 0; i < tile * vectors; ++i) sums[i] = Vector::broadcast(0);
        multiply_accumulate(sums, tile, vectors, pointers, filter_pitch_, right, groups);
        for (int m = 0; m < tile; ++m) {
            for (int64_t v = 0; v < vectors; ++v) {
                T* const place = rows[m] + v * Vector::width;
                (Vector::load(place) + sums[m * vectors + v]).store(place);
            }
        }
    }

    // grad_weight of some filters.
    void write(Range filters, const Private& mine) const {
        const int64_t taps = plan_.taps(), channels = shape_.channels, pitch = plan_.pitch();
        for (int64_t f = filters.begin; f < filters.end; ++f) {
            std::memset(mine.gradients, 0, static_cast<std::size_t>(taps * pitch) * sizeof(T));
            for (int t = 0; t < plan_.term_count(); ++t) {
                const WinogradPlan::Term& term = plan_.term(t);
                const WinogradPlan::Shares& shares = term.shares;
                const float of_part = plan_.scale(term.filter, term.part);
                for (int s = 0; s < shares.count; ++s) {
                    T* const target = mine.gradients + shares.of[s].tap * pitch;
                    const Vector scale = Vector::broadcast(of_part * shares.of[s].scale);
                    for (int64_t c = 0; c < channels; c += Vector::width) {
                        multiply_add(scale, Vector::load(sums_of(t, f) + c),
                                     Vector::load(target + c))
                            .store(target + c);
                    }
                }
            }
            by_channels<Vector>(mine.gradients, pitch, taps, channels,
                                call_.grad_weight + f * taps * channels);
        }
    }

    const ConvolutionBackward<Number>& call_;
    const ConvolutionShape& shape_;
    const WinogradPlan plan_;
    const int64_t together_;
    const WindowGradients<Vector, Number> gradients_;
    const ConvolutionForward<T> forward_;
    const WinogradInput<Vector> input_;
    const PanelLayout<Vector> layout_;  // of X: columns: channels; depth: groups of a block
    const int64_t filter_pitch_;        // of G
    const int64_t plane_;
    const Scratch<T> sums_;
    const Scratch<T> right_;
    const Scratch<T> left_;
    const Scratch<T> private_;
};

}  // namespace seqkernels
