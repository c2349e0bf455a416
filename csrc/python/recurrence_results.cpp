// Recurrences whose results native code allocates, by torch: as steps of Python that takes as long
// as a cell's kernel.
#include <array>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "core/checked.h"
#include "module.h"
#include "plain.h"
#include "recurrence_calls.h"
#include "recurrence_face.h"
#include "tensor_caster.h"

namespace seqkernels {
namespace {

namespace py = pybind11;

TensorView required_view(py::handle object) {
    TensorView view;
    if (!view_of(object, view)) throw py::type_error("expected a tensor");
    return view;
}

OptionalView optional_view(py::handle object) {
    if (object.is_none()) return std::nullopt;
    return required_view(object);
}

// What compute() returns, or None where it finds something wrong.
template <class Compute>
py::object or_none(Compute&& compute) {
    try {
        return compute();
    } catch (const std::invalid_argument&) {
        return py::none();
    } catch (const py::builtin_exception&) {
        return py::none();
    } catch (const py::error_already_set& error) {
        for (PyObject* kind : {PyExc_RuntimeError, PyExc_TypeError, PyExc_ValueError}) {
            if (error.matches(kind)) return py::none();
        }
        throw;
    }
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

OptionalView optional_sequence(py::handle object) {
    if (object.is_none()) return std::nullopt;
    return as_sequence(required_view(object));
}

// A step is multiplied by vectors, so no precision is asked for.
CpuPlace place_of_step() { return {thread_count(), FloatPrecision::highest}; }

// The states of one step, its input (N, I), after hidden and cell_state, None of an RNN: a sequence
// of length 1 whose output is the next state. Of an LSTM, gates (N, 4 H) and cells (N, H) are where
// what the backward will read is left; or None.
py::tuple run_step(const std::string& cell, py::handle input, py::handle hidden,
                   py::handle cell_state, py::handle weight_ih, py::handle weight_hh,
                   py::handle bias_ih, py::handle bias_hh, py::handle gates, py::handle cells) {
    const TensorView sequence = required_view(input);
    expect_dimensions("input", sequence, 2);
    const py::object next = empty_like(hidden);
    const py::object next_cell =
        cell_state.is_none() ? py::object(py::none()) : empty_like(cell_state);
    run_forward(
        cell, false,
        {as_sequence(sequence), required_view(hidden), optional_view(cell_state),
         required_view(weight_ih), required_view(weight_hh), optional_view(bias_ih),
         optional_view(bias_hh), std::nullopt, as_sequence(required_view(next)), std::nullopt,
         optional_view(next_cell), optional_sequence(gates), optional_sequence(cells)},
        std::nullopt, place_of_step());
    if (cell_state.is_none()) return py::make_tuple(next);
    return py::make_tuple(next, next_cell);
}

// The next states of a call that needs nothing but its kernel. None where the arguments are not as
// that takes them or need more than it; nothing has been computed then, and nothing is said of what
// is wrong.
py::object step(const std::string& cell, py::handle input, const py::sequence& states,
                py::handle weight_ih, py::handle weight_hh, py::handle bias_ih,
                py::handle bias_hh) {
    const auto count = states.size();
    if (count < 1 || count > 2) return py::none();
    const py::object hidden = states[0];
    const py::object cell_state = count == 2 ? py::object(states[1]) : py::none();
    PyObject* const given[] = {input.ptr(),     hidden.ptr(),  cell_state.ptr(), weight_ih.ptr(),
                               weight_hh.ptr(), bias_ih.ptr(), bias_hh.ptr()};
    if (want_gradient(given, std::size(given)) != false) return py::none();
    return or_none([&]() -> py::object {
        return run_step(cell, input, hidden, cell_state, weight_ih, weight_hh, bias_ih, bias_hh,
                        py::none(), py::none());
    });
}

// The same of plain tensors, with what the backward will read. What is wrong is raised.
py::tuple step_forward(const std::string& cell, py::handle input, py::handle hidden,
                       py::handle cell_state, py::handle weight_ih, py::handle weight_hh,
                       py::handle bias_ih, py::handle bias_hh, py::handle gates, py::handle cells) {
    if (bias_ih.is_none() != bias_hh.is_none()) {
        throw std::invalid_argument("bias_hh: expected a tensor where bias_ih is one, else None");
    }
    // Their gradients are allocated as they are.
    expect_contiguous("weight_ih", required_view(weight_ih));
    expect_contiguous("weight_hh", required_view(weight_hh));
    return run_step(cell, input, hidden, cell_state, weight_ih, weight_hh, bias_ih, bias_hh, gates,
                    cells);
}

// The gradients of input, hidden, cell_state, weight_ih, weight_hh and of either bias, None where
// `needs`, in that order, has False. gates and cells are those of an LSTM's step, next_hidden is an
// RNN's: else they are None.
py::tuple step_backward(const std::string& cell, py::handle input, py::handle hidden,
                        py::handle cell_state, py::handle weight_ih, py::handle weight_hh,
                        py::handle bias, py::handle next_hidden, py::handle gates, py::handle cells,
                        py::handle grad_hidden, py::handle grad_cell,
                        const std::array<bool, 6>& needs) {
    const TensorView sequence = required_view(input);
    expect_dimensions("input", sequence, 2);
    const auto room = [&](std::size_t i, py::handle like) {
        return needs[i] ? empty_like(like) : py::object(py::none());
    };
    // Rows of the input may lie apart.
    const py::object grad_input =
        needs[0] ? input.attr("new_empty")(sequence.sizes[0], sequence.sizes[1])
                 : py::object(py::none());
    const py::object grad_before = room(1, hidden), grad_cell_before = room(2, cell_state),
                     grad_weight_ih = room(3, weight_ih), grad_weight_hh = room(4, weight_hh),
                     grad_bias = room(5, bias);
    run_backward(
        cell, false,
        {as_sequence(sequence), required_view(hidden), optional_view(cell_state),
         required_view(weight_ih), required_view(weight_hh), std::nullopt,
         as_sequence(required_view(next_hidden.is_none() ? hidden : next_hidden)),
         optional_sequence(gates), optional_sequence(cells), std::nullopt,
         optional_view(grad_hidden), optional_view(grad_cell), optional_sequence(grad_input),
         optional_view(grad_before), optional_view(grad_cell_before), optional_view(grad_weight_ih),
         optional_view(grad_weight_hh), optional_view(grad_bias)},
        std::nullopt, place_of_step());
    return py::make_tuple(grad_input, grad_before, grad_cell_before, grad_weight_ih, grad_weight_hh,
                          grad_bias);
}

// The output and final states of a stack of layers (run_stack); states: the initial ones, or None.
// A group of weights are weight_ih and weight_hh, and bias_ih and bias_hh if there are any. None as
// `step`.
py::object stack(const std::string& cell, int64_t directions, py::handle input, py::handle states,
                 py::handle lengths, py::handle batch_sizes, const py::list& weights,
                 const CpuWhere& where) {
    return or_none([&]() -> py::object {
        const auto sizes = batch_sizes.cast<BatchSizes>();
        const auto initial = states.is_none() ? py::tuple() : states.cast<py::tuple>();
        std::vector<PyObject*> given{input.ptr(), lengths.ptr()};
        for (const py::handle state : initial) given.push_back(state.ptr());
        for (const py::handle group : weights) {
            const auto own = group.cast<py::list>();
            if (own.size() != 2 && own.size() != 4) return py::none();
            for (const py::handle tensor : own) given.push_back(tensor.ptr());
        }
        if (want_gradient(given.data(), static_cast<Py_ssize_t>(given.size())) != false) {
            return py::none();
        }
        const TensorView sequences = required_view(input);
        expect_dimensions("input", sequences, sizes ? 2 : 3);
        std::vector<LayerWeights> views;
        for (const py::handle group : weights) {
            const auto own = group.cast<py::list>();
            const bool has_bias = own.size() == 4;
            views.push_back({required_view(own[0]), required_view(own[1]),
                             has_bias ? optional_view(own[2]) : std::nullopt,
                             has_bias ? optional_view(own[3]) : std::nullopt});
        }
        if (views.empty() || (directions != 1 && directions != 2)) return py::none();
        expect_dimensions("weight_hh", views[0].weight_hh, 2);
        const int64_t hidden = views[0].weight_hh.sizes[1];
        const int64_t width = checked_product({directions, hidden});
        const auto count = static_cast<int64_t>(views.size());
        if (sizes && sizes->empty()) return py::none();
        const int64_t batch = sizes ? sizes->front() : sequences.sizes[1];
        const auto is_lstm = cell_named(cell) == RecurrentCell::lstm;
        if (initial.size() != (states.is_none() ? 0u : is_lstm ? 2u : 1u)) return py::none();
        OptionalView initial_views[2];
        for (std::size_t i = 0; i < initial.size(); ++i)
            initial_views[i] = required_view(initial[i]);

        const py::object new_empty = input.attr("new_empty");
        const py::object output = sizes ? new_empty(sequences.sizes[0], width)
                                        : new_empty(sequences.sizes[0], sequences.sizes[1], width);
        const py::object final_hidden = new_empty(count, batch, hidden);
        const py::object final_cell = is_lstm ? new_empty(count, batch, hidden) : py::none();
        run_stack(cell, directions, sequences, initial_views[0], initial_views[1], views,
                  optional_view(lengths), sizes, required_view(output), required_view(final_hidden),
                  optional_view(final_cell), place_of(where));
        if (is_lstm) return py::make_tuple(output, final_hidden, final_cell);
        return py::make_tuple(output, final_hidden);
    });
}

}  // namespace

void define_recurrence_results(py::module_& module) {
    module.def("recurrence_step", &step);
    module.def("recurrence_step_forward", &step_forward);
    module.def("recurrence_step_backward", &step_backward);
    module.def("recurrence_stack", &stack);
}

}  // namespace seqkernels
