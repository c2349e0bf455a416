"""What the tests of conv1d_max_pool share: numbers, the same function by torch, comparisons."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from remembered import remembered
from seqkernels import functional, reference
from tolerance import assert_no_worse

ACTIVATIONS = {
    "identity": lambda value: value,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
# Every vector width, one less and one more; primes among them.
WIDTHS = (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65)

# What a convolution is called with: N, C, L, F, k, and keywords.
CASES = {
    "kernel 1": ((3, 5, 7, 4, 1), {}),
    "batch 1": ((1, 7, 13, 11, 3), {"activation": "tanh"}),
    "length 1": ((3, 5, 1, 4, 1), {"activation": "sigmoid"}),
    "length 1, padded": ((3, 5, 1, 4, 3), {"padding": 1}),
    "length as kernel": ((2, 3, 5, 4, 5), {"activation": "relu"}),
    "primes": ((5, 13, 29, 19, 7), {"activation": "tanh"}),
    "stride": ((3, 4, 17, 9, 3), {"stride": 2}),
    "stride beyond kernel": ((3, 4, 23, 9, 2), {"stride": 5, "activation": "relu"}),
    "stride beyond length": ((3, 4, 6, 9, 2), {"stride": 11}),
    "dilation": ((3, 4, 17, 9, 3), {"dilation": 4, "activation": "sigmoid"}),
    "dilation and stride": ((2, 3, 31, 8, 3), {"dilation": 3, "stride": 4, "padding": 2}),
    "dilation of one tap": ((2, 3, 6, 5, 1), {"dilation": 2**31 - 1}),
    "padding": ((3, 4, 9, 9, 4), {"padding": 2, "activation": "tanh"}),
    "padding beyond kernel": ((2, 3, 4, 5, 2), {"padding": 5, "activation": "sigmoid"}),
    "padding beyond sequence": ((2, 3, 2, 5, 7), {"padding": 9}),
    "same, odd kernel": ((3, 4, 9, 9, 3), {"padding": "same"}),
    "same, even kernel": ((3, 4, 9, 9, 4), {"padding": "same", "activation": "relu"}),
    "same, even kernel, dilation": ((3, 4, 9, 9, 6), {"padding": "same", "dilation": 3}),
    "same, kernel beyond length": ((3, 4, 3, 9, 8), {"padding": "same"}),
    "valid": ((3, 4, 9, 9, 4), {"padding": "valid"}),
    "sentences": ((5, 30, 40, 20, 3), {"activation": "relu"}),
    "sentences, stride, dilation": (
        (4, 20, 90, 17, 3),
        {"stride": 2, "dilation": 2, "padding": 3},
    ),
    "long sequences": ((2, 12, 400, 20, 3), {"activation": "relu"}),
    "pools": ((3, 4, 19, 9, 3), {"pool_size": 3, "activation": "tanh"}),
    "pools of 1": ((3, 4, 9, 9, 3), {"pool_size": 1, "activation": "sigmoid"}),
    "overlapping pools": ((2, 5, 19, 8, 3), {"pool_size": 5, "pool_stride": 2}),
    "pools with gaps": ((2, 5, 29, 17, 3), {"pool_size": 2, "pool_stride": 7, "padding": 1}),
    "pools of 1 with gaps": ((3, 33, 40, 40, 3), {"pool_size": 1, "pool_stride": 2}),
    "one pool of all": ((2, 5, 11, 17, 3), {"pool_size": 9, "activation": "relu"}),
    "pools, stride, dilation": (
        (2, 3, 41, 7, 3),
        {"pool_size": 3, "pool_stride": 2, "stride": 2, "dilation": 2, "padding": 3},
    ),
    "small pools, many filters": (
        (2, 30, 130, 200, 3),
        {"pool_size": 2, "padding": 1, "activation": "relu"},
    ),
    "large pools, many filters": ((2, 20, 150, 101, 4), {"pool_size": 6, "padding": 2}),
    # Neighbouring windows are multiplied together, two or four of them.
    "together, 2 taps": ((2, 128, 33, 129, 2), {}),
    "together, 3 taps": ((3, 64, 41, 65, 3), {"padding": 1, "activation": "relu"}),
    "together, 4 taps": ((2, 65, 30, 64, 4), {"padding": "same"}),
    "together, 5 taps": ((2, 57, 47, 65, 5), {"pool_size": 3, "activation": "sigmoid"}),
    "together, 6 taps": ((2, 33, 40, 64, 6), {"pool_size": 5, "pool_stride": 2, "padding": 3}),
    "together, 7 taps": ((2, 33, 80, 70, 7), {"pool_size": 4, "pool_stride": 3}),
    "together, 8 taps": ((1, 40, 300, 40, 8), {"padding": 9, "activation": "relu"}),
    "together, 11 taps": ((2, 40, 39, 33, 11), {}),
    # So are those of small pools in the gradients.
    "pools of 1, together": ((2, 64, 41, 65, 3), {"pool_size": 1, "activation": "sigmoid"}),
    "pools of 2, 2 taps": ((2, 128, 33, 128, 2), {"pool_size": 2, "activation": "relu"}),
    "pools of 2, 3 taps": ((3, 65, 70, 64, 3), {"pool_size": 2, "padding": 1}),
    "pools of 2, 5 taps": ((2, 64, 147, 65, 5), {"pool_size": 2, "padding": "same"}),
    "pools of 3, 2 apart": ((2, 64, 61, 66, 7), {"pool_size": 3, "pool_stride": 2, "padding": 6}),
    "pools of 2, 1 apart": ((2, 64, 45, 66, 3), {"pool_size": 2, "pool_stride": 1, "padding": 1}),
    "pools of 2, padding beyond kernel": ((2, 64, 30, 64, 3), {"pool_size": 2, "padding": 4}),
    "pools, same": ((2, 3, 12, 33, 4), {"pool_size": 4, "pool_stride": 3, "padding": "same"}),
}
LAYOUTS = [False, True]  # channels_last


class Made(Sequence):
    """A sequence of tensors that nobody holds: who does not, reads memory that is free again."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, index: int) -> Tensor:
        return self.tensors[index].clone()


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normally distributed numbers that float32 represents exactly."""
    generator = torch.Generator().manual_seed(1000 * seed + sum(shape))
    return torch.randn(*shape, generator=generator).double()


def quarters(*shape: int, seed: int = 0) -> Tensor:
    """Multiples of 1/4 from -1 to 1: sums of their products have no rounding error, and ties."""
    generator = torch.Generator().manual_seed(1000 * seed + sum(shape))
    return torch.randint(-4, 5, shape, generator=generator).double() / 4


def tensors(sizes: tuple[int, int, int, int, int], numbers=normal, bias: bool = True) -> dict:
    """Input (N, C, L), weight and bias in float64.

    The weights are scaled by a power of two, as a layer's are by its size: sums are then about 1,
    and an activation does not hide their errors.
    """
    batch, channels, length, filters, kernel_size = sizes
    scale = 2.0 ** -round(math.log2(max(1, channels * kernel_size)) / 2)
    return {
        "input": numbers(batch, channels, length, seed=1),
        "weight": scale * numbers(filters, channels, kernel_size, seed=2),
        "bias": numbers(filters, seed=3) if bias else None,
    }


def laid_out(arguments: dict, channels_last: bool) -> dict:
    """The arguments with input in that layout, contiguous."""
    if not channels_last:
        return arguments
    transposed = arguments["input"].transpose(-1, -2).contiguous()
    return arguments | {"input": transposed, "channels_last": True}


def converted(arguments: dict, dtype: torch.dtype) -> dict:
    """The arguments with floating-point tensors in another dtype, their strides kept."""
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


@st.composite
def convolutions(draw):
    """Sizes and keywords of a convolution that has at least one pooled position."""
    batch, channels, filters = draw(st.tuples(st.integers(1, 5), *[st.integers(1, 40)] * 2))
    kernel_size, length = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    dilation, padding = draw(st.integers(1, 3)), draw(st.integers(0, 7))
    keywords = {
        "dilation": dilation,
        "activation": draw(st.sampled_from(sorted(ACTIVATIONS))),
    }
    if draw(st.booleans()):
        keywords |= {"padding": "same"}
        windows = length
    else:
        stride = draw(st.integers(1, 5))
        length = max(length, dilation * (kernel_size - 1) + 1 - 2 * padding, 1)
        keywords |= {"padding": padding, "stride": stride}
        windows = (length + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1
    if draw(st.booleans()):
        keywords["pool_size"] = draw(st.integers(1, windows))
        keywords["pool_stride"] = draw(st.none() | st.integers(1, 5))
    return (batch, channels, length, filters, kernel_size), keywords


def terms_of(arguments: dict) -> int:
    """Products summed into an element of the output, and the bias."""
    return arguments["weight"][0].numel() + 1


def by_torch(
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
    """torch's convolution, activation and pooling of batched input; each sample cut if need be."""
    channels_first = input.transpose(1, 2) if channels_last else input

    def pooled(sequences: Tensor) -> Tensor:
        # oneDNN 3.12 crashes on dilated float16 convolutions on processors with AVX512_FP16.
        crashes = sequences.dtype == torch.float16 and dilation != 1
        without = torch.backends.mkldnn.flags(enabled=False)
        with without if crashes else contextlib.nullcontext():
            values = F.conv1d(sequences, weight, bias, stride, padding, dilation)
        values = ACTIVATIONS[activation](values)
        if pool_size is None:
            return values.max(dim=2).values
        return F.max_pool1d(values, pool_size, pool_stride)

    if lengths is None:
        result = pooled(channels_first)
    else:
        rows, longest = [], None if pool_size is None else pooled(channels_first).shape[2]
        for sequence, length in zip(channels_first, lengths.tolist(), strict=True):
            try:
                row = pooled(sequence[None, :, :length])[0]
            except RuntimeError:  # torch refuses a sequence too short for one window
                row = weight.new_zeros(len(weight), *(() if pool_size is None else (0,)))
            rows.append(row if longest is None else F.pad(row, (0, longest - row.shape[1])))
        result = torch.stack(rows)
    return result.transpose(1, 2) if channels_last and pool_size is not None else result


@remembered
def expected_of(given: dict) -> list[Tensor]:
    """The output by torch, and exactly."""
    exact = reference.conv1d_max_pool(**converted(given, torch.float64))
    return [by_torch(**given), exact]


def assert_right(arguments: dict, dtype: torch.dtype) -> Tensor:
    """Ours beside torch's in ``dtype``, against the reference in float64; returns ours."""
    given = converted(arguments, dtype)
    ours = functional.conv1d_max_pool(**given)
    assert ours.is_contiguous()
    assert_no_worse(ours, *expected_of(given), terms=terms_of(given), what="output")
    return ours


def gradients(function, arguments: dict, cotangent: Tensor | None = None) -> list[Tensor]:
    """Gradients of input, weight and, if there is one, bias, for a fixed gradient of the output."""
    names = [name for name in ("input", "weight", "bias") if arguments[name] is not None]
    leaves = {name: arguments[name].detach().requires_grad_() for name in names}
    output = function(**arguments | leaves)
    if cotangent is None:
        cotangent = quarters(*output.shape, seed=4)
    if not output.requires_grad:  # torch's, where every sample is too short for a window
        return [torch.zeros_like(leaf) for leaf in leaves.values()]
    return list(torch.autograd.grad(output, leaves.values(), cotangent.to(output.dtype)))


@remembered
def expected_gradients_of(given: dict) -> list[list[Tensor]]:
    """The gradients by torch, and exactly."""
    exact = gradients(reference.conv1d_max_pool, converted(given, torch.float64))
    return [gradients(by_torch, given), exact]


def assert_right_gradients(arguments: dict, dtype: torch.dtype) -> list[Tensor]:
    """The same for the gradients; returns ours."""
    given = converted(arguments, dtype)
    ours = gradients(functional.conv1d_max_pool, given)
    torchs, exact = expected_gradients_of(given)
    output = functional.conv1d_max_pool(**given)
    filters, pooled = len(arguments["weight"]), output.numel() // len(arguments["weight"])
    summed = {"input": filters * pooled // len(output), "weight": pooled, "bias": pooled}
    # tanh and sigmoid, with errors of up to 3 ULP, enter the terms by the square.
    scale = 16 if arguments.get("activation") in ("tanh", "sigmoid") else 1
    for name, *triple in zip(summed, ours, torchs, exact, strict=False):
        assert_no_worse(*triple, terms=scale * summed[name], what=f"gradient of {name}")
    return ours
