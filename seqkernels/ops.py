"""The operations that torch sees: schemas, CPU kernels and shapes for tracing.

``torch.library`` makes them opaque to ``torch.compile`` and ``torch.export``; gradients are
attached one floor up, in ``autograd``. Arguments have been checked in ``functional``; the native
module checks sizes, strides and dtypes once more, since memory depends on them.

They carry neither gradients nor autocast: call ``functional``, which sees to both.

Sequences of a convolution come as (N, L, C), of any strides; recurrences run over (T, N, I). An
output that was not asked for comes back as a tensor without elements. Of 16-bit tensors the gates
and cell states that a recurrence keeps for its backward are float32. A backward that gets none
computes them once more.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from . import _cpu, checks

library = torch.library.Library("seqkernels", "DEF")

library.define(
    "conv1d_max_pool(Tensor input, Tensor weight, Tensor? bias, Tensor? lengths, int[] geometry, "
    "str activation, bool channels_last) -> (Tensor, Tensor)"
)
library.define(
    "conv1d_max_pool_backward(Tensor grad_output, Tensor output, Tensor argmax, Tensor input, "
    "Tensor weight, Tensor? lengths, int[] geometry, str activation, bool channels_last, "
    "bool[] needs) -> (Tensor, Tensor, Tensor)"
)
library.define(
    "recurrence(str cell, bool reverse, Tensor input, Tensor hidden, Tensor? cell_state, "
    "Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor? lengths, "
    "bool training) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
library.define(
    "recurrence_backward(str cell, bool reverse, Tensor input, Tensor hidden, Tensor? cell_state, "
    "Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor? lengths, "
    "Tensor output, Tensor gates, "
    "Tensor cells, Tensor? grad_output, Tensor? grad_hidden, Tensor? grad_cell_state, "
    "bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


# Operations get a geometry as a plain list of integers.
_POOL_SIZE = checks.ConvolutionGeometry._fields.index("pool_size")


def _empty_convolution(input, weight, geometry, channels_last) -> tuple[Tensor, Tensor]:
    """The output, contiguous in the caller's layout; and the same as (N, P, F)."""
    batch, filters = input.shape[0], weight.shape[0]
    if geometry[_POOL_SIZE] == 0:
        output = input.new_empty(batch, filters)
    else:
        geometry = checks.ConvolutionGeometry(*geometry)
        windows = checks.output_length(input.shape[1], weight.shape[2], geometry)
        pooled = checks.pooled_length(windows, geometry)
        shape = (batch, pooled, filters) if channels_last else (batch, filters, pooled)
        output = input.new_empty(shape)
    return output, _as_pooled(output, geometry, channels_last)


def _as_pooled(output: Tensor, geometry, channels_last: bool) -> Tensor:
    """An output, or its gradient, as (N, P, F)."""
    if geometry[_POOL_SIZE] == 0:
        return output.unsqueeze(1)
    return output if channels_last else output.transpose(1, 2)


def _conv1d_max_pool(input, weight, bias, lengths, geometry, activation, channels_last):
    output, view = _empty_convolution(input, weight, geometry, channels_last)
    argmax = output.new_empty(view.shape, dtype=torch.int32)
    bias = None if bias is None else bias.contiguous()
    _cpu.conv1d_max_pool_forward(
        input,
        weight,
        bias,
        lengths,
        view,
        argmax,
        geometry,
        activation,
        torch.get_num_threads(),
    )
    return output, argmax


def _conv1d_max_pool_shapes(input, weight, bias, lengths, geometry, activation, channels_last):
    output, view = _empty_convolution(input, weight, geometry, channels_last)
    return output, output.new_empty(view.shape, dtype=torch.int32)


def _empty_convolution_gradients(input, weight, needs) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, (N, L, C); weight, (F, C, k) with channels side by side; and bias."""
    filters, channels, kernel_size = weight.shape
    return (
        input.new_empty(input.shape) if needs[0] else input.new_empty(0),
        weight.new_empty(filters, kernel_size, channels) if needs[1] else weight.new_empty(0),
        weight.new_empty(filters) if needs[2] else weight.new_empty(0),
    )


def _conv1d_max_pool_backward(
    grad_output,
    output,
    argmax,
    input,
    weight,
    lengths,
    geometry,
    activation,
    channels_last,
    needs,
):
    gradients = _empty_convolution_gradients(input, weight, needs)
    _cpu.conv1d_max_pool_backward(
        _as_pooled(grad_output, geometry, channels_last),
        _as_pooled(output, geometry, channels_last),
        argmax,
        input,
        weight,
        lengths,
        *(gradient if need else None for gradient, need in zip(gradients, needs, strict=True)),
        geometry,
        activation,
        torch.get_num_threads(),
    )
    return _transposed_weight_gradient(gradients, needs)


def _conv1d_max_pool_backward_shapes(
    grad_output, output, argmax, input, weight, lengths, geometry, activation, channels_last, needs
):
    return _transposed_weight_gradient(_empty_convolution_gradients(input, weight, needs), needs)


def _transposed_weight_gradient(gradients, needs) -> tuple[Tensor, Tensor, Tensor]:
    grad_input, grad_weight, grad_bias = gradients
    return grad_input, grad_weight.transpose(1, 2) if needs[1] else grad_weight, grad_bias


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    """What the kernels keep gates and states of a recurrence in."""
    return torch.float32 if dtype.itemsize == 2 else dtype


def _empty_recurrence(cell, input, weight_hh, training) -> tuple[Tensor, ...]:
    """output, final hidden state, final cell state, gates, cell states."""
    steps, batch, _ = input.shape
    hidden = weight_hh.shape[1]
    output = input.new_empty(steps, batch, hidden)
    final = input.new_empty(batch, hidden)
    if cell != "lstm":
        return output, final, *(input.new_empty(0) for _ in range(3))
    kept = _accumulator(input.dtype)
    gates = input.new_empty((steps, batch, 4 * hidden) if training else 0, dtype=kept)
    cells = input.new_empty((steps, batch, hidden) if training else 0, dtype=kept)
    return output, final, input.new_empty(batch, hidden), gates, cells


def _with_unit_stride(input: Tensor) -> Tensor:
    return input if input.stride(-1) == 1 or input.shape[-1] <= 1 else input.contiguous()


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
    training,
):
    output, final, final_cell, gates, cells = outputs = _empty_recurrence(
        cell, input, weight_hh, training
    )
    is_lstm = cell == "lstm"
    keeps_gates = is_lstm and training
    _cpu.recurrence_forward(
        cell,
        reverse,
        _with_unit_stride(input),
        hidden.contiguous(),
        cell_state.contiguous() if is_lstm else None,
        weight_ih,
        weight_hh,
        None if bias_ih is None else bias_ih.contiguous(),
        None if bias_hh is None else bias_hh.contiguous(),
        lengths,
        output,
        final,
        final_cell if is_lstm else None,
        gates if keeps_gates else None,
        cells if keeps_gates else None,
        torch.get_num_threads(),
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
    training,
):
    return _empty_recurrence(cell, input, weight_hh, training)


def _empty_recurrence_gradients(cell, input, weight_ih, weight_hh, needs) -> tuple[Tensor, ...]:
    """Gradients of input, hidden state, cell state, weight_ih, weight_hh, and of either bias."""
    batch, hidden = input.shape[1], weight_hh.shape[1]
    return (
        input.new_empty(input.shape if needs[0] else 0),
        input.new_empty(batch, hidden),
        input.new_empty((batch, hidden) if cell == "lstm" else 0),
        weight_ih.new_empty(weight_ih.shape if needs[1] else 0),
        weight_hh.new_empty(weight_hh.shape if needs[2] else 0),
        weight_hh.new_empty(weight_hh.shape[0] if needs[3] else 0),
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
    output,
    gates,
    cells,
    grad_output,
    grad_hidden,
    grad_cell_state,
    needs,
):
    gradients = _empty_recurrence_gradients(cell, input, weight_ih, weight_hh, needs)
    grad_input, grad_initial, grad_initial_cell, grad_weight_ih, grad_weight_hh, grad_bias = (
        gradients
    )
    is_lstm = cell == "lstm"
    if is_lstm and gates.dim() == 1:
        # Not kept by the forward pass. Nobody else has these: the gradients may take their place.
        tensors = (input, hidden, cell_state, weight_ih, weight_hh, bias_ih, bias_hh, lengths)
        gates, cells = _recurrence(cell, reverse, *tensors, True)[3:]
        grad_gates = gates
    else:
        rows = weight_hh.shape[0]
        grad_gates = input.new_empty(*output.shape[:2], rows, dtype=_accumulator(input.dtype))
    _cpu.recurrence_backward(
        cell,
        reverse,
        _with_unit_stride(input),
        hidden.contiguous(),
        cell_state.contiguous() if is_lstm else None,
        weight_ih,
        weight_hh,
        lengths,
        output,
        gates if is_lstm else None,
        cells if is_lstm else None,
        None if grad_output is None else grad_output.contiguous(),
        None if grad_hidden is None else grad_hidden.contiguous(),
        None if grad_cell_state is None else grad_cell_state.contiguous(),
        grad_gates,
        grad_input if needs[0] else None,
        grad_initial,
        grad_initial_cell if is_lstm else None,
        grad_weight_ih if needs[1] else None,
        grad_weight_hh if needs[2] else None,
        grad_bias if needs[3] else None,
        torch.get_num_threads(),
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
    output,
    gates,
    cells,
    grad_output,
    grad_hidden,
    grad_cell_state,
    needs,
):
    return _empty_recurrence_gradients(cell, input, weight_ih, weight_hh, needs)


for _name, _kernel, _shapes in (
    ("conv1d_max_pool", _conv1d_max_pool, _conv1d_max_pool_shapes),
    (
        "conv1d_max_pool_backward",
        _conv1d_max_pool_backward,
        _conv1d_max_pool_backward_shapes,
    ),
    ("recurrence", _recurrence, _recurrence_shapes),
    ("recurrence_backward", _recurrence_backward, _recurrence_backward_shapes),
):
    library.impl(_name, _kernel, "CPU")
    torch.library.register_fake(f"seqkernels::{_name}", _shapes, lib=library)


def _callable(name: str, kernel):
    """A forward operation as the floors above call it: directly where only the kernel needs it.

    Backward ones always go through torch's dispatcher: batched gradients (``is_grads_batched``)
    look like plain tensors and are told apart there.
    """
    operation = getattr(torch.ops.seqkernels, name).default

    def call(*arguments):
        if torch.compiler.is_compiling() or not _is_plain(arguments, _ARGUMENTS):
            return operation(*arguments)
        return kernel(*arguments)

    return call


_TENSORS = frozenset((Tensor, torch.nn.Parameter))
_OPTIONAL_TENSORS = _TENSORS | {type(None)}
_ARGUMENTS = _OPTIONAL_TENSORS | {str, bool, list, checks.ConvolutionGeometry}


def _is_plain(arguments: tuple, types: frozenset) -> bool:
    """Whether all are of these types, tensors plain ones, and no mode, transform or trace is on.

    Then torch's dispatcher, some 15 microseconds of it, would do nothing but call the kernel. A
    tensor with the negative bit is not plain: its memory holds the values with the other sign.
    """
    for value in arguments:
        kind = type(value)
        if kind not in types or (kind in _TENSORS and value.is_neg()):
            return False
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
        and not torch.autograd._profiler_enabled()
    )


def _has_no_gradient(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether no derivative of either mode can be wanted."""
    if torch.autograd.forward_ad._current_level >= 0:
        return False
    if not torch.is_grad_enabled():
        return True
    return not any(tensor is not None and tensor.requires_grad for tensor in tensors)


_GEOMETRY_TYPES = frozenset((int, str, type(None)))
_known_geometry = functools.lru_cache(maxsize=256)(checks.convolution_geometry)


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: tuple[int | str | None, ...],
    activation: str,
    channels_last: bool,
) -> Tensor | None:
    """The pooled convolution of a batch, without gradients, in as few steps of Python as can be.

    ``geometry`` are stride, padding, dilation, pool_size and pool_stride, in a layer's form too.

    None where anything is not as the kernel takes it: a shape, a dtype, a layout, a kind of tensor,
    a mode, a gradient to come. Nothing has been computed then, and nothing said of what is wrong.
    """
    tensors = (input, weight, bias)
    if not (_is_plain(tensors, _OPTIONAL_TENSORS) and _has_no_gradient(tensors)):
        return None
    geometry = [part[0] if type(part) is tuple and len(part) == 1 else part for part in geometry]
    # True and 1.0 are equal to 1, and must not find what is known of it.
    if not _GEOMETRY_TYPES.issuperset(map(type, geometry)) or type(activation) is not str:
        return None
    if input is None or input.dim() != 3:
        return None
    sequences = input if channels_last else input.transpose(1, 2)
    try:
        filters, _, kernel_size = weight.shape
        if filters == 0 or kernel_size == 0:
            return None
        known = _known_geometry(kernel_size, *geometry)
        output, view = _empty_convolution(sequences, weight, known, channels_last)
        threads = torch.get_num_threads()
        _cpu.conv1d_max_pool_forward(
            sequences, weight, bias, None, view, None, known, activation, threads
        )
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return None
    return output


def recurrence_step(
    cell: str, input: Tensor, states: tuple[Tensor, ...], *weights: Tensor | None
) -> tuple[Tensor, ...] | None:
    """The next states of (N, I) input, without gradients, in as few steps of Python as can be.

    ``weights`` are weight_ih, weight_hh, bias_ih and bias_hh.

    None where anything is not as the kernel takes it: a shape, a dtype, a layout, a kind of tensor,
    a mode, a gradient to come. Nothing has been computed then, and nothing said of what is wrong.
    """
    tensors = (input, *states, *weights)
    if not (_is_plain(tensors, _OPTIONAL_TENSORS) and _has_no_gradient(tensors)):
        return None
    try:
        following = tuple(map(torch.empty_like, states))
        before, after = ((*pair, None)[:2] for pair in (states, following))
        _cpu.recurrence_step(cell, input, *before, *weights, *after, torch.get_num_threads())
    except (RuntimeError, TypeError, ValueError):
        return None
    return following


def recurrence_sequence(
    cell: str,
    reverse: bool,
    input: Tensor,
    states: tuple[Tensor, ...] | None,
    *weights: Tensor | None,
) -> tuple[Tensor, ...] | None:
    """Output and final states of (T, N, I) input; otherwise as ``recurrence_step``.

    Without ``states`` they are zeros, and the first step does not read weight_hh.
    """
    tensors = (input, *(states or ()), *weights)
    if not (_is_plain(tensors, _OPTIONAL_TENSORS) and _has_no_gradient(tensors)):
        return None
    try:
        steps, batch, _ = input.shape
        features = weights[1].shape[1]
        output = input.new_empty(steps, batch, features)
        final = tuple(input.new_empty(batch, features) for _ in range(2 if cell == "lstm" else 1))
        before = (*(states or (None,)), None)[:2]
        after = (*final, None)[:2]
        threads = torch.get_num_threads()
        _cpu.recurrence_forward(
            cell, reverse, input, *before, *weights, None, output, *after, None, None, threads
        )
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return None
    return output, *final


conv1d_max_pool = _callable("conv1d_max_pool", _conv1d_max_pool)
conv1d_max_pool_backward = torch.ops.seqkernels.conv1d_max_pool_backward.default
recurrence = _callable("recurrence", _recurrence)
recurrence_backward = torch.ops.seqkernels.recurrence_backward.default
