// Face of the recurrence kernels: checks and unpacks views.
#include "core/checked.h"
#include "cpu/isa.h"
#include "cpu_where.h"
#include "expect.h"
#include "module.h"
#include "recurrence_face.h"
#include "tensor_caster.h"

namespace seqkernels {
namespace {

namespace py = pybind11;

RecurrenceShape checked_shape(const TensorView& input, const TensorView& weight_ih,
                              const TensorView& weight_hh, const std::string& cell, bool reverse) {
    expect_dimensions("input", input, 3);
    expect_dimensions("weight_hh", weight_hh, 2);
    RecurrenceShape shape{};
    shape.steps = input.sizes[0];
    shape.batch = input.sizes[1];
    shape.inputs = input.sizes[2];
    shape.hidden = weight_hh.sizes[1];
    shape.cell = cell_named(cell);
    shape.reverse = reverse;
    const int64_t gate_rows = checked_product({shape.gates(), shape.hidden});
    expect("weight_ih", weight_ih, input.dtype, {gate_rows, shape.inputs});
    expect("weight_hh", weight_hh, input.dtype, {gate_rows, shape.hidden});
    const bool is_empty = shape.steps == 0 || shape.batch == 0;
    if (!is_empty && shape.inputs > 1 && input.strides[2] != 1) {
        throw std::invalid_argument(
            "input: expected unit stride in the last dimension, got strides " +
            shape_text(input.strides, 3));
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
    return {static_cast<const T*>(view.data), view.strides[0], view.strides[1]};
}

Matrix matrix_view(const TensorView& view) {
    return {{view.data, view.dtype}, view.strides[0], view.strides[1]};
}

// The same elements with a first dimension of 1; of too many dimensions, unchanged.
TensorView as_sequence(const TensorView& view) {
    if (view.dimensions >= max_dimensions) return view;
    TensorView sequence = view;
    sequence.dimensions = view.dimensions + 1;
    sequence.sizes[0] = 1;
    sequence.strides[0] = 0;
    for (int i = 0; i < view.dimensions; ++i) {
        sequence.sizes[i + 1] = view.sizes[i];
        sequence.strides[i + 1] = view.strides[i];
    }
    return sequence;
}

void forward(const std::string& cell, bool reverse, const TensorView& input,
             const OptionalView& initial_hidden, const OptionalView& initial_cell,
             const TensorView& weight_ih, const TensorView& weight_hh, const OptionalView& bias_ih,
             const OptionalView& bias_hh, const OptionalView& lengths, const TensorView& output,
             const OptionalView& final_hidden, const OptionalView& final_cell,
             const OptionalView& gates, const OptionalView& cells, const CpuWhere& where) {
    const RecurrenceShape shape = checked_shape(input, weight_ih, weight_hh, cell, reverse);
    const bool has_cell = shape.cell == RecurrentCell::lstm;
    expect_given("initial_cell", initial_cell, has_cell && initial_hidden.has_value());
    expect_given("final_cell", final_cell, has_cell);
    if (!has_cell) expect_given("cells", cells, false);
    expect_given("gates", gates, cells.has_value());
    const CpuPlace place = place_of(where);
    const DataType dtype = input.dtype;
    const int64_t steps = shape.steps, batch = shape.batch, hidden = shape.hidden;
    const int64_t gate_rows = shape.gates() * hidden;
    with_element_type("input", input, [&](auto element) {
        using T = decltype(element);
        constexpr DataType accumulated = data_type_of<Accumulator<T>>();
        RecurrenceForward<T> call{};
        call.shape = shape;
        call.input = input_view<T>(input);
        call.initial_hidden =
            contiguous_data<T>("initial_hidden", initial_hidden, dtype, {batch, hidden});
        call.initial_cell =
            contiguous_data<T>("initial_cell", initial_cell, dtype, {batch, hidden});
        call.weight_ih = matrix_view(weight_ih);
        call.weight_hh = matrix_view(weight_hh);
        call.bias_ih = contiguous_data<T>("bias_ih", bias_ih, dtype, {gate_rows});
        call.bias_hh = contiguous_data<T>("bias_hh", bias_hh, dtype, {gate_rows});
        call.lengths = expect_lengths(lengths, batch, steps);
        call.output = contiguous_data<T>("output", output, dtype, {steps, batch, hidden});
        call.final_hidden =
            contiguous_data<T>("final_hidden", final_hidden, dtype, {batch, hidden});
        call.final_cell = contiguous_data<T>("final_cell", final_cell, dtype, {batch, hidden});
        call.gates =
            contiguous_data<Accumulator<T>>("gates", gates, accumulated, {steps, batch, gate_rows});
        call.cells =
            contiguous_data<Accumulator<T>>("cells", cells, accumulated, {steps, batch, hidden});
        const py::gil_scoped_release release;
        active_kernels().at<T>(place.precision).recurrence_forward(call, place.threads);
    });
}

// One step, of 2-dimensional arguments: a sequence of length 1 whose output is the next state.
void step(const std::string& cell, const TensorView& input, const TensorView& hidden,
          const OptionalView& cell_state, const TensorView& weight_ih, const TensorView& weight_hh,
          const OptionalView& bias_ih, const OptionalView& bias_hh, const TensorView& next_hidden,
          const OptionalView& next_cell_state, const CpuWhere& where) {
    expect_dimensions("input", input, 2);
    forward(cell, false, as_sequence(input), hidden, cell_state, weight_ih, weight_hh, bias_ih,
            bias_hh, std::nullopt, as_sequence(next_hidden), std::nullopt, next_cell_state,
            std::nullopt, std::nullopt, where);
}

void backward(const std::string& cell, bool reverse, const TensorView& input,
              const TensorView& initial_hidden, const OptionalView& initial_cell,
              const TensorView& weight_ih, const TensorView& weight_hh, const OptionalView& lengths,
              const TensorView& output, const OptionalView& gates, const OptionalView& cells,
              const OptionalView& grad_output, const OptionalView& grad_final_hidden,
              const OptionalView& grad_final_cell, const TensorView& grad_gates,
              const OptionalView& grad_input, const TensorView& grad_initial_hidden,
              const OptionalView& grad_initial_cell, const OptionalView& grad_weight_ih,
              const OptionalView& grad_weight_hh, const OptionalView& grad_bias,
              const CpuWhere& where) {
    const RecurrenceShape shape = checked_shape(input, weight_ih, weight_hh, cell, reverse);
    const bool has_cell = shape.cell == RecurrentCell::lstm;
    expect_given("initial_cell", initial_cell, has_cell);
    expect_given("gates", gates, has_cell);
    expect_given("cells", cells, has_cell);
    expect_given("grad_initial_cell", grad_initial_cell, has_cell);
    const CpuPlace place = place_of(where);
    const DataType dtype = input.dtype;
    const int64_t steps = shape.steps, batch = shape.batch, hidden = shape.hidden;
    const int64_t gate_rows = shape.gates() * hidden;
    with_element_type("input", input, [&](auto element) {
        using T = decltype(element);
        constexpr DataType accumulated = data_type_of<Accumulator<T>>();
        RecurrenceBackward<T> call{};
        call.shape = shape;
        call.input = input_view<T>(input);
        call.initial_hidden =
            contiguous_data<T>("initial_hidden", initial_hidden, dtype, {batch, hidden});
        call.initial_cell =
            contiguous_data<T>("initial_cell", initial_cell, dtype, {batch, hidden});
        call.weight_ih = matrix_view(weight_ih);
        call.weight_hh = matrix_view(weight_hh);
        call.lengths = expect_lengths(lengths, batch, steps);
        call.output = contiguous_data<T>("output", output, dtype, {steps, batch, hidden});
        call.gates =
            contiguous_data<Accumulator<T>>("gates", gates, accumulated, {steps, batch, gate_rows});
        call.cells =
            contiguous_data<Accumulator<T>>("cells", cells, accumulated, {steps, batch, hidden});
        call.grad_output =
            contiguous_data<T>("grad_output", grad_output, dtype, {steps, batch, hidden});
        call.grad_final_hidden =
            contiguous_data<T>("grad_final_hidden", grad_final_hidden, dtype, {batch, hidden});
        call.grad_final_cell =
            contiguous_data<T>("grad_final_cell", grad_final_cell, dtype, {batch, hidden});
        call.grad_gates = contiguous_data<Accumulator<T>>("grad_gates", grad_gates, accumulated,
                                                          {steps, batch, gate_rows});
        call.grad_input =
            contiguous_data<T>("grad_input", grad_input, dtype, {steps, batch, shape.inputs});
        call.grad_initial_hidden =
            contiguous_data<T>("grad_initial_hidden", grad_initial_hidden, dtype, {batch, hidden});
        call.grad_initial_cell =
            contiguous_data<T>("grad_initial_cell", grad_initial_cell, dtype, {batch, hidden});
        call.grad_weight_ih =
            contiguous_data<T>("grad_weight_ih", grad_weight_ih, dtype, {gate_rows, shape.inputs});
        call.grad_weight_hh =
            contiguous_data<T>("grad_weight_hh", grad_weight_hh, dtype, {gate_rows, hidden});
        call.grad_bias = contiguous_data<T>("grad_bias", grad_bias, dtype, {gate_rows});
        const py::gil_scoped_release release;
        active_kernels().at<T>(place.precision).recurrence_backward(call, place.threads);
    });
}

}  // namespace

void define_recurrence(py::module_& module) {
    module.def("recurrence_forward", &forward);
    module.def("recurrence_step", &step);
    module.def("recurrence_backward", &backward);
}

}  // namespace seqkernels
