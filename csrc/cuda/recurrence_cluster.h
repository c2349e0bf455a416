// What passes from step to step between the blocks that share a recurrence, where these are a
// cluster: rows of 16-bit numbers, which every block sends to all others' shared memory.
//
// A turn's rows lie in one of two places by turns, and its mailbox opens when all of them have
// come. A place is free for a turn when it is sent: who sends a turn's rows has got all of the turn
// before, whose senders had read the one before that.
//
// Measured on an H200, a step of exchange alone, 8 or 16 blocks: 1 KiB 0.35 us, 8 KiB 0.6 us, 24
// KiB 1.1 us; by ordinary stores and a barrier of the cluster 0.6 to 0.7, 0.85 to 1 and 1.5 to 1.8.
#pragma once

#include "cuda/cluster.h"
#include "recurrence_exchange.h"

namespace seqkernels::cuda {

template <class T>
class ClusterExchange : public RecurrentBlock<T> {
    static_assert(is_sixteen_bit<T>);

 public:
    static constexpr bool is_polled = false;

    // first_state(sample, depth) are the numbers of turn 0. All threads of the cluster take part.
    template <class State>
    __device__ ClusterExchange(const RecurrenceShape& shape, const RecurrencePlan& plan,
                               int64_t last_turn, State&& first_state)
        : RecurrentBlock<T>(shape, plan),
          blocks_(static_cast<int>(plan.unit_blocks)),
          row_elements_(plan.cluster_row_elements()),
          place_elements_(static_cast<int>(plan.rows()) * row_elements_),
          rows_(reinterpret_cast<T*>(shared_memory() + exchange_offset(plan))),
          mailboxes_(reinterpret_cast<Mailbox*>(rows_ + 2 * place_elements_)),
          bytes_of_turn_(this->samples() * this->depth() * static_cast<int>(sizeof(T))),
          last_turn_(last_turn) {
        for (int i = static_cast<int>(threadIdx.x); i < 2 * place_elements_;
             i += static_cast<int>(blockDim.x)) {
            const int row = i / row_elements_, depth = i % row_elements_;
            const bool is_first = row < this->samples() && depth < this->depth();
            rows_[i] = is_first ? first_state(this->first_sample() + row, depth) : T{};
        }
        if (threadIdx.x == 0) {
            for (int turn = 1; turn <= 2; ++turn) {
                begin_mailbox(mailboxes_[turn % 2]);
                if (turn <= last_turn_) expect_bytes(mailboxes_[turn % 2], bytes_of_turn_);
            }
        }
        meet_in_cluster();
        const int lane = static_cast<int>(threadIdx.x) % 8;
#pragma unroll
        for (int i = 0; i < peers; ++i) {
            const int block = lane + i * 8;
            if (block < blocks_) others_[i] = address_in_cluster(rows_, block);
        }
    }

    __device__ int row_elements() const { return row_elements_; }
    __device__ const T* rows(int64_t turn) const { return place(turn); }

    __device__ void begin_turn(int64_t) const {}
    __device__ void wait(int64_t turn) const {
        if (turn == 0) return;
        Mailbox& mailbox = mailboxes_[turn % 2];
        wait_for_mail(mailbox, static_cast<int>((turn - 1) / 2 % 2));
        if (threadIdx.x == 0 && turn + 2 <= last_turn_) expect_bytes(mailbox, bytes_of_turn_);
    }

    // An eight of lanes has an eight of units of one sample: 16 bytes, which each lane sends to
    // every eighth block.
    __device__ void give(int64_t turn, bool is_there, int row, int unit, int part, T number) const {
        const uint32_t other = from_lane_xor(uint32_t{number.bits}, 1);
        const uint32_t own =
            unit % 2 == 0 ? number.bits | other << 16 : other | uint32_t{number.bits} << 16;
        uint32_t words[4];
        all_of_eight(own, words);
        if (!is_there || turn > last_turn_) return;
        const int offset =
            row * row_elements_ + part * this->units_padded() + this->first_unit() + unit / 8 * 8;
        const int from_rows = static_cast<int>(turn % 2) * place_elements_ + offset;
        const int mailbox = 2 * place_elements_ * static_cast<int>(sizeof(T)) +
                            static_cast<int>(turn % 2 * sizeof(Mailbox));
#pragma unroll
        for (int i = 0; i < peers; ++i) {
            if (unit % 8 + i * 8 < blocks_) {
                send(others_[i] + from_rows * static_cast<int>(sizeof(T)), others_[i] + mailbox,
                     words);
            }
        }
    }

    // No block ends before what it sends has come.
    __device__ void end() const { meet_in_cluster(); }

 private:
    static constexpr int peers = most_blocks_of_cluster / 8;
    static_assert(units_of_cluster_block * most_blocks_of_cluster == most_units_of_cluster);

    __device__ static void all_of_eight(uint32_t own, uint32_t (&words)[4]) {
        const int first = static_cast<int>(threadIdx.x) % warp_threads / 8 * 8;
#pragma unroll
        for (int i = 0; i < 4; ++i) words[i] = from_lane(own, first + 2 * i);
    }
    __device__ T* place(int64_t turn) const {
        return rows_ + static_cast<int>(turn % 2) * place_elements_;
    }

    int blocks_;
    int row_elements_;
    int place_elements_;
    T* rows_;
    Mailbox* mailboxes_;
    int bytes_of_turn_;
    int64_t last_turn_;  // that is read
    ClusterAddress others_[peers];
};

}  // namespace seqkernels::cuda
