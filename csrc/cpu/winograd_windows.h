// Neighbouring windows of a convolution multiplied together, as winograd_plan.h says, by vectors of
// float32: what convolution_windows.h offers one by one.
//
// Windows depend on no others than those that they are multiplied with, counted from a sample's
// first: a sample's bits depend neither on its batch-mates nor on how work is cut. Two windows that
// hold the same numbers at other places among the two or four may differ in their last bits, unless
// sums need no rounding, or all their neighbours are the same.
//
// Errors, root mean square to float64, C 64 to 512, k 2 to 8, against windows one by one: normal
// numbers 0.75 to 1.04 times as large, positive ones 0.25 to 0.72: of more and shorter sums.
//
// An error is in proportion to the largest numbers of all windows together, up to three positions
// beyond a window's own: samples where such are more than 64 times as large as the largest number
// of another position, if that is not all zeros, are left out (k 3, windows of normal numbers
// beside one of 100 are 7 times as far off as torch's; beside one of 10^4 they would be 700 times).
//
// Of infinities differences would make NaN, and of large numbers sums overflow that do not one by
// one: samples with numbers of 2^50 and more are left out, all if weights are as large, or all of a
// filter below 2^-100; and samples of so few windows that making weights and input ready is most of
// the work.
//
// Given to it: the packed weights, F C for each term; for each thread the planes of a stretch, as
// they are multiplied, and a vector for each position; some channels of a panel of weights, and of
// a single stretch the parts.
//
// Cost next to the multiply-adds (winograd_plan.h): a plane's numbers (winograd_planes.h); five
// loads and additions and a store for a window, filter and three parts; for a weight one of each
// for two to three terms that it is in. Bytes: the planes, from L2; a panel of weights for every
// tile of windows, from L2 too. Limit: the multiply-add rate.
//
// Measured, times faster than windows one by one, two threads (AMD family 26, AVX-512; AVX2):
//   50 sentences of 56 words, C 300, F 100: k 3 1.37; 1.44, k 4 1.29; 1.39, k 5 1.41; 1.49
//   50 of 20 words, k 3: 1.23; 1.35. One of 56 words: k 3 0.98; 0.98, k 5 1.00; 1.00 (in other
//   runs up to 1.12 and 1.29; with its weights packed first a tenth slower); of 20 0.88; 0.81 (all
//   of these before packing was made faster, as said below)
//   N 64, L 512, C 128, F 128: k 2 1.06; 1.15, k 3 1.37; 1.49
//   N 16, L 1014, C 70, F 256, k 7 1.36; 1.43. N 32, L 512, C 300, F 256, k 3 1.47; 1.56
// (planes of C numbers in place of whole cache lines: 50 sentences, k 5, 7 % slower; judging
// whether positions are alike takes 1 to 2 %)
//
// Of one sentence packing is half of the work. Where a term is one tap its numbers are multiplied
// as they were transposed, and whole lines are transposed without leaving registers: time over that
// before, k 3, 4 and 5, of 20 words on one thread 0.90, 0.88 and 0.90, on two 0.93, 0.87 and 0.89,
// of 56 words, k 3, 0.91 (AMD family 25, model 17, AVX-512).
//
// Tried without gain, of one sentence there: four sums of taps in one pass over them (up to 5 %
// slower), panels of half as many vectors (within 2 %), fetching the next channels' weights into
// L1 or L2 (up to 5 % slower).
//
// Tried without gain: three taps by twos of windows (N 64, L 512, C 128 8 % slower); fetching what
// follows a stretch in memory while tiles are multiplied, or the panel (2 % slower to 3 % faster).
// The last 4 filters of 100 channel by channel, not as a vector of zeros: 4 % faster, but other
// bits with other vectors. Sums begun anew every 128 or 64 channels have errors 0.5 to 0.9 times as
// large, for 4 and 9 % of time.
#pragma once

#include <cstdint>

#include "convolution_input.h"
#include "convolution_windows.h"
#include "kernels.h"
#include "product.h"
#include "vector_product.h"
#include "window_stretches.h"
#include "winograd_input.h"
#include "winograd_plan.h"
#include "winograd_planes.h"

namespace seqkernels {

template <class VectorType>
class WinogradWindows {
 public:
    using Vector = VectorType;
    using Product = WinogradProduct<Vector>;
    using T = typename Vector::Element;
    using Left = T;
    using Packed = T;
    static constexpr int most_together = 4;
    static constexpr int most_rows = most_together * Tile<Vector>::rows;
    static constexpr bool joins_segments = true;
    static constexpr bool can_pack_meanwhile = true;
    static constexpr bool are_screened = false;
    static constexpr bool rows_stay() { return false; }
    static Fetching fetching(Range, int64_t) { return {nullptr, 0}; }
    using Otherwise = ConvolutionWindows<Vector, VectorProduct<Vector>>;

    explicit WinogradWindows(const ConvolutionForward<T>& call)
        : call_(call),
          shape_(call.shape),
          plan_(shape_),
          layout_{shape_.filters, plan_.depth(), Product::vectors, 1},
          together_(plan_.together()),
          input_(call, plan_),
          places_(packed_channels * plan_.taps()) {
        for (int64_t i = 0; i < packed_channels * plan_.taps(); ++i) {
            places_.data()[i] = i % plan_.taps() * packed_channels + i / plan_.taps();
        }
        for (int filter = 0; filter < plan_.filters(); ++filter) {
            for (int part = 0; part < plan_.parts(); ++part) {
                scales_[filter][part] = plan_.scale(filter, part);
            }
        }
    }

    const PanelLayout<Vector>& layout() const { return layout_; }

    StretchRule rule(int threads) const {
        StretchNeeds needs{};
        needs.pitch = plan_.pitch();
        needs.unit = together_ * Tile<Vector>::rows;
        needs.together = together_;
        return stretch_rule<Product>(shape_, call_.lengths, needs, threads);
    }
    // A trade: fewer than 16 windows are slower so alone (a sentence of 14 words by a quarter), but
    // 50 sentences of reviews' lengths, 20 words on average, take 1 to 14 % less time (with fewer
    // than 16 windows left out, 5 % more to 5 % less). Rows apart are of tiles.
    static bool pays_for(int64_t windows, int64_t /* rows_apart */) {
        constexpr int64_t least_windows = 8;
        return windows >= least_windows;
    }

    void take(const WindowStretches& stretches) {
        stretches_ = &stretches;
        int64_t positions = 0;
        for (int64_t stretch = 0; stretch < stretches.count(); ++stretch) {
            const Range segments = stretches.segments(stretch);
            const int64_t rows = computed(stretches.rows(segments));
            positions = larger(positions, rows + segments.count() * (shape_.reach() - 1));
        }
        plane_ = checked_product({positions, plan_.pitch()});
    }

    // Whether there is so little to multiply that weights, once packed, would hardly be read again.
    // Parts of several terms would be added up in another order, to other bits.
    bool packs_meanwhile() const {
        return stretches_->count() == 1 && computed_rows() <= most_rows_meanwhile &&
               plan_.has_single_terms();
    }

    int64_t packed_elements() const { return layout_.elements(); }
    int64_t pack_scratch_elements() const {
        constexpr int64_t line = Product::vectors * Vector::width;
        const int64_t weights = checked_product({packed_channels, plan_.taps() + 1, line});
        if (!packs_meanwhile()) return weights;
        return weights + plan_.filters() * plan_.parts() * computed_rows() / together_ * line;
    }
    // The planes, and a vector for each position.
    int64_t left_elements() const {
        return checked_product({plan_.plane_count(), plane_}) +
               plane_ / plan_.pitch() * Vector::width;
    }
    int64_t computed_rows() const { return computed(stretches_->most_rows()); }

    // Some channels of all taps at a time, which stay in L1. Returns whether all numbers can be
    // multiplied.
    bool pack(Packed* packed, Range panels, T* scratch) const {
        bool are_plain = true;
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
            with_constant<Product::vectors>(layout_.units_of(panel), [&](auto units) {
                constexpr int64_t line = units * Vector::width;
                T* const target = packed + layout_.offset(panel);
                const auto place = [=](int t, int64_t channel) {
                    return target + (t * shape_.channels + channel) * line;
                };
                const auto done = [](int, Range, const T*) {};
                are_plain = pack_panel_of<units, true>(panel, scratch, place, done) && are_plain;
            });
        }
        return are_plain;
    }

    // sums[r * vectors + v] = the convolution of all rows with one panel of filters, which is
    // packed for it, some channels of a term at a time: the same bits. Returns whether its numbers
    // can be multiplied.
    bool convolve_while_packing(Vector* sums, const SampleRows<Left>& rows, Range segments,
                                int64_t panel, T* scratch) const {
        const int64_t vectors = layout_.units_of(panel), line = vectors * Vector::width;
        const int64_t groups = computed(stretches_->rows(segments)) / together_;
        T* const packed = scratch + packed_channels * plan_.taps() * line;
        auto* const parts = reinterpret_cast<Vector*>(packed + packed_channels * line);
        const int64_t count = groups * vectors, filter_sums = plan_.parts() * count;
        for (int64_t i = 0; i < plan_.filters() * filter_sums; ++i) {
            parts[i] = Vector::broadcast(0);
        }
        const Left* first_of[most_groups_meanwhile] = {};
        for (int64_t m = 0; m < groups; ++m) {
            first_of[m] = rows.at(position_of(segments, m * together_));
        }
        const auto multiply = [&](int t, Range channels, const T* weights) {
            const WinogradPlan::Term& term = plan_.term(t);
            const int64_t offset =
                term.plane * plane_ + term.position * rows.stride + channels.begin;
            Vector* const part = parts + term.filter * filter_sums + term.part * count;
            seqkernels::for_each_tile(groups, Tile<Vector>::rows, [&](int64_t first, int tile) {
                const Left* pointers[Tile<Vector>::rows] = {};
                for (int m = 0; m < tile; ++m) pointers[m] = first_of[first + m] + offset;
                multiply_accumulate(part + first * vectors, tile, vectors, pointers, 1, weights,
                                    channels.count());
            });
        };
        bool are_plain = true;
        with_constant<Product::vectors>(vectors, [&](auto units) {
            const auto place = [=](int, int64_t) { return packed; };
            are_plain = pack_panel_of<units, false>(panel, scratch, place, multiply);
        });
        for (int64_t i = 0; i < count; ++i) {
            Vector shared[2];
            for (int filter = 0; filter < plan_.filters(); ++filter) {
                write_windows(parts + filter * filter_sums + i, count, filter, shared,
                              sums + i / vectors * together_ * vectors + i % vectors, vectors);
            }
        }
        return are_plain;
    }

    // The planes of these segments' windows, segment after segment: see position_of.
    SampleRows<Left> ready(Range segments, Left* scratch, uint8_t* left_out) const {
        int64_t first = 0;
        for (int64_t i = segments.begin; i < segments.end; ++i) {
            const WindowSegment& segment = stretches_->segment(i);
            const int64_t start = window_start(shape_, segment.windows.begin);
            const int64_t rows = computed(segment.windows.count());
            const Range positions{start, start + rows + shape_.reach() - 1};
            auto* const largest = reinterpret_cast<Vector*>(scratch + plan_.plane_count() * plane_);
            if (!input_.make(segment.sample, positions, scratch + first * plan_.pitch(), plane_,
                             largest)) {
                leave_out(left_out, segment.sample);
            }
            first += positions.count();
        }
        return {scratch, plan_.pitch(), {0, first}};
    }

    template <class Function>
    void for_each_tile(int64_t rows, Function&& function) const {
        const int64_t groups = divide_rounding_up(rows, together_);
        seqkernels::for_each_tile(groups, Tile<Vector>::rows, [&](int64_t group, int tile) {
            const int64_t first = group * together_;
            function(first, static_cast<int>(smaller(tile * together_, rows - first)));
        });
    }

    // The convolution of `tile` rows from `row` on with one panel of filters, without bias; rows
    // that are multiplied with them are written too.
    template <class Meanwhile>
    void convolve(Vector* sums, int tile, const SampleRows<Left>& rows, Range segments, int64_t row,
                  const Packed* packed, int64_t panel, Meanwhile&&) const {
        constexpr int most = most_sums<Vector>;
        const int64_t vectors = layout_.units_of(panel), channels = shape_.channels;
        const int groups = static_cast<int>(divide_rounding_up(tile, together_));
        const int64_t count = groups * vectors;
        const Packed* weights = packed + layout_.offset(panel);
        const Left* first_of[Tile<Vector>::rows] = {};
        for (int m = 0; m < groups; ++m) {
            first_of[m] = rows.at(position_of(segments, row + m * together_));
        }
        Vector parts[WinogradPlan::most_parts][most], shared[most][2];
        for (int filter = 0, t = 0; filter < plan_.filters(); ++filter) {
            for (int part = 0; part < plan_.parts(); ++part) {
                for (int64_t i = 0; i < count; ++i) parts[part][i] = Vector::broadcast(0);
            }
            for (; t < plan_.term_count() && plan_.term(t).filter == filter; ++t) {
                const WinogradPlan::Term& term = plan_.term(t);
                const int64_t offset = term.plane * plane_ + term.position * rows.stride;
                const Left* pointers[Tile<Vector>::rows] = {};
                for (int m = 0; m < groups; ++m) pointers[m] = first_of[m] + offset;
                multiply_accumulate(parts[term.part], groups, vectors, pointers, 1, weights,
                                    channels);
                weights += channels * vectors * Vector::width;
            }
            for (int64_t i = 0; i < count; ++i) {
                write_windows(&parts[0][i], most, filter, shared[i],
                              sums + i / vectors * together_ * vectors + i % vectors, vectors);
            }
        }
    }

 private:
    static constexpr int64_t most_rows_meanwhile = 64;
    static constexpr int64_t most_groups_meanwhile = most_rows_meanwhile / 2;  // of two windows

    // Windows, those included that fill up the last ones together.
    int64_t computed(int64_t windows) const {
        return divide_rounding_up(windows, together_) * together_;
    }

    // The first position of a row's window among those of segments: behind the last window of each
    // but the last follow the positions that it reaches to.
    int64_t position_of(Range segments, int64_t row) const {
        const int64_t first_row = stretches_->segment(segments.begin).row;
        int64_t before = 0;
        while (segments.begin + before + 1 < segments.end &&
               stretches_->segment(segments.begin + before + 1).row - first_row <= row) {
            ++before;
        }
        return row + before * (shape_.reach() - 1);
    }

    // What a filter's parts make of the windows of one group, for one vector of filters.
    //   parts: `line` vectors from one to the next
    //   shared: what the first of three filters leaves to the others
    //   window: the first one's; `vectors` vectors from one to the next
    void write_windows(const Vector* parts, int64_t line, int filter, Vector* shared,
                       Vector* window, int64_t vectors) const {
        using Plan = WinogradPlan;
        const auto part = [=](int which) {
            return Vector::broadcast(scales_[filter][which]) * parts[which * line];
        };
        if (plan_.scheme() == Plan::Scheme::four_of_three_taps) {
            const Vector even = part(Plan::a) + part(Plan::b), odd = part(Plan::a) - part(Plan::b);
            const Vector of_even = part(Plan::c) + part(Plan::e);
            const Vector of_odd = part(Plan::d) + part(Plan::e);
            window[0] = (even + of_even) + part(Plan::first_of_four);
            window[vectors] = odd + of_odd;
            window[2 * vectors] = even - of_even;
            window[3 * vectors] = (odd - of_odd) + part(Plan::last_of_four);
            return;
        }
        const Vector first = (part(Plan::both) + part(Plan::difference)) + part(Plan::first);
        const Vector second = (part(Plan::both) - part(Plan::difference)) + part(Plan::second);
        if (plan_.scheme() == Plan::Scheme::two_windows) {
            window[0] = first;
            window[vectors] = second;
        } else if (filter == 0) {
            shared[0] = first;
            shared[1] = second;
        } else {
            window[(filter - 1) * vectors] = shared[0] + first;
            window[(filter + 1) * vectors] = shared[1] + second;
        }
    }

    // Channels whose weights are packed at a time: whole lines of every tap are transposed.
    static constexpr int64_t packed_channels = 16;

    // Packs a panel of that many vectors, some channels of a term at place(term, first channel),
    // and calls done(term, channels, weights) when they are there; or, without copies_taps, of a
    // term that is one tap, whose scale is its part's, when that tap is in scratch.
    template <int units, bool copies_taps, class PlaceOf, class Done>
    bool pack_panel_of(int64_t panel, T* scratch, PlaceOf&& place, Done&& done) const {
        constexpr int64_t line = units * Vector::width;
        const int64_t taps = plan_.taps();
        Vector largest[units];
        for (Vector& of_unit : largest) of_unit = Vector::broadcast(0);
        for (int64_t begin = 0; begin < shape_.channels; begin += packed_channels) {
            const Range channels{begin, smaller(begin + packed_channels, shape_.channels)};
            order_weights(scratch, panel, channels);
            for (int64_t tap = 0; tap < taps; ++tap) {
                const T* const rows = scratch + tap * packed_channels * line;
                for (int64_t c = 0; c < channels.count(); ++c) {
                    for (int unit = 0; unit < units; ++unit) {
                        largest[unit] = larger_magnitude(
                            Vector::load(rows + c * line + unit * Vector::width), largest[unit]);
                    }
                }
            }
            for (int t = 0; t < plan_.term_count(); ++t) {
                const WinogradPlan::Shares& shares = plan_.term(t).shares;
                if (!copies_taps && shares.count == 1) {
                    done(t, channels, scratch + shares.of[0].tap * packed_channels * line);
                    continue;
                }
                T* const target = place(t, channels.begin);
                add_up<units>(shares, scratch, channels.count(), target);
                done(t, channels, target);
            }
        }
        bool can_be_multiplied = true;
        for (const Vector& of_unit : largest) {
            can_be_multiplied = can_be_multiplied && are_plain(of_unit) && !has_tiny(of_unit);
        }
        return can_be_multiplied;
    }

    // Whether a filter has nothing but such small weights that a quarter of one could lose digits.
    static bool has_tiny(Vector largest) {
        constexpr T least = static_cast<T>(0x1p-100);
        T of_filter[Vector::width];
        largest.store(of_filter);
        bool result = false;
        for (const T magnitude : of_filter) result = result || (magnitude > 0 && magnitude < least);
        return result;
    }

    // target[(tap packed_channels + c) line + lane]: the weights of some channels, c counted from
    // the first.
    void order_weights(T* target, int64_t panel, Range channels) const {
        const ConvolutionWeight& weight = call_.weight;
        const int64_t taps = plan_.taps();
        const Stored first = weight.numbers.from(channels.begin * weight.stride_channel);
        if (weight.stride_tap == 1 && weight.stride_channel == taps) {
            const int64_t* const places = places_.data();
            pack_panel(target, layout_, panel, channels.count() * taps,
                       {first, weight.stride_filter, 1}, [=](int64_t i) { return places[i]; });
            return;
        }
        for (int64_t tap = 0; tap < taps; ++tap) {
            pack_panel(
                target, layout_, panel, channels.count(),
                {first.from(tap * weight.stride_tap), weight.stride_filter, weight.stride_channel},
                [=](int64_t channel) { return tap * packed_channels + channel; });
        }
    }

    // target[c line + lane] = the taps of each channel, added up.
    template <int units>
    static void add_up(const WinogradPlan::Shares& shares, const T* weights, int64_t channels,
                       T* target) {
        constexpr int64_t line = units * Vector::width;
        with_constant<WinogradPlan::most_shares>(shares.count, [&](auto count) {
            const T* from[count];
            Vector scales[count];
            for (int s = 0; s < count; ++s) {
                from[s] = weights + shares.of[s].tap * packed_channels * line;
                scales[s] = Vector::broadcast(shares.of[s].scale);
            }
            for (int64_t c = 0; c < channels; ++c) {
                for (int64_t i = 0; i < line; i += Vector::width) {
                    Vector sum = scales[0] * Vector::load(from[0] + c * line + i);
                    for (int s = 1; s < count; ++s) {
                        sum = multiply_add(scales[s], Vector::load(from[s] + c * line + i), sum);
                    }
                    sum.store(target + c * line + i);
                }
            }
        });
    }

    const ConvolutionForward<T>& call_;
    const ConvolutionShape& shape_;
    const WinogradPlan plan_;
    const PanelLayout<Vector> layout_;
    const int64_t together_;
    const WinogradInput<Vector> input_;
    // Where in scratch the numbers of some channels go, each channel's taps side by side: the place
    // of each, tap after tap.
    const Scratch<int64_t> places_;
    T scales_[WinogradPlan::most_filters][WinogradPlan::most_parts];
    const WindowStretches* stretches_ = nullptr;
    int64_t plane_ = 0;  // numbers of one
};

}  // namespace seqkernels
