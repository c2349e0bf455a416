// The pooled outputs of a convolution: what a maximum over windows becomes.
#pragma once

#include <cstdint>
#include <cstring>

#include "activation.h"
#include "convolution_input.h"
#include "kernels.h"
#include "product.h"

namespace seqkernels {

template <class Vector>
class PooledOutput {
    using T = typename Vector::Element;

 public:
    explicit PooledOutput(const ConvolutionForward<T>& arguments)
        : call_(arguments), shape_(arguments.shape) {}

    // Takes `rows` more candidates for each of `vectors` vectors of maxima, in order:
    // candidate(row, v), found in window(row, v), an integer. It takes the maximum's place where it
    // is greater, or the first NaN.
    //
    // A candidate waits for the one before it for a compare and a blend, with nothing in them about
    // NaN: if there are any, or infinities of both signs, their sum is one, and all is done again.
    template <int most_vectors, class Candidate, class Window>
    static void take(int64_t rows, int64_t vectors, Candidate&& candidate, Window&& window,
                     Vector* best, Vector* winner) {
        with_constant<most_vectors>(vectors, [&](auto constant) {
            constexpr int V = constant;
            Vector maximum_so_far[V], winner_so_far[V], sum[V];
            for (int v = 0; v < V; ++v) {
                maximum_so_far[v] = best[v];
                winner_so_far[v] = winner[v];
                sum[v] = Vector::broadcast(0);
            }
            for (int64_t row = 0; row < rows; ++row) {
                for (int v = 0; v < V; ++v) {
                    const Vector next = candidate(row, v);
                    const auto better = exceeds(next, maximum_so_far[v]);
                    maximum_so_far[v] = select(better, next, maximum_so_far[v]);
                    winner_so_far[v] = select(better, window(row, v), winner_so_far[v]);
                    sum[v] = sum[v] + next;
                }
            }
            for (int v = 0; v < V; ++v) {
                if (has_nan(sum[v])) {
                    take_with_nan(rows, v, candidate, window, best[v], winner[v]);
                } else {
                    best[v] = maximum_so_far[v];
                    winner[v] = winner_so_far[v];
                }
            }
        });
    }

    // Bias and activation of one vector of maxima; writes them and their windows.
    void finish(int64_t n, int64_t pool, int64_t filter, Vector best, Vector winner) const {
        const int64_t count = smaller(Vector::width, shape_.filters - filter);
        if (call_.bias != nullptr) best = best + load_up_to<Vector>(call_.bias + filter, count);
        best = activate(shape_.activation, best);
        T* output = call_.output + n * call_.output_stride_batch +
                    pool * call_.output_stride_pooled + filter * call_.output_stride_filter;
        if (call_.output_stride_filter == 1) {
            store_up_to(best, output, count);
        } else {
            T values[Vector::width];
            best.store(values);
            for (int64_t lane = 0; lane < count; ++lane) {
                output[lane * call_.output_stride_filter] = values[lane];
            }
        }
        if (call_.argmax == nullptr) return;
        winner.store_integers(call_.argmax + (n * shape_.pooled + pool) * shape_.filters + filter,
                              count);
    }

    // Zeros for the pools that these samples are too short for.
    void clear_missing(Range samples) const {
        for (int64_t n = samples.begin; n < samples.end; ++n) {
            const int64_t windows = shape_.windows(sample_length(shape_, call_.lengths, n));
            for (int64_t pool = shape_.pools(windows); pool < shape_.pooled; ++pool) {
                T* output = call_.output + n * call_.output_stride_batch +
                            pool * call_.output_stride_pooled;
                for (int64_t filter = 0; filter < shape_.filters; ++filter) {
                    output[filter * call_.output_stride_filter] = 0;
                }
                if (call_.argmax == nullptr) continue;
                int32_t* argmax = call_.argmax + (n * shape_.pooled + pool) * shape_.filters;
                for (int64_t filter = 0; filter < shape_.filters; ++filter) argmax[filter] = -1;
            }
        }
    }

 private:
    // The same of one vector, lane by lane.
    template <class Candidate, class Window>
    [[gnu::noinline]] static void take_with_nan(int64_t rows, int64_t v, Candidate& candidate,
                                                Window& window, Vector& best, Vector& winner) {
        T maxima[Vector::width], winners[Vector::width];
        best.store(maxima);
        winner.store(winners);
        for (int64_t row = 0; row < rows; ++row) {
            T candidates[Vector::width], windows[Vector::width];
            candidate(row, v).store(candidates);
            window(row, v).store(windows);
            for (int64_t lane = 0; lane < Vector::width; ++lane) {
                if (candidates[lane] <= maxima[lane] || maxima[lane] != maxima[lane]) continue;
                maxima[lane] = candidates[lane];
                std::memcpy(winners + lane, windows + lane, sizeof(T));
            }
        }
        best = Vector::load(maxima);
        winner = Vector::load(winners);
    }

    const ConvolutionForward<T>& call_;
    const ConvolutionShape& shape_;
};

}  // namespace seqkernels
