// What the faces of the recurrence kernels share.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>

#include "core/recurrence.h"
#include "core/tensor_view.h"
#include "expect.h"

namespace seqkernels {

inline RecurrentCell cell_named(const std::string& name) {
    if (name == "lstm") return RecurrentCell::lstm;
    if (name == "rnn_tanh") return RecurrentCell::rnn_tanh;
    if (name == "rnn_relu") return RecurrentCell::rnn_relu;
    throw std::invalid_argument("cell: expected lstm, rnn_tanh or rnn_relu, got '" + name + "'");
}

inline void expect_given(const char* name, const OptionalView& view, bool given) {
    if (view.has_value() != given) {
        throw std::invalid_argument(std::string(name) + ": expected " +
                                    (given ? "a tensor, got None" : "None, got a tensor"));
    }
}

}  // namespace seqkernels
