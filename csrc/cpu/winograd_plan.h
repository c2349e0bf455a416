// How neighbouring windows of a convolution are multiplied together, with fewer multiply-adds than
// one by one: Winograd's minimal filtering algorithms F(2, 3) and F(2, 2) (S. Winograd, Arithmetic
// Complexity of Computations, 1980; for neural networks A. Lavin and S. Gray, Fast Algorithms for
// Convolutional Neural Networks, 2016), of windows one position apart.
//
// Windows at positions p and p + 1, three taps g0 g1 g2, x0 .. x3 the numbers at p .. p + 3:
//   both       = (x1 + x2) (g0 + g2 + g1) / 2
//   difference = (x2 - x1) (g0 + g2 - g1) / 2
//   first  = both + difference - (x2 - x0) g0      =  x0 g0 + x1 g1 + x2 g2
//   second = both - difference + (x3 - x1) g2      =  x1 g0 + x2 g1 + x3 g2
// Two taps:
//   first  = x1 (g0 + g1) - (x1 - x0) g0           =  x0 g0 + x1 g1
//   second = x1 (g0 + g1) + (x2 - x1) g1           =  x1 g0 + x2 g1
// k taps are cut into as many threes as there are, and two or one of what is left; each of the four
// sums, the parts, runs over all of these and over the channels.
//
// Four windows of three taps, x0 .. x5, F(4, 3) of the points 0, 1, -1 and infinity and the
// polynomial x^2 + 1, whose product takes three multiplications:
//   a = (x1 + x2 + x3 + x4) (g0 + g1 + g2) / 4         c = (x3 - x1 + x4 - x2) (g0 - g2) / 2
//   b = (x2 + x4 - x1 - x3) (g0 - g1 + g2) / 4         d = (x3 - x1 - x4 + x2) g1 / 2
//   e = (x1 - x3) (g0 - g2 + g1) / 2
//   window 0 = (a + b) + (c + e) + (x0 - x4) g0        window 1 = (a - b) + (d + e)
//   window 2 = (a + b) - (c + e)                       window 3 = (a - b) - (d + e) + (x5 - x1) g2
//
// Four windows of four taps and more: F(2, 2) once more, with filters in place of taps. With g' the
// taps 0, 2, .., g" the taps 1, 3, .., x' the numbers at odd positions behind the first window's:
//   windows 0 and 2 = (g' + g") of x' - g' of (x1 - x0, x3 - x2, ..)
//   windows 1 and 3 = (g' + g") of x' + g" of (x2 - x1, x4 - x3, ..)
// and each of these three filters, of half as many taps, gives two windows as above.
//
// Multiply-adds a window and channel:
//   taps            2    3     4     5     6    7
//   two windows    1.5   2     3    3.5    4    5
//   four windows        1.75  2.25  2.75   3    4
//
// The factors are powers of two: numbers that are added up without rounding one by one are so here.
#pragma once

#include <cstdint>
#include <vector>

#include "../core/convolution.h"

namespace seqkernels {

class WinogradPlan {
 public:
    // What is multiplied: the input's positions, plane 0, and what is made of them: position i of a
    // plane is position i + shift of another, `from`, plus or less that one's position i.
    struct Plane {
        int from;
        int64_t shift;
        bool is_sum;
        int64_t reach;    // positions of the input, behind its own, that go into one
        int64_t lag;      // positions that `from` is ahead by when one is made
        unsigned wanted;  // bit r: positions r, r + together, .. behind a first window are read
    };
    static constexpr int most_planes = 8;

    // What a plane is multiplied with: taps, each times a power of two, added up.
    static constexpr int most_shares = 6;
    struct Share {
        int64_t tap;
        float scale;
    };
    struct Shares {
        int count;
        Share of[most_shares];
    };

    // Sums that windows are made of: of two windows, and of four of three taps.
    enum Part { both, difference, first, second };
    enum PartOfFour { a, b, c, d, e, first_of_four, last_of_four };
    static constexpr int most_parts = 7;
    static constexpr int most_filters = 3;

    // Products of a plane's channels that are added to a part.
    struct Term {
        int filter;  // of the three of four windows of four taps and more, else 0
        int part;
        int plane;
        int64_t position;  // behind the first window's
        Shares shares;
    };

    explicit WinogradPlan(const ConvolutionShape& shape);
    ~WinogradPlan();

    // Whether convolutions of a shape are faster so than one by one: what is saved is more than
    // what is added. Neither the batch nor the length decides, so that a sample's bits do not
    // depend on its batch-mates.
    static bool pays_for(const ConvolutionShape& shape);

    enum class Scheme { two_windows, four_of_three_taps, four_by_filters };
    Scheme scheme() const;
    // Windows that are multiplied together: a sample's first, and so on.
    int64_t together() const;
    int filters() const;
    int parts() const;  // of each filter
    int plane_count() const;
    const Plane& plane(int index) const;
    int term_count() const;
    const Term& term(int index) const;  // filter after filter
    // Whether each part is the sum of one term.
    bool has_single_terms() const;
    // What a part is times, when windows are made of it. A part that is the sum of one term, of one
    // tap, is multiplied with the tap as it is, and the tap's scale is the part's.
    float scale(int filter, int part) const;
    // Whether plane 0 is multiplied too, or others are made from it.
    bool reads_numbers() const;
    int64_t taps() const;
    int64_t channels() const;
    // Depths of a packed panel: the channels of term after term.
    int64_t depth() const;
    // Numbers from a position to the next in a plane: whole cache lines. Behind the channels up to
    // a vector's worth of zeros.
    int64_t pitch() const;

 private:
    int plane_of(int from, int64_t shift, bool is_sum);
    void add_filter(int filter, const std::vector<Shares>& taps, int plane, int64_t position,
                    int64_t step);
    void add_four_of_three_taps(const std::vector<Shares>& taps);
    void add_term(int filter, int part, int plane, int64_t position, const Shares& shares);
    void scale_parts();

    const int64_t taps_;
    const int64_t channels_;
    const Scheme scheme_;
    std::vector<Plane> planes_;
    std::vector<Term> terms_;
    std::vector<float> scales_;
};

}  // namespace seqkernels
