"""Maxima over time in matrix tiles: found among rounded products, made in float32.

See csrc/cpu/screened_windows.h. What is asked of the results holds for all instruction sets.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from convolutions import assert_right, converted, normal, tensors
from seqkernels import checks, functional, ops

BATCH, CHANNELS, LENGTH, FILTERS, TAPS = SIZES = (3, 67, 61, 65, 3)


def pairs(input: Tensor) -> Tensor:
    """Two of a kind, as near to each other as rounding to bfloat16 cannot tell."""
    half = LENGTH // 2
    near = input[..., :half] * (1 + 2e-4 * normal(BATCH, 1, half, seed=5))
    return torch.cat([input[..., :half], near, input[..., -1:]], dim=-1).float().double()


def hardly_changing(input: Tensor) -> Tensor:
    return (input[..., :1] + 1e-4 * input).float().double()


def padded(input: Tensor) -> Tensor:
    return torch.cat([input[..., :20], input[..., 20:21].expand(-1, -1, LENGTH - 20)], dim=-1)


# What the input is like, and whether "high" gives what "highest" does, in tiles: where few windows
# remain to choose from, or planes cannot multiply the numbers either.
INPUTS = {
    "normal": (lambda input: input, True),
    "pairs": (pairs, True),
    "hardly changing": (hardly_changing, False),
    "constant": (lambda input: input[..., :1].expand_as(input), True),
    "period of 2": (lambda input: input[..., :2].repeat(1, 1, 31)[..., :LENGTH], False),
    "padded": (padded, True),
    "zeros": (torch.zeros_like, True),
    "zeros and more": (lambda input: input * (torch.arange(LENGTH) < 20), True),
    "small": (lambda input: input * 2.0**-100, True),
    "large": (lambda input: input * 2.0**70, False),
    "one large": (lambda input: input + 2.0**40 * (torch.arange(LENGTH) == 7), True),
}
everything = pytest.mark.parametrize("name", INPUTS)


@pytest.fixture
def at_precision():
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


def winners(input: Tensor, weight: Tensor) -> Tensor:
    """The windows that the maxima are found in, (N, F), of input (N, L, C)."""
    how = (1, 0, 1, "identity", None, None, None, True)
    geometry = list(checks.conv1d_max_pool(input, weight, None, *how))
    return ops.conv1d_max_pool(input, weight, None, None, geometry, "identity", True)[1]


def given_as(name: str) -> dict:
    arguments = tensors(SIZES)
    return arguments | {"input": INPUTS[name][0](arguments["input"])}


@everything
def test_they_are_right(isa, at_precision, name):
    arguments = given_as(name)
    found = assert_right(arguments, torch.float32)
    # Products in float32 do not depend on the precision that is asked of those in planes.
    at_precision("high")
    lower = functional.conv1d_max_pool(**converted(arguments, torch.float32))
    assert torch.equal(found, lower) == (isa != "amx" or INPUTS[name][1])


@pytest.mark.parametrize("name", ["normal", "pairs", "padded", "zeros and more"])
def test_float16_is_float32_rounded(isa, name):
    given = converted(given_as(name), torch.float16)
    wide = functional.conv1d_max_pool(**converted(given, torch.float32))
    assert torch.equal(functional.conv1d_max_pool(**given), wide.half())


@everything
def test_they_are_found_at_the_first_of_equal_windows(isa, name):
    given = converted(given_as(name), torch.float32)
    found = winners(given["input"].transpose(1, 2).contiguous(), given["weight"])
    for sample, of_filters in zip(given["input"].unfold(-1, TAPS, 1), found, strict=True):
        windows = sample.movedim(1, 0).flatten(1)
        for window in of_filters.unique():
            assert (windows[:window] != windows[window]).any(dim=1).all()


@everything
def test_batch_mates_and_threads_change_no_bit(isa, set_threads, name):
    arguments = converted(given_as(name), torch.float32)
    # So long that a sample is cut; so many that a stretch has more of them than are judged at once.
    long = torch.cat([arguments["input"], normal(BATCH, CHANNELS, 1400, seed=7).float()], dim=-1)
    for input, mates in ((arguments["input"], 60), (long, 9), (long.flip(-1), 9)):
        set_threads(1)
        alone = [functional.conv1d_max_pool(**arguments | {"input": one[None]}) for one in input]
        others = normal(mates, *input.shape[1:], seed=8).float()
        for threads in (1, 2, 5):
            set_threads(threads)
            batch = torch.cat([others[:4], input, others[4:]])
            together = functional.conv1d_max_pool(**arguments | {"input": batch})
            assert torch.equal(together[4 : 4 + BATCH], torch.cat(alone))


@pytest.mark.parametrize("factor", [0, 1e-44, 1e-25, 1e25])
def test_filters_of_any_size_side_by_side(isa, factor):
    arguments = tensors(SIZES) | {"bias": None}
    arguments["weight"][::3] *= factor
    arguments["weight"] = arguments["weight"].float().double()
    found = assert_right(arguments, torch.float32)
    if factor == 0:
        assert (found[:, ::3] == 0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_concerns_its_sample_only(isa, value):
    arguments = converted(tensors(SIZES), torch.float32)
    expected = functional.conv1d_max_pool(**arguments)
    arguments["input"][1, 5, 30] = value
    found = functional.conv1d_max_pool(**arguments)
    assert torch.equal(found[::2], expected[::2])
    assert torch.equal(found.isnan()[1], torch.full((FILTERS,), value != value))
    arguments["weight"][3, 2, 1] = value
    spoilt = functional.conv1d_max_pool(**arguments)
    assert not spoilt[::2, 3].isfinite().any()
    assert spoilt[::2, :3].isfinite().all() and spoilt[::2, 4:].isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3.4e38])
def test_what_no_window_holds_changes_no_bit(isa, value):
    """Of 134 numbers whole blocks of 32 reach beyond the window."""
    arguments = converted(tensors((2, 67, 200, 33, 2)), torch.float32) | {"stride": 5}
    expected = functional.conv1d_max_pool(**arguments)
    arguments["input"][..., torch.arange(200) % 5 >= 2] = value
    assert torch.equal(functional.conv1d_max_pool(**arguments), expected)


@pytest.mark.parametrize("keywords", [{}, {"stride": 2, "dilation": 3, "padding": 4}], ids=str)
def test_layouts_and_strides_change_no_bit(isa, keywords):
    """Numbers are read where they lie, in whole cache lines, or from copies; in pieces too."""
    arguments = converted(tensors(SIZES), torch.float32) | keywords
    expected = functional.conv1d_max_pool(**arguments)
    last = arguments["input"].transpose(1, 2).contiguous()
    lines = torch.full((BATCH, LENGTH, 80), torch.nan)[..., :CHANNELS].copy_(last)
    between = torch.full((BATCH, LENGTH, 80), torch.nan)[..., 7 : 7 + CHANNELS].copy_(last)
    wide = torch.full((BATCH, LENGTH, CHANNELS + 5), torch.nan)[..., :CHANNELS].copy_(last)
    for input in (last, lines, between, wide, last.flip(1).contiguous().flip(1)):
        found = functional.conv1d_max_pool(**arguments | {"input": input, "channels_last": True})
        assert torch.equal(found, expected)


@pytest.mark.parametrize("scale", [1, 2.0**70], ids=str)
@pytest.mark.parametrize("filters", [33, 65, 100, 112, 161])
def test_threads_of_one_sample_change_no_bit(isa, set_threads, filters, scale):
    """They share the filters, of which one may be such that no thread's products hold."""
    arguments = tensors((1, CHANNELS, LENGTH, filters, TAPS))
    arguments["weight"][filters - 1] *= scale
    set_threads(1)
    expected = assert_right(arguments, torch.float32)
    given = converted(arguments, torch.float32)
    for threads in (2, 3, 4, 5):
        set_threads(threads)
        assert torch.equal(functional.conv1d_max_pool(**given), expected)


@pytest.mark.parametrize("taps", [1, 2, 5, 7, 8])
@pytest.mark.parametrize("channels", [70, 128, 150, 177])
def test_how_weights_are_read_changes_no_bit(isa, channels, taps):
    """Of few samples as they lie, of many, or of more taps or other strides, from copies."""
    arguments = tensors((5, channels, 40, 45, taps))
    expected = assert_right(arguments, torch.float32)
    given = converted(arguments, torch.float32)
    for sample, of_sample in zip(given["input"], expected, strict=True):
        found = functional.conv1d_max_pool(**given | {"input": sample[None]})
        assert torch.equal(found[0], of_sample)
    by_taps = given["weight"].movedim(-1, 1).contiguous().movedim(1, -1)
    spread = torch.full((90, channels, taps + 1), torch.nan)[::2, :, :taps].copy_(given["weight"])
    wide = torch.full((45, channels + 3, taps), torch.nan)[:, :channels].copy_(given["weight"])
    for weight in (by_taps, spread, wide):
        for batch in (1, 5):
            found = functional.conv1d_max_pool(
                **given | {"weight": weight, "input": given["input"][:batch]}
            )
            assert torch.equal(found, expected[:batch])


def test_winners_are_the_greatest_in_float64(isa):
    """Where float32 can tell them from the next."""
    for seed in range(20):
        input = normal(8, CHANNELS, LENGTH, seed=seed) + 0.3 * normal(8, CHANNELS, 1, seed=90)
        weight = normal(FILTERS, CHANNELS, TAPS, seed=seed + 50)
        products = torch.nn.functional.conv1d(input, weight)
        best, second = products.topk(2, dim=-1).values.unbind(-1)
        found = winners(input.float().transpose(1, 2).contiguous(), weight.float())
        can_tell = best - second > 1e-4 * best.abs()
        assert can_tell.float().mean() > 0.99
        assert torch.equal(found[can_tell], products.argmax(-1).int()[can_tell])


@pytest.mark.parametrize("rounded", ["input", "weight"])
def test_rounding_that_adds_up_misleads_nobody(isa, rounded):
    """To bfloat16 all numbers of the winner are rounded down, those of another window up."""
    down, up = 1 + 0.98 / 256, 1 + 1.02 / 256  # rounded to 1 and to 1 + 2 / 256
    first = torch.arange(128) < 64
    if rounded == "input":
        filter = torch.ones(128)
        winner, other = torch.full((128,), down), torch.where(torch.arange(128) < 77, up, 1.0)
    else:
        filter = torch.where(first, down, up)
        winner, other = first.float(), (~first).float() * (1 - 1 / 256)
    input = 0.1 * normal(2, 40, 128, seed=3).bfloat16().float()  # of which rounding takes nothing
    input[:, 5], input[:, 30] = other, winner
    weight = torch.stack([filter, -filter])[..., None]
    assert filter @ winner > filter @ other
    assert filter.bfloat16().float() @ winner.bfloat16().float() < (
        filter.bfloat16().float() @ other.bfloat16().float()
    )
    assert (winners(input, weight)[:, 0] == 30).all()
    assert (winners(-input, weight)[:, 1] == 30).all()
