#include "winograd_plan.h"

#include "../core/checked.h"
#include "window_stretches.h"

namespace seqkernels {
namespace {

using Shares = WinogradPlan::Shares;
constexpr int numbers = 0;  // the input's plane

WinogradPlan::Scheme scheme_of(int64_t taps) {
    if (taps == 2) return WinogradPlan::Scheme::two_windows;
    return taps == 3 ? WinogradPlan::Scheme::four_of_three_taps
                     : WinogradPlan::Scheme::four_by_filters;
}

Shares scaled(const Shares& shares, float scale) {
    Shares result = shares;
    for (int i = 0; i < result.count; ++i) result.of[i].scale *= scale;
    return result;
}

Shares operator+(const Shares& a, const Shares& b) {
    Shares result = a;
    for (int i = 0; i < b.count; ++i) result.of[result.count++] = b.of[i];
    return result;
}

}  // namespace

WinogradPlan::WinogradPlan(const ConvolutionShape& shape)
    : taps_(shape.kernel_size), channels_(shape.channels), scheme_(scheme_of(taps_)) {
    planes_.push_back({numbers, 0, false, 0, 0, ~0u});
    std::vector<Shares> taps;
    for (int64_t tap = 0; tap < taps_; ++tap) taps.push_back({1, {{tap, 1}}});
    if (scheme_ == Scheme::two_windows) {
        add_filter(0, taps, numbers, 0, 1);
    } else if (scheme_ == Scheme::four_of_three_taps) {
        add_four_of_three_taps(taps);
    } else {
        std::vector<Shares> sums, even, odd;
        for (int64_t tap = 0; tap < taps_; tap += 2) {
            const bool has_odd = tap + 1 < taps_;
            sums.push_back(has_odd ? taps[tap] + taps[tap + 1] : taps[tap]);
            even.push_back(scaled(taps[tap], -1));
            if (has_odd) odd.push_back(taps[tap + 1]);
        }
        const int differences = plane_of(numbers, 1, false);
        add_filter(0, sums, numbers, 1, 2);
        add_filter(1, even, differences, 0, 2);
        add_filter(2, odd, differences, 1, 2);
    }
    scale_parts();
    // What a plane is made from is wanted too; it comes before it.
    for (auto plane = planes_.rbegin(); plane->from != numbers; ++plane) {
        for (int64_t residue = 0; residue < together(); ++residue) {
            if ((plane->wanted >> residue & 1) == 0) continue;
            planes_[plane->from].wanted |=
                1u << residue | 1u << (residue + plane->shift) % together();
        }
    }
}

WinogradPlan::~WinogradPlan() = default;

// In multiply-adds of a window, as measured (AMD family 26, AVX-512; C 24 to 128, F 16 to 128, k 2
// to 7): a number of a plane takes as long to make as 10 of them, a part of a filter's sums to
// begin and to add up as 16. By vectors of AVX2, whose multiply-adds are slower, it pays a little
// earlier.
bool WinogradPlan::pays_for(const ConvolutionShape& shape) {
    if (shape.stride != 1 || shape.dilation != 1 || shape.kernel_size < 2) return false;
    // Where windows lie between pools, which of them are multiplied, and so which numbers decide
    // how, would depend on how a sample is cut.
    if (shape.pool_stride > shape.pool_size) return false;
    constexpr int64_t least = 16;
    if (shape.channels < least || shape.filters < least) return false;
    const WinogradPlan plan(shape);
    // The planes of a thread, of a stretch as long as pools need.
    constexpr int64_t most_bytes = int64_t{32} << 20;
    const int64_t bytes_of_row = plan.plane_count() * plan.pitch() * int64_t{sizeof(float)};
    if (larger(least_stretch_rows, pools_of_stretch * shape.pool_size) >
        most_bytes / bytes_of_row) {
        return false;
    }
    const auto windows = static_cast<double>(plan.together());
    double made = 0;
    for (int p = 1; p < plan.plane_count(); ++p) {
        for (int64_t residue = 0; residue < plan.together(); ++residue) {
            made += (plan.plane(p).wanted >> residue & 1) / windows;
        }
    }
    const auto channels = static_cast<double>(shape.channels);
    const auto filters = static_cast<double>(shape.filters);
    const double saved = static_cast<double>(shape.kernel_size) - plan.term_count() / windows;
    const double parts = plan.filters() * plan.parts() / windows;
    // With less to gain, a small batch loses by its larger packed weights.
    constexpr double least_gain = 1.3;
    return saved * channels * filters > least_gain * (10 * made * channels + 16 * parts * filters);
}

WinogradPlan::Scheme WinogradPlan::scheme() const { return scheme_; }
int64_t WinogradPlan::together() const { return scheme_ == Scheme::two_windows ? 2 : 4; }
int WinogradPlan::filters() const { return scheme_ == Scheme::four_by_filters ? 3 : 1; }
int WinogradPlan::parts() const { return scheme_ == Scheme::four_of_three_taps ? 7 : 4; }
int WinogradPlan::plane_count() const { return static_cast<int>(planes_.size()); }
const WinogradPlan::Plane& WinogradPlan::plane(int index) const {
    return planes_[static_cast<std::size_t>(index)];
}
int WinogradPlan::term_count() const { return static_cast<int>(terms_.size()); }
const WinogradPlan::Term& WinogradPlan::term(int index) const {
    return terms_[static_cast<std::size_t>(index)];
}
bool WinogradPlan::has_single_terms() const {
    for (int i = 0; i < term_count(); ++i) {
        for (int j = 0; j < i; ++j) {
            if (term(i).filter == term(j).filter && term(i).part == term(j).part) return false;
        }
    }
    return true;
}
bool WinogradPlan::reads_numbers() const { return scheme_ != Scheme::four_of_three_taps; }
float WinogradPlan::scale(int filter, int part) const {
    return scales_[static_cast<std::size_t>(filter * parts() + part)];
}
int64_t WinogradPlan::taps() const { return taps_; }
int64_t WinogradPlan::channels() const { return channels_; }
int64_t WinogradPlan::depth() const { return checked_product({term_count(), channels_}); }
int64_t WinogradPlan::pitch() const {
    constexpr int64_t line = 16;
    return divide_rounding_up(channels_, line) * line;
}

int WinogradPlan::plane_of(int from, int64_t shift, bool is_sum) {
    for (int p = 1; p < plane_count(); ++p) {
        if (plane(p).from == from && plane(p).shift == shift && plane(p).is_sum == is_sum) return p;
    }
    const int64_t lag = from == numbers ? 0 : plane(from).lag + shift;
    planes_.push_back({from, shift, is_sum, plane(from).reach + shift, lag, 0});
    return plane_count() - 1;
}

// The windows at `position` and `position + step`, whose taps are `step` apart.
void WinogradPlan::add_filter(int filter, const std::vector<Shares>& taps, int plane,
                              int64_t position, int64_t step) {
    const std::size_t count = taps.size();
    std::size_t tap = 0;
    for (; count - tap >= 3; tap += 3, position += 3 * step) {
        const Shares outer = taps[tap] + taps[tap + 2];
        const int far = plane_of(plane, 2 * step, false);
        add_term(filter, both, plane_of(plane, step, true), position + step,
                 scaled(outer + taps[tap + 1], 0.5f));
        add_term(filter, difference, plane_of(plane, step, false), position + step,
                 scaled(outer + scaled(taps[tap + 1], -1), 0.5f));
        add_term(filter, first, far, position, scaled(taps[tap], -1));
        add_term(filter, second, far, position + step, taps[tap + 2]);
    }
    if (count - tap == 2) {
        const int near = plane_of(plane, step, false);
        add_term(filter, both, plane, position + step, taps[tap] + taps[tap + 1]);
        add_term(filter, first, near, position, scaled(taps[tap], -1));
        add_term(filter, second, near, position + step, taps[tap + 1]);
    } else if (count - tap == 1) {
        add_term(filter, first, plane, position, taps[tap]);
        add_term(filter, second, plane, position + step, taps[tap]);
    }
}

void WinogradPlan::add_four_of_three_taps(const std::vector<Shares>& taps) {
    const Shares &g0 = taps[0], &g1 = taps[1], &g2 = taps[2];
    const int sums = plane_of(numbers, 2, true), differences = plane_of(numbers, 2, false);
    const int far = plane_of(numbers, 4, false);
    add_term(0, a, plane_of(sums, 1, true), 1, scaled(g0 + g2 + g1, 0.25f));
    add_term(0, b, plane_of(sums, 1, false), 1, scaled(g0 + g2 + scaled(g1, -1), 0.25f));
    add_term(0, c, plane_of(differences, 1, true), 1, scaled(g0 + scaled(g2, -1), 0.5f));
    add_term(0, d, plane_of(differences, 1, false), 1, scaled(g1, -0.5f));
    add_term(0, e, differences, 1, scaled(g2 + scaled(g0 + g1, -1), 0.5f));
    add_term(0, first_of_four, far, 0, scaled(g0, -1));
    add_term(0, last_of_four, far, 1, g2);
}

void WinogradPlan::add_term(int filter, int part, int plane, int64_t position,
                            const Shares& shares) {
    planes_[static_cast<std::size_t>(plane)].wanted |= 1u << position % together();
    terms_.push_back({filter, part, plane, position, shares});
}

void WinogradPlan::scale_parts() {
    scales_.assign(static_cast<std::size_t>(filters() * parts()), 1);
    if (!has_single_terms()) return;
    for (Term& term : terms_) {
        if (term.shares.count > 1) continue;
        scales_[static_cast<std::size_t>(term.filter * parts() + term.part)] =
            term.shares.of[0].scale;
        term.shares.of[0].scale = 1;
    }
}

}  // namespace seqkernels
