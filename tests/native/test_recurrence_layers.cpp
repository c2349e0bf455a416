// Stacks of recurrent layers: which run side by side, and that it changes no bit.
#include <new>
#include <vector>

#include "check.h"
#include "cpu/isa.h"
#include "cpu/recurrence_layers.h"

namespace seqkernels::testing {
namespace {

struct Sizes {
    int64_t steps, batch, hidden, layers, directions;
};

// A stack of LSTMs, the calls of all layers and directions, and what they read and write.
template <class T>
struct Stack {
    std::vector<T> input, weights, bias, initial;
    std::vector<std::vector<T>> outputs;
    std::vector<T> final_hidden, final_cell;
    std::vector<RecurrenceForward<T>> calls;

    Stack(const Sizes& s, const int64_t* lengths)
        : input(random_numbers<T>(s.steps * s.batch * s.hidden, 1)),
          bias(random_numbers<T>(4 * s.hidden, 2)) {
        const int64_t width = s.directions * s.hidden, count = s.layers * s.directions;
        const int64_t states = s.batch * s.hidden;
        weights = random_numbers<T>(4 * s.hidden * (width + s.hidden), 3);
        initial = random_numbers<T>(count * states, 4);
        final_hidden.resize(initial.size());
        final_cell.resize(initial.size());
        for (int64_t i = 0; i < s.layers; ++i) {
            outputs.emplace_back(static_cast<std::size_t>(s.steps * s.batch * width));
        }
        for (int64_t i = 0; i < count; ++i) {
            const auto layer = static_cast<std::size_t>(i / s.directions);
            const int64_t inputs = layer == 0 ? s.hidden : width;
            RecurrenceForward<T> call{};
            call.shape = {
                s.steps, s.batch, inputs, s.hidden, RecurrentCell::lstm, i % s.directions == 1};
            call.input = {layer == 0 ? input.data() : outputs[layer - 1].data(), s.batch * inputs,
                          inputs};
            call.initial_hidden = call.initial_cell = initial.data() + i * states;
            call.weight_ih = {{weights.data(), data_type_of<T>()}, inputs, 1};
            call.weight_hh = {
                {weights.data() + 4 * s.hidden * width, data_type_of<T>()}, s.hidden, 1};
            call.bias_ih = bias.data();
            call.lengths = lengths;
            call.output = outputs[layer].data() + i % s.directions * s.hidden;
            call.output_stride = width;
            call.final_hidden = final_hidden.data() + i * states;
            call.final_cell = final_cell.data() + i * states;
            calls.push_back(call);
        }
    }
    Stack(const Stack&) = delete;
    Stack& operator=(const Stack&) = delete;
};

template <class T>
void check_stack(const Sizes& s, const int64_t* lengths, const Operations<T>& kernels) {
    Stack<T> expected(s, lengths);
    for (const RecurrenceForward<T>& call : expected.calls) kernels.recurrence_forward(call, 1);
    for (const int threads : {1, 2, 3, 5}) {
        Stack<T> found(s, lengths);
        run_layers<T>(found.calls.data(), s.layers, s.directions, kernels, threads);
        CHECK(is_same(found.outputs.back(), expected.outputs.back()));
        CHECK(is_same(found.final_hidden, expected.final_hidden));
        CHECK(is_same(found.final_cell, expected.final_cell));
    }
    // Within a region one thread is granted, which runs a layer after the one that it waits for.
    Stack<T> found(s, lengths);
    run_parallel(2, [&](int thread, int) {
        if (thread != 0) return;
        run_layers<T>(found.calls.data(), s.layers, s.directions, kernels, 2);
    });
    CHECK(is_same(found.outputs.back(), expected.outputs.back()));
}

TEST(layers_side_by_side_change_no_bit) {
    const std::vector<int64_t> lengths{37, 0, 20};
    for_each_isa([&](const std::string&, const KernelTable& kernels) {
        for (const Sizes& s : {Sizes{50, 1, 20, 4, 1}, Sizes{7, 2, 5, 3, 1}, Sizes{37, 3, 9, 2, 1},
                               Sizes{20, 3, 9, 2, 2}, Sizes{1, 3, 4, 2, 1}}) {
            check_stack<float>(s, nullptr, kernels.float32);
            check_stack<double>(s, nullptr, kernels.float64);
            check_stack<Bfloat16>(s, nullptr, kernels.bfloat16);
            check_stack<Float16>(s, nullptr, kernels.float16);
            if (s.steps == 37) check_stack<float>(s, lengths.data(), kernels.float32);
        }
    });
}

TEST(which_layers_run_side_by_side) {
    const RecurrenceShape small{50, 1, 20, 20, RecurrentCell::lstm, false};
    RecurrenceShape large = small, short_one = small, many = small, wide = small;
    large.hidden = 300;
    wide.inputs = 2000;
    short_one.steps = 1;
    many.batch = 64;
    for (const bool is_wavefront : {false, true}) {
        CHECK(side_by_side(small, 4, is_wavefront, 2, 2) == 2);
        CHECK(side_by_side(small, 4, is_wavefront, 1, 2) == 1);
        CHECK(side_by_side(small, 4, is_wavefront, 2, 1) == 1);
        CHECK(side_by_side(small, 4, is_wavefront, 4, 3) == 3);
        CHECK(side_by_side(small, 4, is_wavefront, 2, 16) == 1);
        CHECK(side_by_side(large, 4, is_wavefront, 2, 2) == 1);
        CHECK(side_by_side(many, 4, is_wavefront, 2, 2) == 1);
    }
    for (const RecurrenceShape& shape : {short_one, wide}) {
        CHECK(side_by_side(shape, 4, false, 2, 2) == 2);
        CHECK(side_by_side(shape, 4, true, 2, 2) == 1);
    }
}

// Kernels of which the first layer's fails.
void fails_at_the_first(const RecurrenceForward<float>& call, int) {
    if (call.input_steps == nullptr) throw std::bad_alloc();
    call.input_steps->wait_for(static_cast<unsigned>(call.shape.steps));
}

TEST(a_layer_that_fails_is_not_waited_for) {
    const Sizes sizes{50, 1, 4, 2, 1};
    Stack<float> stack(sizes, nullptr);
    Operations<float> kernels{};
    kernels.recurrence_forward = fails_at_the_first;
    bool raised = false;
    try {
        run_layers<float>(stack.calls.data(), sizes.layers, sizes.directions, kernels, 2);
    } catch (const std::bad_alloc&) {
        raised = true;
    }
    CHECK(raised);
}

}  // namespace
}  // namespace seqkernels::testing
