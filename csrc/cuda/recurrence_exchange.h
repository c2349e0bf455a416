// What passes from step to step between the blocks that share a recurrence: rows of numbers, in
// memory.
//
// The exchange has no barrier and no flags: a row's words say themselves whether they are there.
// Until it is written a word is `unset`, NaNs that no result is rounded to. A lane reads its 16
// bytes again until none of their words is unset; words are written whole. A turn's rows have a
// slot of their own among `slots`; its writers unset it half of them ahead of its use, when all
// have read what was in it: who writes a turn's rows has read those before, which is to say that
// all others have written them. Every quarter of the slots all threads order their memory
// operations, so that between unsetting a word, writing it and reading it there is such an order.
//
// Measured on an H200, a step of exchange alone: 16 blocks and 1 KiB 0.51 us, 32 blocks and 8 KiB
// 0.69 us, 96 blocks and 24 KiB, one piece waited for after the other, 1.70 us; by a counter that
// all blocks raise and one thread of each watches 1.28 us for 32 blocks, 1.40 for 96; by a flag of
// each block 1.55. So large blocks of states are cut to slices of the batch (recurrence_plan.cpp).
#pragma once

#include "grid.h"
#include "recurrence_plan.h"
#include "recurrence_rules.h"

namespace seqkernels::cuda {

constexpr uint32_t unset = 0xFFFFFFFFu;

// A word of a row, one number or two of 16 bits, that is not unset.
template <class T>
__device__ inline uint32_t word_of(T first, T second) {
    uint32_t word;
    if constexpr (is_sixteen_bit<T>) {
        word = first.bits | uint32_t{second.bits} << 16;
    } else {
        word = bits_of(first);
    }
    return word == unset ? 0x7FFF7FFFu : word;
}

template <class T>
constexpr int numbers_in_word = 4 / static_cast<int>(sizeof(T));

// What a slice's blocks exchange.
template <class T>
struct Exchange {
    T* rows;  // (slots, slices, rows, row_elements)
};

// Readies the exchange: first_state(sample, depth) in the first slot, all others unset.
template <class T, class State>
__device__ inline void fill_exchange(const RecurrencePlan& plan, const Exchange<T>& exchange,
                                     State&& first_state) {
    constexpr int numbers = numbers_in_word<T>;
    const int64_t row_words = plan.row_elements() / numbers;
    const int64_t slot = plan.slices * plan.rows() * row_words;
    uint32_t* words = reinterpret_cast<uint32_t*>(exchange.rows);
    for (int64_t index = thread_in_grid(); index < plan.slots * slot; index += threads_in_grid()) {
        if (index >= slot) {
            words[index] = unset;
            continue;
        }
        const int64_t sample = index / row_words, depth = index % row_words * numbers;
        words[index] =
            word_of<T>(first_state(sample, depth), first_state(sample, depth + numbers - 1));
    }
}

// Which of a recurrence a block has.
template <class T>
class RecurrentBlock {
 public:
    __device__ RecurrentBlock(const RecurrenceShape& shape, const RecurrencePlan& plan)
        : first_unit_(static_cast<int>(blockIdx.x % plan.unit_blocks) * plan.units),
          first_sample_(blockIdx.x / plan.unit_blocks * plan.rows()),
          samples_(static_cast<int>(smaller(plan.rows(), shape.batch - first_sample_))),
          depth_(static_cast<int>(plan.depth())),
          units_padded_(static_cast<int>(plan.units_padded())) {}

    __device__ int first_unit() const { return first_unit_; }
    __device__ int64_t first_sample() const { return first_sample_; }
    __device__ int samples() const { return samples_; }  // of the slice
    __device__ int depth() const { return depth_; }
    __device__ int units_padded() const { return units_padded_; }

 private:
    int first_unit_;
    int64_t first_sample_;
    int samples_;
    int depth_;
    int units_padded_;
};

// The block's part in the exchange through memory.
template <class T>
class MemoryExchange : public RecurrentBlock<T> {
 public:
    static constexpr bool is_polled = true;  // rows are there when their words say so

    __device__ MemoryExchange(const RecurrenceShape& shape, const RecurrencePlan& plan,
                              const Exchange<T>& exchange, int64_t last_turn)
        : RecurrentBlock<T>(shape, plan),
          row_elements_(static_cast<int>(plan.row_elements())),
          slot_elements_(plan.slices * plan.rows() * plan.row_elements()),
          rows_(exchange.rows + this->first_sample() * plan.row_elements()),
          last_turn_(last_turn) {}

    __device__ int row_elements() const { return row_elements_; }
    // A turn's rows, of the slice's samples.
    __device__ const T* rows(int64_t turn) const { return slot(turn); }

    // All threads: before a turn.
    __device__ void begin_turn(int64_t turn) const {
        if (turn > 0 && turn % (exchange_slots / 4) == 0) order_memory();
    }
    // The product warps: before they read its rows.
    __device__ void wait(int64_t) const {}

    // Gives the others a number of a turn's rows, that of a sample of the slice and a unit of the
    // block, in `part` of the depth. Whole warps take part, with eights of units of one sample.
    __device__ void give(int64_t turn, bool is_there, int row, int unit, int part, T number) const {
        T other = number;
        if constexpr (is_sixteen_bit<T>) {
            other.bits = static_cast<uint16_t>(from_lane_xor(uint32_t{number.bits}, 1));
        }
        if (!is_there || unit % numbers_in_word<T> != 0) return;
        const int offset =
            row * row_elements_ + part * this->units_padded() + this->first_unit() + unit;
        store_for_others(reinterpret_cast<uint32_t*>(slot(turn) + offset),
                         word_of<T>(number, other));
        const int64_t later = turn + exchange_slots / 2;
        if (later >= exchange_slots && later <= last_turn_) {
            store_for_others(reinterpret_cast<uint32_t*>(slot(later) + offset), unset);
        }
    }

    __device__ void end() const {}

 private:
    __device__ T* slot(int64_t turn) const {
        return rows_ + turn % exchange_slots * slot_elements_;
    }

    int row_elements_;
    int64_t slot_elements_;
    T* rows_;
    int64_t last_turn_;  // that is read
};

}  // namespace seqkernels::cuda
