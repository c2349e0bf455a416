// Calls of the CPU's recurrence kernels, checked: every size, stride and dtype of the views.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor_view.h"
#include "cpu_where.h"
#include "expect.h"

namespace seqkernels {

// The samples that each step of packed sequences has; nothing where sequences are not packed.
using BatchSizes = std::optional<std::vector<int64_t>>;

// What a forward call is given; each view but those of `input`, the weights and `output` may be
// absent.
struct ForwardViews {
    TensorView input;
    OptionalView initial_hidden, initial_cell;
    TensorView weight_ih, weight_hh;
    OptionalView bias_ih, bias_hh;
    OptionalView lengths;
    TensorView output;
    OptionalView final_hidden, final_cell, gates, cells;
};

// And a backward call, but for those of `input`, the weights and `output`.
struct BackwardViews {
    TensorView input;
    OptionalView initial_hidden, initial_cell;
    TensorView weight_ih, weight_hh;
    OptionalView lengths;
    TensorView output;
    OptionalView gates, cells, grad_output, grad_final_hidden, grad_final_cell;
    OptionalView grad_input, grad_initial_hidden, grad_initial_cell;
    OptionalView grad_weight_ih, grad_weight_hh, grad_bias;
};

// The weights of one layer in one direction.
struct LayerWeights {
    TensorView weight_ih, weight_hh;
    OptionalView bias_ih, bias_hh;
};

// One layer in one direction, and its gradients.
void run_forward(const std::string& cell, bool reverse, const ForwardViews& views,
                 const BatchSizes& batch_sizes, const CpuPlace& place);
void run_backward(const std::string& cell, bool reverse, const BackwardViews& views,
                  const BatchSizes& batch_sizes, const CpuPlace& place);

// A stack of layers, in one direction or, where `directions` is 2, in both: the output of a layer,
// (T, N, directions * H), is the input of the next. Weights, initial and final states, (layers *
// directions, N, H), are those of layer after layer, in each of the direction that reads forwards
// first.
void run_stack(const std::string& cell, int64_t directions, const TensorView& input,
               const OptionalView& initial_hidden, const OptionalView& initial_cell,
               const std::vector<LayerWeights>& weights, const OptionalView& lengths,
               const BatchSizes& batch_sizes, const TensorView& output,
               const OptionalView& final_hidden, const OptionalView& final_cell,
               const CpuPlace& place);

}  // namespace seqkernels
