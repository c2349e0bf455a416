// The CUDA kernel that stays for a whole sequence beside the one launched for each step, which the
// Python tests hold against the reference, on an emulated GPU.
#include "check.h"
#include "cuda/cluster.h"
#include "cuda/recurrence.h"
#include "cuda/recurrence_plan.h"

namespace seqkernels::testing {
namespace {

using cuda::RecurrenceKernel;
using cuda::emulated::Order;

struct Case {
    int64_t steps;
    int64_t batch;
    int64_t hidden;
    RecurrentCell cell;
    bool reverse;
    bool ragged;
};

std::vector<Case> cases() {
    using C = RecurrentCell;
    return {
        {5, 3, 7, C::lstm, false, false},     // one block, part of its units
        {4, 17, 20, C::lstm, true, true},     // three blocks, two slices
        {3, 70, 40, C::lstm, false, true},    // 16 units, three tiles of rows, two slices
        {3, 20, 100, C::lstm, false, false},  // 16 units, rows for which 8 have no room
        {4, 40, 20, C::lstm, true, true},     // 8 units, two tiles of rows, two slices
        {3, 60, 110, C::lstm, false, true},   // 16 units, four tiles of rows
        {6, 2, 33, C::rnn_tanh, false, true}, {4, 40, 50, C::rnn_relu, true, false},
        {3, 4, 110, C::rnn_tanh, true, true},  // fewer steps of depth than warps
        {150, 3, 7, C::lstm, false, true},     // the exchange's slots again and again
        {130, 9, 6, C::rnn_tanh, true, true},
    };
}

template <class T>
std::vector<T> vector_of(int64_t count) {
    return std::vector<T>(static_cast<std::size_t>(count));
}

// A case's arguments, and what the kernels make of them.
template <class T>
struct Problem {
    RecurrenceShape shape{};
    int64_t states;
    bool has_cell;
    std::vector<int64_t> lengths;
    std::vector<float> projections;
    std::vector<T> hidden, cell, weight, bias_ih, bias_hh;
    std::vector<T> grad_output, grad_hidden, grad_cell;

    struct Forward {
        std::vector<T> output, final_hidden, final_cell;
        std::vector<float> gates, cells;
    };
    struct Backward {
        std::vector<T> grad_gates, grad_hidden, grad_cell;
    };

    explicit Problem(const Case& test) : has_cell(test.cell == RecurrentCell::lstm) {
        shape.steps = test.steps;
        shape.batch = test.batch;
        shape.hidden = test.hidden;
        shape.cell = test.cell;
        shape.reverse = test.reverse;
        states = test.batch * test.hidden;
        const int64_t rows = shape.gates() * test.hidden;
        for (int64_t n = 0; test.ragged && n < test.batch; ++n) {
            lengths.push_back(n * 3 % (test.steps + 1));
        }
        projections = random_numbers<float>(test.steps * test.batch * rows, 1);
        hidden = random_numbers<T>(states, 2);
        cell = random_numbers<T>(states, 3);
        weight = random_numbers<T>(rows * test.hidden, 4);
        for (T& number : weight) number = rounded_to<T>(double(widen(number)) / 4);
        bias_ih = random_numbers<T>(rows, 5);
        bias_hh = random_numbers<T>(rows, 6);
        grad_output = random_numbers<T>(test.steps * states, 7);
        grad_hidden = random_numbers<T>(states, 8);
        grad_cell = random_numbers<T>(states, 9);
    }

    Forward forward(RecurrenceKernel kernel, bool training) const {
        const int64_t rows = shape.gates() * shape.hidden;
        Forward results{vector_of<T>(shape.steps * states),
                        vector_of<T>(states),
                        vector_of<T>(has_cell ? states : 0),
                        {},
                        {}};
        std::vector<float> running = vector_of<float>(states);
        cuda::RecurrenceForward<T> call{};
        call.shape = shape;
        call.projections = projections.data();
        call.bias_ih = bias_ih.data();
        call.bias_hh = bias_hh.data();
        call.initial_hidden = hidden.data();
        call.weight = weight.data();
        call.lengths = lengths.empty() ? nullptr : lengths.data();
        call.output = results.output.data();
        call.final_hidden = results.final_hidden.data();
        if (has_cell) {
            call.initial_cell = cell.data();
            call.final_cell = results.final_cell.data();
            call.cell = running.data();
        }
        if (has_cell && training) {
            results.gates = vector_of<float>(shape.steps * shape.batch * rows);
            results.cells = vector_of<float>(shape.steps * states);
            call.gates = results.gates.data();
            call.cells = results.cells.data();
        }
        with_scratch(cuda::Pass::forward, kernel, [&](const cuda::Where& where) {
            cuda::recurrence_forward(call, kernel, where);
        });
        return results;
    }

    Backward backward(RecurrenceKernel kernel, const Forward& before) const {
        const int64_t rows = shape.gates() * shape.hidden;
        Backward results{vector_of<T>(shape.steps * shape.batch * rows), vector_of<T>(states),
                         vector_of<T>(has_cell ? states : 0)};
        std::vector<float> running = vector_of<float>(states);
        cuda::RecurrenceBackward<T> call{};
        call.shape = shape;
        call.weight = weight.data();
        call.lengths = lengths.empty() ? nullptr : lengths.data();
        call.output = before.output.data();
        call.grad_output = grad_output.data();
        call.grad_final_hidden = grad_hidden.data();
        call.grad_gates = results.grad_gates.data();
        call.grad_initial_hidden = results.grad_hidden.data();
        if (has_cell) {
            call.initial_cell = cell.data();
            call.gates = before.gates.data();
            call.cells = before.cells.data();
            call.grad_final_cell = grad_cell.data();
            call.grad_cell = running.data();
            call.grad_initial_cell = results.grad_cell.data();
        }
        with_scratch(cuda::Pass::backward, kernel, [&](const cuda::Where& where) {
            cuda::recurrence_backward(call, kernel, where);
        });
        return results;
    }

 private:
    template <class Run>
    void with_scratch(cuda::Pass pass, RecurrenceKernel kernel, Run&& run) const {
        const int64_t bytes = cuda::scratch_bytes<T>(shape, pass, kernel, 0);
        CHECK(bytes == 0 || kernel != RecurrenceKernel::simple);
        std::vector<char> scratch(static_cast<std::size_t>(bytes), 0x7F);
        run(cuda::Where{0, nullptr, scratch.data()});
    }
};

template <class A>
bool is_near(const std::vector<A>& found, const std::vector<A>& expected, double tolerance) {
    std::vector<double> exact;
    for (const A& number : expected) exact.push_back(double(widen(number)));
    return exact.empty() || relative_error(found, exact) <= tolerance;
}

template <class T>
void compare(const Case& test) {
    const Problem<T> problem(test);
    // The sums differ by their order, which may round a state or gradient the other way; in float32
    // the simple ones' error grows with the hundreds of numbers that they add.
    const double tolerance = (is_sixteen_bit<T> ? 4 : 16) * epsilon<T>();
    const auto expected = problem.forward(RecurrenceKernel::simple, true);
    for (const bool training : {false, true}) {
        const auto found = problem.forward(RecurrenceKernel::fastest, training);
        CHECK(is_near(found.output, expected.output, tolerance));
        CHECK(is_near(found.final_hidden, expected.final_hidden, tolerance));
        CHECK(is_near(found.final_cell, expected.final_cell, tolerance));
        if (training) {
            CHECK(is_near(found.gates, expected.gates, tolerance));
            CHECK(is_near(found.cells, expected.cells, tolerance));
        }
    }
    const auto exact = problem.backward(RecurrenceKernel::simple, expected);
    const auto found = problem.backward(RecurrenceKernel::fastest, expected);
    CHECK(is_near(found.grad_gates, exact.grad_gates, tolerance));
    CHECK(is_near(found.grad_hidden, exact.grad_hidden, tolerance));
    CHECK(is_near(found.grad_cell, exact.grad_cell, tolerance));
}

TEST(emulated_cuda_recurrence_that_stays_agrees_with_one_step_after_another) {
    int turn = 0;
    for (const Case& test : cases()) {
        cuda::emulated::order = turn++ % 2 == 0 ? Order::forwards : Order::backwards;
        cuda::emulated::cluster_blocks = cuda::most_blocks_of_cluster;
        compare<Bfloat16>(test);
        cuda::emulated::cluster_blocks = 0;
        if (!is_watched || turn % 2 == 0) compare<Float16>(test);
        if (!is_watched || turn % 2 == 1) compare<float>(test);
    }
    cuda::emulated::cluster_blocks = cuda::most_blocks_of_cluster;
    cuda::emulated::order = Order::forwards;
}

TEST(emulated_cuda_recurrence_has_weights_beyond_its_registers_in_shared_memory) {
    cuda::emulated::multiprocessor_count = 20;
    cuda::emulated::cluster_blocks = 0;
    compare<float>({2, 1, 272, RecurrentCell::lstm, false, false});
    cuda::emulated::cluster_blocks = cuda::most_blocks_of_cluster;
    cuda::emulated::multiprocessor_count = cuda::emulated::few_multiprocessors;
}

TEST(recurrence_plans_fit_the_gpu) {
    constexpr int64_t h100_shared = 227 * 1024;
    constexpr cuda::RecurrenceGpu h100{true, 132, h100_shared, cuda::most_blocks_of_cluster};
    for (const int64_t hidden : {1, 8, 100, 128, 256, 512, 650, 768, 1024, 1056, 2048, 4096}) {
        for (const int64_t batch : {1, 16, 17, 64, 65, 128, 1000}) {
            for (const RecurrentCell cell : {RecurrentCell::lstm, RecurrentCell::rnn_tanh}) {
                RecurrenceShape shape{};
                shape.steps = 10;
                shape.batch = batch;
                shape.hidden = hidden;
                shape.cell = cell;
                for (const cuda::Pass pass : {cuda::Pass::forward, cuda::Pass::backward}) {
                    const auto [plan, refusal] =
                        cuda::plan_recurrence(shape, 2, pass, RecurrenceKernel::fastest, h100);
                    CHECK(plan.fits == refusal.empty());
                    if (!plan.fits) continue;
                    CHECK(plan.blocks() <= 132);
                    CHECK(plan.rounds <= cuda::most_rounds);
                    CHECK(plan.slices * plan.rows() >= batch);
                    CHECK(plan.unit_blocks * plan.units >= hidden);
                    CHECK(cuda::persistent_shared_bytes(plan) <= h100_shared);
                }
            }
        }
    }
    // What README says of an H100.
    struct Limit {
        int64_t hidden, batch, element_bytes;
        bool fits;
    };
    for (const auto& [hidden, batch, element_bytes, fits] : {Limit{768, 16, 2, true},
                                                             {2048, 64, 2, true},
                                                             {2048, 65, 2, false},
                                                             {768, 128, 2, true},
                                                             {4096, 1, 2, false},
                                                             {768, 64, 4, true},
                                                             {1024, 64, 4, false}}) {
        RecurrenceShape shape{};
        shape.steps = 1024;
        shape.batch = batch;
        shape.hidden = hidden;
        const auto is_fitting = [&](cuda::Pass pass) {
            return cuda::plan_recurrence(shape, element_bytes, pass, RecurrenceKernel::fastest,
                                         h100)
                .plan.fits;
        };
        if (fits) CHECK(is_fitting(cuda::Pass::forward));
        CHECK(is_fitting(cuda::Pass::backward) == fits);
    }
}

TEST(recurrence_plans_say_why_a_kernel_does_not_fit) {
    constexpr cuda::RecurrenceGpu h100{true, 132, 227 * 1024, cuda::most_blocks_of_cluster};
    constexpr cuda::RecurrenceGpu a100{true, 108, 163 * 1024, 0};
    constexpr cuda::RecurrenceGpu few{true, 132, 227 * 1024, 8};
    constexpr cuda::RecurrenceGpu emptied{true, 132, 1024, cuda::most_blocks_of_cluster};
    constexpr cuda::RecurrenceGpu old{false, 132, 227 * 1024, cuda::most_blocks_of_cluster};
    using Kernel = RecurrenceKernel;
    struct Refusal {
        int64_t steps, batch, hidden, element_bytes;
        Kernel kernel;
        cuda::RecurrenceGpu gpu;
        const char* says;
    };
    for (const Refusal& test : {
             Refusal{9, 8, 256, 2, Kernel::cluster, h100, ""},
             {9, 8, 256, 2, Kernel::persistent, h100, ""},
             {9, 8, 256, 8, Kernel::fastest, h100, "expected numbers of 2 or 4 bytes, got 8"},
             {1, 8, 256, 2, Kernel::persistent, h100, "expected 2 steps or more, got 1"},
             {9, 0, 256, 2, Kernel::cluster, h100, "expected 1 sample or more, got 0"},
             {9, 8, 0, 2, Kernel::cluster, h100, "expected 1 hidden unit or more, got 0"},
             {9, 8, 256, 2, Kernel::fastest, old,
              "expected a GPU that lets blocks cooperate, got one that does not"},
             {9, 8, 256, 4, Kernel::cluster, h100, "expected numbers of 2 bytes, got 4"},
             {9, 8, 257, 2, Kernel::cluster, h100, "expected up to 256 hidden units, got 257"},
             {9, 8, 16, 2, Kernel::cluster, h100, "expected more than 16 hidden units, got 16"},
             {9, 8, 256, 2, Kernel::cluster, a100, "expected a GPU with clusters, got one without"},
             {9, 8, 256, 2, Kernel::cluster, few, "expected clusters of up to 8 blocks, got 16"},
             {9, 57, 256, 2, Kernel::cluster, h100, "expected up to 56 samples, got 57"},
             {9, 8, 256, 2, Kernel::cluster, emptied,
              "expected up to 1024 bytes of shared memory a block, got 42000"},
             {9, 8, 2113, 2, Kernel::persistent, h100,
              "expected up to 2112 hidden units, got 2113"},
             {9, 129, 1024, 2, Kernel::persistent, h100, "expected up to 128 samples, got 129"},
         }) {
        RecurrenceShape shape{};
        shape.steps = test.steps;
        shape.batch = test.batch;
        shape.hidden = test.hidden;
        const auto choice = cuda::plan_recurrence(shape, test.element_bytes, cuda::Pass::forward,
                                                  test.kernel, test.gpu);
        CHECK(choice.refusal == test.says);
        CHECK(choice.plan.fits == choice.refusal.empty());
    }
    RecurrenceShape shape{};
    shape.steps = 9, shape.batch = 8, shape.hidden = 256;
    for (const cuda::Pass pass : {cuda::Pass::forward, cuda::Pass::backward}) {
        const auto by = [&](Kernel kernel) {
            return cuda::plan_recurrence(shape, 2, pass, kernel, h100).plan;
        };
        CHECK(by(Kernel::cluster).in_cluster && by(Kernel::fastest).in_cluster);
        CHECK(by(Kernel::persistent).fits && !by(Kernel::persistent).in_cluster);
        CHECK(!by(Kernel::simple).fits);
    }
}

}  // namespace
}  // namespace seqkernels::testing
