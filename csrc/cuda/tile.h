// Tiles of operands in shared memory, and the products of two of them.
//
// A tile is rows of 128 bytes. Piece p (16 bytes) of row r lies at place p xor (r mod 8): the same
// piece of 8 rows that follow each other falls into 8 different groups of banks, which is how a
// warp's 16-byte accesses are served without conflict, ldmatrix among them.
//
// A Product multiplies a left tile (windows) with a right one (filters), 128 bytes of depth, into
// sums spread over the block: thread t has sums[i][j] of row(i) and column(j), rows ascending with
// i. Lanes that agree modulo lanes_across have the same columns.
#pragma once

#include <cstdint>

#include "cuda/device.h"
#include "tile_sizes.h"

namespace seqkernels::cuda {

template <class T>
constexpr int elements_in_row = row_bytes / static_cast<int>(sizeof(T));

template <class Byte>
__device__ inline Byte* piece_at(Byte* tile, int row, int piece) {
    return tile + row * row_bytes + ((piece ^ (row & 7)) * piece_bytes);
}

// Tiles of 128 rows are shared by 4 x 2 warps, of 64 by 2 x 2.
template <int tile_rows, int tile_columns>
struct Warps {
    static constexpr int down = tile_rows == 128 ? 4 : 2;
    static constexpr int across = 2;
    static constexpr int threads = down * across * warp_threads;

    __device__ static int lane() { return static_cast<int>(threadIdx.x) % warp_threads; }
    __device__ static int row() { return static_cast<int>(threadIdx.x) / warp_threads / across; }
    __device__ static int column() { return static_cast<int>(threadIdx.x) / warp_threads % across; }
};

// In the matrix units: bfloat16 and float16 with float32 sums; float32 as TF32. A warp takes
// (tile_rows / down) x (tile_columns / across).
//
// Of depth 32 bytes a warp of 32 x 64 loads 2 + 4 times four matrices for 16 instructions.
template <class T, int tile_rows, int tile_columns>
struct MatrixUnitProduct : Warps<tile_rows, tile_columns> {
    using Number = T;
    using W = Warps<tile_rows, tile_columns>;
    static constexpr int warp_rows = tile_rows / W::down;
    static constexpr int warp_columns = tile_columns / W::across;
    static constexpr int rows = warp_rows / 8;
    static constexpr int columns = warp_columns / 8 * 2;
    static constexpr int lanes_across = 4;

    __device__ static int row(int i) { return W::row() * warp_rows + i * 8 + W::lane() / 4; }
    __device__ static int column(int j) {
        return W::column() * warp_columns + j / 2 * 8 + W::lane() % 4 * 2 + j % 2;
    }

    __device__ static void multiply(const char* left, const char* right,
                                    float (&sums)[rows][columns]) {
        // Which row and piece of four matrices a lane names: of left two beside and two below, of
        // right two filters' eights one below the other, each with its two pieces.
        const int lane = W::lane();
        const int left_row = W::row() * warp_rows + lane % 16;
        const int left_piece = lane / 16;
        const int right_row = W::column() * warp_columns + lane % 8 + lane / 16 * 8;
        const int right_piece = lane / 8 % 2;
#pragma unroll
        for (int depth = 0; depth < pieces_in_row; depth += 2) {
            uint32_t a[rows / 2][4];
            uint32_t b[columns / 4][4];
#pragma unroll
            for (int i = 0; i < rows / 2; ++i) {
                load_matrices(a[i], piece_at(left, left_row + i * 16, depth + left_piece));
                round_operands(a[i]);
            }
#pragma unroll
            for (int j = 0; j < columns / 4; ++j) {
                load_matrices(b[j], piece_at(right, right_row + j * 16, depth + right_piece));
                round_operands(b[j]);
            }
#pragma unroll
            for (int i = 0; i < rows / 2; ++i) {
#pragma unroll
                for (int j = 0; j < columns / 2; ++j) {
                    multiply_add<T>(sums[2 * i][2 * j], sums[2 * i][2 * j + 1],
                                    sums[2 * i + 1][2 * j], sums[2 * i + 1][2 * j + 1], a[i],
                                    b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
                }
            }
        }
    }

 private:
    __device__ static void round_operands(uint32_t (&words)[4]) {
        if constexpr (std::is_same_v<T, float>) {
#pragma unroll
            for (uint32_t& word : words) word = rounded_to_tf32(word);
        }
    }
};

// In float32 multiply-adds: a warp's lanes lie 4 x 8, so that of 16 bytes from each of a thread's
// rows and columns a warp reads 4 and 8 different pieces, and 4 multiply-adds use each.
template <int tile_rows, int tile_columns>
struct MultiplyAddProduct : Warps<tile_rows, tile_columns> {
    using Number = float;
    using W = Warps<tile_rows, tile_columns>;
    static constexpr int rows = tile_rows / (W::down * 4);
    static constexpr int columns = tile_columns / (W::across * 8);
    static constexpr int lanes_across = 8;

    __device__ static int row(int i) { return i * (W::down * 4) + W::row() * 4 + W::lane() / 8; }
    __device__ static int column(int j) {
        return j * (W::across * 8) + W::column() * 8 + W::lane() % 8;
    }

    __device__ static void multiply(const char* left, const char* right,
                                    float (&sums)[rows][columns]) {
        struct alignas(piece_bytes) Four {
            float numbers[4];
        };
        for (int piece = 0; piece < pieces_in_row; ++piece) {
            Four b[columns];
#pragma unroll
            for (int j = 0; j < columns; ++j) {
                b[j] = *reinterpret_cast<const Four*>(piece_at(right, column(j), piece));
            }
#pragma unroll
            for (int i = 0; i < rows; ++i) {
                const Four a = *reinterpret_cast<const Four*>(piece_at(left, row(i), piece));
#pragma unroll
                for (int j = 0; j < columns; ++j) {
#pragma unroll
                    for (int k = 0; k < 4; ++k) {
                        sums[i][j] = fmaf(a.numbers[k], b[j].numbers[k], sums[i][j]);
                    }
                }
            }
        }
    }
};

}  // namespace seqkernels::cuda
