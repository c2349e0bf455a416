// Several small convolutions side by side, each cut by filters: one thread a part.
#pragma once

#include <cstdint>
#include <exception>
#include <vector>

#include "../core/convolution.h"
#include "../core/range.h"

namespace seqkernels {

class ConvolutionBankParts {
 public:
    explicit ConvolutionBankParts(int threads);
    ~ConvolutionBankParts();

    // Whether a call is small enough, and can be cut: winners lie sample after sample.
    static bool takes(const ConvolutionShape& shape, bool has_winners);

    // The filters of a call, in as many parts as there are threads if so many panels of vectors
    // are in them. cost: of a vector of filters
    void add(int64_t call, int64_t filters, int64_t vector_filters, int64_t panel_vectors,
             int64_t cost);

    // Gives the parts to the threads, the costliest first, each to the one that has the least to
    // do. Returns whether all then have about as much.
    bool share_out();

    // Computes them. compute(context, call, filters): whether it could
    void run(bool (*compute)(const void* context, int64_t call, Range filters),
             const void* context);

    // Whether all of a call could be computed.
    bool is_computed(int64_t call) const;

 private:
    struct Part {
        int64_t call;
        Range filters;
        int64_t cost;
        int thread;
        bool is_computed;
        std::exception_ptr error;
    };

    const int threads_;
    std::vector<Part> parts_;
};

}  // namespace seqkernels
