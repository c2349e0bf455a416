#include "recurrence_schedule.h"

namespace seqkernels {

Schedule::Schedule(const RecurrenceShape& shape, const int64_t* lengths)
    : shape_(shape), lengths_(lengths), order_(shape.batch), active_(shape.steps + 1) {
    int64_t* active = active_.data();
    for (int64_t step = 0; step <= shape.steps; ++step) active[step] = 0;
    // A counting sort: first how many samples have each length, then how many are longer.
    for (int64_t n = 0; n < shape.batch; ++n) ++active[length(n)];
    int64_t longer = 0;
    for (int64_t step = shape.steps; step >= 0; --step) {
        const int64_t same = active[step];
        active[step] = longer;
        longer += same;
    }
    for (int64_t n = 0; n < shape.batch; ++n) order_.data()[active[length(n)]++] = n;
    // Each count has moved on to how many samples are at least that long.
    for (int64_t step = 0; step < shape.steps; ++step) active[step] = active[step + 1];
    active[shape.steps] = 0;
    for (int64_t step = 0; step < shape.steps; ++step) row_count_ += active[step];
    while (longest_ < shape.steps && active[longest_] > 0) ++longest_;
}

Schedule::~Schedule() = default;

}  // namespace seqkernels
