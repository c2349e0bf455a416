"""The convolution with pooling, and banks of it, with their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import cuda, ops, reference
from ..checks import ConvolutionGeometry
from ._apply import (
    Refused,
    apply,
    apply_plain,
    in_forward_mode,
    or_refuse,
    through_reference,
    wants_gradient,
)


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: tuple[int | str | None, ...],
    activation: str,
    channels_last: bool,
) -> Tensor | None:
    """The pooled convolution of a batch, unchecked, in as few steps of Python as can be.

    ``geometry`` are stride, padding, dilation, pool_size and pool_stride, in a layer's form too.

    None where anything is not as the kernel takes it: a shape, a dtype, a layout, a kind of tensor,
    a mode. Nothing has been computed then, and nothing said of what is wrong.
    """
    is_wanted = ops.want_gradient((input, weight, bias))
    if is_wanted is None or type(activation) is not str:
        return None
    try:
        known = or_refuse(ops.known_geometry, weight, *geometry)
        how = (input, weight, bias, known, activation, channels_last)
        if is_wanted:
            return apply_plain(_PlainConv1dMaxPool, *how)
        return or_refuse(ops.convolution, *how, False)[0]
    except Refused:
        return None


def convolution_bank(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    geometry: tuple[int | str | None, ...],
    activation: str,
    channels_last: bool,
) -> Tensor | None:
    """The output of a bank, (N, F), unchecked, in as few steps of Python as can be.

    ``geometry`` is stride, padding and dilation of all its weights; biases are one for each, or
    none. None as ``convolution``.
    """
    is_wanted = ops.want_gradient((input, *weights, *biases))
    if is_wanted is None or type(activation) is not str:
        return None
    try:
        known = or_refuse(_known_geometries, input, weights, geometry)
        if is_wanted:
            how = (None, known, activation, channels_last)
            return apply_plain(_Conv1dMaxPoolBank, *how, input, *weights, *biases)
        sequences = _as_sequences(input, channels_last)
        how = (None, known, activation, False)
        return or_refuse(ops.conv1d_max_pool_bank, sequences, weights, biases, *how)[0]
    except Refused:
        return None


def _known_geometries(input, weights, geometry) -> list[ConvolutionGeometry]:
    if input.dim() != 3 or not input.is_cpu or cuda.is_on_device(input):
        raise ValueError("input: expected a batch on the CPU")
    return [ops.known_geometry(weight, *geometry, None, None) for weight in weights]


def conv1d_max_pool(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    geometry: ConvolutionGeometry,
    activation: str,
    channels_last: bool,
) -> Tensor:
    """Convolution, activation and max pooling of a batch, (N, L, C) or (N, C, L), of any strides.

    Returns (N, F), or with ``geometry.pool_size`` (N, F, P), with ``channels_last`` (N, P, F).
    """
    how = (lengths, geometry, activation, channels_last)
    if in_forward_mode():
        return _reference_convolution(*how)(input, weight, bias)[0]
    if wants_gradient(input, weight, bias):
        return apply(_Conv1dMaxPool, input, weight, bias, *how)[0]
    return ops.conv1d_max_pool(_as_sequences(input, channels_last), weight, bias, *how)[0]


def conv1d_max_pool_bank(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    lengths: Tensor | None,
    geometries: list[ConvolutionGeometry],
    activation: str,
    channels_last: bool,
) -> Tensor:
    """Several convolutions of a batch, each pooled over all time, side by side: (N, F).

    For plain tensors on the CPU (``ops.are_plain``), outside of forward mode; biases are one for
    each weight, or none.
    """
    if wants_gradient(input, *weights, *biases):
        how = (lengths, geometries, activation, channels_last)
        try:
            return apply_plain(_Conv1dMaxPoolBank, *how, input, *weights, *biases)
        except Refused as refused:
            raise refused.__cause__ from None
    how = (lengths, geometries, activation, False)
    return ops.conv1d_max_pool_bank(_as_sequences(input, channels_last), weights, biases, *how)[0]


def _as_sequences(input: Tensor, channels_last: bool) -> Tensor:
    """The input of a convolution, or its gradient, in the other layout if it is (N, C, L)."""
    return input if channels_last else input.transpose(1, 2)


def _reference_convolution(lengths, geometry, activation: str, channels_last: bool):
    """``(input, weight, bias) -> (output,)`` in torch's operations."""
    geometry = ConvolutionGeometry(*geometry)
    # Only "same" pads the two sides differently.
    is_even = geometry.padding_left == geometry.padding_right

    def function(input, weight, bias):
        output = reference.conv1d_max_pool(
            input,
            weight,
            bias,
            geometry.stride,
            geometry.padding_left if is_even else "same",
            geometry.dilation,
            activation=activation,
            pool_size=geometry.pool_size or None,
            pool_stride=geometry.pool_stride or None,
            lengths=lengths,
            channels_last=channels_last,
        )
        return (output,)

    return function


def _reference_bank(
    lengths, geometries: list[ConvolutionGeometry], activation: str, channels_last: bool
):
    """``(input, *weights, *biases) -> (output,)`` in torch's operations."""
    of_each = [
        _reference_convolution(lengths, how, activation, channels_last) for how in geometries
    ]

    def function(input, *parameters):
        weights, biases = parameters[: len(of_each)], parameters[len(of_each) :]
        outputs = [
            convolution(input, weight, bias)[0]
            for convolution, weight, bias in zip(
                of_each, weights, biases or [None] * len(weights), strict=True
            )
        ]
        return (torch.cat(outputs, dim=-1),)

    return function


class _Conv1dMaxPool(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input, weight, bias, lengths, geometry, activation, channels_last):
        sequences = _as_sequences(input, channels_last)
        how = (lengths, geometry, activation, channels_last)
        return ops.conv1d_max_pool(sequences, weight, bias, *how)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, weight, bias, lengths, *ctx.how = inputs
        pooled, argmax = output
        ctx.mark_non_differentiable(argmax)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, weight, bias, lengths, pooled, argmax)

    @staticmethod
    def backward(ctx, grad_output, _):
        return *_convolution_backward(ctx, grad_output), None, None, None, None


class _PlainConv1dMaxPool(torch.autograd.Function):
    """The same without lengths, of what nothing but the kernel must see."""

    @staticmethod
    def forward(ctx, input, weight, bias, geometry, activation, channels_last):
        ctx.how = (geometry, activation, channels_last)
        ctx.set_materialize_grads(False)
        pooled, argmax = or_refuse(ops.convolution, input, weight, bias, *ctx.how, True)
        ctx.save_for_backward(input, weight, bias, None, pooled, argmax)
        return pooled

    @staticmethod
    def backward(ctx, grad_output):
        return *_convolution_backward(ctx, grad_output), None, None, None


def _convolution_backward(ctx, grad_output: Tensor | None) -> Sequence[Tensor | None]:
    """Gradients of input, weight and bias."""
    if grad_output is None:
        return None, None, None
    input, weight, bias, lengths, output, argmax = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    if torch.is_grad_enabled():
        function = _reference_convolution(lengths, *ctx.how)
        return through_reference(function, (input, weight, bias), needs, (grad_output,))
    _, _, channels_last = ctx.how
    grad_input, grad_weight, grad_bias = ops.conv1d_max_pool_backward(
        grad_output,
        output,
        argmax,
        _as_sequences(input, channels_last),
        weight,
        lengths,
        *ctx.how,
        list(needs),
    )
    return (
        _as_sequences(grad_input, channels_last) if needs[0] else None,
        grad_weight if needs[1] else None,
        grad_bias if needs[2] else None,
    )


class _Conv1dMaxPoolBank(torch.autograd.Function):
    @staticmethod
    def forward(ctx, lengths, geometries, activation, channels_last, input, *parameters):
        count = len(geometries)
        ctx.how = (geometries, activation, channels_last)
        ctx.set_materialize_grads(False)
        pooled, argmax = or_refuse(
            ops.conv1d_max_pool_bank,
            _as_sequences(input, channels_last),
            parameters[:count],
            parameters[count:],
            lengths,
            geometries,
            activation,
            True,
        )
        # A copy, since what stands side by side may be changed in place, as concatenated tensors.
        ctx.save_for_backward(lengths, pooled.clone(), argmax, input, *parameters)
        return pooled

    @staticmethod
    def backward(ctx, grad_output):
        if grad_output is None:
            return (None,) * len(ctx.needs_input_grad)
        lengths, output, argmax, *tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad[4:]
        geometries, activation, channels_last = ctx.how
        if torch.is_grad_enabled():
            function = _reference_bank(lengths, *ctx.how)
            gradients = through_reference(function, tensors, needs, (grad_output,))
            return None, None, None, None, *gradients
        count = len(geometries)
        grad_input, *gradients = ops.conv1d_max_pool_bank_backward(
            grad_output,
            output,
            argmax,
            _as_sequences(tensors[0], channels_last),
            tensors[1 : 1 + count],
            lengths,
            geometries,
            activation,
            # Without biases there is no gradient of them to make.
            [*needs, *(False,) * (1 + 2 * count - len(needs))],
        )
        if grad_input is not None:
            grad_input = _as_sequences(grad_input, channels_last)
        return None, None, None, None, grad_input, *gradients[: len(needs) - 1]
