"""Every check of a public argument, in one place.

``functional`` and ``reference`` call these before anything is computed. A message names the
argument, what was expected and what came. The classes are those torch raises for the same mistake:

* ``TypeError``: a Python object of the wrong type (no tensor, no integer, lengths that are no
  integers);
* ``RuntimeError``: tensors whose shapes, dtypes or devices do not fit together, and a convolution
  or pooling argument below its least value;
* ``ValueError``: the wrong number of dimensions of a recurrence's input, and all that torch has no
  word for (an unknown activation, lengths beyond the sequence, sizes that overflow 64 bits).

The checks that pass cost a comparison each; text is put together only for a failure.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

ACTIVATIONS = ("identity", "relu", "tanh", "sigmoid")
NONLINEARITIES = ("tanh", "relu")
CELLS = ("lstm", "rnn_tanh", "rnn_relu")
NATIVE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_WEIGHT_NAMES = ("w_ih", "w_hh", "b_ih", "b_hh")
_STATE_NAMES = {1: ("hx",), 2: ("hx[0]", "hx[1]")}
_OPTIONAL = ("bias", "b_ih", "b_hh")
_LARGEST = 2**63 - 1


class ConvolutionGeometry(NamedTuple):
    """How a convolution and its pooling walk along time; ``pool_size`` 0 pools over all of it."""

    stride: int
    padding_left: int
    padding_right: int
    dilation: int
    pool_size: int
    pool_stride: int


def output_length(length, kernel_size, geometry: ConvolutionGeometry):
    """Number of convolution windows in a sequence of ``length`` elements, 0 if it is too short.

    ``length`` is an ``int``, a ``torch.SymInt``, or an integer tensor of lengths.
    """
    span = geometry.dilation * (kernel_size - 1) + 1
    padded = length + geometry.padding_left + geometry.padding_right
    return _at_least_zero((padded - span) // geometry.stride + 1)


def pooled_length(windows, geometry: ConvolutionGeometry):
    """Number of pooled positions over ``windows`` convolution windows.

    Over all time that is one position, or 0 where there is no window. ``windows`` is an ``int``, a
    ``torch.SymInt``, or an integer tensor.
    """
    if geometry.pool_size:
        return _at_least_zero((windows - geometry.pool_size) // geometry.pool_stride + 1)
    if isinstance(windows, Tensor):
        return windows.clamp(max=1)
    return min(windows, 1) if type(windows) is int else torch.sym_min(windows, 1)


def _at_least_zero(count):
    if isinstance(count, Tensor):
        return count.clamp(min=0)
    return max(count, 0) if type(count) is int else torch.sym_max(count, 0)


def conv1d_max_pool(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int | str,
    dilation: int,
    activation: str,
    pool_size: int | None,
    pool_stride: int | None,
    lengths: Tensor | None,
    channels_last: bool,
) -> ConvolutionGeometry:
    """Check the arguments of ``functional.conv1d_max_pool``; returns its geometry."""
    tensor("input", input)
    tensor("weight", weight)
    if input.dim() not in (2, 3):
        layout = "(N, L, C) or (L, C)" if channels_last else "(N, C, L) or (C, L)"
        raise RuntimeError(f"input: expected shape {layout}, got {_shape(input)}")
    if weight.dim() != 3:
        raise RuntimeError(f"weight: expected 3 dimensions (F, C, k), got shape {_shape(weight)}")
    filters, channels, kernel_size = weight.shape
    if filters == 0 or kernel_size == 0:
        raise RuntimeError(
            f"weight: expected at least 1 filter of size at least 1, got shape {_shape(weight)}"
        )
    axes = (-2, -1) if channels_last else (-1, -2)
    length, input_channels = input.shape[axes[0]], input.shape[axes[1]]
    if input_channels != channels:
        raise RuntimeError(
            f"input: expected {channels} channels in dimension {axes[1]} for weight of shape "
            f"{_shape(weight)}, got {input_channels} in shape {_shape(input)}"
        )
    _same_kind(input, ("weight", "bias"), (weight, bias))
    if bias is not None and bias.shape != (filters,):
        raise RuntimeError(f"bias: expected shape ({filters},), got {_shape(bias)}")

    geometry = convolution_geometry(kernel_size, stride, padding, dilation, pool_size, pool_stride)
    one_of("activation", activation, ACTIVATIONS)
    batch = input.shape[0] if input.dim() == 3 else None
    if not torch.compiler.is_compiling():
        _fits_64_bits(1 if batch is None else batch, length, weight.shape, geometry)
    if lengths is not None:
        check_lengths(lengths, batch, length, input)
    return geometry


def bank(
    weights: Iterable[Tensor], biases: Iterable[Tensor | None] | None
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    """Weights and biases of ``functional.conv1d_max_pool_bank``, as many of these as of those."""
    for name, given in (("weights", weights), ("biases", biases if biases is not None else ())):
        if not isinstance(given, Iterable):
            raise TypeError(f"{name}: expected tensors, one after another, got {given!r}")
    weights = tuple(weights)
    if not weights:
        raise ValueError("weights: expected at least one, got none")
    biases = (None,) * len(weights) if biases is None else tuple(biases)
    if len(biases) != len(weights):
        raise ValueError(
            f"biases: expected {len(weights)}, one for each of weights, or None, got {len(biases)}"
        )
    return weights, biases


def convolution_geometry(
    kernel_size: int,
    stride: int,
    padding: int | str,
    dilation: int,
    pool_size: int | None,
    pool_stride: int | None,
) -> ConvolutionGeometry:
    """Check the arguments of ``functional.conv1d_max_pool`` that are no tensors."""
    stride = _integer("stride", stride, 1)
    dilation = _integer("dilation", dilation, 1)
    if isinstance(padding, str):
        padding_left, padding_right = _named_padding(padding, kernel_size, stride, dilation)
    else:
        padding_left = padding_right = _integer("padding", padding, 0)
    return ConvolutionGeometry(
        stride, padding_left, padding_right, dilation, *pooling(pool_size, pool_stride)
    )


def fits_kernels(length: int, geometry: ConvolutionGeometry) -> None:
    """Check what the kernels count in 32 bits: the positions of a padded sequence, and steps."""
    padded = length + geometry.padding_left + geometry.padding_right
    for name, value in (
        ("input: length with padding", padded),
        *zip(geometry._fields, geometry, strict=True),
    ):
        if value >= 2**31:
            raise ValueError(f"{name}: expected less than 2**31, got {value}")


def pooling(pool_size: int | None, pool_stride: int | None) -> tuple[int, int]:
    """Check the pooling arguments; returns ``(0, 0)`` for pooling over all time."""
    if pool_size is None:
        if pool_stride is not None:
            raise ValueError(
                f"pool_stride: expected None where pool_size is None, got {pool_stride!r}"
            )
        return 0, 0
    pool_size = _integer("pool_size", pool_size, 1)
    return pool_size, pool_size if pool_stride is None else _integer("pool_stride", pool_stride, 1)


def recurrence(
    input: Tensor,
    hx: Sequence[Tensor] | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    gates: int,
) -> list[int] | None:
    """Check the arguments of ``functional.lstm`` (4 gates) and ``rnn`` (1); returns batch_sizes."""
    tensor("input", input)
    sizes = None
    if batch_sizes is not None:
        sizes = packed(input, batch_sizes, lengths)
        batch = (sizes[0],)
    elif input.dim() not in (2, 3):
        raise ValueError(f"input: expected shape (T, N, I) or (T, I), got {_shape(input)}")
    else:
        batch = input.shape[1:-1]
    hidden = _weights(input, w_ih, w_hh, b_ih, b_hh, gates)
    if hx is not None:
        _states(input, hx, (*batch, hidden))
    if lengths is not None:
        check_lengths(lengths, input.shape[1] if input.dim() == 3 else None, input.shape[0], input)
    return sizes


def cell(
    input: Tensor,
    hx: Sequence[Tensor] | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    gates: int,
) -> None:
    """Check the arguments of ``functional.lstm_cell`` (4 gates) and ``rnn_cell`` (1)."""
    tensor("input", input)
    if input.dim() not in (1, 2):
        raise ValueError(f"input: expected shape (N, I) or (I,), got {_shape(input)}")
    hidden = _weights(input, w_ih, w_hh, b_ih, b_hh, gates)
    if hx is not None:
        _states(input, hx, (*input.shape[:-1], hidden), ranks=(1, 2))


def state_pair(hx: Sequence[Tensor] | None) -> Sequence[Tensor] | None:
    """Check that an LSTM's ``hx`` is a pair (h, c), or None."""
    if hx is None:
        return None
    if not isinstance(hx, (tuple, list)):
        raise TypeError(f"hx: expected a tuple (h, c) of tensors, got {type(hx).__name__}")
    if len(hx) != 2:
        raise RuntimeError(f"hx: expected two states (h, c), got {len(hx)}")
    return hx


def packed(input: Tensor, batch_sizes: Tensor, lengths: Tensor | None) -> list[int]:
    """Check packed sequences; returns how many of them there are at each step."""
    tensor("input", input)
    if lengths is not None:
        raise ValueError(
            "lengths: expected None with batch_sizes, which say how long sequences are, "
            f"got {type(lengths).__name__}"
        )
    if input.dim() != 2:
        raise ValueError(f"input: expected shape (rows, I) with batch_sizes, got {_shape(input)}")
    tensor("batch_sizes", batch_sizes)
    if batch_sizes.dtype not in _INTEGER_DTYPES:
        raise TypeError(f"batch_sizes: expected an integer tensor, got {batch_sizes.dtype}")
    if batch_sizes.dim() != 1 or len(batch_sizes) == 0:
        raise ValueError(f"batch_sizes: expected shape (T,), T from 1, got {_shape(batch_sizes)}")
    if not batch_sizes.is_cpu:
        raise RuntimeError(f"batch_sizes: expected device cpu, got {batch_sizes.device}")
    sizes = batch_sizes.tolist()
    if sizes[-1] < 1 or sizes != sorted(sizes, reverse=True):
        before = itertools.chain([len(input)], sizes)
        step, most, size = next(
            (step, most, size)
            for step, (most, size) in enumerate(zip(before, sizes, strict=False))
            if not 1 <= size <= most
        )
        which = "that of the step before" if step else "the rows of input"
        raise ValueError(
            f"batch_sizes: expected from 1 to {most}, {which}, at step {step}, got {size}"
        )
    if sum(sizes) != len(input):
        raise ValueError(
            f"batch_sizes: expected a sum of {len(input)}, the rows of input, got {sum(sizes)}"
        )
    return sizes


def check_lengths(lengths: Tensor, batch: int | None, limit: int, input: Tensor) -> None:
    """Check ``lengths`` for a batch of sequences of at most ``limit`` elements (None: unbatched).

    The values are read, and compared with 0 and ``limit``, on the CPU only and not while a graph
    is being traced: elsewhere a look at them would wait for the device, or find no numbers.
    """
    tensor("lengths", lengths)
    if lengths.dtype not in _INTEGER_DTYPES:
        raise TypeError(f"lengths: expected an integer tensor, got {lengths.dtype}")
    expected = () if batch is None else (batch,)
    if lengths.shape != expected:
        raise ValueError(f"lengths: expected shape {expected}, got {_shape(lengths)}")
    if lengths.device != input.device and lengths.device.type != "cpu":
        raise RuntimeError(
            f"lengths: expected device cpu or {input.device}, that of input, got {lengths.device}"
        )
    if torch.compiler.is_compiling() or not lengths.is_cpu or isinstance(lengths, FakeTensor):
        return
    if lengths.numel():
        lowest, highest = (int(extreme) for extreme in torch.aminmax(lengths))
        if lowest < 0 or highest > limit:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"lengths: expected values from 0 to {limit}, got {wrong}")


def tensor(name: str, value: object) -> None:
    """Check that ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")


def one_of(name: str, value: object, values: Sequence) -> None:
    """Check that ``value`` is one of ``values``."""
    if value not in values:
        raise ValueError(f"{name}: expected one of {', '.join(map(str, values))}, got {value!r}")


def recurrence_sizes(**sizes: int) -> tuple[int, ...]:
    """Check the sizes of a recurrence given as such, by name; returns them."""
    return tuple(_integer(name, size, 0) for name, size in sizes.items())


def _weights(input, w_ih, w_hh, b_ih, b_hh, gates: int) -> int:
    """Check a recurrence's weights against each other and ``input``; returns the hidden size."""
    _same_kind(input, _WEIGHT_NAMES, (w_ih, w_hh, b_ih, b_hh))
    shape = w_hh.shape
    if len(shape) != 2 or shape[0] != gates * shape[1]:
        raise RuntimeError(f"w_hh: expected shape ({gates} * H, H), got {_shape(w_hh)}")
    hidden = shape[1]
    if not torch.compiler.is_compiling():
        inputs = input.shape[-1]
        rows = math.prod(max(size, 1) for size in input.shape[:-1])
        for what, size in (
            ("bytes of the gates", rows * gates * hidden * 8),
            ("bytes of the weights", gates * hidden * (hidden + inputs) * 8),
        ):
            if size > _LARGEST:
                raise ValueError(
                    f"input: expected sizes that fit 64 bits, got {size} {what} for input of "
                    f"shape {_shape(input)} and {hidden} hidden units"
                )
    shape = w_ih.shape
    if len(shape) != 2 or shape[0] != gates * hidden:
        raise RuntimeError(
            f"w_ih: expected shape ({gates} * H, I) with H = {hidden} as in w_hh, "
            f"got {_shape(w_ih)}"
        )
    if shape[1] != input.shape[-1]:
        raise RuntimeError(
            f"input: expected {shape[1]} features in its last dimension as in w_ih, "
            f"got {input.shape[-1]} in shape {_shape(input)}"
        )
    rows = gates * hidden
    if b_ih is not None and b_ih.shape != (rows,):
        raise RuntimeError(f"b_ih: expected shape ({rows},), got {_shape(b_ih)}")
    if b_hh is not None and b_hh.shape != (rows,):
        raise RuntimeError(f"b_hh: expected shape ({rows},), got {_shape(b_hh)}")
    return hidden


def _states(input: Tensor, hx: Sequence[Tensor], expected: tuple, ranks: tuple = ()) -> None:
    """Check the states; a rank outside ``ranks`` (if any are named) is a ValueError."""
    names = _STATE_NAMES[len(hx)]
    _same_kind(input, names, hx)
    for name, state in zip(names, hx, strict=True):
        if state.shape != expected:
            error = ValueError if ranks and state.dim() not in ranks else RuntimeError
            raise error(f"{name}: expected shape {expected}, got {_shape(state)}")


def _same_kind(input: Tensor, names: Sequence[str], tensors: Sequence[Tensor | None]) -> None:
    """Check that all (a bias may be None) are of input's device and floating-point dtype."""
    dtype, on_cpu = input.dtype, input.is_cpu
    if not dtype.is_floating_point:
        raise RuntimeError(f"input: expected a floating-point dtype, got {dtype}")
    for name, other in zip(names, tensors, strict=True):
        if isinstance(other, Tensor):
            if other.dtype is not dtype:
                raise RuntimeError(
                    f"{name}: expected {dtype}, the dtype of input, got {other.dtype}"
                )
            if not (on_cpu and other.is_cpu) and other.device != input.device:
                raise RuntimeError(
                    f"{name}: expected device {input.device}, that of input, got {other.device}"
                )
        elif other is not None or name not in _OPTIONAL:
            tensor(name, other)


def _integer(name: str, value: object, lowest: int) -> int:
    """``value`` as an int that is at least ``lowest``; as in torch, also from a tuple of one."""
    if type(value) is int and lowest <= value <= _LARGEST:
        return value
    if isinstance(value, (tuple, list)):
        if len(value) != 1:
            raise RuntimeError(f"{name}: expected a single integer, got {value!r}")
        value = value[0]
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got bool")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}") from None
    if number < lowest:
        raise RuntimeError(f"{name}: expected at least {lowest}, got {number}")
    if number > _LARGEST:
        raise ValueError(f"{name}: expected a number that fits 64 bits, got {number}")
    return number


def _named_padding(padding: str, kernel_size: int, stride: int, dilation: int) -> tuple[int, int]:
    if padding == "valid":
        return 0, 0
    if padding != "same":
        raise RuntimeError(f"padding: expected an int, 'same' or 'valid', got {padding!r}")
    if stride != 1:
        raise RuntimeError(f"padding: expected stride 1 with padding='same', got {stride}")
    total = dilation * (kernel_size - 1)
    return total // 2, total - total // 2


def _fits_64_bits(batch: int, length: int, weight_shape, geometry: ConvolutionGeometry) -> None:
    """Check the numbers from which native code computes sizes and offsets."""
    filters, channels, kernel_size = weight_shape
    batch, channels = max(batch, 1), max(channels, 1)
    padded = length + geometry.padding_left + geometry.padding_right
    windows = output_length(length, kernel_size, geometry)
    for what, size in (
        ("dilation * (k - 1) + 1", geometry.dilation * (kernel_size - 1) + 1),
        ("bytes of the padded input", batch * padded * channels * 8),
        ("bytes of the output", batch * filters * pooled_length(windows, geometry) * 8),
        ("bytes of the weight", filters * channels * kernel_size * 8),
    ):
        if size > _LARGEST:
            raise ValueError(
                f"input: expected sizes that fit 64 bits, got {size} {what} for input of batch "
                f"{batch}, length {length}, weight of shape {tuple(weight_shape)} and {geometry}"
            )


def _shape(value: Tensor) -> tuple[int, ...]:
    return tuple(value.shape)
