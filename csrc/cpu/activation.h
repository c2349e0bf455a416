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

// activation_gradient (convolution.h) of vectors.
template <class Vector>
inline Vector gradient_before(Activation activation, Vector gradient, Vector y) {
    const Vector zero = Vector::broadcast(0), one = Vector::broadcast(1);
    switch (activation) {
        case Activation::identity:
            return gradient;
        case Activation::relu:
            return select(at_most(y, zero), zero, gradient);
        case Activation::tanh:
            return gradient * (one - y * y);
        case Activation::sigmoid:
            return gradient * (y * (one - y));
    }
    __builtin_unreachable();
}

}  // namespace seqkernels
