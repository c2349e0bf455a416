"""Windows of so many numbers that in matrix tiles rows stay in L1, not panels of filters.

See csrc/cpu/convolution_windows.h. What is asked of the results holds for all instruction sets.
"""

from __future__ import annotations

import pytest
import torch

from convolutions import LAYOUTS, assert_right, converted, laid_out, tensors
from seqkernels import functional

# More than 512 numbers a window, three panels of filters, the last of them narrow, and some samples
# to a stretch, which end within a tile of rows.
SIZES = (11, 176, 31, 70, 3)
LENGTHS = torch.tensor([31, 2, 17, 30, 23, 31, 0, 3, 31, 16, 9])
poolings = pytest.mark.parametrize(
    "pooling", [{}, {"pool_size": 1}, {"pool_size": 2}, {"pool_size": 3, "pool_stride": 2}], ids=str
)


@poolings
@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
def test_they_are_right(isa, dtype, channels_last, pooling, lengths):
    arguments = laid_out(tensors(SIZES), channels_last) | pooling
    assert_right(arguments | {"activation": "relu", "lengths": lengths}, dtype)


@poolings
def test_strides_and_padding(isa, dtype, pooling):
    how = {"stride": 2, "dilation": 3, "padding": 4}
    assert_right(laid_out(tensors(SIZES), True) | pooling | how, dtype)


@pytest.mark.parametrize("narrow", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_concerns_its_sample_only(isa, narrow, value):
    given = converted(laid_out(tensors(SIZES), True), narrow)
    before = functional.conv1d_max_pool(**given)
    given["input"][2, 20, 7] = value
    found = functional.conv1d_max_pool(**given)
    others = torch.arange(len(found)) != 2
    assert torch.equal(found[others], before[others])
    assert not found[2].isfinite().all()


@pytest.mark.parametrize("narrow", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("filters", [70, 161])
def test_threads_of_one_sample_change_no_bit(isa, set_threads, narrow, filters):
    _, channels, length, _, taps = SIZES
    given = converted(laid_out(tensors((1, channels, length, filters, taps)), True), narrow)
    expected = functional.conv1d_max_pool(**given)
    for threads in (2, 3, 5):
        set_threads(threads)
        assert torch.equal(functional.conv1d_max_pool(**given), expected), threads


@poolings
@pytest.mark.parametrize("narrow", [torch.float32, torch.bfloat16], ids=str)
def test_neither_threads_nor_other_samples_change_a_bit(isa, set_threads, pooling, narrow):
    batch, channels, _, filters, taps = SIZES
    given = converted(laid_out(tensors((batch, channels, 700, filters, taps)), True), narrow)
    given |= pooling
    alone = [
        functional.conv1d_max_pool(**given | {"input": sample[None]}) for sample in given["input"]
    ]
    for threads in (1, 2, 5):
        set_threads(threads)
        assert torch.equal(functional.conv1d_max_pool(**given), torch.cat(alone)), threads
