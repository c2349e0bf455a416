// csrc/cuda/device.h for a processor without a GPU: a block's threads are fibers of one thread, one
// block runs after another, cooperating ones by turns. What the instructions do is computed as
// NVIDIA's PTX ISA describes it.
//
// It finds what a GPU may hide: asynchronous copies arrive as late as they may, or as early, shared
// memory begins as noise, threads run forwards or backwards (`order`), and arrays are plain memory,
// for the sanitizers to watch. Speed, memory ordering between blocks and the limits of a GPU it
// knows not.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "core/data_type.h"

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

struct Index3 {
    unsigned x = 0, y = 0, z = 0;
};
inline Index3 threadIdx, blockIdx, blockDim, gridDim;

void __syncthreads();
void __syncwarp();

namespace seqkernels::cuda {

constexpr int warp_threads = 32;

inline float widened(float number) { return number; }
inline double widened(double number) { return number; }
inline float widened(Bfloat16 number) { return widen(number); }
inline float widened(Float16 number) {
    static const std::vector<float> known = [] {
        std::vector<float> numbers;
        for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
            numbers.push_back(widen(Float16{static_cast<uint16_t>(bits)}));
        }
        return numbers;
    }();
    return known[number.bits];
}

namespace emulated {

enum class Order { forwards, backwards };
inline Order order = Order::forwards;
// Whether asynchronous copies arrive as early as they may, not as late.
inline bool copies_are_early = false;
// Few, so that kernels share the work of one sample out.
constexpr int few_multiprocessors = 8;
inline int multiprocessor_count = few_multiprocessors;
// Of a grid: kernels are to loop over what is beyond.
inline int64_t most_blocks = 0x7FFFFFFF;

// Runs a grid, `at_once` of its blocks at a time.
void run(int64_t blocks, int64_t at_once, int threads, int64_t shared_bytes,
         const std::function<void()>& kernel);
char* shared_memory();
// Lets other threads go on.
void give_way();
// Waits for all lanes of the warp, of which the last to come calls compute with what each brought.
void meet(void* brought, void (*compute)(void* const (&all)[warp_threads]));
void copy(void* target, const void* source, int bytes, int valid);
void barrier(int number, int threads, bool waits);
void commit();
void wait(int pending);

// sums (columns) += left (depth) right (depth, columns), one depth after another.
void add_products(const float* left, const float* right, int depth, int columns, float* sums);

inline float number_of(uint32_t word, int half, Bfloat16) {
    return widen(Bfloat16{static_cast<uint16_t>(word >> (16 * half))});
}
inline float number_of(uint32_t word, int half, Float16) {
    return widened(Float16{static_cast<uint16_t>(word >> (16 * half))});
}
inline float number_of(uint32_t word, int, float) {
    return float_of_bits(word & 0xFFFFE000u);  // the bits that the matrix units read
}

}  // namespace emulated

inline uint32_t bits_of(float number) { return bits_of_float(number); }
inline float float_of(uint32_t bits) { return float_of_bits(bits); }

template <class T>
inline T narrowed(Accumulator<T> number) {
    T result;
    narrow(number, result);
    return result;
}

inline char* shared_memory() { return emulated::shared_memory(); }

template <class T>
inline T from_lane_xor(T value, int mask) {
    struct Brought {
        T value;
        int mask;
        T result;
    } mine{value, mask, {}};
    emulated::meet(&mine, [](void* const(&all)[warp_threads]) {
        for (int lane = 0; lane < warp_threads; ++lane) {
            Brought& to = *static_cast<Brought*>(all[lane]);
            to.result = static_cast<Brought*>(all[lane ^ to.mask])->value;
        }
    });
    return mine.result;
}

template <class T>
inline T from_lane(T value, int lane) {
    struct Brought {
        T value;
        int lane;
        T result;
    } mine{value, lane, {}};
    emulated::meet(&mine, [](void* const(&all)[warp_threads]) {
        for (void* to : all) {
            Brought& mine = *static_cast<Brought*>(to);
            mine.result = static_cast<Brought*>(all[mine.lane])->value;
        }
    });
    return mine.result;
}

inline uint32_t lanes_where(bool condition) {
    struct Brought {
        bool condition;
        uint32_t result;
    } mine{condition, 0};
    emulated::meet(&mine, [](void* const(&all)[warp_threads]) {
        uint32_t bits = 0;
        for (int lane = 0; lane < warp_threads; ++lane) {
            bits |= uint32_t{static_cast<Brought*>(all[lane])->condition} << lane;
        }
        for (void* lane : all) static_cast<Brought*>(lane)->result = bits;
    });
    return mine.result;
}

inline int bits_set(uint32_t bits) { return __builtin_popcount(bits); }

template <int bytes>
inline void copy_async(void* target, const void* source, int valid) {
    static_assert(bytes == 4 || bytes == 8 || bytes == 16);
    emulated::copy(target, source, bytes, valid);
}

inline void commit_copies() { emulated::commit(); }

template <int pending>
inline void wait_for_copies() {
    emulated::wait(pending);
}

inline void load_matrices(uint32_t (&words)[4], const void* row) {
    struct Brought {
        const void* row;
        uint32_t* words;
    } mine{row, words};
    emulated::meet(&mine, [](void* const(&all)[warp_threads]) {
        for (int lane = 0; lane < warp_threads; ++lane) {
            for (int matrix = 0; matrix < 4; ++matrix) {
                const void* from = static_cast<Brought*>(all[matrix * 8 + lane / 4])->row;
                if (reinterpret_cast<uintptr_t>(from) % 16 != 0) {
                    throw std::logic_error("ldmatrix: a row that is not aligned to 16 bytes");
                }
                static_cast<Brought*>(all[lane])->words[matrix] =
                    static_cast<const uint32_t*>(from)[lane % 4];
            }
        }
    });
}

inline void load_matrices_transposed(uint32_t (&words)[4], const void* row) {
    struct Brought {
        const void* row;
        uint32_t* words;
    } mine{row, words};
    emulated::meet(&mine, [](void* const(&all)[warp_threads]) {
        const auto number = [&](int matrix, int row_of, int column) -> uint32_t {
            const void* from = static_cast<Brought*>(all[matrix * 8 + row_of])->row;
            if (reinterpret_cast<uintptr_t>(from) % 16 != 0) {
                throw std::logic_error("ldmatrix: a row that is not aligned to 16 bytes");
            }
            return static_cast<const uint16_t*>(from)[column];
        };
        for (int lane = 0; lane < warp_threads; ++lane) {
            for (int matrix = 0; matrix < 4; ++matrix) {
                const int first = lane % 4 * 2, column = lane / 4;
                static_cast<Brought*>(all[lane])->words[matrix] =
                    number(matrix, first, column) | number(matrix, first + 1, column) << 16;
            }
        }
    });
}

inline uint32_t rounded_to_tf32(uint32_t bits) {
    const bool is_finite = (bits & 0x7F800000u) != 0x7F800000u;
    return (is_finite ? bits + 0x1000u : bits) & 0xFFFFE000u;
}

template <class T>
inline void multiply_add(float& sum0, float& sum1, float& sum2, float& sum3,
                         const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
    struct Brought {
        float* sums[4];
        const uint32_t* left;
        uint32_t right[2];
    } mine{{&sum0, &sum1, &sum2, &sum3}, left, {right0, right1}};
    emulated::meet(&mine, [](void* const(&all)[warp_threads]) {
        constexpr int in_word = 4 / sizeof(T), depth = 8 * in_word;
        const auto lane = [&](int i) { return static_cast<Brought*>(all[i]); };
        float right[depth][8];
        for (int k = 0; k < depth; ++k) {
            const int word = k / in_word;  // of the 8 in 32 bytes
            for (int column = 0; column < 8; ++column) {
                const uint32_t b = lane(column * 4 + word % 4)->right[word / 4];
                right[k][column] = emulated::number_of(b, k % in_word, T{});
            }
        }
        for (int row = 0; row < 16; ++row) {
            float left[depth], sums[8];
            for (int k = 0; k < depth; ++k) {
                const int word = k / in_word;
                const uint32_t a = lane(row % 8 * 4 + word % 4)->left[row / 8 + word / 4 * 2];
                left[k] = emulated::number_of(a, k % in_word, T{});
            }
            const auto sum = [&](int column) -> float& {
                return *lane(row % 8 * 4 + column / 2)->sums[row / 8 * 2 + column % 2];
            };
            for (int column = 0; column < 8; ++column) sums[column] = sum(column);
            emulated::add_products(left, right[0], depth, 8, sums);
            for (int column = 0; column < 8; ++column) sum(column) = sums[column];
        }
    });
}

struct LaunchShape {
    int64_t blocks;
    int threads;
    int64_t shared_bytes;
    void* stream;
    bool cooperating = false;
    int cluster = 1;
    bool overlaps = false;
};

constexpr int64_t most_shared_bytes = 227 * 1024;

template <class... Parameters>
void launch(const LaunchShape& shape, void (*kernel)(Parameters...),
            std::common_type_t<Parameters>... arguments) {
    if (shape.blocks < 1 || shape.threads < 1 || shape.threads > 1024 ||
        shape.shared_bytes > most_shared_bytes) {
        throw std::runtime_error("CUDA: launch of a kernel: invalid configuration argument");
    }
    const int64_t blocks = shape.cooperating || shape.blocks < emulated::most_blocks
                               ? shape.blocks
                               : emulated::most_blocks;
    if (blocks % shape.cluster != 0) throw std::logic_error("a grid is to be of whole clusters");
    emulated::run(blocks, shape.cooperating ? blocks : shape.cluster, shape.threads,
                  shape.shared_bytes, [&] { kernel(arguments...); });
}

template <class Kernel>
int blocks_at_once(Kernel*, int, int64_t) {
    return 1;
}

inline float fast_exp2(float x) { return std::exp2(x); }
inline float fast_reciprocal(float x) { return 1 / x; }

inline void prefetch(const void*) {}

inline void load_from_others(const void* place, uint32_t& word0, uint32_t& word1, uint32_t& word2,
                             uint32_t& word3) {
    if (reinterpret_cast<uintptr_t>(place) % 16 != 0) throw std::logic_error("ld.v4: misaligned");
    const uint32_t* words = static_cast<const uint32_t*>(place);
    word0 = words[0], word1 = words[1], word2 = words[2], word3 = words[3];
}
inline void store_for_others(uint32_t* place, uint32_t word) {
    if (reinterpret_cast<uintptr_t>(place) % 4 != 0) throw std::logic_error("st: misaligned");
    *place = word;
}
inline void order_memory() {}
inline void barrier_wait(int number, int threads) { emulated::barrier(number, threads, true); }
inline void barrier_arrive(int number, int threads) { emulated::barrier(number, threads, false); }

constexpr bool registers_can_move = true;
template <int count>
inline void take_registers() {}
template <int count>
inline void leave_registers() {}

inline void let_next_kernel_start() {}
inline void wait_for_kernel_before() {}

inline void let_others_go_on() { emulated::give_way(); }

inline bool blocks_can_cooperate(int) { return true; }

inline int64_t shared_bytes_of_block(int) { return most_shared_bytes; }

inline void expect_current_device(int) {}

inline int multiprocessors(int) { return emulated::multiprocessor_count; }

}  // namespace seqkernels::cuda
