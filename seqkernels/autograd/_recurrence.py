"""LSTM and RNN, a step and a layer in one direction, with their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import cuda, ops, reference
from ._apply import (
    Refused,
    apply,
    apply_plain,
    in_forward_mode,
    or_refuse,
    through_reference,
    wants_gradient,
)


def recurrence_step(
    cell: str,
    input: Tensor,
    states: tuple[Tensor, ...],
    *weights: Tensor | None,
) -> tuple[Tensor, ...] | None:
    """The next states of (N, I) input where a gradient of them is wanted; as ``convolution``.

    ``weights`` are weight_ih, weight_hh, bias_ih and bias_hh. Where no gradient is wanted, None:
    there ``ops.recurrence_step`` needs fewer steps still.
    """
    if not ops.want_gradient((input, *states, *weights)):
        return None
    if len(states) != (2 if cell == "lstm" else 1) or input is None:
        return None
    if not input.is_cpu or cuda.is_on_device(input):
        return None
    try:
        after = apply_plain(_RecurrenceStep, cell, input, *(*states, None)[:2], *weights)
    except Refused:
        return None
    return after if cell == "lstm" else (after,)


def lstm(
    input: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    lengths: Tensor | None,
    batch_sizes: list[int] | None,
    reverse: bool,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """An LSTM over (T, N, I); returns output (T, N, H), h_n and c_n (N, H).

    Without h0 and c0 the states begin as zeros. With batch_sizes, sequences are packed, (rows, I).
    """
    tensors = (input, h0, c0, w_ih, w_hh, b_ih, b_hh, lengths)
    return _recurrence("lstm", reverse, recompute, batch_sizes, *tensors)


def rnn(
    input: Tensor,
    h0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    lengths: Tensor | None,
    batch_sizes: list[int] | None,
    reverse: bool,
    nonlinearity: str,
) -> tuple[Tensor, Tensor]:
    """An RNN over (T, N, I); returns output (T, N, H) and h_n (N, H); otherwise as ``lstm``."""
    tensors = (input, h0, None, w_ih, w_hh, b_ih, b_hh, lengths)
    return _recurrence(f"rnn_{nonlinearity}", reverse, False, batch_sizes, *tensors)[:2]


def lstm_cell(
    input: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM on (N, I): a sequence of length 1."""
    return lstm(input.unsqueeze(0), h, c, w_ih, w_hh, b_ih, b_hh, None, None, False)[1:]


def rnn_cell(
    input: Tensor,
    h: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    nonlinearity: str,
) -> Tensor:
    """One step of an RNN on (N, I): a sequence of length 1."""
    return rnn(input.unsqueeze(0), h, w_ih, w_hh, b_ih, b_hh, None, None, False, nonlinearity)[1]


def _recurrence(
    cell: str,
    reverse: bool,
    recompute: bool,
    batch_sizes: list[int] | None,
    *tensors: Tensor | None,
) -> tuple[Tensor, ...]:
    if in_forward_mode():
        *inputs, lengths = tensors
        return _reference_recurrence(cell, reverse, lengths, batch_sizes)(*inputs)
    if wants_gradient(*tensors[:-1]):
        if torch.compiler.is_compiling():
            tensors = _distinct(tensors)
        return apply(_Recurrence, cell, reverse, recompute, batch_sizes, *tensors)[:3]
    return ops.recurrence(cell, reverse, *tensors, batch_sizes, False)[:3]


def _distinct(tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """The tensors, one that comes again as a view of itself: Dynamo takes no tensor twice."""
    return [
        tensor.view_as(tensor)
        if tensor is not None and any(tensor is earlier for earlier in tensors[:place])
        else tensor
        for place, tensor in enumerate(tensors)
    ]


def _reference_recurrence(cell: str, reverse: bool, lengths, batch_sizes: list[int] | None):
    """``(input, hidden, cell_state, *weights) -> (output, h_n[, c_n])`` in torch's operations."""
    how = {"lengths": lengths, "reverse": reverse}
    if batch_sizes is not None:
        how["batch_sizes"] = torch.tensor(batch_sizes, device="cpu")

    def lstm(input, hidden, cell_state, *weights):
        states = None if hidden is None else (hidden, cell_state)
        output, (h_n, c_n) = reference.lstm(input, states, *weights, **how)
        return output, h_n, c_n

    def rnn(input, hidden, cell_state, *weights):
        nonlinearity = cell.removeprefix("rnn_")
        return reference.rnn(input, hidden, *weights, nonlinearity=nonlinearity, **how)

    return lstm if cell == "lstm" else rnn


def _reference_step(cell: str):
    """``(input, hidden, cell_state, *weights) -> (h[, c])`` in torch's operations."""

    def lstm(input, hidden, cell_state, *weights):
        return reference.lstm_cell(input, (hidden, cell_state), *weights)

    def rnn(input, hidden, cell_state, *weights):
        nonlinearity = cell.removeprefix("rnn_")
        return (reference.rnn_cell(input, hidden, *weights, nonlinearity=nonlinearity),)

    return lstm if cell == "lstm" else rnn


def _of_either_bias(grad_bias: Tensor | None, needs) -> tuple[Tensor | None, Tensor | None]:
    """Two tensors: who scales one in place must not scale the other."""
    of_first = grad_bias if needs[0] else None
    if not needs[1]:
        return of_first, None
    return of_first, grad_bias.clone() if needs[0] else grad_bias


def _if_needed(gradients, needs) -> list[Tensor | None]:
    return [gradient if need else None for gradient, need in zip(gradients, needs, strict=True)]


class _RecurrenceStep(torch.autograd.Function):
    """A step of what nothing but the kernel must see, on the CPU.

    It saves other tensors than ``_Recurrence``: of a checkpoint that runs forwards under a
    profiler, and without it once more, torch says that they do not match.
    """

    @staticmethod
    def forward(ctx, cell, input, *tensors):
        ctx.cell = cell
        ctx.set_materialize_grads(False)
        after, gates, cells = or_refuse(ops.recurrence_step_forward, cell, input, *tensors)
        # An LSTM's states are not read again: as torch's they may be changed in place.
        next_hidden = None if cell == "lstm" else after[0]
        ctx.save_for_backward(input, *tensors, next_hidden, gates, cells)
        return after if cell == "lstm" else next_hidden

    @staticmethod
    def backward(ctx, grad_hidden, grad_cell_state=None):
        needs = ctx.needs_input_grad[1:]
        if grad_hidden is None and grad_cell_state is None:
            return (None,) * (1 + len(needs))
        *inputs, next_hidden, gates, cells = ctx.saved_tensors
        grads = (grad_hidden, grad_cell_state)
        if torch.is_grad_enabled():
            function = _reference_step(ctx.cell)
            grads = grads if ctx.cell == "lstm" else grads[:1]
            return None, *through_reference(function, inputs, needs, grads)
        *gradients, grad_bias = ops.recurrence_step_backward(
            ctx.cell,
            *inputs[:6],
            next_hidden,
            gates,
            cells,
            *grads,
            [*needs[:5], needs[5] or needs[6]],
        )
        return None, *gradients, *_of_either_bias(grad_bias, needs[5:])


class _Recurrence(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(cell, reverse, recompute, batch_sizes, *tensors):
        return ops.recurrence(cell, reverse, *tensors, batch_sizes, not recompute)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.cell, ctx.reverse, _, ctx.batch_sizes, *tensors = inputs
        hidden_states, _, final_cell, gates, cells = output
        not_differentiable = (gates, cells) if ctx.cell == "lstm" else (final_cell, gates, cells)
        ctx.mark_non_differentiable(*not_differentiable)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, hidden_states, gates, cells)

    @staticmethod
    def backward(ctx, grad_output, grad_hidden, grad_cell_state, *_):
        *inputs, lengths, output, gates, cells = ctx.saved_tensors
        needs = ctx.needs_input_grad[4:11]
        is_lstm = ctx.cell == "lstm"
        grads = (grad_output, grad_hidden, grad_cell_state if is_lstm else None)
        if all(grad is None for grad in grads):
            return (None,) * 12
        if torch.is_grad_enabled():
            gradients = through_reference(
                _reference_recurrence(ctx.cell, ctx.reverse, lengths, ctx.batch_sizes),
                inputs,
                needs,
                grads if is_lstm else grads[:2],
            )
        else:
            *gradients, grad_bias = ops.recurrence_backward(
                ctx.cell,
                ctx.reverse,
                *inputs,
                lengths,
                ctx.batch_sizes,
                output,
                gates,
                cells,
                *grads,
                [*needs[:5], needs[5] or needs[6]],
            )
            gradients += _of_either_bias(grad_bias, needs[5:])
        return None, None, None, None, *_if_needed(gradients, needs), None
