"""LSTM and RNN: a step, and a layer in one direction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import autograd, checks, ops, reference
from ._coverage import (
    batched_lengths,
    has_kernel,
    is_autocast,
    say_once,
    takes_packed,
    widest,
)


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM (Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000).

    ``i, f, o = sigma(W_x x + W_h h + b)`` and ``g = tanh(...)`` alike, ``c' = f * c + i * g``,
    ``h' = o * tanh(c')``: what ``torch.nn.LSTMCell`` computes, with its weights.

    Args:
        input: (N, I), or (I,) without a batch. Any strides.
        hx: the state (h, c), each (N, H) or (H,); None means zeros.
        w_ih: (4*H, I), the rows in the order i, f, g, o.
        w_hh: (4*H, H).
        b_ih: (4*H,), or None.
        b_hh: (4*H,), or None.

    Returns:
        The new state (h, c), shaped as hx.

    Raises:
        TypeError: an argument that is no tensor; hx that is no tuple.
        ValueError: input, h or c with a number of dimensions other than 1 or 2.
        RuntimeError: shapes, dtypes or devices that do not fit together.
    """
    hx = checks.state_pair(hx)
    if hx is not None and not torch.compiler.is_compiling():
        step = ("lstm", input, hx, w_ih, w_hh, b_ih, b_hh)
        following = ops.recurrence_step(*step)
        if following is None:
            following = autograd.recurrence_step(*step)
        if following is not None:
            return following
    if is_autocast(input):
        input, hx, w_ih, w_hh, b_ih, b_hh = widest(input, hx, w_ih, w_hh, b_ih, b_hh)
    checks.cell(input, hx, w_ih, w_hh, b_ih, b_hh, gates=4)
    if not has_kernel("lstm_cell", input):
        say_once("lstm_cell", input)
        return reference.lstm_cell(input, hx, w_ih, w_hh, b_ih, b_hh)
    if input.dim() == 2:
        h, c = hx or (None, None)
        return autograd.lstm_cell(input, h, c, w_ih, w_hh, b_ih, b_hh)
    h, c = _unsqueezed(hx) or (None, None)
    h, c = autograd.lstm_cell(input.unsqueeze(0), h, c, w_ih, w_hh, b_ih, b_hh)
    return h.squeeze(0), c.squeeze(0)


def rnn_cell(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
) -> Tensor:
    """One step of an RNN: ``h' = tanh(W_x x + W_h h + b)``, or relu in tanh's place.

    What ``torch.nn.RNNCell`` computes, with its weights.

    Args:
        input: (N, I), or (I,) without a batch. Any strides.
        hx: the state h, (N, H) or (H,); None means zeros.
        w_ih: (H, I).
        w_hh: (H, H).
        b_ih: (H,), or None.
        b_hh: (H,), or None.
        nonlinearity: "tanh" or "relu".

    Returns:
        The new state h, shaped as hx.

    Raises:
        TypeError: an argument that is no tensor.
        ValueError: input or hx with a number of dimensions other than 1 or 2; an unknown
            nonlinearity.
        RuntimeError: shapes, dtypes or devices that do not fit together.
    """
    checks.one_of("nonlinearity", nonlinearity, checks.NONLINEARITIES)
    states = None if hx is None else (hx,)
    if states is not None and not torch.compiler.is_compiling():
        step = (f"rnn_{nonlinearity}", input, states, w_ih, w_hh, b_ih, b_hh)
        following = ops.recurrence_step(*step)
        if following is None:
            following = autograd.recurrence_step(*step)
        if following is not None:
            return following[0]
    if is_autocast(input):
        input, states, w_ih, w_hh, b_ih, b_hh = widest(input, states, w_ih, w_hh, b_ih, b_hh)
    checks.cell(input, states, w_ih, w_hh, b_ih, b_hh, gates=1)
    if not has_kernel("rnn_cell", input):
        say_once("rnn_cell", input)
        h = None if states is None else states[0]
        return reference.rnn_cell(input, h, w_ih, w_hh, b_ih, b_hh, nonlinearity=nonlinearity)
    if input.dim() == 2:
        (h,) = states or (None,)
        return autograd.rnn_cell(input, h, w_ih, w_hh, b_ih, b_hh, nonlinearity)
    (h,) = _unsqueezed(states) or (None,)
    h = autograd.rnn_cell(input.unsqueeze(0), h, w_ih, w_hh, b_ih, b_hh, nonlinearity)
    return h.squeeze(0)


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    reverse: bool = False,
    recompute: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One layer of an LSTM in one direction: ``lstm_cell`` at every step of a sequence.

    Args:
        input: (T, N, I), or (T, I) without a batch; with batch_sizes (rows, I). Any strides.
        hx: the initial state (h, c), each (N, H) or (H,); None means zeros (with which w_hh need
            not be multiplied: a NaN in it may show from the second step on only).
        w_ih: (4*H, I), the rows in the order i, f, g, o.
        w_hh: (4*H, H).
        b_ih: (4*H,), or None.
        b_hh: (4*H,), or None.
        lengths: (N,) integers, each from 0 to T (without a batch: 0 dimensions), on the CPU or on
            input's device. Sequence n is treated as if it had been run alone, cut to
            ``lengths[n]``: what stands behind it in ``input``, even NaN, changes no bit of any
            result or gradient. Values on a CUDA device are not waited for to be checked: there one
            beyond T counts as T, below 0 as 0.
        batch_sizes: (T,) integers on the CPU, those of a ``PackedSequence`` whose data input is:
            how many of the N sequences, the longest first, have each step. Without lengths. A graph
            that is being compiled breaks where they are read.
        reverse: read from the last element (of each sequence) to the first.
        recompute: keep no gates and cell states (5 T N H numbers) for the backward pass, which
            runs the forward pass once more to get them. The results are the same to the bit. No
            effect on what torch's operations compute.

    Returns:
        ``(output, (h_n, c_n))``: output (T, N, H), (T, H) or (rows, H), where ``output[t]`` is h
        after ``input[t]`` was read, and 0 beyond ``lengths[n]``; h_n and c_n (N, H) or (H,), the
        state after the last step, for a sequence of length 0 the initial one. On the CPU a single
        step, T = 1, adds its products up in another order than longer ones, and so do up to 4
        samples with more than 4 MiB of recurrent weights, in the type that is computed in: the last
        bits of results may differ from those of other sizes.

    Raises:
        TypeError: an argument that is no tensor; hx that is no tuple; lengths or batch_sizes of a
            floating-point dtype.
        ValueError: input with a number of dimensions other than 2 or 3, with batch_sizes than 2;
            lengths of another shape than (N,), negative or beyond T; batch_sizes of another shape
            than (T,), that grow or are less than 1, or whose sum is not the rows of input.
        RuntimeError: shapes, dtypes or devices that do not fit together.
    """
    hx = checks.state_pair(hx)
    weights = (w_ih, w_hh, b_ih, b_hh)
    if not torch.compiler.is_compiling():
        how = (lengths, batch_sizes)
        found = ops.recurrence_sequence("lstm", reverse, input, hx, *how, *weights)
        if found is not None:
            return found[0], found[1:]
    if batch_sizes is not None and not takes_packed(input):
        checks.packed(input, batch_sizes, lengths)
        how = {"reverse": reverse, "recompute": recompute}
        return reference.over_padded(lstm, input, batch_sizes, hx, *weights, **how)
    if is_autocast(input):
        input, hx, w_ih, w_hh, b_ih, b_hh = widest(input, hx, w_ih, w_hh, b_ih, b_hh)
    weights = (w_ih, w_hh, b_ih, b_hh)
    sizes = checks.recurrence(input, hx, *weights, lengths, batch_sizes, gates=4)
    if not has_kernel("lstm", input):
        say_once("lstm", input)
        how = {"lengths": lengths, "batch_sizes": batch_sizes, "reverse": reverse}
        return reference.lstm(input, hx, *weights, **how)
    how = (*weights, batched_lengths(lengths, input), sizes, reverse, recompute)
    if input.dim() == 3 or sizes is not None:
        h, c = hx or (None, None)
        output, h, c = autograd.lstm(input, h, c, *how)
        return output, (h, c)
    h, c = _unsqueezed(hx) or (None, None)
    output, h, c = autograd.lstm(input.unsqueeze(1), h, c, *how)
    return output.squeeze(1), (h.squeeze(0), c.squeeze(0))


def rnn(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """One layer of an RNN in one direction: ``rnn_cell`` at every step of a sequence.

    Args:
        input: (T, N, I), or (T, I) without a batch; with batch_sizes (rows, I). Any strides.
        hx: the initial state, (N, H) or (H,); None means zeros.
        w_ih: (H, I).
        w_hh: (H, H).
        b_ih: (H,), or None.
        b_hh: (H,), or None.
        nonlinearity: "tanh" or "relu".
        lengths: as in ``lstm``.
        batch_sizes: as in ``lstm``.
        reverse: as in ``lstm``.

    Returns:
        ``(output, h_n)``: output (T, N, H), (T, H) or (rows, H), where ``output[t]`` is h after
        ``input[t]`` was read, and 0 beyond ``lengths[n]``; h_n (N, H) or (H,), the state after the
        last step, for a sequence of length 0 the initial one. Of the last bits the same is true as
        in ``lstm``.

    Raises:
        TypeError: an argument that is no tensor; lengths or batch_sizes of a floating-point dtype.
        ValueError: an unknown nonlinearity; a wrong number of dimensions, wrong lengths or
            batch_sizes, as in ``lstm``.
        RuntimeError: shapes, dtypes or devices that do not fit together.
    """
    checks.one_of("nonlinearity", nonlinearity, checks.NONLINEARITIES)
    states = None if hx is None else (hx,)
    weights = (w_ih, w_hh, b_ih, b_hh)
    if not torch.compiler.is_compiling():
        how = (lengths, batch_sizes)
        cell = f"rnn_{nonlinearity}"
        found = ops.recurrence_sequence(cell, reverse, input, states, *how, *weights)
        if found is not None:
            return found
    if batch_sizes is not None and not takes_packed(input):
        checks.packed(input, batch_sizes, lengths)
        how = {"nonlinearity": nonlinearity, "reverse": reverse}
        return reference.over_padded(rnn, input, batch_sizes, hx, *weights, **how)
    if is_autocast(input):
        input, states, w_ih, w_hh, b_ih, b_hh = widest(input, states, w_ih, w_hh, b_ih, b_hh)
    weights = (w_ih, w_hh, b_ih, b_hh)
    sizes = checks.recurrence(input, states, *weights, lengths, batch_sizes, gates=1)
    if not has_kernel("rnn", input):
        say_once("rnn", input)
        return reference.rnn(
            input,
            None if states is None else states[0],
            *weights,
            nonlinearity=nonlinearity,
            lengths=lengths,
            batch_sizes=batch_sizes,
            reverse=reverse,
        )
    how = (*weights, batched_lengths(lengths, input), sizes, reverse, nonlinearity)
    if input.dim() == 3 or sizes is not None:
        (h,) = states or (None,)
        return autograd.rnn(input, h, *how)
    (h,) = _unsqueezed(states) or (None,)
    output, h = autograd.rnn(input.unsqueeze(1), h, *how)
    return output.squeeze(1), h.squeeze(0)


def _unsqueezed(states: Sequence[Tensor] | None) -> tuple[Tensor, ...] | None:
    return None if states is None else tuple(state.unsqueeze(0) for state in states)
