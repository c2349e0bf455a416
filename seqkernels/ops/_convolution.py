"""The convolution with pooling: sequences come as (N, L, C), of any strides."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _cpu, checks, cpu, cuda
from ._dispatch import (
    are_plain,
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


# A bank is several convolutions of the same input, each pooled over all time, the filters of all
# side by side. It is no operation of ``torch.library``: what needs the dispatcher, a transform or
# a compiler, sees one convolution after another. Gradients that are not needed are None.


def conv1d_max_pool_bank(
    input, weights, biases, lengths, geometries, activation
) -> tuple[Tensor, Tensor]:
    """The output (N, F), and argmax, (N, filters) of one convolution after the other, flat."""
    output = _empty_bank(input, weights)
    argmax = output.new_empty(output.numel(), dtype=torch.int32)
    biases = [bias.contiguous() for bias in biases]
    where = cpu.where(input, "conv")
    _cpu.conv1d_max_pool_bank_forward(
        input, weights, biases, lengths, output, argmax, geometries, activation, where
    )
    return output, argmax


def _empty_bank(input: Tensor, weights) -> Tensor:
    return input.new_empty(input.shape[0], sum(weight.shape[0] for weight in weights))


def conv1d_max_pool_bank_backward(
    grad_output, output, argmax, input, weights, lengths, geometries, activation, needs
) -> list[Tensor | None]:
    """Gradients of input, weights and biases, None where ``needs``, in that order, has False."""
    count = len(weights)
    tensors = (grad_output, output, argmax, input, *weights, lengths)
    if torch.compiler.is_compiling() or not are_plain(tensors):
        return _bank_backward_in_turns(
            grad_output, output, argmax, input, weights, lengths, geometries, activation, needs
        )
    sizes = (
        input.shape,
        *(weight.shape for weight in weights),
        *(weight.shape[:1] for weight in weights),
    )
    gradients = [
        input.new_empty(*size) if need else None for size, need in zip(sizes, needs, strict=True)
    ]
    _cpu.conv1d_max_pool_bank_backward(
        grad_output,
        output,
        argmax,
        input,
        weights,
        lengths,
        gradients[0],
        gradients[1 : 1 + count],
        gradients[1 + count :],
        geometries,
        activation,
        cpu.where(input, "conv"),
    )
    return gradients


def _bank_backward_in_turns(
    grad_output, output, argmax, input, weights, lengths, geometries, activation, needs
) -> list[Tensor | None]:
    """The same by the operation of one convolution, which a transform can map."""
    filters = [weight.shape[0] for weight in weights]
    blocks = argmax.split([input.shape[0] * own for own in filters])
    parts = zip(
        grad_output.split(filters, 1),
        output.split(filters, 1),
        blocks,
        weights,
        geometries,
        strict=True,
    )
    of_each = []
    for index, (grad, own, block, weight, geometry) in enumerate(parts):
        needs_of_it = [needs[0], needs[1 + index], needs[1 + len(weights) + index]]
        winners = block.view(own.shape[0], 1, own.shape[1])
        of_each.append(
            conv1d_max_pool_backward(
                grad, own, winners, input, weight, lengths, geometry, activation, True, needs_of_it
            )
        )
    of_input, of_weights, of_biases = zip(*of_each, strict=True)
    # The last one first, as autograd adds gradients, and as the kernel does.
    gradients = (sum(of_input[-2::-1], of_input[-1]), *of_weights, *of_biases)
    return [gradient if need else None for gradient, need in zip(gradients, needs, strict=True)]


_GEOMETRY_TYPES = frozenset((int, str, type(None)))
_known_geometry = functools.lru_cache(maxsize=256)(checks.convolution_geometry)


def _plain_geometry(geometry: tuple[int | str | None, ...]) -> list[int | str | None] | None:
    """A geometry in a layer's form or a function's; None where its parts are of odd types."""
    geometry = [part[0] if type(part) is tuple and len(part) == 1 else part for part in geometry]
    # True and 1.0 are equal to 1, and must not find what is known of it.
    return geometry if _GEOMETRY_TYPES.issuperset(map(type, geometry)) else None


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
    geometry = _plain_geometry(geometry)
    if geometry is None or type(activation) is not str:
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


def convolution_bank(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    geometry: tuple[int | str | None, ...],
    activation: str,
    channels_last: bool,
) -> Tensor | None:
    """The output of a bank without gradients, (N, F), in as few steps of Python as can be.

    ``geometry`` is stride, padding and dilation of all its weights; biases are one for each, or
    none. None as ``convolution``.
    """
    if not _cpu.needs_only_kernel((input, *weights, *biases)):
        return None
    geometry = _plain_geometry(geometry)
    if geometry is None or type(activation) is not str:
        return None
    if input is None or input.dim() != 3 or not input.is_cpu or cuda.is_on_device(input):
        return None
    sequences = input if channels_last else input.transpose(1, 2)
    try:
        if any(0 in (weight.shape[0], weight.shape[2]) for weight in weights):
            return None
        known = [_known_geometry(weight.shape[2], *geometry, None, None) for weight in weights]
        output = _empty_bank(sequences, weights)
        where = cpu.where(sequences, "conv")
        _cpu.conv1d_max_pool_bank_forward(
            sequences, weights, biases, None, output, None, known, activation, where
        )
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return None
    return output
