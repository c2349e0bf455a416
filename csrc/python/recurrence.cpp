// Face of the recurrence kernels: checks and unpacks views.
#include <optional>
#include <string>
#include <vector>

#include "core/checked.h"
#include "core/range.h"
#include "core/scratch.h"
#include "cpu/isa.h"
#include "cpu/recurrence_layers.h"
#include "cpu_where.h"
#include "expect.h"
#include "module.h"
#include "recurrence_calls.h"
#include "recurrence_face.h"
#include "tensor_caster.h"

namespace seqkernels {
namespace {

namespace py = pybind11;

const int64_t* data_of(const BatchSizes& batch_sizes) {
    return batch_sizes ? batch_sizes->data() : nullptr;
}

void expect_batch_sizes(const std::vector<int64_t>& batch_sizes, int64_t rows) {
    int64_t left = rows, most = rows;
    for (std::size_t step = 0; step < batch_sizes.size(); ++step) {
        const int64_t size = batch_sizes[step];
        if (size < 1 || size > most) {
            const char* which = step == 0 ? ", the rows of input," : ", that of the step before,";
            throw std::invalid_argument("batch_sizes: expected from 1 to " + std::to_string(most) +
                                        which + " at step " + std::to_string(step) + ", got " +
                                        std::to_string(size));
        }
        most = size;
        if (size > left) {
            throw std::invalid_argument("batch_sizes: expected a sum of " + std::to_string(rows) +
                                        ", the rows of input, got more");
        }
        left -= size;
    }
    if (left != 0 || batch_sizes.empty()) {
        throw std::invalid_argument("batch_sizes: expected a sum of " + std::to_string(rows) +
                                    ", the rows of input, got " + std::to_string(rows - left));
    }
}

RecurrenceShape checked_shape(const TensorView& input, const BatchSizes& batch_sizes,
                              const TensorView& weight_ih, const TensorView& weight_hh,
                              const std::string& cell, bool reverse) {
    expect_dimensions("input", input, batch_sizes ? 2 : 3);
    expect_dimensions("weight_hh", weight_hh, 2);
    RecurrenceShape shape{};
    if (batch_sizes) {
        expect_batch_sizes(*batch_sizes, input.sizes[0]);
        shape.steps = static_cast<int64_t>(batch_sizes->size());
        shape.batch = batch_sizes->front();
    } else {
        shape.steps = input.sizes[0];
        shape.batch = input.sizes[1];
    }
    shape.inputs = input.sizes[input.dimensions - 1];
    shape.hidden = weight_hh.sizes[1];
    shape.cell = cell_named(cell);
    shape.reverse = reverse;
    const int64_t gate_rows = checked_product({shape.gates(), shape.hidden});
    expect("weight_ih", weight_ih, input.dtype, {gate_rows, shape.inputs});
    expect("weight_hh", weight_hh, input.dtype, {gate_rows, shape.hidden});
    const bool is_empty = shape.steps == 0 || shape.batch == 0;
    if (!is_empty && shape.inputs > 1 && input.strides[input.dimensions - 1] != 1) {
        throw std::invalid_argument(
            "input: expected unit stride in the last dimension, got strides " +
            shape_text(input.strides, input.dimensions));
    }
    constexpr int64_t element = sizeof(double);
    checked_product({shape.steps, shape.batch, gate_rows, element});
    checked_product({shape.steps, shape.batch, shape.inputs, element});
    checked_product({gate_rows, shape.inputs, element});
    checked_product({gate_rows, shape.hidden, element});
    checked_product({gate_rows, shape.inputs + shape.hidden, element});
    return shape;
}

template <class T>
RecurrenceInput<T> input_view(const TensorView& view) {
    const int64_t stride_batch = view.strides[view.dimensions - 2];
    return {static_cast<const T*>(view.data), view.strides[0], stride_batch};
}

// Data of a contiguous array with the sizes of `input`, but `last` in its last dimension; null
// where it is absent.
template <class T>
T* sequence_data(const char* name, const OptionalView& view, DataType dtype,
                 const TensorView& input, int64_t last) {
    const int64_t* sizes = input.sizes;
    return input.dimensions == 2
               ? contiguous_data<T>(name, view, dtype, {sizes[0], last})
               : contiguous_data<T>(name, view, dtype, {sizes[0], sizes[1], last});
}

// Lengths, which packed sequences have not.
const int64_t* lengths_of(const OptionalView& lengths, const RecurrenceShape& shape,
                          const BatchSizes& batch_sizes) {
    if (batch_sizes) expect_given("lengths", lengths, false);
    return expect_lengths(lengths, shape.batch, shape.steps);
}

Matrix matrix_view(const TensorView& view) {
    return {{view.data, view.dtype}, view.strides[0], view.strides[1]};
}

// The checked call. A row of output holds what each of the `directions` gives, one after the other;
// this is the `direction`th.
template <class T>
RecurrenceForward<T> forward_call(const RecurrenceShape& shape, const ForwardViews& views,
                                  const BatchSizes& batch_sizes, int64_t directions,
                                  int64_t direction) {
    const bool has_cell = shape.cell == RecurrentCell::lstm;
    expect_given("initial_cell", views.initial_cell, has_cell && views.initial_hidden.has_value());
    expect_given("final_cell", views.final_cell, has_cell);
    if (!has_cell) expect_given("cells", views.cells, false);
    expect_given("gates", views.gates, views.cells.has_value());
    const TensorView& input = views.input;
    const DataType dtype = input.dtype;
    constexpr DataType accumulated = data_type_of<Accumulator<T>>();
    const int64_t batch = shape.batch, hidden = shape.hidden;
    const int64_t gate_rows = shape.gates() * hidden;
    const auto state = [&](const char* name, const OptionalView& view) {
        return contiguous_data<T>(name, view, dtype, {batch, hidden});
    };
    RecurrenceForward<T> call{};
    call.shape = shape;
    call.input = input_view<T>(input);
    call.initial_hidden = state("initial_hidden", views.initial_hidden);
    call.initial_cell = state("initial_cell", views.initial_cell);
    call.weight_ih = matrix_view(views.weight_ih);
    call.weight_hh = matrix_view(views.weight_hh);
    call.bias_ih = contiguous_data<T>("bias_ih", views.bias_ih, dtype, {gate_rows});
    call.bias_hh = contiguous_data<T>("bias_hh", views.bias_hh, dtype, {gate_rows});
    call.lengths = lengths_of(views.lengths, shape, batch_sizes);
    call.batch_sizes = data_of(batch_sizes);
    call.output_stride = checked_product({directions, hidden});
    call.output = sequence_data<T>("output", views.output, dtype, input, call.output_stride);
    if (call.output != nullptr) call.output += direction * hidden;
    call.final_hidden = state("final_hidden", views.final_hidden);
    call.final_cell = state("final_cell", views.final_cell);
    call.gates = sequence_data<Accumulator<T>>("gates", views.gates, accumulated, input, gate_rows);
    call.cells = sequence_data<Accumulator<T>>("cells", views.cells, accumulated, input, hidden);
    return call;
}

// Entry i of an array of `count`, of three dimensions; nothing of nothing.
template <class T>
OptionalView entry_of(const char* name, const OptionalView& views, int64_t count, int64_t i) {
    if (!views) return std::nullopt;
    expect_dimensions(name, *views, 3);
    if (views->sizes[0] != count) {
        throw std::invalid_argument(std::string(name) + ": expected " + std::to_string(count) +
                                    " of them, one of each layer and direction, got shape " +
                                    shape_text(views->sizes, 3));
    }
    TensorView entry = *views;
    entry.dimensions = 2;
    for (int d = 0; d < 2; ++d) {
        entry.sizes[d] = views->sizes[d + 1];
        entry.strides[d] = views->strides[d + 1];
    }
    entry.data = static_cast<T*>(entry.data) + i * views->strides[0];
    return entry;
}

}  // namespace

void run_forward(const std::string& cell, bool reverse, const ForwardViews& views,
                 const BatchSizes& batch_sizes, const CpuPlace& place) {
    const RecurrenceShape shape =
        checked_shape(views.input, batch_sizes, views.weight_ih, views.weight_hh, cell, reverse);
    with_element_type("input", views.input, [&](auto element) {
        using T = decltype(element);
        const RecurrenceForward<T> call = forward_call<T>(shape, views, batch_sizes, 1, 0);
        const py::gil_scoped_release release;
        active_kernels().at<T>(place.precision).recurrence_forward(call, place.threads);
    });
}

void run_stack(const std::string& cell, int64_t directions, const TensorView& input,
               const OptionalView& initial_hidden, const OptionalView& initial_cell,
               const std::vector<LayerWeights>& weights, const OptionalView& lengths,
               const BatchSizes& batch_sizes, const TensorView& output,
               const OptionalView& final_hidden, const OptionalView& final_cell,
               const CpuPlace& place) {
    const auto count = static_cast<int64_t>(weights.size());
    if (count % directions != 0) {
        throw std::invalid_argument("weights: expected those of layers in " +
                                    std::to_string(directions) + " directions, got " +
                                    std::to_string(count));
    }
    with_element_type("input", input, [&](auto element) {
        using T = decltype(element);
        const int64_t layers = count / directions;
        int64_t numbers = 1;
        for (int i = 0; i < output.dimensions; ++i) {
            numbers = checked_product({numbers, output.sizes[i]});
        }
        // Of each layer that runs at once with others, and of the one below.
        const int64_t outputs_between = smaller(layers - 1, most_side_by_side + 1);
        const Scratch<T> between(checked_product({outputs_between, numbers}));
        const auto output_of = [&](int64_t layer) {
            if (layer + 1 == layers) return output;
            TensorView view = output;
            view.data = between.data() + layer % outputs_between * numbers;
            return view;
        };
        std::vector<RecurrenceForward<T>> calls;
        calls.reserve(weights.size());
        for (int64_t i = 0; i < count; ++i) {
            const int64_t layer = i / directions, direction = i % directions;
            const TensorView of_layer = layer == 0 ? input : output_of(layer - 1);
            const LayerWeights& own = weights[static_cast<std::size_t>(i)];
            const RecurrenceShape shape = checked_shape(of_layer, batch_sizes, own.weight_ih,
                                                        own.weight_hh, cell, direction == 1);
            if (i > 0 && shape.hidden != calls[0].shape.hidden) {
                throw std::invalid_argument(
                    "weight_hh: expected " + std::to_string(calls[0].shape.hidden) +
                    " units in all layers, got " + std::to_string(shape.hidden));
            }
            const ForwardViews views{of_layer,
                                     entry_of<T>("initial_hidden", initial_hidden, count, i),
                                     entry_of<T>("initial_cell", initial_cell, count, i),
                                     own.weight_ih,
                                     own.weight_hh,
                                     own.bias_ih,
                                     own.bias_hh,
                                     lengths,
                                     output_of(layer),
                                     entry_of<T>("final_hidden", final_hidden, count, i),
                                     entry_of<T>("final_cell", final_cell, count, i),
                                     std::nullopt,
                                     std::nullopt};
            calls.push_back(forward_call<T>(shape, views, batch_sizes, directions, direction));
        }
        const py::gil_scoped_release release;
        run_layers<T>(calls.data(), layers, directions, active_kernels().at<T>(place.precision),
                      place.threads);
    });
}

void run_backward(const std::string& cell, bool reverse, const BackwardViews& views,
                  const BatchSizes& batch_sizes, const CpuPlace& place) {
    const RecurrenceShape shape =
        checked_shape(views.input, batch_sizes, views.weight_ih, views.weight_hh, cell, reverse);
    const bool has_cell = shape.cell == RecurrentCell::lstm;
    expect_given("initial_cell", views.initial_cell, has_cell && views.initial_hidden.has_value());
    expect_given("gates", views.gates, has_cell);
    expect_given("cells", views.cells, has_cell);
    if (!has_cell) expect_given("grad_initial_cell", views.grad_initial_cell, false);
    const DataType dtype = views.input.dtype;
    const int64_t batch = shape.batch, hidden = shape.hidden;
    const int64_t gate_rows = shape.gates() * hidden;
    with_element_type("input", views.input, [&](auto element) {
        using T = decltype(element);
        constexpr DataType accumulated = data_type_of<Accumulator<T>>();
        RecurrenceBackward<T> call{};
        call.shape = shape;
        call.input = input_view<T>(views.input);
        call.initial_hidden =
            contiguous_data<T>("initial_hidden", views.initial_hidden, dtype, {batch, hidden});
        call.initial_cell =
            contiguous_data<T>("initial_cell", views.initial_cell, dtype, {batch, hidden});
        call.weight_ih = matrix_view(views.weight_ih);
        call.weight_hh = matrix_view(views.weight_hh);
        call.lengths = lengths_of(views.lengths, shape, batch_sizes);
        call.batch_sizes = data_of(batch_sizes);
        call.output = sequence_data<T>("output", views.output, dtype, views.input, hidden);
        call.gates = sequence_data<Accumulator<T>>("gates", views.gates, accumulated, views.input,
                                                   gate_rows);
        call.cells =
            sequence_data<Accumulator<T>>("cells", views.cells, accumulated, views.input, hidden);
        call.grad_output =
            sequence_data<T>("grad_output", views.grad_output, dtype, views.input, hidden);
        call.grad_final_hidden = contiguous_data<T>("grad_final_hidden", views.grad_final_hidden,
                                                    dtype, {batch, hidden});
        call.grad_final_cell =
            contiguous_data<T>("grad_final_cell", views.grad_final_cell, dtype, {batch, hidden});
        call.grad_input =
            sequence_data<T>("grad_input", views.grad_input, dtype, views.input, shape.inputs);
        call.grad_initial_hidden = contiguous_data<T>(
            "grad_initial_hidden", views.grad_initial_hidden, dtype, {batch, hidden});
        call.grad_initial_cell = contiguous_data<T>("grad_initial_cell", views.grad_initial_cell,
                                                    dtype, {batch, hidden});
        call.grad_weight_ih = contiguous_data<T>("grad_weight_ih", views.grad_weight_ih, dtype,
                                                 {gate_rows, shape.inputs});
        call.grad_weight_hh =
            contiguous_data<T>("grad_weight_hh", views.grad_weight_hh, dtype, {gate_rows, hidden});
        call.grad_bias = contiguous_data<T>("grad_bias", views.grad_bias, dtype, {gate_rows});
        const py::gil_scoped_release release;
        active_kernels().at<T>(place.precision).recurrence_backward(call, place.threads);
    });
}

namespace {

void forward(const std::string& cell, bool reverse, const TensorView& input,
             const OptionalView& initial_hidden, const OptionalView& initial_cell,
             const TensorView& weight_ih, const TensorView& weight_hh, const OptionalView& bias_ih,
             const OptionalView& bias_hh, const OptionalView& lengths,
             const BatchSizes& batch_sizes, const TensorView& output,
             const OptionalView& final_hidden, const OptionalView& final_cell,
             const OptionalView& gates, const OptionalView& cells, const CpuWhere& where) {
    run_forward(cell, reverse,
                {input, initial_hidden, initial_cell, weight_ih, weight_hh, bias_ih, bias_hh,
                 lengths, output, final_hidden, final_cell, gates, cells},
                batch_sizes, place_of(where));
}

void backward(const std::string& cell, bool reverse, const TensorView& input,
              const OptionalView& initial_hidden, const OptionalView& initial_cell,
              const TensorView& weight_ih, const TensorView& weight_hh, const OptionalView& lengths,
              const BatchSizes& batch_sizes, const TensorView& output, const OptionalView& gates,
              const OptionalView& cells, const OptionalView& grad_output,
              const OptionalView& grad_final_hidden, const OptionalView& grad_final_cell,
              const OptionalView& grad_input, const OptionalView& grad_initial_hidden,
              const OptionalView& grad_initial_cell, const OptionalView& grad_weight_ih,
              const OptionalView& grad_weight_hh, const OptionalView& grad_bias,
              const CpuWhere& where) {
    run_backward(
        cell, reverse,
        {input, initial_hidden, initial_cell, weight_ih, weight_hh, lengths, output, gates, cells,
         grad_output, grad_final_hidden, grad_final_cell, grad_input, grad_initial_hidden,
         grad_initial_cell, grad_weight_ih, grad_weight_hh, grad_bias},
        batch_sizes, place_of(where));
}

}  // namespace

void define_recurrence(pybind11::module_& module) {
    module.def("recurrence_forward", &forward);
    module.def("recurrence_backward", &backward);
}

}  // namespace seqkernels
