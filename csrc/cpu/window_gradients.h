// The gradients of windows, before the activation, for dense products with them:
//   g[w, f] = sum over pools p that window w won for filter f of
//             grad_output[p, f] * activation'(output[p, f])
// zero for windows that won none.
//
// Cost: a load, an addition and a store for each pool and window of it. Limit: L1.
#pragma once

#include <cstdint>
#include <cstring>

#include "convolution_input.h"
#include "product.h"
#include "winner_gradients.h"

namespace seqkernels {

// Windows of a pool up to which dense products pay: g is made of that many places of each pool (AMD
// family 26, pools that overlap but for one or two windows, C and F 64: of 8 faster or 4 % slower
// than winner by winner, of 32 up to 30 %).
constexpr int64_t largest_dense_pool = 8;

template <class Vector, class Number>
class WindowGradients {
    using T = typename Vector::Element;

 public:
    explicit WindowGradients(const ConvolutionBackward<Number>& call)
        : call_(call), shape_(call.shape), winners_(call) {}

    int64_t windows(int64_t n) const {
        return shape_.windows(sample_length(shape_, call_.lengths, n));
    }

    // Room for the pools of up to `windows` windows.
    int64_t scratch_elements(int64_t windows) const {
        const int64_t pools = smaller(shape_.pooled, windows / shape_.pool_stride + 2 +
                                                         shape_.pool_size / shape_.pool_stride);
        return checked_product({pools, shape_.filters});
    }

    // Some windows of a sample, (windows, F) contiguous. scratch: as much as scratch_elements says.
    void of_windows(int64_t n, Range own, T* target, T* scratch) const {
        const int64_t filters = shape_.filters, count = windows(n);
        std::memset(target, 0, static_cast<std::size_t>(own.count() * filters) * sizeof(T));
        const Range pools = pools_of(own, count);
        if (pools.count() <= 0) return;
        winners_.of_pools(n, pools, {0, filters}, scratch);
        for (int64_t pool = pools.begin; pool < pools.end; ++pool, scratch += filters) {
            const Range of_pool = windows_of_pool(shape_, pool, count);
            const int32_t* argmax = call_.argmax + (n * shape_.pooled + pool) * filters;
            const Range here{larger(own.begin, of_pool.begin), smaller(own.end, of_pool.end)};
            for (int64_t f = 0; f < filters; f += Vector::width) {
                const int64_t there = filters - f;
                const Vector gradient = load_up_to<Vector>(scratch + f, there);
                for (int64_t window = here.begin; window < here.end; ++window) {
                    const auto wins =
                        Vector::are_integer(argmax + f, there, static_cast<int32_t>(window));
                    T* const place = target + (window - own.begin) * filters + f;
                    const Vector part = select(wins, gradient, Vector::broadcast(0));
                    store_up_to(load_up_to<Vector>(place, there) + part, place, there);
                }
            }
        }
    }

 private:
    // The pools that have any of these windows, of a sample with `count`.
    Range pools_of(Range windows, int64_t count) const {
        const int64_t before = larger(0, windows.begin - shape_.pool_size + 1);
        const int64_t end = divide_rounding_up(windows.end, shape_.pool_stride);
        return {divide_rounding_up(before, shape_.pool_stride), smaller(shape_.pools(count), end)};
    }

    const ConvolutionBackward<Number>& call_;
    const ConvolutionShape& shape_;
    const WinnerGradients<Vector, Number> winners_;
};

}  // namespace seqkernels
