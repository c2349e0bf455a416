// What is left to choose from where the maxima of a convolution are screened (screened_windows.h).
#pragma once

#include <cstdint>
#include <cstring>

namespace seqkernels {

// Windows of some segments that may be the greatest of filters of a panel, `vectors` of them.
template <class Vector, int vectors>
class ScreenedCandidates {
 public:
    static constexpr int64_t most_segments = 8;

    struct Place {
        int32_t segment;
        int32_t window;
        float most;  // that the product can be
    };

    // What follows is of another segment, of which there shall be no more than `most` in all.
    void begin_segment(int64_t most) {
        std::memcpy(before_, counts_, sizeof(before_));
        left_ = most;
    }
    // Returns whether there are too many; then the segment has none.
    bool take(int64_t filter, const Place& place) {
        if (--left_ < 0 || counts_[filter] - before_[filter] == most_of_filter) {
            std::memcpy(counts_, before_, sizeof(before_));
            return true;
        }
        places_[filter][counts_[filter]++] = place;
        return false;
    }
    int64_t count(int64_t filter) const { return counts_[filter]; }
    const Place* of(int64_t filter) const { return places_[filter]; }

 private:
    static constexpr int64_t panel_width = vectors * Vector::width;
    static constexpr int64_t most_of_filter = 32;  // and segment
    int64_t left_ = 0;
    int32_t counts_[panel_width] = {};
    int32_t before_[panel_width];
    Place places_[panel_width][most_segments * most_of_filter];
};

}  // namespace seqkernels
