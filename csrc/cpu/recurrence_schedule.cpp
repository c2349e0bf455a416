#include "recurrence_schedule.h"

namespace seqkernels {

Schedule::Schedule(const RecurrenceShape& shape, const int64_t* lengths, const int64_t* batch_sizes)
    : shape_(shape),
      is_packed_(batch_sizes != nullptr),
      lengths_(lengths),
      order_(shape.batch),
      active_(shape.steps + 1),
      packed_lengths_(is_packed_ ? shape.batch : 0),
      first_rows_(is_packed_ ? shape.steps : 0) {
    if (is_packed_) {
        read_packed(batch_sizes);
    } else {
        order_by_length();
    }
    const int64_t* active = active_.data();
    for (int64_t step = 0; step < shape.steps; ++step) row_count_ += active[step];
    while (longest_ < shape.steps && active[longest_] > 0) ++longest_;
}

// A counting sort: first how many samples have each length, then how many are longer.
void Schedule::order_by_length() {
    int64_t* active = active_.data();
    for (int64_t step = 0; step <= shape_.steps; ++step) active[step] = 0;
    for (int64_t n = 0; n < shape_.batch; ++n) ++active[length(n)];
    int64_t longer = 0;
    for (int64_t step = shape_.steps; step >= 0; --step) {
        const int64_t same = active[step];
        active[step] = longer;
        longer += same;
    }
    for (int64_t n = 0; n < shape_.batch; ++n) order_.data()[active[length(n)]++] = n;
    // Each count has moved on to how many samples are at least that long.
    for (int64_t step = 0; step < shape_.steps; ++step) active[step] = active[step + 1];
    active[shape_.steps] = 0;
}

void Schedule::read_packed(const int64_t* batch_sizes) {
    int64_t* active = active_.data();
    int64_t rows = 0;
    active[shape_.steps] = 0;
    for (int64_t step = 0; step < shape_.steps; ++step) {
        active[step] = batch_sizes[step];
        first_rows_.data()[step] = rows;
        rows += batch_sizes[step];
    }
    for (int64_t step = shape_.steps; step > 0; --step) {
        for (int64_t n = active[step]; n < active[step - 1]; ++n) packed_lengths_.data()[n] = step;
    }
    for (int64_t n = 0; n < shape_.batch; ++n) order_.data()[n] = n;
    lengths_ = packed_lengths_.data();
}

Schedule::~Schedule() = default;

}  // namespace seqkernels
