"""Gradients of the CUDA convolution with small pools, which are computed as dense products."""

from __future__ import annotations

import pytest
import torch

import gpu
from convolutions import (
    LAYOUTS,
    assert_right_gradients,
    converted,
    gradients,
    laid_out,
    normal,
    quarters,
    tensors,
)
from seqkernels import functional

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# What a convolution is called with: N, C, L, F, k, and keywords.
CASES = {
    "pools of 2": ((3, 48, 75, 40, 3), {"pool_size": 2, "padding": 1, "activation": "relu"}),
    "overlapping pools": ((2, 36, 66, 33, 4), {"pool_size": 5, "pool_stride": 2}),
    "pools with gaps": ((2, 33, 60, 130, 2), {"pool_size": 2, "pool_stride": 5}),
    "same, dilation": (
        (2, 40, 50, 32, 4),
        {"pool_size": 3, "pool_stride": 1, "padding": "same", "dilation": 2, "activation": "tanh"},
    ),
    "several column tiles": ((2, 70, 40, 36, 7), {"pool_size": 3, "activation": "sigmoid"}),
    # left to the winners
    "stride": ((2, 40, 50, 32, 3), {"pool_size": 2, "stride": 2}),
    "padding beyond kernel": ((2, 33, 20, 40, 2), {"pool_size": 2, "padding": 3}),
    "large pools": ((2, 33, 90, 40, 2), {"pool_size": 30, "pool_stride": 20}),
}


@pytest.fixture(autouse=True)
def fast_kernels(build_folder):
    with gpu.kernels("fast", lambda: build_folder):
        yield


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("numbers", [normal, quarters])
@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_cases(case, channels_last, numbers, dtype):
    sizes, keywords = CASES[case]
    arguments = laid_out(tensors(sizes, numbers), channels_last) | keywords
    assert_right_gradients(arguments, dtype)
    ragged = arguments | {"lengths": torch.arange(sizes[0]) * 29 % (sizes[2] + 1)}
    assert_right_gradients(ragged, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("case", ["pools of 2", "overlapping pools", "same, dilation"])
def test_batch_mates_and_padding_change_no_bit(case, channels_last, dtype):
    (_, channels, length, *rest), keywords = CASES[case]
    lengths = torch.tensor([length, 40, 0, 1, 33])
    arguments = converted(tensors((5, channels, length, *rest)), dtype) | keywords
    values = arguments["input"]
    beyond = torch.arange(length) >= lengths[:, None, None]
    ragged = arguments | {"lengths": lengths}
    spoilt = laid_out(ragged | {"input": values.masked_fill(beyond, torch.nan)}, channels_last)
    zeros = laid_out(ragged | {"input": values.masked_fill(beyond, 0)}, channels_last)
    cotangent = normal(*functional.conv1d_max_pool(**spoilt).shape)
    found = gradients(functional.conv1d_max_pool, spoilt, cotangent)
    assert all(map(torch.equal, found, gradients(functional.conv1d_max_pool, zeros, cotangent)))
    assert all(map(torch.equal, found, gradients(functional.conv1d_max_pool, spoilt, cotangent)))
    time = 1 if channels_last else 2
    for sample, own_length in enumerate(lengths.tolist()):
        mine, after = found[0][sample : sample + 1].tensor_split([own_length], dim=time)
        assert not after.any()
        cut = arguments | {"input": values[sample : sample + 1, :, :own_length]}
        cut = laid_out(cut, channels_last)
        pooled = functional.conv1d_max_pool(**cut).shape[time]
        own = cotangent[sample : sample + 1].narrow(time, 0, pooled)
        alone = gradients(functional.conv1d_max_pool, cut, own)[0]
        assert torch.equal(mine, alone), f"sample {sample}"


@pytest.mark.parametrize("asked", ["input", "weight", "bias"])
def test_each_gradient_may_be_asked_for_alone(asked):
    arguments = converted(tensors((3, 48, 40, 40, 3)), torch.float32) | {"pool_size": 2}
    names = ("input", "weight", "bias")
    cotangent = quarters(3, 40, 19)
    expected = gradients(functional.conv1d_max_pool, arguments, cotangent)[names.index(asked)]
    leaf = arguments[asked].requires_grad_()
    functional.conv1d_max_pool(**arguments).backward(cotangent.float())
    assert torch.equal(leaf.grad, expected)


def test_strides_of_gradients_do_not_matter():
    arguments = converted(tensors((3, 48, 40, 40, 3)), torch.float32) | {"pool_size": 2}
    cotangent = quarters(3, 40, 19)
    expected = gradients(functional.conv1d_max_pool, arguments, cotangent)
    for view in (
        cotangent.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        torch.stack([cotangent] * 2, dim=3)[..., 1],
    ):
        found = gradients(functional.conv1d_max_pool, arguments, view)
        assert all(map(torch.equal, found, expected))


def test_float32_is_rounded_to_tf32_only_by_torchs_leave():
    arguments = laid_out(converted(tensors((3, 64, 60, 40, 3)), torch.float32), True)
    arguments |= {"pool_size": 2}
    leaves = [arguments[name].requires_grad_() for name in ("input", "weight")]
    # One forward for all: a winner decided otherwise would be another gradient.
    output = functional.conv1d_max_pool(**arguments)
    cotangent = quarters(*output.shape)
    exact = gradients(functional.conv1d_max_pool, converted(arguments, torch.float64), cotangent)
    for precision, least, most in (("ieee", 0, 2.0**-20), ("tf32", 2.0**-16, 2.0**-9)):
        with gpu.float32_products(precision):
            found = torch.autograd.grad(output, leaves, cotangent.float(), retain_graph=True)
        for mine, right in zip(found, exact, strict=False):
            error = ((mine - right).abs().max() / right.abs().max()).item()
            assert least <= error < most, precision
