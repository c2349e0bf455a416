"""The functions of the package, with the arguments checked and the shapes described.

float32, float64, bfloat16 and float16 tensors on the CPU are computed by the package's kernels, the
16-bit ones with sums, gates and states in float32. Where the processor has matrix tiles, products
of float32 are as precise as ``torch.set_float32_matmul_precision`` asks, or the operation's own
switch where it is set (``torch.backends.mkldnn.conv.fp32_precision``, ``rnn``). Tensors on CUDA
devices of compute capability 8.0 and more have kernels too, where the package was built for them.
There the operands of a float32 convolution are rounded to TF32 where
``torch.backends.cudnn.conv.fp32_precision`` says so, as torch's own are; and the inputs of a
recurrence meet their weights in torch's own product, whose last bits may depend on the batch.
Everything else goes to ``reference``, the same functions in torch operations, and a warning says so
once. Gradients flow to every floating-point argument, and gradients of gradients too.

Under autocast, tensors of different dtypes are brought to the widest of them.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from . import autograd, checks, cuda, ops, reference

NATIVE_DTYPES = checks.NATIVE_DTYPES


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
        found = ops.convolution(input, weight, bias, how, activation, channels_last)
        if found is not None:
            return found
    if is_autocast(input):
        input, weight, bias = _widest(input, weight, bias)
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
    batched, sequences = _as_sequences(input, channels_last)
    if not torch.compiler.is_compiling():
        checks.fits_kernels(sequences.shape[1], geometry)
    output = autograd.conv1d_max_pool(
        sequences,
        weight,
        bias,
        _batched_lengths(lengths, input),
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
        found = ops.convolution_bank(input, weights, present, how, activation, channels_last)
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
    batched, sequences = _as_sequences(input, channels_last)
    for geometry in geometries:
        checks.fits_kernels(sequences.shape[1], geometry)
    output = autograd.conv1d_max_pool_bank(
        sequences,
        weights,
        present,
        _batched_lengths(lengths, input),
        geometries,
        activation,
    )
    return output if batched is input else output.squeeze(0)


def _takes_bank(input: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernels take all convolutions of a bank at once, and are all that is needed."""
    if not isinstance(input, Tensor) or input.dtype not in NATIVE_DTYPES:
        return False
    if not input.is_cpu or cuda.is_on_device(input) or is_autocast(input):
        return False
    return not autograd.in_forward_mode() and ops.are_plain((input, *others))


def _as_sequences(input: Tensor, channels_last: bool) -> tuple[Tensor, Tensor]:
    """The input with a batch, and that as (N, L, C)."""
    batched = input if input.dim() == 3 else input.unsqueeze(0)
    return batched, batched if channels_last else batched.transpose(1, 2)


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
        following = ops.recurrence_step("lstm", input, hx, w_ih, w_hh, b_ih, b_hh)
        if following is not None:
            return following
    if is_autocast(input):
        input, hx, w_ih, w_hh, b_ih, b_hh = _widest(input, hx, w_ih, w_hh, b_ih, b_hh)
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
        cell = f"rnn_{nonlinearity}"
        following = ops.recurrence_step(cell, input, states, w_ih, w_hh, b_ih, b_hh)
        if following is not None:
            return following[0]
    if is_autocast(input):
        input, states, w_ih, w_hh, b_ih, b_hh = _widest(input, states, w_ih, w_hh, b_ih, b_hh)
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
        input, hx, w_ih, w_hh, b_ih, b_hh = _widest(input, hx, w_ih, w_hh, b_ih, b_hh)
    weights = (w_ih, w_hh, b_ih, b_hh)
    sizes = checks.recurrence(input, hx, *weights, lengths, batch_sizes, gates=4)
    if not has_kernel("lstm", input):
        say_once("lstm", input)
        how = {"lengths": lengths, "batch_sizes": batch_sizes, "reverse": reverse}
        return reference.lstm(input, hx, *weights, **how)
    how = (*weights, _batched_lengths(lengths, input), sizes, reverse, recompute)
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
        input, states, w_ih, w_hh, b_ih, b_hh = _widest(input, states, w_ih, w_hh, b_ih, b_hh)
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
    how = (*weights, _batched_lengths(lengths, input), sizes, reverse, nonlinearity)
    if input.dim() == 3 or sizes is not None:
        (h,) = states or (None,)
        return autograd.rnn(input, h, *how)
    (h,) = _unsqueezed(states) or (None,)
    output, h = autograd.rnn(input.unsqueeze(1), h, *how)
    return output.squeeze(1), h.squeeze(0)


def has_kernel(operation: str, input: Tensor) -> bool:
    """Whether the package's own kernels compute it on tensors of input's dtype and device."""
    if input.dtype not in NATIVE_DTYPES:
        return False
    return input.is_cpu or cuda.has_kernel(operation, input)


def takes_packed(input: Tensor) -> bool:
    """Whether packed sequences like ``input`` are read as they are: else they are padded first.

    So they are on a GPU, whose kernels know lengths only, and in compiled graphs, where the sizes
    of a batch are no plain numbers.
    """
    if not isinstance(input, Tensor) or torch.compiler.is_compiling():
        return False
    return input.is_cpu and not cuda.is_on_device(input)


def say_once(operation: str, input: Tensor) -> None:
    """Warn, once per operation, dtype and device type, that torch's operations compute it."""
    case = (operation, input.dtype, input.device.type)
    if case in _said or torch.compiler.is_compiling():
        return
    _said.add(case)
    warnings.warn(
        f"seqkernels.{operation}: no kernel for {input.dtype} on {input.device.type}, "
        "computing it with torch's operations",
        stacklevel=3,
    )


_said: set[tuple[str, torch.dtype, str]] = set()


def _unsqueezed(states: Sequence[Tensor] | None) -> tuple[Tensor, ...] | None:
    return None if states is None else tuple(state.unsqueeze(0) for state in states)


def _batched_lengths(lengths: Tensor | None, input: Tensor) -> Tensor | None:
    """The lengths as the kernels read them: contiguous int64 on input's device, (N,)."""
    if lengths is None:
        return None
    return lengths.to(input.device, torch.int64).reshape(-1).contiguous()


def is_autocast(input: Tensor) -> bool:
    """Whether autocast is on for the device of ``input``."""
    if not isinstance(input, Tensor):
        return False
    device_type = input.device.type
    if device_type in ("cpu", "cuda"):  # torch 2.11 cannot trace the question below
        return torch.is_autocast_enabled(device_type)
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _widest(*arguments):
    """The arguments, tensors and tuples of them, with floating-point tensors in one dtype."""
    tensors = [
        tensor
        for argument in arguments
        for tensor in (argument if isinstance(argument, (tuple, list)) else (argument,))
        if isinstance(tensor, Tensor) and tensor.is_floating_point()
    ]
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))

    def widen(argument):
        if isinstance(argument, (tuple, list)):
            return tuple(map(widen, argument))
        if isinstance(argument, Tensor) and argument.is_floating_point():
            return argument.to(dtype)
        return argument

    return tuple(map(widen, arguments))
