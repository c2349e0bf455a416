// The CUDA kernel that stays for a whole sequence beside the one launched for each step, which the
// Python tests hold against the reference, on an emulated GPU.
#include "check.h"
#include "cuda/device.h"
#include "cuda/recurrence.h"
#include "cuda/recurrence_plan.h"

namespace seqkernels::testing {
namespace {

using cuda::Kernels;
using cuda::emulated::Order;

struct Case {
    int64_t steps;
    int64_t batch;
    int64_t hidden;
    RecurrentCell cell;
    bool reverse;
    bool ragged;
    bool training;
};

std::vector<Case> cases() {
    using C = RecurrentCell;
    return {
        {5, 3, 7, C::lstm, false, false, true},     // one block, part of its units
        {4, 17, 20, C::lstm, true, true, true},     // three blocks, two slices
        {3, 70, 40, C::lstm, false, true, false},   // 8 units: all multiprocessors, two row tiles
        {3, 20, 100, C::lstm, false, false, true},  // 16 units, rows for which 8 have no room
        {6, 2, 33, C::rnn_tanh, false, true, false}, {4, 40, 50, C::rnn_relu, true, false, false},
        {3, 4, 110, C::rnn_tanh, true, true, false},  // fewer steps of depth than warps
    };
}

template <class T>
struct Results {
    std::vector<T> output, final_hidden, final_cell;
    std::vector<float> gates, cells;
};

template <class T>
std::vector<T> vector_of(int64_t count) {
    return std::vector<T>(static_cast<std::size_t>(count));
}

template <class T>
Results<T> run(const Case& test, Kernels kernels) {
    cuda::RecurrenceForward<T> call{};
    RecurrenceShape& shape = call.shape;
    shape.steps = test.steps;
    shape.batch = test.batch;
    shape.hidden = test.hidden;
    shape.cell = test.cell;
    shape.reverse = test.reverse;
    const int64_t rows = shape.gates() * test.hidden, states = test.batch * test.hidden;
    const bool has_cell = test.cell == RecurrentCell::lstm;

    const std::vector<float> projections = random_numbers<float>(test.steps * test.batch * rows, 1);
    const std::vector<T> hidden = random_numbers<T>(states, 2), cell = random_numbers<T>(states, 3);
    std::vector<T> weight = random_numbers<T>(test.hidden * rows, 4);
    for (T& number : weight) number = rounded_to<T>(double(widen(number)) / 4);
    const std::vector<T> bias_ih = random_numbers<T>(rows, 5), bias_hh = random_numbers<T>(rows, 6);
    std::vector<int64_t> lengths;
    for (int64_t n = 0; n < test.batch; ++n) lengths.push_back(n * 3 % (test.steps + 1));

    Results<T> results{vector_of<T>(test.steps * states),
                       vector_of<T>(states),
                       vector_of<T>(has_cell ? states : 0),
                       {},
                       {}};
    std::vector<float> running = vector_of<float>(states);
    call.projections = projections.data();
    call.bias_ih = bias_ih.data();
    call.bias_hh = bias_hh.data();
    call.initial_hidden = hidden.data();
    call.weight_transposed = weight.data();
    call.lengths = test.ragged ? lengths.data() : nullptr;
    call.output = results.output.data();
    call.final_hidden = results.final_hidden.data();
    if (has_cell) {
        call.initial_cell = cell.data();
        call.final_cell = results.final_cell.data();
        call.cell = running.data();
        if (test.training) {
            results.gates = vector_of<float>(test.steps * test.batch * rows);
            results.cells = vector_of<float>(test.steps * states);
            call.gates = results.gates.data();
            call.cells = results.cells.data();
        }
    }
    const int64_t bytes = cuda::scratch_bytes<T>(shape, kernels, 0);
    CHECK((bytes > 0) == (kernels == Kernels::fast));
    std::vector<char> scratch(static_cast<std::size_t>(bytes), 0x7F);
    cuda::recurrence_forward(call, kernels, cuda::Where{0, nullptr, scratch.data()});
    return results;
}

template <class A>
bool is_near(const std::vector<A>& found, const std::vector<A>& expected, double tolerance) {
    std::vector<double> exact;
    for (const A& number : expected) exact.push_back(double(widen(number)));
    return exact.empty() || relative_error(found, exact) <= tolerance;
}

template <class T>
void compare(const Case& test) {
    const Results<T> expected = run<T>(test, Kernels::simple);
    const Results<T> found = run<T>(test, Kernels::fast);
    // The sums differ by their order, which may round a state the other way.
    const double tolerance = 4 * epsilon<T>();
    CHECK(is_near(found.output, expected.output, tolerance));
    CHECK(is_near(found.final_hidden, expected.final_hidden, tolerance));
    CHECK(is_near(found.final_cell, expected.final_cell, tolerance));
    CHECK(is_near(found.gates, expected.gates, tolerance));
    CHECK(is_near(found.cells, expected.cells, tolerance));
}

TEST(emulated_cuda_recurrence_that_stays_agrees_with_one_step_after_another) {
    int turn = 0;
    for (const Case& test : cases()) {
        cuda::emulated::order = turn++ % 2 == 0 ? Order::forwards : Order::backwards;
        compare<Bfloat16>(test);
        compare<Float16>(test);
    }
    cuda::emulated::order = Order::forwards;
}

TEST(recurrence_plans_fit_the_gpu) {
    constexpr int64_t h100_shared = 227 * 1024;
    for (const int64_t hidden : {1, 8, 100, 128, 256, 512, 650, 768, 1024, 1056, 2048, 4096}) {
        for (const int64_t batch : {1, 16, 17, 64, 65, 128, 1000}) {
            for (const RecurrentCell cell : {RecurrentCell::lstm, RecurrentCell::rnn_tanh}) {
                RecurrenceShape shape{};
                shape.steps = 10;
                shape.batch = batch;
                shape.hidden = hidden;
                shape.cell = cell;
                const cuda::RecurrencePlan plan = cuda::plan_recurrence(shape, 132, h100_shared);
                if (!plan.fits) continue;
                const int columns = static_cast<int>(shape.gates()) * plan.units;
                CHECK(plan.blocks(hidden) <= 132);
                CHECK(plan.row_tiles <= cuda::most_row_tiles);
                CHECK(plan.slices * plan.rows() >= batch);
                CHECK(plan.unit_blocks(hidden) * plan.units >= hidden);
                CHECK(cuda::persistent_shared_bytes(hidden, columns) <= h100_shared);
            }
        }
    }
    RecurrenceShape shape{};
    shape.batch = 16;
    shape.hidden = 768;
    CHECK(cuda::plan_recurrence(shape, 132, h100_shared).fits);
    shape.hidden = 4096;
    CHECK(!cuda::plan_recurrence(shape, 132, h100_shared).fits);
}

}  // namespace
}  // namespace seqkernels::testing
