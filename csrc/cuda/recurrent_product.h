// The product of a recurrence at every step.
//
// A block multiplies its own rows of weights (rows, depth), which lie in the registers of its
// product warps and, where those are full, in its shared memory from the first step to the last, by
// rows of samples (samples, depth), which the blocks of a slice of the batch exchange. Warp w takes
// every eighth 32 of the depth in the matrix units, as soon as they are there. The partial sums
// meet in shared memory, where the finishing warps add them: while those make states of a round's
// sums, and everything else around a step, the product warps already look for the next.
// float32 numbers are multiplied as float32_planes.h says.
#pragma once

#include "float32_planes.h"
#include "recurrence_exchange.h"

namespace seqkernels::cuda {

constexpr int product_threads = product_warps * warp_threads;
constexpr int finishing_threads = finishing_warps * warp_threads;
constexpr int persistent_threads = product_threads + finishing_threads;

// Two rounds' partial sums in shared memory, which are filled and emptied by turns.
template <int units, int gates, int sample_tiles>
class RecurrentSums {
    static constexpr int stride = sums_of_sample(units, gates);
    static constexpr int samples = sample_tiles * samples_of_matrix;

 public:
    static constexpr int64_t bytes = sums_bytes(units, gates, sample_tiles);

    // 4 gates of a unit lie side by side, exchanged within eights of units so that the lanes of a
    // warp write to different banks.
    struct alignas(gates * 4) Sums {
        float of_gate[gates];
    };
    __device__ static Sums* at(int64_t round, int warp, int sample, int unit) {
        const int place = gates == 4 ? (unit ^ (sample & 7)) * 4 : unit;
        return reinterpret_cast<Sums*>(shared_memory() + round % 2 * bytes) +
               ((warp * samples + sample) * stride + place) / gates;
    }

    // The product warps, before they write and after; `round` counts all.
    __device__ static void wait_until_empty(int64_t round) {
        if (round >= 2) barrier_wait(empty + round % 2, persistent_threads);
    }
    __device__ static void tell_full(int64_t round) {
        barrier_arrive(full + round % 2, persistent_threads);
    }
    __device__ static void wait_for_product_warps() { barrier_wait(loaded, product_threads); }
    // The finishing warps, before they read and after.
    __device__ static void wait_until_full(int64_t round) {
        barrier_wait(full + round % 2, persistent_threads);
    }
    __device__ static void tell_empty(int64_t round, int64_t rounds) {
        if (round + 2 < rounds) barrier_arrive(empty + round % 2, persistent_threads);
    }

 private:
    static constexpr int full = 1, empty = 3, loaded = 5;  // barriers' numbers, of two the first
};

// The product warps' part.
template <class Exchange, class T, int units, int gates, int sample_tiles>
class RecurrentProduct {
    static constexpr int planes = planes_of(sizeof(T));
    static constexpr int row_tiles = units * gates / rows_of_matrix;
    static constexpr int samples = sample_tiles * samples_of_matrix;
    static constexpr int group_distance = product_warps * depth_of_group;
    static constexpr int in_registers = groups_in_registers(row_tiles, planes);
    // Groups whose rows are on their way at once: half of them where they would fill too many
    // registers.
    static constexpr int words_of_eight = 8 / numbers_in_word<T>;
    static constexpr int most_words = registers_can_move ? 48 : 24;
    static constexpr int words_of_all = in_registers * sample_tiles * words_of_eight;
    static constexpr int at_once = words_of_all <= most_words || in_registers == 1 ? in_registers
                                   : words_of_all <= 2 * most_words ? in_registers / 2
                                                                    : in_registers / 4;
    // Sums that do not wait for each other, however the batch is cut; of float32 the first planes'
    // and the rest.
    static constexpr int chains = planes == 1 && gates == 4 ? 1 : 2;
    using Totals = float[chains][row_tiles][sample_tiles][4];
    static_assert(in_registers % at_once == 0);
    static_assert(gates == 1 || gates == 4);

    using Sums = RecurrentSums<units, gates, sample_tiles>;
    struct alignas(16) Fragment {
        uint32_t words[4];
    };
    struct Eight {  // numbers of a row
        uint32_t words[words_of_eight];
    };
    using Weights = Fragment[planes][2 * row_tiles];

 public:
    __device__ RecurrentProduct(const Exchange& exchange, const RecurrencePlan& plan)
        : exchange_(exchange),
          lane_(static_cast<int>(threadIdx.x) % warp_threads),
          warp_(static_cast<int>(threadIdx.x) / warp_threads),
          groups_(static_cast<int>(plan.groups_of_warp())),
          own_depth_(warp_ * depth_of_group + lane_ % 4 * 8),
          weights_(shared_memory() + 2 * Sums::bytes) {}

    // Takes the weights in: weight(k, gate, unit of the block), zero beyond the depth.
    template <class Weight>
    __device__ void load_weights(Weight&& weight) {
        const auto fragment = [&](int group, int plane, int part) {
            const int half = part / row_tiles, tile = part % row_tiles;
            Fragment words;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                // Rows, then numbers further on, as the matrix units count them.
                const int row = tile * rows_of_matrix + i % 2 * 8 + lane_ / 4;
                const int gate = gates == 4 ? row / 8 % 4 : 0;
                const int unit = gates == 4 ? row / 32 * 8 + row % 8 : row;
                const int k = own_depth_ + group * group_distance + half * 4 + i / 2 * 2;
                const auto number = [&](int at) -> uint32_t {
                    const T own = at < exchange_.depth() ? weight(at, gate, unit) : T{};
                    if constexpr (planes == 1) {
                        return own.bits;
                    } else {
                        uint32_t bits[planes];
                        split(own, bits);
                        are_weights_finite_ = are_weights_finite_ && is_finite(own);
                        return plane == 0 ? bits[0] : plane == 1 ? bits[1] : bits[2];
                    }
                };
                words.words[i] = number(k) | number(k + 1) << 16;
            }
            return words;
        };
        // A loop's turn cannot name a register: the weights come in at the end, by way of shared
        // memory, and move up.
        static_assert(product_warps * weight_bytes_of_group(row_tiles, 1) <= 2 * Sums::bytes);
        Fragment* passage = reinterpret_cast<Fragment*>(shared_memory()) +
                            warp_ * 2 * row_tiles * warp_threads + lane_;
        const int turns = (groups_ > in_registers ? groups_ : in_registers) * planes;
#pragma unroll 1
        for (int turn = 0; turn < turns; ++turn) {
            const int group = turn / planes, plane = turn % planes;
#pragma unroll 1
            for (int part = 0; part < 2 * row_tiles; ++part) {
                Fragment* place = group < in_registers ? passage + part * warp_threads
                                                       : weights_at(group, plane, part);
                *place = fragment(group, plane, part);
            }
            if (group >= in_registers) continue;
#pragma unroll
            for (int i = 0; i < in_registers * planes; ++i) {
#pragma unroll
                for (int part = 0; part < 2 * row_tiles; ++part) {
                    Fragment& own = weights_in_registers_[i / planes][i % planes][part];
                    if (i + 1 < in_registers * planes) {
                        own = weights_in_registers_[(i + 1) / planes][(i + 1) % planes][part];
                    } else {
                        own = passage[part * warp_threads];
                    }
                }
            }
        }
        Sums::wait_for_product_warps();  // they share the passage with the sums
    }

    // The sums of turns 0 to turns - 1.
    __device__ void run(int64_t turns, int rounds_of_turn) {
        int64_t count = 0;
        for (int64_t turn = 0; turn < turns; ++turn) {
            exchange_.begin_turn(turn);
            exchange_.wait(turn);
            for (int round = 0; round < rounds_of_turn; ++round, ++count) {
                Totals sums = {};
                multiply(turn, round, sums);
                Sums::wait_until_empty(count);
                store(count, sums);
                Sums::tell_full(count);
            }
        }
    }

 private:
    __device__ Fragment* weights_at(int group, int plane, int part) const {
        const int own = (group - in_registers) * product_warps + warp_;
        return reinterpret_cast<Fragment*>(weights_) +
               ((own * planes + plane) * 2 * row_tiles + part) * warp_threads + lane_;
    }

    __device__ void multiply(int64_t turn, int round, Totals& sums) const {
        const int first_sample = round * samples + lane_ / 4;
        const T* from = exchange_.rows(turn) + first_sample * exchange_.row_elements() + own_depth_;
        const int samples_left = exchange_.samples() - first_sample;
#pragma unroll
        for (int first = 0; first < in_registers; first += at_once) {
            if (first >= groups_) break;
            Eight rows[at_once][sample_tiles];
            read(from, samples_left, first, rows);
#pragma unroll
            for (int i = 0; i < at_once; ++i) {
                if (first + i < groups_) {
                    add(weights_in_registers_[first + i], rows[i], i, sums);
                }
            }
        }
        for (int first = in_registers; first < groups_; first += at_once) {
            Eight rows[at_once][sample_tiles];
            read(from, samples_left, first, rows);
#pragma unroll
            for (int i = 0; i < at_once; ++i) {
                if (first + i < groups_) {
                    Weights weights;
#pragma unroll
                    for (int part = 0; part < planes * 2 * row_tiles; ++part) {
                        const int plane = part / (2 * row_tiles), own = part % (2 * row_tiles);
                        weights[plane][own] = *weights_at(first + i, plane, own);
                    }
                    add(weights, rows[i], i, sums);
                }
            }
        }
    }

    // The rows of groups from `first` on, as soon as they are there.
    __device__ void read(const T* from, int samples_left, int first,
                         Eight (&rows)[at_once][sample_tiles]) const {
#pragma unroll
        for (int i = 0; i < at_once; ++i) {
#pragma unroll
            for (int tile = 0; tile < sample_tiles; ++tile) {
                const bool is_there =
                    own_depth_ + (first + i) * group_distance < exchange_.depth() &&
                    tile * samples_of_matrix < samples_left;
#pragma unroll
                for (uint32_t& word : rows[i][tile].words) word = is_there ? unset : 0;
            }
        }
        // Of several groups one is looked for first: all of them, again and again, would keep the
        // states that they wait for from coming.
        if (Exchange::is_polled && groups_ > 1) {
            while (!look_again<1>(from, first, rows)) let_others_go_on();
        }
        while (!look_again<at_once>(from, first, rows) && Exchange::is_polled) let_others_go_on();
        __syncwarp();
    }

    // Reads what of the first `count` groups is not there yet; returns whether all was.
    template <int count>
    __device__ bool look_again(const T* from, int first,
                               Eight (&rows)[at_once][sample_tiles]) const {
        bool is_complete = true;
#pragma unroll
        for (int i = 0; i < count; ++i) {
#pragma unroll
            for (int tile = 0; tile < sample_tiles; ++tile) {
                const T* place = from + tile * samples_of_matrix * exchange_.row_elements() +
                                 (first + i) * group_distance;
#pragma unroll
                for (int word = 0; word < words_of_eight; word += 4) {
                    uint32_t* words = rows[i][tile].words + word;
                    if (words[0] != unset && words[1] != unset && words[2] != unset &&
                        words[3] != unset) {
                        continue;
                    }
                    is_complete = false;
                    const T* four = place + word * numbers_in_word<T>;
                    if constexpr (Exchange::is_polled) {
                        load_from_others(four, words[0], words[1], words[2], words[3]);
                    } else {
                        const Fragment found = *reinterpret_cast<const Fragment*>(four);
#pragma unroll
                        for (int k = 0; k < 4; ++k) words[k] = found.words[k];
                    }
                }
            }
        }
        return is_complete;
    }

    // `turn` spreads groups over the sums.
    __device__ void add(const Weights& weights, const Eight (&rows)[sample_tiles], int turn,
                        Totals& sums) const {
        if constexpr (planes == 1) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int tile = 0; tile < row_tiles; ++tile) {
#pragma unroll
                    for (int s = 0; s < sample_tiles; ++s) {
                        float (&sum)[4] = sums[(turn * 2 + half) % chains][tile][s];
                        multiply_add<T>(sum[0], sum[1], sum[2], sum[3],
                                        weights[0][half * row_tiles + tile].words,
                                        rows[s].words[2 * half], rows[s].words[2 * half + 1]);
                    }
                }
            }
        } else {
            add_float32(weights, rows, sums);
        }
    }

    __device__ void add_float32(const Weights& weights, const Eight (&rows)[sample_tiles],
                                Totals& sums) const {
#pragma unroll
        for (int s = 0; s < sample_tiles; ++s) {
            const PlanesOfEight own(rows[s].words);
            const bool are_finite = lanes_where(!own.are_finite || !are_weights_finite_) == 0;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                uint32_t right[planes][2];
#pragma unroll
                for (int plane = 0; plane < planes; ++plane) {
                    right[plane][0] = own.words[plane][2 * half];
                    right[plane][1] = own.words[plane][2 * half + 1];
                }
#pragma unroll
                for (int tile = 0; tile < row_tiles; ++tile) {
                    const int part = half * row_tiles + tile;
                    multiply_add_float32(sums[0][tile][s], sums[1][tile][s], weights[0][part].words,
                                         weights[1][part].words, weights[2][part].words, right,
                                         are_finite);
                }
            }
        }
    }

    __device__ void store(int64_t round, Totals& sums) const {
#pragma unroll
        for (int s = 0; s < sample_tiles; ++s) {
#pragma unroll
            for (int tile = 0; tile < row_tiles; ++tile) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
#pragma unroll
                    for (int chain = 1; chain < chains; ++chain) {
                        sums[0][tile][s][i] += sums[chain][tile][s][i];
                    }
                }
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int sample = s * samples_of_matrix + lane_ % 4 * 2 + i;
#pragma unroll
                for (int eight = 0; eight < units / 8; ++eight) {
                    typename Sums::Sums own;
#pragma unroll
                    for (int gate = 0; gate < gates; ++gate) {
                        const int row_eight = gates == 4 ? eight * 4 + gate : eight;
                        own.of_gate[gate] = sums[0][row_eight / 2][s][row_eight % 2 * 2 + i];
                    }
                    *Sums::at(round, warp_, sample, eight * 8 + lane_ / 4) = own;
                }
            }
        }
    }

    const Exchange& exchange_;
    int lane_;
    int warp_;
    int groups_;
    int own_depth_;  // of the warp's first group this lane's eight
    char* weights_;
    bool are_weights_finite_ = true;
    Weights weights_in_registers_[in_registers];
};

// The finishing warps' part: a thread has `entries` of a round, each a sample's unit.
template <class Exchange, class T, int units, int gates, int sample_tiles>
class RecurrentEntries {
    using Sums = RecurrentSums<units, gates, sample_tiles>;
    static constexpr int samples = sample_tiles * samples_of_matrix;

 public:
    static constexpr int entries =
        static_cast<int>(divide_rounding_up(units * samples, finishing_threads));
    static constexpr int rounds_at_most = sample_tiles == 1 ? 1 : most_rounds;
    // What is read of memory in a step is asked for that many steps ahead.
    static constexpr int64_t steps_ahead = 2;

    struct Place {
        bool is_there;  // a sample, and a unit of the block, be it one beyond the last
        bool is_real;
        int row;  // of the slice
        int in_round;
        int column;
        int64_t sample;
        int64_t unit;

        // In an array (N, H).
        __device__ int64_t in_states(const RecurrenceShape& shape) const {
            return sample * shape.hidden + unit;
        }
    };

    __device__ static int rounds_of(const RecurrencePlan& plan) {
        return rounds_at_most == 1 ? 1 : static_cast<int>(plan.rounds);
    }

    __device__ RecurrentEntries(const Exchange& exchange, const RecurrencePlan& plan, int64_t turns)
        : exchange_(exchange), rounds_(turns * plan.rounds) {}

    __device__ Place place(const RecurrenceShape& shape, int round, int entry) const {
        const int index =
            static_cast<int>(threadIdx.x) - product_threads + entry * finishing_threads;
        Place place{};
        place.in_round = index / units;
        place.column = index % units;
        place.row = round * samples + place.in_round;
        place.sample = exchange_.first_sample() + place.row;
        place.unit = exchange_.first_unit() + place.column;
        place.is_there = place.in_round < samples && place.row < exchange_.samples();
        place.is_real = place.is_there && place.unit < shape.hidden;
        return place;
    }

    // The sums of the entries of the next round.
    __device__ void wait(const Place (&places)[entries], float (&totals)[entries][gates]) {
        Sums::wait_until_full(count_);
#pragma unroll
        for (int entry = 0; entry < entries; ++entry) {
#pragma unroll
            for (float& sum : totals[entry]) sum = 0;
            if (places[entry].in_round >= samples) continue;
#pragma unroll
            for (int warp = 0; warp < product_warps; ++warp) {
                const auto part =
                    *Sums::at(count_, warp, places[entry].in_round, places[entry].column);
#pragma unroll
                for (int gate = 0; gate < gates; ++gate) totals[entry][gate] += part.of_gate[gate];
            }
        }
        Sums::tell_empty(count_, rounds_);
        ++count_;
    }

    // Gives the others a number of a turn's rows, in `part` of the depth. Whole warps take part.
    __device__ void give(int64_t turn, const Place& place, int part, T number) const {
        exchange_.give(turn, place.is_there, place.row, place.column, part, number);
    }

 private:
    const Exchange& exchange_;
    int64_t rounds_;
    int64_t count_ = 0;
};

// Calls one of them, with the registers that its warps need.
template <class Multiply, class Finish>
__device__ inline void share_work(Multiply&& multiply, Finish&& finish) {
    if (threadIdx.x < product_threads) {
        take_registers<216>();
        multiply();
    } else {
        leave_registers<72>();
        finish();
    }
}

}  // namespace seqkernels::cuda
