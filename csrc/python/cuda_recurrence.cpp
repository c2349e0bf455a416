// Face of the CUDA recurrence kernels: checks and unpacks views.
#include "core/checked.h"
#include "cuda/recurrence.h"
#include "cuda_module.h"
#include "cuda_where.h"
#include "recurrence_face.h"
#include "tensor_caster.h"

namespace seqkernels {
namespace {

namespace py = pybind11;

// Raises where the arrays of these sizes would overflow 64 bits.
RecurrenceShape shape_of(const std::string& cell, int64_t steps, int64_t batch, int64_t hidden) {
    RecurrenceShape shape{};
    shape.steps = steps;
    shape.batch = batch;
    shape.hidden = hidden;
    shape.cell = cell_named(cell);
    const int64_t rows = checked_product({shape.gates(), hidden});
    checked_product({steps, batch, rows, int64_t(sizeof(double))});
    checked_product({rows, hidden, int64_t(sizeof(double))});
    return shape;
}

// Sizes of projections (T, N, G H) with H hidden units.
RecurrenceShape checked_shape(const TensorView& projections, int64_t hidden,
                              const std::string& cell, bool reverse) {
    expect_dimensions("projections", projections, 3);
    RecurrenceShape shape = shape_of(cell, projections.sizes[0], projections.sizes[1], hidden);
    shape.reverse = reverse;
    return shape;
}

void expect_step(int64_t step, int64_t least, const RecurrenceShape& shape) {
    if (step >= least && step < shape.steps) return;
    throw std::invalid_argument("step: expected " + std::to_string(least) + " to " +
                                std::to_string(shape.steps - 1) + ", got " + std::to_string(step));
}

void forward(const std::string& cell, bool reverse, const TensorView& projections,
             const TensorView& initial_hidden, const OptionalView& initial_cell,
             const TensorView& weight, const OptionalView& bias_ih, const OptionalView& bias_hh,
             const OptionalView& lengths, const TensorView& output, const TensorView& final_hidden,
             const OptionalView& final_cell, const OptionalView& running_cell,
             const OptionalView& gates, const OptionalView& cells, const OptionalView& recurrent,
             int64_t step, const CudaWhere& where) {
    expect_dimensions("weight", weight, 2);
    const RecurrenceShape shape = checked_shape(projections, weight.sizes[1], cell, reverse);
    const bool has_cell = shape.cell == RecurrentCell::lstm;
    expect_given("initial_cell", initial_cell, has_cell);
    expect_given("final_cell", final_cell, has_cell);
    expect_given("running_cell", running_cell, has_cell);
    if (!has_cell) expect_given("cells", cells, false);
    expect_given("gates", gates, cells.has_value());
    if (recurrent) expect_step(step, 0, shape);
    expect_device(projections.device, {{"initial_hidden", &initial_hidden},
                                       {"initial_cell", if_there(initial_cell)},
                                       {"weight", &weight},
                                       {"bias_ih", if_there(bias_ih)},
                                       {"bias_hh", if_there(bias_hh)},
                                       {"lengths", if_there(lengths)},
                                       {"output", &output},
                                       {"final_hidden", &final_hidden},
                                       {"final_cell", if_there(final_cell)},
                                       {"running_cell", if_there(running_cell)},
                                       {"gates", if_there(gates)},
                                       {"cells", if_there(cells)},
                                       {"recurrent", if_there(recurrent)}});
    const DataType dtype = initial_hidden.dtype;
    const int64_t steps = shape.steps, batch = shape.batch, hidden = shape.hidden;
    const int64_t rows = shape.gates() * hidden;
    with_element_type("initial_hidden", initial_hidden, [&](auto element) {
        using T = decltype(element);
        using Number = Accumulator<T>;
        constexpr DataType accumulated = data_type_of<Number>();
        cuda::RecurrenceForward<T> call{};
        call.shape = shape;
        call.projections =
            contiguous_data<Number>("projections", projections, accumulated, {steps, batch, rows});
        call.initial_hidden =
            contiguous_data<T>("initial_hidden", initial_hidden, dtype, {batch, hidden});
        call.initial_cell =
            contiguous_data<T>("initial_cell", initial_cell, dtype, {batch, hidden});
        call.weight = contiguous_data<T>("weight", weight, dtype, {rows, hidden});
        call.bias_ih = contiguous_data<T>("bias_ih", bias_ih, dtype, {rows});
        call.bias_hh = contiguous_data<T>("bias_hh", bias_hh, dtype, {rows});
        call.lengths = contiguous_data<int64_t>("lengths", lengths, DataType::int64, {batch});
        call.output = contiguous_data<T>("output", output, dtype, {steps, batch, hidden});
        call.final_hidden =
            contiguous_data<T>("final_hidden", final_hidden, dtype, {batch, hidden});
        call.final_cell = contiguous_data<T>("final_cell", final_cell, dtype, {batch, hidden});
        call.cell =
            contiguous_data<Number>("running_cell", running_cell, accumulated, {batch, hidden});
        call.gates = contiguous_data<Number>("gates", gates, accumulated, {steps, batch, rows});
        call.cells = contiguous_data<Number>("cells", cells, accumulated, {steps, batch, hidden});
        call.recurrent =
            contiguous_data<Number>("recurrent", recurrent, accumulated, {batch, rows});
        call.step = step;
        const cuda::RecurrenceKernel kernel = recurrence_kernel_named(std::get<2>(where));
        const int64_t bytes =
            cuda::scratch_bytes<T>(shape, cuda::Pass::forward, kernel, projections.device);
        const cuda::Where place = place_of(where, bytes, projections.device);
        const py::gil_scoped_release release;
        cuda::recurrence_forward(call, kernel, place);
    });
}

void backward(const std::string& cell, bool reverse, const TensorView& grad_gates,
              const OptionalView& initial_cell, const TensorView& weight,
              const OptionalView& lengths, const TensorView& output, const OptionalView& gates,
              const OptionalView& cells, const OptionalView& grad_output,
              const OptionalView& grad_final_hidden, const OptionalView& grad_final_cell,
              const OptionalView& running_grad_cell, const TensorView& grad_initial_hidden,
              const OptionalView& grad_initial_cell, const OptionalView& from_following,
              const OptionalView& step_gates, int64_t step, const CudaWhere& where) {
    expect_dimensions("weight", weight, 2);
    const RecurrenceShape shape = checked_shape(grad_gates, weight.sizes[1], cell, reverse);
    const bool has_cell = shape.cell == RecurrentCell::lstm;
    expect_given("initial_cell", initial_cell, has_cell);
    expect_given("gates", gates, has_cell);
    expect_given("cells", cells, has_cell);
    expect_given("running_grad_cell", running_grad_cell, has_cell);
    expect_given("grad_initial_cell", grad_initial_cell, has_cell);
    if (!has_cell) expect_given("grad_final_cell", grad_final_cell, false);
    expect_given("step_gates", step_gates, from_following.has_value());
    if (from_following) expect_step(step, -1, shape);
    expect_device(grad_gates.device, {{"initial_cell", if_there(initial_cell)},
                                      {"weight", &weight},
                                      {"lengths", if_there(lengths)},
                                      {"output", &output},
                                      {"gates", if_there(gates)},
                                      {"cells", if_there(cells)},
                                      {"grad_output", if_there(grad_output)},
                                      {"grad_final_hidden", if_there(grad_final_hidden)},
                                      {"grad_final_cell", if_there(grad_final_cell)},
                                      {"running_grad_cell", if_there(running_grad_cell)},
                                      {"grad_initial_hidden", &grad_initial_hidden},
                                      {"grad_initial_cell", if_there(grad_initial_cell)},
                                      {"from_following", if_there(from_following)},
                                      {"step_gates", if_there(step_gates)}});
    const DataType dtype = grad_gates.dtype;
    const int64_t steps = shape.steps, batch = shape.batch, hidden = shape.hidden;
    const int64_t rows = shape.gates() * hidden;
    with_element_type("grad_gates", grad_gates, [&](auto element) {
        using T = decltype(element);
        using Number = Accumulator<T>;
        constexpr DataType accumulated = data_type_of<Number>();
        cuda::RecurrenceBackward<T> call{};
        call.shape = shape;
        call.initial_cell =
            contiguous_data<T>("initial_cell", initial_cell, dtype, {batch, hidden});
        call.weight = contiguous_data<T>("weight", weight, dtype, {rows, hidden});
        call.lengths = contiguous_data<int64_t>("lengths", lengths, DataType::int64, {batch});
        call.output = contiguous_data<T>("output", output, dtype, {steps, batch, hidden});
        call.gates = contiguous_data<Number>("gates", gates, accumulated, {steps, batch, rows});
        call.cells = contiguous_data<Number>("cells", cells, accumulated, {steps, batch, hidden});
        call.grad_output =
            contiguous_data<T>("grad_output", grad_output, dtype, {steps, batch, hidden});
        call.grad_final_hidden =
            contiguous_data<T>("grad_final_hidden", grad_final_hidden, dtype, {batch, hidden});
        call.grad_final_cell =
            contiguous_data<T>("grad_final_cell", grad_final_cell, dtype, {batch, hidden});
        call.grad_cell = contiguous_data<Number>("running_grad_cell", running_grad_cell,
                                                 accumulated, {batch, hidden});
        call.grad_gates = contiguous_data<T>("grad_gates", grad_gates, dtype, {steps, batch, rows});
        call.grad_initial_hidden =
            contiguous_data<T>("grad_initial_hidden", grad_initial_hidden, dtype, {batch, hidden});
        call.grad_initial_cell =
            contiguous_data<T>("grad_initial_cell", grad_initial_cell, dtype, {batch, hidden});
        call.from_following =
            contiguous_data<Number>("from_following", from_following, accumulated, {batch, hidden});
        call.step_gates = contiguous_data<T>("step_gates", step_gates, dtype, {batch, rows});
        call.step = step;
        const cuda::RecurrenceKernel kernel = recurrence_kernel_named(std::get<2>(where));
        const int64_t bytes =
            cuda::scratch_bytes<T>(shape, cuda::Pass::backward, kernel, grad_gates.device);
        const cuda::Where place = place_of(where, bytes, grad_gates.device);
        const py::gil_scoped_release release;
        cuda::recurrence_backward(call, kernel, place);
    });
}

cuda::Pass pass_of(bool is_forward) {
    return is_forward ? cuda::Pass::forward : cuda::Pass::backward;
}

// Bytes of scratch that a pass over states like `initial_hidden`, (N, H), needs, a multiple of 256.
int64_t scratch(const std::string& cell, int64_t steps, const TensorView& initial_hidden,
                bool is_forward, const std::string& kernel) {
    expect_dimensions("initial_hidden", initial_hidden, 2);
    const RecurrenceShape shape =
        shape_of(cell, steps, initial_hidden.sizes[0], initial_hidden.sizes[1]);
    int64_t bytes = 0;
    with_element_type("initial_hidden", initial_hidden, [&](auto element) {
        bytes = cuda::scratch_bytes<decltype(element)>(
            shape, pass_of(is_forward), recurrence_kernel_named(kernel), initial_hidden.device);
    });
    return bytes;
}

// Why a kernel that stays for the whole sequence does not fit, or nothing; slices of the batch,
// blocks of a slice, units of a block; products of a step, samples of one.
using Plan = std::tuple<std::string, int64_t, int64_t, int, int64_t, int>;

Plan plan(const std::string& cell, int64_t steps, int64_t batch, int64_t hidden,
          int64_t element_bytes, bool is_forward, const std::string& kernel, int device) {
    const RecurrenceShape shape = shape_of(cell, steps, batch, hidden);
    const auto [plan, refusal] = cuda::staying_plan(shape, element_bytes, pass_of(is_forward),
                                                    recurrence_kernel_named(kernel), device);
    return {refusal,    plan.slices, plan.unit_blocks,
            plan.units, plan.rounds, plan.sample_tiles * cuda::samples_of_matrix};
}

}  // namespace

void define_cuda_recurrence(py::module_& module) {
    module.def("recurrence_plan", &plan);
    module.def("recurrence_scratch", &scratch);
    module.def("recurrence_forward", &forward);
    module.def("recurrence_backward", &backward);
}

}  // namespace seqkernels
