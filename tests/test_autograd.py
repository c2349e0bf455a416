"""Gradients where arguments are shared, empty or not a number."""

from __future__ import annotations

import pytest
import torch

from seqkernels import functional, reference

GRADIENTS = {"dtype": torch.float64, "requires_grad": True}


def second_order(function, arguments):
    """First- and second-order gradients of ``function(*arguments).sum()``."""
    first = torch.autograd.grad(function(*arguments).pow(2).sum(), arguments, create_graph=True)
    penalty = sum(gradient.pow(2).sum() for gradient in first)
    return [*first, *torch.autograd.grad(penalty, arguments)]


def shared_recurrence(module):
    def function(x, w, b):
        h, c = torch.zeros_like(x), torch.zeros_like(x)
        for _ in range(3):
            h, c = module.lstm_cell(x, (h, c), w, w, b, b)
        output, _ = module.lstm(h.expand(4, *h.shape), (h, h), w, w, b, b)
        return output + module.rnn(output, h, w[:3], w[:3], b[:3], b[:3], reverse=True)[0]

    return function


def shared_convolution(module):
    def function(x, w):
        once = module.conv1d_max_pool(x, w, w[:, 0, 0], padding=1, activation="tanh", pool_size=2)
        return module.conv1d_max_pool(once, w, once[0, :, 0], activation="sigmoid")

    return function


@pytest.mark.parametrize(
    ("shared", "shapes"),
    [(shared_recurrence, ((2, 3), (12, 3), (12,))), (shared_convolution, ((2, 3, 9), (3, 3, 2)))],
)
def test_arguments_that_come_more_than_once_add_up(shared, shapes):
    torch.manual_seed(0)
    arguments = [torch.randn(shape, **GRADIENTS) for shape in shapes]
    ours = second_order(shared(functional), arguments)
    exact = second_order(shared(reference), arguments)
    for found, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_the_gradients_of_both_biases_are_two_tensors():
    x, w = torch.randn(3, 2, 4), torch.randn(5, 4)
    biases = [torch.randn(5, requires_grad=True) for _ in range(2)]
    output, _ = functional.rnn(x, None, w, torch.randn(5, 5), *biases)
    gradients = torch.autograd.grad(output.sum(), biases)
    before = gradients[1].clone()
    gradients[0].mul_(0)
    assert torch.equal(gradients[1], before)


def test_relu_passes_the_gradient_of_nan_on_as_torch_does(isa):
    x = torch.tensor([[[1.0, float("nan"), 2.0]]], requires_grad=True)
    pooled = functional.conv1d_max_pool(x, torch.ones(1, 1, 1), activation="relu")
    assert torch.autograd.grad(pooled.sum(), x)[0].tolist() == [[[0.0, 1.0, 0.0]]]
    b = torch.tensor([float("nan"), -1.0, 1.0], requires_grad=True)
    h = functional.rnn_cell(
        torch.zeros(1, 2), None, torch.zeros(3, 2), torch.zeros(3, 3), b, nonlinearity="relu"
    )
    assert torch.autograd.grad(h.sum(), b)[0].tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("shape", [(5, 0, 6), (0, 5, 6)])
def test_an_empty_input_may_have_any_strides(shape, isa):
    x = torch.randn(shape)[:, :, ::2].requires_grad_()
    output, (h, _) = functional.lstm(x, None, torch.randn(8, 3), torch.randn(8, 2))
    assert output.shape == (*shape[:2], 2) and h.shape == (shape[1], 2)
    assert torch.autograd.grad(output.sum() + h.sum(), x)[0].shape == x.shape


def test_sizes_beyond_what_is_counted_are_refused_before_memory_is_taken():
    with pytest.raises(ValueError, match=r"padding.*2\*\*31"):
        functional.conv1d_max_pool(
            torch.zeros(1, 1, 4), torch.zeros(64, 1, 2), padding=2**31, pool_size=1
        )
    with pytest.raises(ValueError, match="64 bits"):
        functional.rnn(
            torch.empty(0, 1, 2**60 - 1),
            None,
            torch.zeros(1, 1).expand(1, 2**60 - 1),
            torch.zeros(1, 1),
        )
    with pytest.raises(ValueError, match="64 bits"):
        functional.conv1d_max_pool(
            torch.zeros(0, 1, 1).expand(0, 2**32, 1), torch.zeros(1, 1, 1).expand(2**30, 2**32, 1)
        )


def test_what_looks_like_a_tensor_but_has_no_memory():
    """Zeros that autograd has not made yet, and what a transform has left behind."""
    torch.manual_seed(0)
    x, w = torch.randn(2, 3, 9, **GRADIENTS), torch.randn(4, 3, 2, **GRADIENTS)
    pooled = functional.conv1d_max_pool(x, w)
    zeros = torch._efficientzerotensor(pooled.shape, dtype=pooled.dtype)
    assert not any(g.any() for g in torch.autograd.grad(pooled, (x, w), zeros))

    left_behind = []

    def function(given):
        left_behind.append(given)
        return given.sum()

    torch.func.grad(function)(x.detach())
    torch.testing.assert_close(functional.conv1d_max_pool(left_behind[0], w), pooled)
