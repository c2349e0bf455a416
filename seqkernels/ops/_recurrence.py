"""The recurrences over (T, N, I), or over the (rows, I) of packed sequences with their batch sizes.

Of 16-bit tensors the gates and cell states that a recurrence keeps for its backward are float32. A
backward that gets none computes them once more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _cpu, cpu, cuda
from . import _recurrence_cuda
from ._dispatch import (
    are_plain,
    callable_operation,
    define,
    room_for,
    want_gradient,
)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    """What the kernels keep gates and states of a recurrence in."""
    return torch.float32 if dtype.itemsize == 2 else dtype


def _batch(input: Tensor, batch_sizes: list[int] | None) -> int:
    if batch_sizes is None:
        return input.shape[1]
    if len(batch_sizes) == 0 or batch_sizes[0] < 1:
        first = batch_sizes[0] if batch_sizes else "none"
        raise ValueError(f"batch_sizes: expected a first step of at least 1 sequence, got {first}")
    return batch_sizes[0]


def _empty_recurrence(cell, input, weight_hh, batch_sizes, training) -> tuple[Tensor, ...]:
    """output, final hidden state, final cell state, gates, cell states."""
    rows, batch = input.shape[:-1], _batch(input, batch_sizes)
    hidden = weight_hh.shape[1]
    output = input.new_empty(*rows, hidden)
    final = input.new_empty(batch, hidden)
    if cell != "lstm":
        return output, final, *(input.new_empty(0) for _ in range(3))
    kept = _accumulator(input.dtype)
    gates = room_for(training, input, *rows, 4 * hidden, dtype=kept)
    cells = room_for(training, input, *rows, hidden, dtype=kept)
    return output, final, input.new_empty(batch, hidden), gates, cells


def _running(cell: str, hidden: Tensor) -> Tensor | None:
    """Room for an LSTM's cell state, or its gradient, between the steps."""
    if cell != "lstm":
        return None
    return hidden.new_empty(hidden.shape, dtype=_accumulator(hidden.dtype))


def _initial_states(cell, input, hidden, cell_state, weight_hh) -> tuple[Tensor, ...]:
    """The states before the first step, zeros where none are given."""
    if (cell_state is not None) != (cell == "lstm" and hidden is not None):
        raise ValueError(f"cell_state: expected one beside hidden, of an LSTM, got {cell_state}")
    if hidden is not None:
        return (hidden, cell_state) if cell == "lstm" else (hidden,)
    shape = (input.shape[1], weight_hh.shape[1])
    return tuple(input.new_zeros(shape) for _ in range(2 if cell == "lstm" else 1))


def _with_unit_stride(input: Tensor) -> Tensor:
    return input if input.stride(-1) == 1 or input.shape[-1] <= 1 else input.contiguous()


def _expect_padded(batch_sizes: list[int] | None) -> None:
    if batch_sizes is not None:
        raise NotImplementedError("batch_sizes: expected None for tensors on CUDA devices")


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _recurrence(
    cell,
    reverse,
    input,
    hidden,
    cell_state,
    weight_ih,
    weight_hh,
    bias_ih,
    bias_hh,
    lengths,
    batch_sizes,
    training,
):
    output, final, final_cell, gates, cells = outputs = _empty_recurrence(
        cell, input, weight_hh, batch_sizes, training
    )
    is_lstm = cell == "lstm"
    keeps_gates = is_lstm and training
    if cuda.is_on_device(input):
        _expect_padded(batch_sizes)
        states = _initial_states(cell, input, hidden, cell_state, weight_hh)
        weights = (weight_ih, weight_hh, bias_ih, bias_hh)
        kept = (gates, cells) if keeps_gates else (None, None)
        results = outputs[: 3 if is_lstm else 2]
        tensors = (input, states, weights, lengths, results, kept)
        _recurrence_cuda.forward(cell, reverse, *tensors, _running(cell, states[0]))
        return outputs
    _cpu.recurrence_forward(
        cell,
        reverse,
        _with_unit_stride(input),
        _contiguous(hidden),
        _contiguous(cell_state),
        weight_ih,
        weight_hh,
        _contiguous(bias_ih),
        _contiguous(bias_hh),
        lengths,
        batch_sizes,
        output,
        final,
        final_cell if is_lstm else None,
        gates if keeps_gates else None,
        cells if keeps_gates else None,
        cpu.where(input, "rnn"),
    )
    return outputs


def _recurrence_shapes(
    cell,
    reverse,
    input,
    hidden,
    cell_state,
    weight_ih,
    weight_hh,
    bias_ih,
    bias_hh,
    lengths,
    batch_sizes,
    training,
):
    return _empty_recurrence(cell, input, weight_hh, batch_sizes, training)


def _empty_recurrence_gradients(
    input, weight_ih, weight_hh, batch_sizes, needs
) -> tuple[Tensor, ...]:
    """Gradients of input, hidden state, cell state, weight_ih, weight_hh, and of either bias."""
    if len(needs) != 6:
        raise ValueError(f"needs: expected one for each of 6 gradients, got {len(needs)}")
    state = (_batch(input, batch_sizes), weight_hh.shape[1])
    return (
        room_for(needs[0], input, *input.shape),
        room_for(needs[1], input, *state),
        room_for(needs[2], input, *state),
        room_for(needs[3], input, *weight_ih.shape),
        room_for(needs[4], input, *weight_hh.shape),
        room_for(needs[5], input, weight_hh.shape[0]),
    )


def _recurrence_backward(
    cell,
    reverse,
    input,
    hidden,
    cell_state,
    weight_ih,
    weight_hh,
    bias_ih,
    bias_hh,
    lengths,
    batch_sizes,
    output,
    gates,
    cells,
    grad_output,
    grad_hidden,
    grad_cell_state,
    needs,
):
    gradients = _empty_recurrence_gradients(input, weight_ih, weight_hh, batch_sizes, needs)
    is_lstm = cell == "lstm"
    kept = is_lstm and gates.dim() > 1
    if is_lstm and not kept:
        tensors = (input, hidden, cell_state, weight_ih, weight_hh, bias_ih, bias_hh, lengths)
        gates, cells = _recurrence(cell, reverse, *tensors, batch_sizes, True)[3:]
    if cuda.is_on_device(input):
        _expect_padded(batch_sizes)
        states = _initial_states(cell, input, hidden, cell_state, weight_hh)
        _recurrence_cuda.backward(
            cell,
            reverse,
            input,
            states,
            (weight_ih, weight_hh),
            lengths,
            output,
            (gates, cells),
            (grad_output, grad_hidden, grad_cell_state),
            needs,
            gradients,
            _running(cell, states[0]),
        )
        return gradients
    _cpu.recurrence_backward(
        cell,
        reverse,
        _with_unit_stride(input),
        _contiguous(hidden),
        _contiguous(cell_state),
        weight_ih,
        weight_hh,
        lengths,
        batch_sizes,
        output,
        gates if is_lstm else None,
        cells if is_lstm else None,
        _contiguous(grad_output),
        _contiguous(grad_hidden),
        _contiguous(grad_cell_state),
        *(gradient if need else None for gradient, need in zip(gradients, needs, strict=True)),
        cpu.where(input, "rnn"),
    )
    return gradients


def _recurrence_backward_shapes(
    cell,
    reverse,
    input,
    hidden,
    cell_state,
    weight_ih,
    weight_hh,
    bias_ih,
    bias_hh,
    lengths,
    batch_sizes,
    output,
    gates,
    cells,
    grad_output,
    grad_hidden,
    grad_cell_state,
    needs,
):
    return _empty_recurrence_gradients(input, weight_ih, weight_hh, batch_sizes, needs)


define(
    "recurrence(str cell, bool reverse, Tensor input, Tensor? hidden, Tensor? cell_state, "
    "Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor? lengths, "
    "int[]? batch_sizes, bool training) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _recurrence,
    _recurrence_shapes,
    devices=("CPU", "CUDA"),
)
define(
    "recurrence_backward(str cell, bool reverse, Tensor input, Tensor? hidden, Tensor? cell_state, "
    "Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor? lengths, "
    "int[]? batch_sizes, Tensor output, Tensor gates, "
    "Tensor cells, Tensor? grad_output, Tensor? grad_hidden, Tensor? grad_cell_state, "
    "bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _recurrence_backward,
    _recurrence_backward_shapes,
    devices=("CPU", "CUDA"),
)

recurrence = callable_operation("recurrence", _recurrence)
recurrence_backward = callable_operation("recurrence_backward", _recurrence_backward)


def recurrence_step(
    cell: str,
    input: Tensor,
    states: tuple[Tensor, ...],
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
) -> tuple[Tensor, ...] | None:
    """The next states of (N, I) input, without gradients, in as few steps as can be.

    None where anything is not as the kernel takes it: a shape, a dtype, a layout, a kind of tensor,
    a mode, a gradient to come. Nothing has been computed then, and nothing said of what is wrong.
    """
    if not isinstance(input, Tensor) or cuda.is_on_device(input):
        return None
    return _cpu.recurrence_step(cell, input, states, weight_ih, weight_hh, bias_ih, bias_hh)


def recurrence_step_forward(
    cell: str,
    input: Tensor,
    hidden: Tensor,
    cell_state: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
) -> tuple[tuple[Tensor, ...], Tensor | None, Tensor | None]:
    """The next states, as ``recurrence_step``; and an LSTM's gates and cells for the backward.

    For plain tensors on the CPU.

    Raises:
        RuntimeError, TypeError, ValueError: something is not as the kernel takes it.
    """
    gates = cells = None
    if cell == "lstm":
        kept, batch = _accumulator(input.dtype), input.shape[0]
        gates = input.new_empty(batch, weight_hh.shape[0], dtype=kept)
        cells = input.new_empty(batch, weight_hh.shape[1], dtype=kept)
    weights = (weight_ih, weight_hh, bias_ih, bias_hh)
    after = _cpu.recurrence_step_forward(cell, input, hidden, cell_state, *weights, gates, cells)
    return after, gates, cells


def recurrence_step_backward(
    cell: str,
    input: Tensor,
    hidden: Tensor,
    cell_state: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    next_hidden: Tensor | None,
    gates: Tensor | None,
    cells: Tensor | None,
    grad_hidden: Tensor | None,
    grad_cell_state: Tensor | None,
    needs: list[bool],
) -> Sequence[Tensor | None]:
    """Gradients of input, states, weights and of either bias; None where ``needs`` has False.

    next_hidden is an RNN's, gates and cells are an LSTM's, otherwise None.
    """
    tensors = (input, hidden, cell_state, weight_ih, weight_hh, bias, next_hidden, gates, cells)
    grads = (grad_hidden, grad_cell_state)
    if torch.compiler.is_compiling() or not are_plain((*tensors, *grads)):
        return _step_backward_as_sequence(cell, tensors, grads, needs)
    # Hooks may have unpacked what was saved with other strides.
    rest = map(_contiguous, (*tensors[1:], *grads))
    return _cpu.recurrence_step_backward(cell, _with_unit_stride(input), *rest, needs)


def _step_backward_as_sequence(cell, tensors, grads, needs) -> list[Tensor | None]:
    """The same by the operation of a sequence, which a transform can map."""
    input, hidden, cell_state, weight_ih, weight_hh, _, next_hidden, gates, cells = tensors
    # An RNN keeps nothing, and an LSTM's output is not read.
    gates, cells = (input.new_empty(0) if kept is None else kept[None] for kept in (gates, cells))
    grad_input, *gradients = recurrence_backward(
        cell,
        False,
        input[None],
        hidden,
        cell_state,
        weight_ih,
        weight_hh,
        None,
        None,
        None,
        None,
        (hidden if next_hidden is None else next_hidden)[None],
        gates,
        cells,
        None,
        *grads,
        needs,
    )
    gradients = (grad_input[0] if needs[0] else None, *gradients)
    return [gradient if need else None for gradient, need in zip(gradients, needs, strict=True)]


def recurrence_sequence(
    cell: str,
    reverse: bool,
    input: Tensor,
    states: tuple[Tensor, ...] | None,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    *weights: Tensor | None,
) -> tuple[Tensor, ...] | None:
    """Output and final states of (T, N, I) input, or packed; otherwise as ``recurrence_step``.

    Without ``states`` they are zeros, and the first step does not read weight_hh.
    """
    if want_gradient((input, lengths, *(states or ()), *weights)) is not False:
        return None
    try:
        if cuda.is_on_device(input):
            return None
        if batch_sizes is not None and not batch_sizes.is_cpu:
            return None
        sizes = None if batch_sizes is None else batch_sizes.tolist()
        output, *final = _room_for_sequence(cell, input, sizes, weights[1].shape[1])
        before = (*(states or (None,)), None)[:2]
        after = (*final, None)[:2]
        where = cpu.where(input, "rnn")
        _cpu.recurrence_forward(
            cell,
            reverse,
            input,
            *before,
            *weights,
            lengths,
            sizes,
            output,
            *after,
            None,
            None,
            where,
        )
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return None
    return output, *final


def _room_for_sequence(cell: str, input: Tensor, sizes: list[int] | None, features: int):
    """Output and final states."""
    states, batch = 2 if cell == "lstm" else 1, _batch(input, sizes)
    output = input.new_empty(*input.shape[:-1], features)
    return output, *(input.new_empty(batch, features) for _ in range(states))


def recurrence_stack(
    cell: str,
    directions: int,
    input: Tensor,
    states: tuple[Tensor, ...] | None,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    weights: list[list[Tensor]],
) -> tuple[Tensor, ...] | None:
    """``recurrence_sequence`` of a stack of layers, in one direction or both.

    Output (T, N, directions * H), or packed; initial and final states are
    (layers * directions, N, H), in the order of the weights.
    """
    if not isinstance(input, Tensor) or cuda.is_on_device(input):
        return None
    sizes = batch_sizes
    if batch_sizes is not None:
        if not isinstance(batch_sizes, Tensor) or not batch_sizes.is_cpu:
            return None
        sizes = batch_sizes.tolist()
    where = cpu.where(input, "rnn")
    return _cpu.recurrence_stack(cell, directions, input, states, lengths, sizes, weights, where)
