"""Convolution with max pooling, and banks of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import autograd, checks, cuda, ops, reference
from ._coverage import batched_lengths, has_kernel, is_autocast, say_once, widest


def conv1d_max_pool(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int | str = 0,
    dilation: int = 1,
    *,
    activation: str = "identity",
    pool_size: int | None = None,
    pool_stride: int | None = None,
    lengths: Tensor | None = None,
    channels_last: bool = False,
) -> Tensor:
    """Convolution over time, activation and max pooling in one operation.

    ``max_pool(activation(conv1d(input, weight, bias)))``, Kim's layer for sentences (arXiv
    1408.5882, 2014): ``o_i = tanh(W [w_{i-1}; w_i; w_{i+1}] + b)``, ``c = max_i o_i``. The
    convolution's output is never held in memory as a whole when the pooling is over all time.

    Args:
        input: (N, C, L), or (C, L) without a batch; with ``channels_last`` (N, L, C) or (L, C). Any
            strides.
        weight: F filters, (F, C, k), as in ``torch.nn.functional.conv1d``.
        bias: (F,), or None.
        stride: distance of one window from the next, at least 1.
        padding: zeros on either side, at least 0; "valid" for none; "same" (with stride 1) for as
            many windows as elements: of ``dilation * (k - 1)`` zeros the left gets half, rounded
            down.
        dilation: distance of the elements within a window, at least 1.
        activation: "identity", "relu", "tanh" or "sigmoid".
        pool_size: windows to a pooled position; None pools over all time.
        pool_stride: distance of one pooled position from the next; None means ``pool_size``.
        lengths: (N,) integers, each from 0 to L (without a batch: 0 dimensions), on the CPU or on
            input's device. Sample n is treated as if it had been run alone, cut to ``lengths[n]``:
            its zero padding begins directly after its last element, and what stands there in
            ``input``, even NaN, changes no bit of any result or gradient. Values on a CUDA device
            are not waited for to be checked: there one beyond L counts as L, below 0 as 0.
        channels_last: the layout of input and of a pooled output.

    Returns:
        (N, F) if ``pool_size`` is None, otherwise (N, F, L_pooled), with ``channels_last``
        (N, L_pooled, F); without N for input without a batch. Contiguous, of input's dtype. With
        ``L_out = (L + padding - dilation * (k - 1) - 1) // stride + 1``, the padding of both sides
        counted, ``L_pooled = (L_out - pool_size) // pool_stride + 1``, and 0 if that is negative.

        A sample too short for one window, or for one pooled position, yields exactly 0 there,
        whatever the activation, and receives no gradient. So do the pooled positions of a sample
        beyond those it would have had alone. Of equal maxima the first one receives the gradient;
        NaN wins the maximum. (Windows that hold the same numbers may be rounded differently at
        their places, and the later one win: in float32 neighbours may be multiplied together.)

    Raises:
        TypeError: an argument that is no tensor, no integer, or lengths of a floating-point dtype.
        RuntimeError: shapes, dtypes or devices that do not fit together; no filter, or filters of
            size 0; a stride, dilation, padding or pooling argument below its least value; unknown
            padding; "same" with a stride other than 1.
        ValueError: an unknown activation; ``pool_stride`` without ``pool_size``; lengths of another
            shape than (N,), negative or beyond L; sizes that do not fit 64 bits; for the kernels, L
            with its padding or any of the integers above from 2**31 on.
    """
    if lengths is None and not torch.compiler.is_compiling():
        how = (stride, padding, dilation, pool_size, pool_stride)
        found = autograd.convolution(input, weight, bias, how, activation, channels_last)
        if found is not None:
            return found
    if is_autocast(input):
        input, weight, bias = widest(input, weight, bias)
    geometry = checks.conv1d_max_pool(
        input,
        weight,
        bias,
        stride,
        padding,
        dilation,
        activation,
        pool_size,
        pool_stride,
        lengths,
        channels_last,
    )
    if not has_kernel("conv1d_max_pool", input):
        say_once("conv1d_max_pool", input)
        return reference.conv1d_max_pool(
            input,
            weight,
            bias,
            stride,
            padding,
            dilation,
            activation=activation,
            pool_size=pool_size,
            pool_stride=pool_stride,
            lengths=lengths,
            channels_last=channels_last,
        )
    batched = _batched(input)
    if not torch.compiler.is_compiling():
        checks.fits_kernels(_length(batched, channels_last), geometry)
    output = autograd.conv1d_max_pool(
        batched,
        weight,
        bias,
        batched_lengths(lengths, input),
        geometry,
        activation,
        channels_last,
    )
    return output if batched is input else output.squeeze(0)


def conv1d_max_pool_bank(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
    stride: int = 1,
    padding: int | str = 0,
    dilation: int = 1,
    *,
    activation: str = "identity",
    lengths: Tensor | None = None,
    channels_last: bool = False,
) -> Tensor:
    """Filters of several lengths, each pooled over all time, side by side: Kim's bank.

    What ``conv1d_max_pool`` gives for each weight and bias, concatenated (arXiv 1408.5882, 2014).
    On the CPU all are computed in one call where nothing but the kernels is needed (in turns under
    autocast, a transform, a profiler or a compiler, in forward mode, and where some have a bias and
    others not), and what they give to the input's gradient is summed up as it is made: of 16-bit
    tensors in float32 and rounded once, where in turns each one's is rounded.

    Args:
        weights: one at least, each (F_i, C, k_i).
        biases: one for each weight, (F_i,) or None; None for none at all.
        input, stride, padding, dilation, activation, lengths, channels_last: those of
            ``conv1d_max_pool``, the same for all weights.

    Returns:
        (N, F), F being the sum of all F_i, without N for input without a batch. A sample too short
        for a filter yields 0 for that filter.

    Raises:
        ValueError: no weight, or another number of biases than of weights; else as
            ``conv1d_max_pool``.
    """
    how = (stride, padding, dilation)
    weights, biases = checks.bank(weights, biases)
    present = [bias for bias in biases if bias is not None]
    at_once = len(present) in (0, len(weights)) and not torch.compiler.is_compiling()
    if at_once and lengths is None:
        found = autograd.convolution_bank(input, weights, present, how, activation, channels_last)
        if found is not None:
            return found
    if not at_once or not _takes_bank(input, *weights, *present, lengths):
        options = {"activation": activation, "lengths": lengths, "channels_last": channels_last}
        parts = zip(weights, biases, strict=True)
        return torch.cat([conv1d_max_pool(input, *part, *how, **options) for part in parts], dim=-1)
    geometries = [
        checks.conv1d_max_pool(input, *part, *how, activation, None, None, lengths, channels_last)
        for part in zip(weights, biases, strict=True)
    ]
    batched = _batched(input)
    for geometry in geometries:
        checks.fits_kernels(_length(batched, channels_last), geometry)
    output = autograd.conv1d_max_pool_bank(
        batched,
        weights,
        present,
        batched_lengths(lengths, input),
        geometries,
        activation,
        channels_last,
    )
    return output if batched is input else output.squeeze(0)


def _takes_bank(input: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernels take all convolutions of a bank at once, and are all that is needed."""
    if not isinstance(input, Tensor) or input.dtype not in checks.NATIVE_DTYPES:
        return False
    if not input.is_cpu or cuda.is_on_device(input) or is_autocast(input):
        return False
    return not autograd.in_forward_mode() and ops.are_plain((input, *others))


def _batched(input: Tensor) -> Tensor:
    return input if input.dim() == 3 else input.unsqueeze(0)


def _length(batched: Tensor, channels_last: bool) -> int:
    return batched.shape[1 if channels_last else 2]
