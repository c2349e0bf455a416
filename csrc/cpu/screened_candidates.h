// What is left to choose from where the maxima of a convolution are screened (screened_windows.h).
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

namespace seqkernels {

// Windows of some segments that may be the greatest of filters of a panel, `vectors` of them.
template <class Vector, int vectors>
class ScreenedCandidates {
 public:
    static constexpr int64_t most_segments = 8;

    struct Place {
        int32_t window;
        float most;  // that the product can be
    };

    // What follows is of that segment, of which there shall be no more than `most` in all.
    void begin_segment(int64_t segment, int64_t most) {
        counts_ = all_counts_[segment];
        std::memset(counts_, 0, sizeof(all_counts_[segment]));
        places_ = all_places_[segment];
        left_ = most;
    }
    // Returns whether there are too many; then the segment has none.
    bool take(int64_t filter, const Place& place) {
        Place* const places = places_[filter];
        int32_t& count = counts_[filter];
        if (--left_ < 0 || count == most_of_filter) {
            std::memset(counts_, 0, sizeof(all_counts_[0]));
            return true;
        }
        places[count] = place;
        // The most promising one first.
        if (place.most > places[0].most) std::swap(places[0], places[count]);
        ++count;
        return false;
    }
    int64_t count(int64_t segment, int64_t filter) const { return all_counts_[segment][filter]; }
    const Place* of(int64_t segment, int64_t filter) const { return all_places_[segment][filter]; }

 private:
    static constexpr int64_t panel_width = vectors * Vector::width;
    static constexpr int64_t most_of_filter = 32;  // and segment
    int64_t left_ = 0;
    int32_t* counts_ = nullptr;
    Place (*places_)[most_of_filter] = nullptr;
    int32_t all_counts_[most_segments][panel_width] = {};
    Place all_places_[most_segments][panel_width][most_of_filter];
};

}  // namespace seqkernels
