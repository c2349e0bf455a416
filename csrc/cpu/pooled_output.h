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

    // Windows are taken in order: of equal ones the first wins, and NaN over numbers.
    static void take_maximum(Vector candidate, Vector window, Vector& best, Vector& winner) {
        const typename Vector::Mask better = replaces_maximum(candidate, best);
        best = select(better, candidate, best);
        winner = select(better, window, winner);
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
        T bits[Vector::width];
        winner.store(bits);
        int32_t* argmax = call_.argmax + (n * shape_.pooled + pool) * shape_.filters + filter;
        for (int64_t lane = 0; lane < count; ++lane) {
            typename Vector::Integer window;
            std::memcpy(&window, bits + lane, sizeof window);
            argmax[lane] = static_cast<int32_t>(window);
        }
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
    const ConvolutionForward<T>& call_;
    const ConvolutionShape& shape_;
};

}  // namespace seqkernels
