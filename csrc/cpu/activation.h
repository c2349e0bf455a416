// The activations a convolution may end in.
#pragma once

#include "kernels.h"
#include "vector_math.h"

namespace seqkernels {

template <class Vector>
inline Vector activate(Activation activation, Vector x) {
    switch (activation) {
        case Activation::identity:
            return x;
        case Activation::relu:
            return maximum(Vector::broadcast(0), x);  // the second operand where x is NaN
        case Activation::tanh:
            return hyperbolic_tangent(x);
        case Activation::sigmoid:
            return sigmoid(x);
    }
    __builtin_unreachable();
}

}  // namespace seqkernels
