"""The reference's convolution against its equation written out as loops; its derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from naive import ACTIVATIONS, randn, results_and_derivatives
from seqkernels import reference


def naive_windows(sample, weight, bias, stride, left, right, dilation) -> list[list[float]]:
    """Convolution of one (L, C) list of words: for each window the F filters' values."""
    channels, kernel_size = len(weight[0]), len(weight[0][0])
    zeros = [0.0] * channels
    words = [zeros] * left + sample + [zeros] * right
    count = max(0, (len(words) - dilation * (kernel_size - 1) - 1) // stride + 1)
    return [
        [
            bias[filter]
            + sum(
                weight[filter][channel][k] * words[window * stride + k * dilation][channel]
                for channel in range(channels)
                for k in range(kernel_size)
            )
            for filter in range(len(weight))
        ]
        for window in range(count)
    ]


def naive_sample(words, weight, bias, stride, left, right, dilation, activation, size, pool_stride):
    """One sample's pooled values [position][filter]; [filter] where size is None."""
    windows = naive_windows(words, weight, bias, stride, left, right, dilation)
    values = [[ACTIVATIONS[activation](value) for value in window] for window in windows]
    if size is None:
        return (
            [max(column) for column in zip(*values, strict=True)] if values else [0.0] * len(weight)
        )
    count = max(0, (len(values) - size) // pool_stride + 1)
    return [
        [max(column) for column in zip(*values[start : start + size], strict=True)]
        for start in range(0, count * pool_stride, pool_stride)
    ]


GEOMETRIES = [
    (1, 0, 1, None, None),
    (1, 0, 1, 2, None),
    (2, 1, 1, None, None),
    (1, 2, 3, 3, 1),
    (1, "same", 1, None, None),
    (1, "same", 3, 2, 3),
    (3, 4, 2, None, None),
    (1, "valid", 4, 1, 2),
    (9, 5, 1, 4, None),
]


@pytest.mark.parametrize("kernel_size", [1, 2, 3])
@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_convolution_is_its_loops(geometry, activation, channels_last, with_lengths, kernel_size):
    stride, padding, dilation, pool_size, pool_stride = geometry
    length, channels, filters = 8, 2, 3
    lengths = [8, 0, 3, 1, 5] if with_lengths else [8] * 5
    words, weight = randn(5, length, channels), randn(filters, channels, kernel_size)
    bias = randn(filters)
    output = reference.conv1d_max_pool(
        words if channels_last else words.transpose(1, 2),
        weight,
        bias,
        stride,
        padding,
        dilation,
        activation=activation,
        pool_size=pool_size,
        pool_stride=pool_stride,
        lengths=torch.tensor(lengths) if with_lengths else None,
        channels_last=channels_last,
    )
    total = dilation * (kernel_size - 1)
    left, right = {"same": (total // 2, total - total // 2), "valid": (0, 0)}.get(
        padding, (padding, padding)
    )
    expected = [
        naive_sample(
            sample[:own].tolist(),
            weight.tolist(),
            bias.tolist(),
            stride,
            left,
            right,
            dilation,
            activation,
            pool_size,
            pool_stride or pool_size,
        )
        for sample, own in zip(words, lengths, strict=True)
    ]
    assert output.is_contiguous()
    if pool_size is None:
        assert output.shape == (5, filters)
    else:
        full = naive_windows(
            words[0].tolist(), weight.tolist(), bias.tolist(), stride, left, right, dilation
        )
        positions = max(0, (len(full) - pool_size) // (pool_stride or pool_size) + 1)
        output = output if channels_last else output.transpose(1, 2)
        assert output.shape == (5, positions, filters)
        for sample in expected:
            sample += [[0.0] * filters] * (positions - len(sample))
    expected = torch.tensor(expected, dtype=torch.float64).reshape(output.shape)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("pool_size", [None, 2])
def test_convolution_without_batch_and_bias(pool_size):
    input, weight = randn(2, 3, 9), randn(4, 3, 2)
    batched = reference.conv1d_max_pool(input, weight, pool_size=pool_size)
    alone = reference.conv1d_max_pool(input[1], weight, pool_size=pool_size)
    torch.testing.assert_close(alone, batched[1])
    cut = reference.conv1d_max_pool(
        input[1], weight, pool_size=pool_size, lengths=torch.tensor(5, dtype=torch.int32)
    )
    whole = reference.conv1d_max_pool(input[1, :, :5], weight, pool_size=pool_size)
    torch.testing.assert_close(cut[..., : whole.shape[-1]], whole)


@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("pool_size", [None, 2])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_convolution_derivatives(activation, pool_size, with_lengths):
    lengths = torch.tensor([5, 4, 0]) if with_lengths else None

    def function(input, weight, bias):
        return reference.conv1d_max_pool(
            input,
            weight,
            bias,
            2,
            1,
            activation=activation,
            pool_size=pool_size,
            pool_stride=1 if pool_size else None,
            lengths=lengths,
        )

    arguments = [t.requires_grad_() for t in (randn(3, 2, 5), randn(2, 2, 3), randn(2))]
    assert gradcheck(function, arguments)
    assert gradgradcheck(function, arguments)


@pytest.mark.parametrize("pool_size", [None, 2])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nothing_in_the_padding_reaches_a_convolution(activation, pool_size):
    lengths = torch.tensor([9, 4, 0, 2])
    padding = torch.arange(9) >= lengths[:, None]

    def function(input, weight, bias):
        output = reference.conv1d_max_pool(
            input, weight, bias, 1, 1, activation=activation, pool_size=pool_size, lengths=lengths
        )
        return [output]

    input = randn(4, 2, 9)
    others = randn(3, 2, 3), randn(3)
    outcomes = [
        results_and_derivatives(
            function, (input.masked_fill(padding[:, None, :], filling), *others)
        )
        for filling in (0.0, math.nan, math.inf)
    ]
    for clean, *spoilt in zip(*outcomes, strict=True):
        assert clean.isfinite().all()
        for other in spoilt:
            assert torch.equal(other, clean)
    gradient = outcomes[1][1]
    assert not gradient.masked_select(padding[:, None, :]).any()


def test_batch_mates_change_no_bit_of_a_convolution():
    weight, lengths = randn(3, 2, 3), torch.tensor([5, 9, 2])
    input = randn(3, 2, 9)
    output = reference.conv1d_max_pool(input, weight, lengths=lengths)
    others = input.clone()
    others[0], others[2] = math.nan, math.inf
    assert torch.equal(
        reference.conv1d_max_pool(others, weight, lengths=torch.tensor([9, 9, 4]))[1], output[1]
    )


@pytest.mark.parametrize(("pool_size", "winners"), [(None, [1]), (2, [1, 2, 4])])
def test_the_first_of_equal_maxima_gets_the_gradient(pool_size, winners):
    values = torch.tensor([[0.0, 2.0, 2.0, 1.0, 2.0, 2.0]], dtype=torch.float64)
    values.requires_grad_()
    output = reference.conv1d_max_pool(
        values, torch.ones(1, 1, 1, dtype=torch.float64), pool_size=pool_size
    )
    assert torch.equal(output, torch.full_like(output, 2.0))
    output.sum().backward()
    assert values.grad.nonzero()[:, 1].tolist() == winners


def test_the_first_nan_wins_the_maximum():
    values = torch.tensor([[9.0, math.nan, math.inf, math.nan]], dtype=torch.float64)
    values.requires_grad_()
    output = reference.conv1d_max_pool(values, torch.ones(1, 1, 1, dtype=torch.float64))
    assert output.isnan().all()
    output.sum().backward()
    assert values.grad.nonzero()[:, 1].tolist() == [1]


def test_minus_infinity_of_a_sample_stays():
    values = torch.full((2, 1, 3), -math.inf, dtype=torch.float64)
    output = reference.conv1d_max_pool(
        values, torch.ones(1, 1, 1, dtype=torch.float64), lengths=torch.tensor([2, 0])
    )
    assert output.tolist() == [[-math.inf], [0.0]]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("length", "pool_size"), [(0, None), (2, None), (2, 1), (4, 3)])
def test_too_short_samples_give_zeros_and_no_gradient(length, pool_size, activation):
    input, weight, bias = (
        t.requires_grad_() for t in (randn(2, 3, length), randn(4, 3, 3), randn(4))
    )
    output = reference.conv1d_max_pool(
        input, weight, bias, activation=activation, pool_size=pool_size
    )
    assert output.shape == ((2, 4) if pool_size is None else (2, 4, 0))
    assert not output.any()
    output.sum().backward()
    for tensor in (input, weight, bias):
        assert not tensor.grad.any()


def test_an_empty_batch_of_convolutions():
    assert reference.conv1d_max_pool(randn(0, 3, 5), randn(4, 3, 3)).shape == (0, 4)
    pooled = reference.conv1d_max_pool(
        randn(0, 5, 3), randn(4, 3, 3), pool_size=2, channels_last=True
    )
    assert pooled.shape == (0, 1, 4)
