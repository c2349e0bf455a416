// The activations a convolution may end in, and their derivatives in terms of their own output.
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

// gradient times the derivative of the activation, y being the activation's output.
template <class T>
inline T activation_gradient(Activation activation, T gradient, T y) {
    switch (activation) {
        case Activation::identity:
            return gradient;
        case Activation::relu:
            return y <= 0 ? T(0) : gradient;  // a NaN passes its gradient on, as in torch
        case Activation::tanh:
            return gradient * (1 - y * y);
        case Activation::sigmoid:
            return gradient * (y * (1 - y));
    }
    __builtin_unreachable();
}

}  // namespace seqkernels
