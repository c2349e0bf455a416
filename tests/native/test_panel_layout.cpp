// How the columns of a packed operand are cut into panels.
#include <algorithm>

#include "check.h"
#include "cpu/product.h"

namespace seqkernels::testing {
namespace {

// All that a layout asks of a vector.
struct FourFloats {
    using Element = float;
    static constexpr int width = 4;
};
using Layout = PanelLayout<FourFloats>;

// Panels follow each other, and hold every vector once.
void check_cut(const Layout& layout) {
    int64_t vectors = 0;
    for (int64_t panel = 0; panel < layout.panels(); ++panel) {
        const int64_t units = layout.units_of(panel);
        CHECK(units >= 1 && units <= layout.units);
        CHECK(layout.first_column(panel) == vectors * FourFloats::width);
        CHECK(layout.offset(panel) == vectors * FourFloats::width * layout.groups * layout.depth);
        vectors += units;
    }
    CHECK(vectors == layout.vectors());
    CHECK(vectors * FourFloats::width >= layout.columns);
    CHECK((vectors - 1) * FourFloats::width < layout.columns);
    CHECK(layout.elements() == vectors * FourFloats::width * layout.groups * layout.depth);
}

void check_full_but_for_the_last(const Layout& layout) {
    for (int64_t panel = 0; panel + 1 < layout.panels(); ++panel) {
        CHECK(layout.units_of(panel) == layout.units);
    }
}

TEST(panels_are_full_but_for_the_last) {
    for (int64_t columns = 0; columns < 150; ++columns) {
        for (int64_t units = 1; units < 6; ++units) {
            const Layout layout{columns, 7, units, 4};
            check_cut(layout);
            check_full_but_for_the_last(layout);
        }
    }
}

TEST(an_even_number_of_panels_is_alike_in_both_halves) {
    for (int64_t columns = 0; columns < 150; ++columns) {
        for (int64_t units = 1; units < 6; ++units) {
            const Layout layout = Layout::even(columns, 7, units);
            check_cut(layout);
            const int64_t panels = layout.panels();
            if (panels % 2 != 0) {
                check_full_but_for_the_last(layout);
                continue;
            }
            const int64_t first = layout.first_unit(panels / 2), second = layout.vectors() - first;
            CHECK(first <= second && second <= first + 1);
            int64_t fewest = units, most = 0;
            for (int64_t panel = 0; panel < panels; ++panel) {
                fewest = std::min(fewest, layout.units_of(panel));
                most = std::max(most, layout.units_of(panel));
            }
            CHECK(panels == 0 || most - fewest <= 1);
        }
    }
}

}  // namespace
}  // namespace seqkernels::testing
