// Convolutions of a bank side by side, in parts, and what they are one after the other.
#include <stdexcept>

#include "convolution_problem.h"
#include "core/parallel.h"
#include "cpu/convolution_bank_parts.h"
#include "cpu/kernels.h"

namespace seqkernels::testing {
namespace {

// 100 filters of 3, 4 and 5 taps, by vectors of 16, four to a panel.
ConvolutionBankParts kim(int threads) {
    ConvolutionBankParts parts(threads);
    for (int64_t call = 0; call < 3; ++call) parts.add(call, 100, 16, 4, 3 + call);
    return parts;
}

TEST(parts_are_every_filter_once) {
    for (const int threads : {1, 2, 3, 8}) {
        ConvolutionBankParts parts = kim(threads);
        CHECK(parts.share_out() == (threads < 8));  // there are six parts
        std::vector<std::atomic<int>> times(300);
        parts.run(
            [](const void* context, int64_t call, Range filters) {
                auto& counted =
                    *static_cast<std::vector<std::atomic<int>>*>(const_cast<void*>(context));
                for (int64_t f = filters.begin; f < filters.end; ++f) {
                    ++counted[static_cast<std::size_t>(call * 100 + f)];
                }
                return call != 1 || filters.begin == 0;
            },
            &times);
        for (const auto& count : times) CHECK(count == 1);
        for (int64_t call = 0; call < 3; ++call) {
            CHECK(parts.is_computed(call) == (call != 1 || threads == 1));
        }
    }
}

TEST(few_windows_go_in_parts) {
    const auto takes = [](int64_t batch, int64_t length, bool has_winners) {
        const ConvolutionShape shape =
            shape_of(batch, length, 64, 100, 3, 1, 0, 1, 0, 0, Activation::relu);
        return ConvolutionBankParts::takes(shape, has_winners);
    };
    CHECK(takes(1, 514, true) && !takes(1, 515, true));
    CHECK(takes(8, 66, false) && !takes(8, 67, false));
    CHECK(!takes(8, 66, true));
    CHECK(takes(1, 2, true) && takes(0, 20, false));
}

TEST(what_a_part_throws_is_thrown) {
    ConvolutionBankParts parts = kim(2);
    parts.share_out();
    bool raised = false;
    try {
        parts.run(
            [](const void*, int64_t call, Range) -> bool {
                if (call == 1) throw std::length_error("too long");
                return true;
            },
            nullptr);
    } catch (const std::length_error&) {
        raised = true;
    }
    CHECK(raised);
}

template <class Kernels>
void check_bank(const Kernels& kernels, int64_t channels, int64_t batch, bool has_winners,
                double scale) {
    using T = typename Kernels::Number;
    std::vector<Problem> problems;
    for (const int64_t taps : {3, 4, 5}) {
        const ConvolutionShape shape =
            shape_of(batch, 30, channels, 100, taps, 1, 1, 1, 0, 0, Activation::relu);
        problems.emplace_back(Case{shape, false, batch > 1});
    }
    // One of the last filters has other numbers.
    std::vector<double>& weight = problems[1].weight;
    const std::size_t of_filter = weight.size() / 100;
    for (std::size_t i = 0; i < of_filter; ++i) weight[98 * of_filter + i] *= scale;
    const auto input = converted<T>(problems[0].input);
    const auto run = [&](bool at_once) {
        std::vector<std::vector<T>> weights, biases;
        std::vector<ConvolutionForward<T>> calls;
        std::vector<T> output(static_cast<std::size_t>(batch * 300));
        std::vector<int32_t> winners(output.size());
        for (std::size_t i = 0; i < problems.size(); ++i) {
            const ConvolutionShape& s = problems[i].shape;
            weights.push_back(converted<T>(problems[i].weight));
            biases.push_back(converted<T>(problems[i].bias));
            ConvolutionForward<T> call{};
            call.shape = s;
            call.input = {input.data(), s.length * s.channels, s.channels, 1};
            call.weight = {weights.back().data(), s.channels * s.kernel_size, s.kernel_size, 1};
            call.bias = biases.back().data();
            call.lengths = batch > 1 ? problems[0].lengths.data() : nullptr;
            call.output = output.data() + 100 * i;
            call.output_stride_batch = 300;
            call.output_stride_pooled = 300;
            call.output_stride_filter = 1;
            if (has_winners)
                call.argmax = winners.data() + static_cast<std::size_t>(batch) * 100 * i;
            calls.push_back(call);
        }
        if (at_once) {
            kernels.convolution_bank_forward(calls.data(), 3, 2);
        } else {
            for (const auto& call : calls) kernels.convolution_forward(call, 1);
        }
        return std::make_pair(output, winners);
    };
    const auto [expected, expected_winners] = run(false);
    const auto [found, winners] = run(true);
    CHECK(std::memcmp(found.data(), expected.data(), found.size() * sizeof(T)) == 0);
    CHECK(winners == expected_winners);
}

TEST(a_bank_is_its_convolutions_in_turns) {
    for_each_isa([](const std::string&, const KernelTable& table) {
        for (const int64_t batch : {1, 3}) {
            for (const bool has_winners : {false, true}) {
                for (const double scale : {1.0, 0x1p60, 0x1p-120}) {
                    check_bank(table.float32, 64, batch, has_winners, scale);
                }
            }
            check_bank(table.float32, 24, batch, false, 1);
            check_bank(table.float64, 64, batch, batch == 1, 1);
            check_bank(table.bfloat16, 64, batch, true, 1);
        }
    });
}

}  // namespace
}  // namespace seqkernels::testing
