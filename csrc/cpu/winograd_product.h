// Neighbouring windows of a convolution multiplied together, as winograd_plan.h says.
//
// What a pair gives depends on its own windows alone, and pairs are counted from a sample's first
// window: a sample's bits depend neither on its batch-mates nor on how work is cut. Where both
// windows hold the same numbers, both sums are the same. Errors are those of sums a third as long
// of terms half as large again: of numbers alike in size no larger than one by one (measured, to
// float64, standard normal numbers: see tests/native/test_convolution.cpp). The factors are powers
// of two: numbers that float32 adds up without rounding are added up without rounding here.
//
// Partial: of infinities differences would make NaN, and sums of large numbers could overflow that
// one by one do not; samples with numbers of 2^50 and more, and weights, are left to vectors.
//
// Scratch, owned by the caller: four planes of a stretch's positions: the numbers, and of each
// position and those that follow it their sums and differences; a panel of weights as given.
//
// Cost, next to the product's: three additions for each number of a stretch and a handful for each
// weight; four for each two windows and filter. Limit: as of product.h.
#pragma once

#include <cstdint>

#include "vector_product.h"
#include "winograd_plan.h"

namespace seqkernels {

template <class VectorType>
struct WinogradProduct {
    using Vector = VectorType;
    using T = typename Vector::Element;
    using Left = T;
    using Packed = T;
    using Depths = WinogradPlan;
    static constexpr bool in_groups = true;
    // Groups of windows in a tile, and of each group most windows.
    static constexpr int most_groups = Tile<Vector>::rows;
    static constexpr int rows = 4 * most_groups;
    static constexpr int vectors = Tile<Vector>::vectors;
    static constexpr int left_planes = 1;
    static constexpr bool in_tiles = true;
    static constexpr int64_t depths_at_once = 1;
    static constexpr bool whole_tiles = false;
    static constexpr int64_t cache_bytes = 1 << 20;
    static constexpr bool is_partial = true;

    struct Session {};

    // Whether numbers can be multiplied: those of `most` and more, Inf and NaN leave NaN in a lane.
    class Magnitude {
     public:
        void take(Vector numbers) {
            const Vector huge = numbers * Vector::broadcast(infinity_over_most);
            marks_ = multiply_add(huge, Vector::broadcast(0), marks_);
        }
        bool is_plain() const { return !has_nan(marks_); }

     private:
        static constexpr T infinity_over_most = static_cast<T>(0x1p78);
        Vector marks_ = Vector::broadcast(0);
    };

    static bool pays_for(int64_t windows, int64_t) { return windows >= 2; }

    static int64_t packed_elements(const PanelLayout<Vector>& layout) { return layout.elements(); }
    static int64_t pack_scratch_elements(const PanelLayout<Vector>& layout) {
        return layout.units * Vector::width * layout.depth;
    }
    static const Packed* panel(const Packed* packed, const PanelLayout<Vector>& layout,
                               int64_t panel) {
        return packed + layout.offset(panel);
    }

    // Packs panels: fill(target, panel) leaves the weights of a panel, tap after tap.
    template <class Fill>
    static bool pack(Packed* packed, const PanelLayout<Vector>& layout, Range panels, T* scratch,
                     const WinogradPlan& plan, Fill&& fill) {
        Magnitude magnitude;
        for (int64_t p = panels.begin; p < panels.end; ++p) {
            fill(scratch, p);
            const int64_t of_tap = plan.channels() * layout.units_of(p) * Vector::width;
            constexpr int64_t block = 1024;  // of every tap, so that they stay in L1
            for (int64_t begin = 0; begin < of_tap; begin += block) {
                const Range numbers{begin, smaller(begin + block, of_tap)};
                for (int64_t tap = 0; tap < plan.taps(); ++tap) {
                    const T* const weights = scratch + tap * of_tap;
                    for (int64_t i = numbers.begin; i < numbers.end; i += Vector::width) {
                        magnitude.take(Vector::load(weights + i));
                    }
                }
                for (int t = 0; t < plan.term_count(); ++t) {
                    add_up(plan.term(t).shares, scratch, of_tap, numbers,
                           packed + layout.offset(p) + t * of_tap);
                }
            }
        }
        return magnitude.is_plain();
    }

    template <class Function>
    static void for_each_tile(int64_t count, int64_t together, Function&& function) {
        const int64_t groups = divide_rounding_up(count, together);
        seqkernels::for_each_tile(groups, most_groups, [&](int64_t first, int tile) {
            const int64_t left = count - together * first;
            function(together * first, static_cast<int>(smaller(left, together * tile)));
        });
    }

    template <class Number>
    static void store_left(const Number* numbers, int64_t count, int64_t room, Left* target, int64_t,
                           Magnitude& magnitude) {
        for (int64_t i = 0; i < count; i += Vector::width) {
            const Vector some = load_up_to<Vector>(numbers + i, count - i);
            magnitude.take(some);
            store_up_to(some, target + i, room - i);
        }
    }

    // The other planes of `positions` positions, position after position, each plane's as soon as
    // what it is made from is there.
    static void derive(Left* numbers, int64_t plane_numbers, int64_t positions,
                       const WinogradPlan& plan) {
        const int64_t pitch = plan.pitch(), windows = plan.rows_at_once();
        WinogradPlan::Plane planes[WinogradPlan::most_planes];
        const int count = plan.plane_count();
        for (int p = 1; p < count; ++p) planes[p] = plan.plane(p);
        for (int64_t now = 0; now < positions; ++now) {
            for (int p = 1; p < count; ++p) {
                const WinogradPlan::Plane& plane = planes[p];
                const int64_t position = now - plane.lag;
                if (position < 0 || position >= positions - plane.reach ||
                    (plane.wanted >> position % windows & 1) == 0) {
                    continue;
                }
                const T* from = numbers + plane.from * plane_numbers + position * pitch;
                const T* later = from + plane.shift * pitch;
                T* target = numbers + p * plane_numbers + position * pitch;
                const auto combine = [&](auto&& combined) {
                    for (int64_t c = 0; c < pitch; c += Vector::width) {
                        combined(Vector::load(from + c), Vector::load(later + c)).store(target + c);
                    }
                };
                if (plane.is_sum) {
                    combine([](Vector a, Vector b) { return b + a; });
                } else {
                    combine([](Vector a, Vector b) { return b - a; });
                }
            }
        }
    }

    // sums[w * vectors + v] = the product of window w of `windows` with a panel of `vectors`
    // vectors; whole groups of windows are written.
    //   first: in the plane of numbers, the first window's first position
    static void multiply(Vector* sums, int windows, int64_t vectors, const T* first,
                         int64_t plane_numbers, const Packed* panel, const WinogradPlan& plan) {
        constexpr int most = most_sums<Vector>;
        const int64_t together = plan.rows_at_once();
        const int64_t channels = plan.channels(), pitch = plan.pitch();
        const int groups = static_cast<int>(divide_rounding_up(windows, together));
        const int64_t count = groups * vectors;
        Vector parts[WinogradPlan::parts][most], shared[2][most];
        int t = 0;
        for (int filter = 0; filter < plan.filters(); ++filter) {
            for (auto& part : parts) {
                for (int64_t i = 0; i < count; ++i) part[i] = Vector::broadcast(0);
            }
            for (; t < plan.term_count() && plan.term(t).filter == filter; ++t) {
                const WinogradPlan::Term& term = plan.term(t);
                const T* pointers[most_groups] = {};
                const T* begin = first + term.plane * plane_numbers + term.position * pitch;
                for (int m = 0; m < groups; ++m) pointers[m] = begin + m * together * pitch;
                multiply_accumulate(parts[term.part], groups, vectors, pointers, 1, panel,
                                    channels);
                panel += channels * vectors * Vector::width;
            }
            for (int m = 0; m < groups; ++m) {
                for (int64_t v = 0; v < vectors; ++v) {
                    const int64_t i = m * vectors + v;
                    const Vector both = parts[WinogradPlan::both][i];
                    const Vector difference = parts[WinogradPlan::difference][i];
                    const Vector one = (both + difference) + parts[WinogradPlan::first][i];
                    const Vector two = (both - difference) + parts[WinogradPlan::second][i];
                    Vector* const of_group = sums + m * together * vectors + v;
                    if (together == 2) {
                        of_group[0] = one;
                        of_group[vectors] = two;
                    } else if (filter == 0) {
                        shared[0][i] = one;
                        shared[1][i] = two;
                    } else {
                        of_group[(filter - 1) * vectors] = shared[0][i] + one;
                        of_group[(filter + 1) * vectors] = shared[1][i] + two;
                    }
                }
            }
        }
    }

 private:
    static void add_up(const WinogradPlan::Shares& shares, const T* weights, int64_t of_tap,
                       Range numbers, T* target) {
        with_constant<WinogradPlan::most_shares>(shares.count, [&](auto count) {
            const T* taps[count];
            Vector scales[count];
            for (int s = 0; s < count; ++s) {
                taps[s] = weights + shares.of[s].tap * of_tap;
                scales[s] = Vector::broadcast(shares.of[s].scale);
            }
            for (int64_t i = numbers.begin; i < numbers.end; i += Vector::width) {
                Vector sum = scales[0] * Vector::load(taps[0] + i);
                for (int s = 1; s < count; ++s) {
                    sum = multiply_add(scales[s], Vector::load(taps[s] + i), sum);
                }
                sum.store(target + i);
            }
        });
    }
};

}  // namespace seqkernels
