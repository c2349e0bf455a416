// The recurrence kernels: forward against loops over the equations, backward against differences of
// it, in arrays of exactly the size they need.
#include <algorithm>
#include <functional>
#include <limits>
#include <tuple>
#include <utility>

#include "check.h"

namespace seqkernels::testing {
namespace {

using Numbers = std::vector<double>;

// One problem in double. `parameters` in the order input, hidden, cell, weight_ih, weight_hh, bias.
struct Problem {
    RecurrenceShape shape;
    std::vector<int64_t> lengths;
    Numbers input, hidden, cell, weight_ih, weight_hh, bias;
    Numbers grad_output, grad_final_hidden, grad_final_cell;

    Problem(RecurrenceShape recurrence, bool ragged) : shape(recurrence) {
        const RecurrenceShape& s = shape;
        const int64_t rows = s.gates() * s.hidden;
        input = random_numbers<double>(s.steps * s.batch * s.inputs, 1);
        hidden = random_numbers<double>(s.batch * s.hidden, 2);
        cell = random_numbers<double>(s.batch * s.hidden, 3);
        weight_ih = random_numbers<double>(rows * s.inputs, 4);
        weight_hh = random_numbers<double>(rows * s.hidden, 5);
        bias = random_numbers<double>(rows, 6);
        for (double& weight : weight_hh) weight /= std::sqrt(static_cast<double>(s.hidden));
        grad_output = random_numbers<double>(s.steps * s.batch * s.hidden, 7);
        grad_final_hidden = random_numbers<double>(s.batch * s.hidden, 8);
        grad_final_cell = random_numbers<double>(s.batch * s.hidden, 9);
        if (ragged) {
            for (int64_t n = 0; n < s.batch; ++n) lengths.push_back(n * 5 % (s.steps + 1));
        }
    }

    int64_t length(int64_t n) const {
        return lengths.empty() ? shape.steps : lengths[static_cast<std::size_t>(n)];
    }
};

struct Result {
    Numbers output, final_hidden, final_cell;
};

double at(const Numbers& numbers, int64_t index) {
    return numbers[static_cast<std::size_t>(index)];
}

// The equations of recurrence_forward.h, one number at a time.
Result solve(const Problem& p) {
    const RecurrenceShape& s = p.shape;
    const int64_t H = s.hidden;
    const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
    Result result{Numbers(p.grad_output.size(), 0), p.hidden, p.cell};
    for (int64_t n = 0; n < s.batch; ++n) {
        for (int64_t step = 0; step < p.length(n); ++step) {
            const int64_t time = s.reverse ? p.length(n) - 1 - step : step;
            const int64_t row = time * s.batch + n;
            const Numbers before(result.final_hidden.begin() + n * H,
                                 result.final_hidden.begin() + (n + 1) * H);
            const auto gate = [&](int64_t g) {
                double sum = at(p.bias, g);
                for (int64_t i = 0; i < s.inputs; ++i) {
                    sum += at(p.weight_ih, g * s.inputs + i) * at(p.input, row * s.inputs + i);
                }
                for (int64_t j = 0; j < H; ++j) sum += at(p.weight_hh, g * H + j) * at(before, j);
                return sum;
            };
            for (int64_t j = 0; j < H; ++j) {
                double& h = result.final_hidden[static_cast<std::size_t>(n * H + j)];
                if (s.cell == RecurrentCell::lstm) {
                    double& c = result.final_cell[static_cast<std::size_t>(n * H + j)];
                    c = sigmoid(gate(H + j)) * c + sigmoid(gate(j)) * std::tanh(gate(2 * H + j));
                    h = sigmoid(gate(3 * H + j)) * std::tanh(c);
                } else if (s.cell == RecurrentCell::rnn_tanh) {
                    h = std::tanh(gate(j));
                } else {
                    h = std::fmax(gate(j), 0);
                }
                result.output[static_cast<std::size_t>(row * H + j)] = h;
            }
        }
    }
    return result;
}

double loss(const Problem& p) {
    const Result result = solve(p);
    double sum = 0;
    for (std::size_t i = 0; i < result.output.size(); ++i)
        sum += result.output[i] * p.grad_output[i];
    for (std::size_t i = 0; i < result.final_hidden.size(); ++i) {
        sum += result.final_hidden[i] * p.grad_final_hidden[i];
        if (p.shape.cell == RecurrentCell::lstm) sum += result.final_cell[i] * p.grad_final_cell[i];
    }
    return sum;
}

struct Gradients {
    Numbers input, hidden, cell, weight_ih, weight_hh, bias;
};

// Central differences of the loss: exact to some 1e-9 at a step of 1e-5.
Gradients differentiate(Problem p) {
    Gradients gradients;
    const auto differences = [&](Numbers& parameter) {
        Numbers found;
        constexpr double step = 1e-5;
        for (double& number : parameter) {
            const double middle = number;
            number = middle + step;
            const double above = loss(p);
            number = middle - step;
            found.push_back((above - loss(p)) / (2 * step));
            number = middle;
        }
        return found;
    };
    gradients.input = differences(p.input);
    gradients.hidden = differences(p.hidden);
    if (p.shape.cell == RecurrentCell::lstm) gradients.cell = differences(p.cell);
    gradients.weight_ih = differences(p.weight_ih);
    gradients.weight_hh = differences(p.weight_hh);
    gradients.bias = differences(p.bias);
    return gradients;
}

// A forward and a backward call, and every array that they read and write, of exactly the size that
// they need.
template <class T>
struct Pass {
    using Vector = std::vector<T>;

    Vector hidden, cell, weight_ih, weight_hh, bias, grad_final_hidden, grad_final_cell;
    Vector input, grad_output;
    Vector output, final_hidden, final_cell;
    std::vector<Accumulator<T>> gates, cells;
    Vector grad_input, grad_hidden, grad_cell, grad_weight_ih, grad_weight_hh, grad_bias;
    RecurrenceForward<T> forward{};
    RecurrenceBackward<T> backward{};

    // Sequences and their gradients as they are given, all else as the problem says.
    Pass(const Problem& p, Vector sequences, Vector gradients, const int64_t* lengths,
         const int64_t* batch_sizes)
        : hidden(converted<T>(p.hidden)),
          cell(converted<T>(p.cell)),
          weight_ih(converted<T>(p.weight_ih)),
          weight_hh(converted<T>(p.weight_hh)),
          bias(converted<T>(p.bias)),
          grad_final_hidden(converted<T>(p.grad_final_hidden)),
          grad_final_cell(converted<T>(p.grad_final_cell)),
          input(std::move(sequences)),
          grad_output(std::move(gradients)),
          output(grad_output.size()),
          final_hidden(hidden.size()),
          final_cell(cell.size()),
          gates(output.size() * static_cast<std::size_t>(p.shape.gates())),
          cells(output.size()),
          grad_input(input.size()),
          grad_hidden(hidden.size()),
          grad_cell(cell.size()),
          grad_weight_ih(weight_ih.size()),
          grad_weight_hh(weight_hh.size()),
          grad_bias(bias.size()) {
        const RecurrenceShape& s = p.shape;
        const bool is_lstm = s.cell == RecurrentCell::lstm;
        forward.shape = s;
        forward.input = {input.data(), s.batch * s.inputs, s.inputs};
        forward.initial_hidden = hidden.data();
        forward.initial_cell = is_lstm ? cell.data() : nullptr;
        forward.weight_ih = {weight_ih.data(), s.inputs, 1};
        forward.weight_hh = {weight_hh.data(), s.hidden, 1};
        forward.bias_ih = bias.data();
        forward.lengths = lengths;
        forward.batch_sizes = batch_sizes;
        forward.output = output.data();
        forward.output_stride = s.hidden;
        forward.final_hidden = final_hidden.data();
        forward.final_cell = is_lstm ? final_cell.data() : nullptr;
        forward.gates = is_lstm ? gates.data() : nullptr;
        forward.cells = is_lstm ? cells.data() : nullptr;
        backward.shape = s;
        backward.input = forward.input;
        backward.initial_hidden = forward.initial_hidden;
        backward.initial_cell = forward.initial_cell;
        backward.weight_ih = forward.weight_ih;
        backward.weight_hh = forward.weight_hh;
        backward.lengths = lengths;
        backward.batch_sizes = batch_sizes;
        backward.output = output.data();
        backward.gates = forward.gates;
        backward.cells = forward.cells;
        backward.grad_output = grad_output.data();
        backward.grad_final_hidden = grad_final_hidden.data();
        backward.grad_final_cell = is_lstm ? grad_final_cell.data() : nullptr;
        backward.grad_input = grad_input.data();
        backward.grad_initial_hidden = grad_hidden.data();
        backward.grad_initial_cell = is_lstm ? grad_cell.data() : nullptr;
        backward.grad_weight_ih = grad_weight_ih.data();
        backward.grad_weight_hh = grad_weight_hh.data();
        backward.grad_bias = grad_bias.data();
    }
    Pass(const Pass&) = delete;
    Pass& operator=(const Pass&) = delete;
};

template <class T>
void run_case(const Problem& p, const Result& exact, const Gradients* exact_gradients,
              const Operations<T>& kernels, int threads) {
    const RecurrenceShape& s = p.shape;
    const bool is_lstm = s.cell == RecurrentCell::lstm;
    std::vector<T> input = converted<T>(p.input);
    for (int64_t n = 0; n < s.batch; ++n) {
        // What stands beyond a length must not be read.
        for (int64_t time = p.length(n); time < s.steps; ++time) {
            for (int64_t i = 0; i < s.inputs; ++i) {
                input[static_cast<std::size_t>((time * s.batch + n) * s.inputs + i)] =
                    rounded_to<T>(NAN);
            }
        }
    }
    Pass<T> pass(p, std::move(input), converted<T>(p.grad_output),
                 p.lengths.empty() ? nullptr : p.lengths.data(), nullptr);
    RecurrenceForward<T> inference = pass.forward;
    inference.gates = inference.cells = nullptr;
    kernels.recurrence_forward(inference, threads);
    const std::vector<T> without_gradients = pass.output;
    kernels.recurrence_forward(pass.forward, threads);
    CHECK(is_same(without_gradients, pass.output));

    const double tolerance = (is_sixteen_bit<T> ? 2 : 64) * epsilon<T>();
    CHECK(relative_error(pass.output, exact.output) <= tolerance);
    CHECK(relative_error(pass.final_hidden, exact.final_hidden) <= tolerance);
    if (is_lstm) CHECK(relative_error(pass.final_cell, exact.final_cell) <= tolerance);
    if (exact_gradients == nullptr) return;

    kernels.recurrence_backward(pass.backward, threads);
    const double differences = 1e-7 + tolerance;
    CHECK(relative_error(pass.grad_input, exact_gradients->input) <= differences);
    CHECK(relative_error(pass.grad_hidden, exact_gradients->hidden) <= differences);
    if (is_lstm) CHECK(relative_error(pass.grad_cell, exact_gradients->cell) <= differences);
    CHECK(relative_error(pass.grad_weight_ih, exact_gradients->weight_ih) <= differences);
    CHECK(relative_error(pass.grad_weight_hh, exact_gradients->weight_hh) <= differences);
    CHECK(relative_error(pass.grad_bias, exact_gradients->bias) <= differences);

    // States that are not given are zeros, and their gradients need not be computed.
    const auto from_zeros = [&](const T* zeros) {
        pass.forward.initial_hidden = pass.backward.initial_hidden = zeros;
        pass.forward.initial_cell = pass.backward.initial_cell = is_lstm ? zeros : nullptr;
        kernels.recurrence_forward(pass.forward, threads);
        kernels.recurrence_backward(pass.backward, threads);
        std::vector<std::vector<T>> results = {
            pass.output,         pass.final_hidden,   pass.final_cell, pass.grad_input,
            pass.grad_weight_ih, pass.grad_weight_hh, pass.grad_bias};
        return results;
    };
    const std::vector<T> zeros(pass.hidden.size());
    const auto given = from_zeros(zeros.data());
    pass.backward.grad_initial_hidden = pass.backward.grad_initial_cell = nullptr;
    const auto absent = from_zeros(nullptr);
    for (std::size_t i = 0; i < given.size(); ++i) CHECK(is_same(given[i], absent[i]));
}

constexpr std::initializer_list<RecurrentCell> all_cells = {
    RecurrentCell::lstm, RecurrentCell::rnn_tanh, RecurrentCell::rnn_relu};

void check_shape(int64_t steps, int64_t batch, int64_t inputs, int64_t hidden, bool with_gradients,
                 std::initializer_list<RecurrentCell> cells = all_cells) {
    for (const RecurrentCell cell : cells) {
        for (const int variant : {0, 1, 2, 3}) {
            const bool reverse = variant & 1, ragged = variant & 2;
            if (is_watched && reverse != ragged) continue;
            const Problem problem({steps, batch, inputs, hidden, cell, reverse}, ragged);
            const Result exact = solve(problem);
            const Gradients gradients = with_gradients ? differentiate(problem) : Gradients{};
            for_each_isa([&](const std::string&, const KernelTable& table) {
                for (const int threads : {1, 3}) {
                    const Gradients* expected = with_gradients ? &gradients : nullptr;
                    run_case<float>(problem, exact, expected, table.float32, threads);
                    run_case<double>(problem, exact, expected, table.float64, threads);
                    run_case<Bfloat16>(problem, exact, expected, table.bfloat16, threads);
                    run_case<Float16>(problem, exact, expected, table.float16, threads);
                }
            });
        }
    }
}

TEST(recurrence_agrees_with_its_equations_and_their_differences) {
    check_shape(3, 4, 2, 3, true);
    check_shape(1, 1, 1, 1, true);
    check_shape(2, 7, 3, 5, true);
}

TEST(recurrence_forward_agrees_with_its_equations) {
    check_shape(5, 13, 9, 35, false);
    check_shape(3, 2, 17, 66, false);
    check_shape(1, 3, 17, 66, false);
    check_shape(1, 101, 9, 35, false);
    check_shape(3, 50, 70, 70, false);
    check_shape(2, 5, 3, 257, false, {RecurrentCell::rnn_tanh});  // in tiles of one plane
    check_shape(0, 3, 4, 5, false);
    check_shape(4, 0, 4, 5, false);
}

// Packed sequences give to the bit what they give with padding and lengths.
template <class T>
void check_packed(const Problem& p, const Operations<T>& kernels, int threads) {
    const RecurrenceShape& s = p.shape;
    std::vector<int64_t> lengths, batch_sizes, places;
    for (int64_t n = 0; n < s.batch; ++n) lengths.push_back(s.steps - n % s.steps);
    std::sort(lengths.begin(), lengths.end(), std::greater<>());
    for (int64_t time = 0; time < s.steps; ++time) {
        const auto runs = [&](int64_t length) { return length > time; };
        batch_sizes.push_back(std::count_if(lengths.begin(), lengths.end(), runs));
        for (int64_t n = 0; n < batch_sizes.back(); ++n) places.push_back(time * s.batch + n);
    }
    const auto pack = [&](const std::vector<T>& from, int64_t columns) {
        std::vector<T> to;
        for (const int64_t place : places) {
            const auto row = from.begin() + place * columns;
            to.insert(to.end(), row, row + columns);
        }
        return to;
    };
    Pass<T> padded(p, converted<T>(p.input), converted<T>(p.grad_output), lengths.data(), nullptr);
    Pass<T> packed(p, pack(padded.input, s.inputs), pack(padded.grad_output, s.hidden), nullptr,
                   batch_sizes.data());
    for (const Pass<T>* pass : {&padded, &packed}) {
        kernels.recurrence_forward(pass->forward, threads);
        kernels.recurrence_backward(pass->backward, threads);
    }
    CHECK(is_same(packed.output, pack(padded.output, s.hidden)));
    CHECK(is_same(packed.grad_input, pack(padded.grad_input, s.inputs)));
    for (const auto result :
         {&Pass<T>::final_hidden, &Pass<T>::final_cell, &Pass<T>::grad_hidden, &Pass<T>::grad_cell,
          &Pass<T>::grad_weight_ih, &Pass<T>::grad_weight_hh, &Pass<T>::grad_bias}) {
        CHECK(is_same(packed.*result, padded.*result));
    }
}

TEST(recurrence_of_packed_sequences_is_that_of_their_lengths) {
    for (const RecurrentCell cell : all_cells) {
        for (const bool reverse : {false, true}) {
            for (const auto& [steps, batch, hidden] :
                 std::initializer_list<std::tuple<int64_t, int64_t, int64_t>>{
                     {5, 13, 35}, {1, 3, 17}, {9, 2, 66}, {3, 20, 100}}) {
                const Problem problem({steps, batch, 9, hidden, cell, reverse}, false);
                for_each_isa([&](const std::string&, const KernelTable& table) {
                    for (const int threads : {1, 3}) {
                        check_packed<float>(problem, table.float32, threads);
                        check_packed<double>(problem, table.float64, threads);
                        check_packed<Bfloat16>(problem, table.bfloat16, threads);
                        check_packed<Float16>(problem, table.float16, threads);
                    }
                });
            }
        }
    }
}

}  // namespace
}  // namespace seqkernels::testing
