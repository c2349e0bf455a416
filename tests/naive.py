"""What the reference's tests share: numbers, activations on floats, derivatives."""

from __future__ import annotations

import math

import torch

ACTIVATIONS = {
    "identity": lambda value: value,
    "relu": lambda value: max(value, 0.0),
    "tanh": math.tanh,
    "sigmoid": lambda value: 1 / (1 + math.exp(-value)),
}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def results_and_derivatives(function, arguments) -> list[torch.Tensor]:
    """Results, gradients, and gradients of the gradients' squares, of all arguments."""
    arguments = [argument.detach().clone().requires_grad_() for argument in arguments]
    results = function(*arguments)
    loss = sum((result * (1 + result)).sum() for result in results)
    gradients = torch.autograd.grad(loss, arguments, create_graph=True)
    penalty = sum(gradient.square().sum() for gradient in gradients)
    return [*results, *gradients, *torch.autograd.grad(penalty, arguments)]
