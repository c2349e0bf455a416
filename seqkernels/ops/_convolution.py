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
    """The output, contiguous in the caller's layout; and the same as the kernels see it."""
    batch, filters = input.shape[0], weight.shape[0]
    if geometry[_POOL_SIZE] == 0:
        output = input.new_empty(batch, filters)
        return output, output
    geometry = checks.ConvolutionGeometry(*geometry)
    windows = checks.output_length(input.shape[1], weight.shape[2], geometry)
    pooled = checks.pooled_length(windows, geometry)
    shape = (batch, pooled, filters) if channels_last else (batch, filters, pooled)
    output = input.new_empty(shape)
    return output, _as_pooled(output, geometry, channels_last)


def _as_pooled(output: Tensor, geometry, channels_last: bool) -> Tensor:
    """An output, or its gradient, as (N, P, F); over all time it is (N, F), to the kernels too."""
    is_pooled_last = geometry[_POOL_SIZE] != 0 and not channels_last
    return output.transpose(1, 2) if is_pooled_last else output


def _run_forward(
    input, weight, bias, lengths, geometry, activation, channels_last, keeps_winners: bool
) -> tuple[Tensor, Tensor | None]:
    output, view = _empty_convolution(input, weight, geometry, channels_last)
    argmax = output.new_empty(*view.shape, dtype=torch.int32) if keeps_winners else None
    bias = None if bias is None else bias.contiguous()
    arguments = (input, weight, bias, lengths, view, argmax, geometry, activation)
    if cuda.is_on_device(input):
        cuda.conv1d_max_pool_forward(*arguments)
    else:
        _cpu.conv1d_max_pool_forward(*arguments, cpu.where(input, "conv"))
    return output, argmax


def _conv1d_max_pool(input, weight, bias, lengths, geometry, activation, channels_last):
    return _run_forward(input, weight, bias, lengths, geometry, activation, channels_last, True)


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


def known_geometry(weight: Tensor, *geometry: int | str | None) -> checks.ConvolutionGeometry:
    """What ``checks.convolution_geometry`` says of a weight (F, C, k), remembered.

    ``geometry`` are stride, padding, dilation, pool_size and pool_stride, in a layer's form too.

    Raises:
        RuntimeError, TypeError, ValueError: something is not as the kernels take it; the checks
            say what.
    """
    geometry = [part[0] if type(part) is tuple and len(part) == 1 else part for part in geometry]
    # True and 1.0 are equal to 1, and must not find what is known of it.
    if not _GEOMETRY_TYPES.issuperset(map(type, geometry)):
        raise TypeError("geometry: expected integers")
    filters, _, kernel_size = weight.shape
    if filters == 0 or kernel_size == 0:
        raise ValueError("weight: expected at least 1 filter of size at least 1")
    return _known_geometry(kernel_size, *geometry)


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: checks.ConvolutionGeometry,
    activation: str,
    channels_last: bool,
    keeps_winners: bool,
) -> tuple[Tensor, Tensor | None]:
    """The pooled convolution of a batch in the caller's layout, past torch's dispatcher.

    For plain tensors, of which nothing else has been checked (the native module checks that it can
    compute them). Also returns what the backward needs, argmax, if that ``keeps_winners``.
    """
    if input.dim() != 3 or not (input.is_cpu or cuda.has_kernel("conv1d_max_pool", input)):
        raise ValueError("input: expected a batch on a device that has a kernel")
    sequences = input if channels_last else input.transpose(1, 2)
    how = (geometry, activation, channels_last, keeps_winners)
    return _run_forward(sequences, weight, bias, None, *how)


# A bank is several convolutions of the same input, each pooled over all time, the filters of all
# side by side. It is no operation of ``torch.library``: what needs the dispatcher, a transform or
# a compiler, sees one convolution after another. Gradients that are not needed are None.


def conv1d_max_pool_bank(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    lengths: Tensor | None,
    geometries: Sequence[checks.ConvolutionGeometry],
    activation: str,
    keeps_winners: bool,
) -> tuple[Tensor, Tensor | None]:
    """The output (N, F), and argmax, (N, filters) of one convolution after the other, flat.

    input is (N, L, C); biases are one for each weight, or none. All are plain tensors on the CPU.
    """
    output = input.new_empty(input.shape[0], sum(weight.shape[0] for weight in weights))
    argmax = output.new_empty(output.numel(), dtype=torch.int32) if keeps_winners else None
    biases = [bias.contiguous() for bias in biases]
    where = cpu.where(input, "conv")
    _cpu.conv1d_max_pool_bank_forward(
        input, weights, biases, lengths, output, argmax, geometries, activation, where
    )
    return output, argmax


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
        winners = block.view(own.shape)
        of_each.append(
            conv1d_max_pool_backward(
                grad, own, winners, input, weight, lengths, geometry, activation, True, needs_of_it
            )
        )
    of_input, of_weights, of_biases = zip(*of_each, strict=True)
    # The last one first, as autograd adds gradients, and as the kernel does.
    gradients = (sum(of_input[-2::-1], of_input[-1]), *of_weights, *of_biases)
    return [gradient if need else None for gradient, need in zip(gradients, needs, strict=True)]
