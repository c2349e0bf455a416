"""Recurrences on a CUDA device: their steps by the package's kernels, all else by torch's products.

Nothing waits for the device, the lengths included.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .. import cuda


def without_autocast(function):
    """The function with autocast off: its tensors have one dtype, and so have its products."""

    @functools.wraps(function)
    def call(cell: str, reverse: bool, input: Tensor, *arguments) -> None:
        if not torch.is_autocast_enabled(input.device.type):
            return function(cell, reverse, input, *arguments)
        with torch.autocast(input.device.type, enabled=False):
            return function(cell, reverse, input, *arguments)

    return call


@without_autocast
def forward(
    cell: str,
    reverse: bool,
    input: Tensor,
    states: tuple[Tensor, ...],
    weights: tuple[Tensor | None, ...],
    lengths: Tensor | None,
    results: tuple[Tensor, ...],
    kept: tuple[Tensor | None, Tensor | None],
    running: Tensor | None,
) -> None:
    """Fill ``results``, output and final states, and ``kept``, gates and cell states or None.

    ``running`` is room for an LSTM's cell state between the steps.
    """
    weight_ih, weight_hh, *biases = weights
    projections = _product(input.flatten(0, 1), weight_ih.t())
    is_lstm = cell == "lstm"
    output, *final = results
    run = functools.partial(
        cuda.recurrence_forward,
        cell,
        reverse,
        projections.unflatten(0, input.shape[:2]),
        states[0].contiguous(),
        states[1].contiguous() if is_lstm else None,
        weight_hh.contiguous(),
        *(None if bias is None else bias.contiguous() for bias in biases),
        lengths,
        output,
        final[0],
        final[1] if is_lstm else None,
        running,
        *kept,
    )
    steps, hidden = len(input), states[0]
    if not cuda.takes_products_of_steps(cell, hidden, steps, True):
        return run()
    for step in range(steps):
        run(recurrent=_product(hidden, weight_hh.t()), step=step)
        hidden = final[0]
    return None


@without_autocast
def backward(
    cell: str,
    reverse: bool,
    input: Tensor,
    states: tuple[Tensor, ...],
    weights: tuple[Tensor, Tensor],
    lengths: Tensor | None,
    output: Tensor,
    kept: tuple[Tensor, ...],
    grads: tuple[Tensor | None, ...],
    needs: list[bool],
    gradients: tuple[Tensor, ...],
    running: Tensor | None,
) -> None:
    """Fill the gradients of input, states, weights and bias, those that ``needs`` says in order.

    ``grads`` are those of output, final hidden and final cell state; ``running`` is room for that
    of an LSTM's cell state between the steps.
    """
    weight_ih, weight_hh = weights
    grad_input, grad_hidden, grad_cell, grad_weight_ih, grad_weight_hh, grad_bias = gradients
    is_lstm = cell == "lstm"
    # The kernels want room for the states' gradients in any case.
    if not needs[1]:
        grad_hidden = input.new_empty(*states[0].shape)
    if is_lstm and not needs[2]:
        grad_cell = input.new_empty(*states[1].shape)
    grad_gates = input.new_empty(*output.shape[:2], len(weight_hh))
    run = functools.partial(
        cuda.recurrence_backward,
        cell,
        reverse,
        grad_gates,
        states[1].contiguous() if is_lstm else None,
        weight_hh.contiguous(),
        lengths,
        output,
        *(kept if is_lstm else (None, None)),
        *(None if grad is None else grad.contiguous() for grad in grads),
        running,
        grad_hidden,
        grad_cell if is_lstm else None,
    )
    steps = len(input)
    if cuda.takes_products_of_steps(cell, states[0], steps, False):
        step_gates = grad_gates.new_zeros(grad_gates.shape[1:])
        for step in range(steps - 1, -2, -1):
            product = _product(step_gates, weight_hh)
            run(from_following=product, step_gates=step_gates, step=step)
    else:
        run()
    rows = grad_gates.flatten(0, 1)
    if needs[0]:
        torch.mm(rows, weight_ih, out=grad_input.view(len(rows), input.shape[2]))
    if needs[3]:
        if lengths is not None:  # what stands beyond, even NaN, times a gradient of zero
            input = torch.where(_runs(lengths, input), input, 0)
        torch.mm(rows.t(), input.flatten(0, 1), out=grad_weight_ih)
    if needs[4]:
        before = _states_before(states[0], output, reverse, lengths)
        torch.mm(rows.t(), before.flatten(0, 1), out=grad_weight_hh)
    if needs[5]:
        torch.sum(rows, 0, out=grad_bias)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """The matrix product, of 16-bit numbers in float32."""
    if left.dtype.itemsize > 2:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def _runs(lengths: Tensor, sequence: Tensor) -> Tensor:
    """Whether a position belongs to a sample, (T, N, 1)."""
    positions = torch.arange(sequence.shape[0], device=sequence.device)
    return (positions[:, None] < lengths).unsqueeze(2)


def _states_before(hidden: Tensor, output: Tensor, reverse: bool, lengths: Tensor | None) -> Tensor:
    """The hidden state read at each position, (T, N, H); beyond a sample anything finite."""
    steps = len(output)
    if reverse:
        before = torch.cat([output, hidden[None]])[1:]
    else:
        before = torch.cat([hidden[None], output])[:steps]
    if lengths is None or steps == 0:
        return before
    if reverse:
        positions = torch.arange(steps, device=output.device)
        is_first = (positions[:, None] == lengths.clamp(max=steps) - 1).unsqueeze(2)
        before = torch.where(is_first, hidden, before)
    return torch.where(_runs(lengths, before), before, 0)
