"""The convolution with pooling: sequences come as (N, L, C), of any strides."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .. import _cpu, checks, cpu, cuda
from ._dispatch import (
    callable_operation,
    define,
    room_for,
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


def _run_forward(*arguments) -> None:
    """The native forward: input, weight, bias, lengths, output, argmax, geometry, activation."""
    input = arguments[0]
    if cuda.is_on_device(input):
        cuda.conv1d_max_pool_forward(*arguments)
    else:
        _cpu.conv1d_max_pool_forward(*arguments, cpu.where(input, "conv"))


def _conv1d_max_pool(input, weight, bias, lengths, geometry, activation, channels_last):
    output, view = _empty_convolution(input, weight, geometry, channels_last)
    argmax = output.new_empty(*view.shape, dtype=torch.int32)
    bias = None if bias is None else bias.contiguous()
    _run_forward(input, weight, bias, lengths, view, argmax, geometry, activation)
    return output, argmax


def _conv1d_max_pool_shapes(input, weight, bias, lengths, geometry, activation, channels_last):
    output, view = _empty_convolution(input, weight, geometry, channels_last)
    return output, output.new_empty(view.shape, dtype=torch.int32)


def _empty_convolution_gradients(input, weight, needs) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients, contiguous, of input (N, L, C), weight (F, C, k) and bias; empty if not needed."""
    return (
        room_for(needs[0], input, *input.shape),
        room_for(needs[1], weight, *weight.shape),
        room_for(needs[2], weight, weight.shape[0]),
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
    arguments = (
        _as_pooled(grad_output, geometry, channels_last),
        _as_pooled(output, geometry, channels_last),
        argmax,
        input,
        weight,
        lengths,
        *(gradient if need else None for gradient, need in zip(gradients, needs, strict=True)),
        geometry,
        activation,
    )
    if cuda.is_on_device(input):
        cuda.conv1d_max_pool_backward(*arguments)
    else:
        _cpu.conv1d_max_pool_backward(*arguments, cpu.where(input, "conv"))
    return gradients


def _conv1d_max_pool_backward_shapes(
    grad_output, output, argmax, input, weight, lengths, geometry, activation, channels_last, needs
):
    return _empty_convolution_gradients(input, weight, needs)


define(
    "conv1d_max_pool(Tensor input, Tensor weight, Tensor? bias, Tensor? lengths, int[] geometry, "
    "str activation, bool channels_last) -> (Tensor, Tensor)",
    _conv1d_max_pool,
    _conv1d_max_pool_shapes,
    devices=("CPU", "CUDA"),
)
define(
    "conv1d_max_pool_backward(Tensor grad_output, Tensor output, Tensor argmax, Tensor input, "
    "Tensor weight, Tensor? lengths, int[] geometry, str activation, bool channels_last, "
    "bool[] needs) -> (Tensor, Tensor, Tensor)",
    _conv1d_max_pool_backward,
    _conv1d_max_pool_backward_shapes,
    devices=("CPU", "CUDA"),
)

conv1d_max_pool = callable_operation("conv1d_max_pool", _conv1d_max_pool)
conv1d_max_pool_backward = callable_operation("conv1d_max_pool_backward", _conv1d_max_pool_backward)


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
    if not _cpu.needs_only_kernel((input, weight, bias)):
        return None
    geometry = [part[0] if type(part) is tuple and len(part) == 1 else part for part in geometry]
    # True and 1.0 are equal to 1, and must not find what is known of it.
    if not _GEOMETRY_TYPES.issuperset(map(type, geometry)) or type(activation) is not str:
        return None
    if input is None or input.dim() != 3:
        return None
    if not (input.is_cpu or cuda.has_kernel("conv1d_max_pool", input)):
        return None
    sequences = input if channels_last else input.transpose(1, 2)
    try:
        filters, _, kernel_size = weight.shape
        if filters == 0 or kernel_size == 0:
            return None
        known = _known_geometry(kernel_size, *geometry)
        output, view = _empty_convolution(sequences, weight, known, channels_last)
        _run_forward(sequences, weight, bias, None, view, None, known, activation)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return None
    return output
