"""Gradients of conv1d_max_pool on every instruction set.

Most numbers are multiples of a power of two with few digits: sums are exact in float32, so that
equal maxima are equal in every implementation, and there are many.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convolutions import (
    ACTIVATIONS,
    CASES,
    LAYOUTS,
    WIDTHS,
    assert_right_gradients,
    by_torch,
    converted,
    convolutions,
    gradients,
    laid_out,
    normal,
    quarters,
    tensors,
)
from seqkernels import functional, reference

POOLINGS = [{}, {"pool_size": 3, "pool_stride": 2}]


@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
def test_filters_and_channels_around_vector_widths(kernels, dtype, channels_last, pooling):
    for width in WIDTHS:
        for sizes in ((2, 3, 12, width, 3), (3, width, 12, 5, 2), (1, width, 9, width, 3)):
            arguments = laid_out(tensors(sizes, quarters), channels_last) | pooling
            assert_right_gradients(arguments | {"activation": "tanh"}, dtype)


@pytest.mark.parametrize(("numbers", "bias"), [(normal, True), (quarters, False)])
@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_cases(kernels, dtype, case, channels_last, numbers, bias):
    sizes, keywords = CASES[case]
    arguments = laid_out(tensors(sizes, numbers, bias), channels_last) | keywords
    assert_right_gradients(arguments, dtype)


@given(convolutions(), st.booleans(), st.booleans(), st.data())
def test_any_shape(kernels, dtype, convolution, channels_last, ragged, data):
    sizes, keywords = convolution
    arguments = laid_out(tensors(sizes, quarters), channels_last) | keywords
    if ragged:
        lengths = st.lists(st.integers(0, sizes[2]), min_size=sizes[0], max_size=sizes[0])
        arguments["lengths"] = torch.tensor(data.draw(lengths))
    assert_right_gradients(arguments, dtype)


@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize(
    "keywords",
    [{}, {"stride": 3, "dilation": 2, "padding": 4}, {"pool_size": 64, "pool_stride": 50}],
    ids=str,
)
def test_long_sequences(kernels, dtype, channels_last, keywords):
    arguments = laid_out(tensors((2, 64, 3000, 19, 3), quarters), channels_last) | keywords
    arguments["lengths"] = torch.tensor([3000, 2950])
    assert_right_gradients(arguments, dtype)


def test_batches_of_several_blocks(kernels, dtype):
    """The weights' gradient is summed over samples of 1 MiB at a time."""
    for channels_last in LAYOUTS:
        arguments = tensors((40, 16, 1500, 7, 3), quarters) | {"activation": "sigmoid"}
        assert_right_gradients(laid_out(arguments, channels_last), dtype)


@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
def test_the_first_of_equal_maxima_receives_the_gradient(kernels, dtype, pooling):
    values = torch.tensor([1.0, 3.0, 2.0, 3.0, 3.0, 3.0, 0.0], dtype=dtype)
    for filters in (1, 5, 17):
        input = values.clone()[None, None].requires_grad_()
        weight = torch.ones(filters, 1, 1, dtype=dtype)
        functional.conv1d_max_pool(input, weight, **pooling).sum().backward()
        expected = [0, 1, 0, 1, 1, 0, 0] if pooling else [0, 1, 0, 0, 0, 0, 0]
        assert input.grad.flatten().tolist() == [filters * count for count in expected]


def test_the_first_of_equal_maxima_in_another_stretch(kernels, dtype):
    for places in ((5, 2990), (1500, 2000), (2997, 2999)):
        input = torch.zeros(1, 64, 3000, dtype=dtype)
        input[:, :, list(places)] = 1
        input.requires_grad_()
        weight = torch.ones(9, 64, 1, dtype=dtype)
        functional.conv1d_max_pool(input, weight).sum().backward()
        assert input.grad[0, 0].nonzero().flatten().tolist() == [places[0]]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
def test_the_first_nan_receives_the_gradient(kernels, dtype, activation, pooling):
    values = [torch.inf, 1.0, torch.nan, 9.0, torch.nan, torch.nan, torch.inf]
    input = torch.tensor(values, dtype=dtype)[None, None].requires_grad_()
    weight = torch.ones(9, 1, 1, dtype=dtype)
    output = functional.conv1d_max_pool(input, weight, activation=activation, **pooling)
    assert output.isnan().all()
    output.backward(torch.ones_like(output))
    expected = [0, 0, 18, 0, 9, 0, 0] if pooling else [0, 0, 9, 0, 0, 0, 0]
    if activation in ("tanh", "sigmoid"):  # of these the derivative there is itself NaN
        expected = [torch.nan if count else 0 for count in expected]
    expected = torch.tensor(expected, dtype=dtype)
    torch.testing.assert_close(input.grad.flatten(), expected, rtol=0, atol=0, equal_nan=True)


def test_of_minus_infinities_only_the_first_window_receives_the_gradient(kernels, dtype):
    for keywords, expected in (
        ({}, [9, 0, 0, 0, 0, 0]),
        ({"pool_size": 2}, [9, 0, 9, 0, 9, 0]),
    ):
        input = torch.full((1, 1, 6), -torch.inf, dtype=dtype).requires_grad_()
        output = functional.conv1d_max_pool(input, torch.ones(9, 1, 1, dtype=dtype), **keywords)
        output.sum().backward()
        assert input.grad.flatten().tolist() == expected


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
def test_too_short_for_a_window_receives_no_gradient(kernels, dtype, activation, pooling):
    arguments = converted(tensors((4, 4, 9, 5, 3)), dtype) | {"activation": activation} | pooling
    arguments["lengths"] = torch.tensor([9, 2, 0, 5])
    input, weight, bias = gradients(functional.conv1d_max_pool, arguments)
    assert not input[1:3].any() and input[0].any() and input[3, :, :5].any()
    assert not input[3, :, 5:].any()
    longer = arguments | {"input": arguments["input"][[0, 3]], "lengths": torch.tensor([9, 5])}
    output = functional.conv1d_max_pool(**arguments)
    cotangent = quarters(*output.shape, seed=4)
    _, *without = gradients(functional.conv1d_max_pool, longer, cotangent[[0, 3]])
    assert torch.equal(weight, without[0]) and torch.equal(bias, without[1])

    many = arguments["input"].repeat(5, 1, 1)
    for short in (arguments["input"][:, :, :2], arguments["input"][:, :, :0], many[:, :, :0]):
        spoilt = arguments | {"input": short, "lengths": None}
        assert not any(gradient.any() for gradient in gradients(functional.conv1d_max_pool, spoilt))


@pytest.mark.parametrize("keywords", [{}, {"pool_size": 2}], ids=str)
def test_an_empty_batch_has_gradients_of_zero(kernels, dtype, keywords):
    arguments = converted(tensors((0, 5, 9, 7, 3)), dtype) | keywords
    input, weight, bias = gradients(functional.conv1d_max_pool, arguments)
    assert input.shape == (0, 5, 9)
    assert torch.equal(weight, torch.zeros(7, 5, 3, dtype=dtype))
    assert torch.equal(bias, torch.zeros(7, dtype=dtype))


RAGGED = torch.tensor([17, 3, 0, 9, 1, 16])
HOW = [
    {"padding": 2, "activation": "tanh"},
    {"padding": "same", "dilation": 2},
    {"stride": 2, "padding": 3},
    {"pool_size": 3, "pool_stride": 2, "padding": "same", "activation": "sigmoid"},
]


@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("keywords", HOW, ids=str)
def test_batch_mates_and_padding_change_no_bit(kernels, dtype, channels_last, keywords):
    arguments = converted(tensors((6, 5, 17, 21, 4)), dtype) | keywords
    values = arguments["input"]
    padding = torch.arange(17) >= RAGGED[:, None, None]
    padded = arguments | {"input": values.masked_fill(padding, torch.nan), "lengths": RAGGED}
    padded = laid_out(padded, channels_last)
    zeros = laid_out(padded | {"input": values.masked_fill(padding, 0)}, channels_last)
    cotangent = normal(*functional.conv1d_max_pool(**padded).shape)
    together, *rest = gradients(functional.conv1d_max_pool, padded, cotangent)
    with_zeros = gradients(functional.conv1d_max_pool, zeros, cotangent)
    assert all(map(torch.equal, rest, with_zeros[1:]))
    time = 1 if channels_last else 2
    for sample, length in enumerate(RAGGED.tolist()):
        cut = laid_out(
            arguments | {"input": values[sample : sample + 1, :, :length]}, channels_last
        )
        own = cotangent[sample : sample + 1]
        if "pool_size" in keywords:
            own = own.narrow(time, 0, functional.conv1d_max_pool(**cut).shape[time])
        alone = gradients(functional.conv1d_max_pool, cut, own)[0]
        mine, beyond = together[sample : sample + 1].tensor_split([length], dim=time)
        assert torch.equal(mine, alone), f"sample {sample}"
        assert not beyond.any()


# Pooled over time, every position in several filters' winning windows: of 16 samples and more the
# gradient of the weights is summed over copies of the positions, unless there is padding or many
# threads share few channels.
SHORT = {
    "1 tap": ((33, 16, 5, 43, 1), {"activation": "relu"}),
    "2 taps": ((17, 33, 6, 31, 2), {}),
    "3 taps, several blocks": ((41, 35, 20, 56, 3), {"activation": "tanh"}),
    "5 taps, stride": ((20, 31, 9, 50, 5), {"stride": 2}),
    "5 taps, padding": ((20, 31, 9, 80, 5), {"padding": 1}),
    "23 taps, few samples to a block": ((16, 9, 170, 67, 23), {}),
}


def ragged(sizes: tuple[int, ...]) -> torch.Tensor:
    batch, _, longest, _, taps = sizes
    lengths = [longest, 0, longest - 1, taps - 1, taps]
    return torch.tensor(lengths * 20)[:batch].clamp(0, longest)


@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("case", SHORT)
def test_short_sentences(kernels, dtype, case, channels_last):
    sizes, keywords = SHORT[case]
    arguments = laid_out(tensors(sizes, quarters), channels_last) | keywords
    assert_right_gradients(arguments, dtype)
    lengths = ragged(sizes)
    found = assert_right_gradients(arguments | {"lengths": lengths}, dtype)

    # What stands behind the samples, and in those without a window, is not read.
    read = lengths.where(lengths + 2 * keywords.get("padding", 0) >= sizes[4], 0)
    mask = torch.arange(sizes[2]) >= read[:, None, None]
    mask = mask.transpose(1, 2) if channels_last else mask
    spoilt = arguments | {"input": arguments["input"].masked_fill(mask, torch.nan)}
    spoilt = converted(spoilt | {"lengths": lengths}, dtype)
    spoilt = gradients(functional.conv1d_max_pool, spoilt)
    assert all(map(torch.equal, spoilt[1:], found[1:]))


@pytest.mark.parametrize("case", SHORT)
def test_samples_and_threads_change_no_bit_of_short_sentences(kernels, set_threads, dtype, case):
    """Sums have one order, whether they are made over copies or not."""
    sizes, keywords = SHORT[case]
    arguments = converted(tensors(sizes), dtype) | keywords | {"lengths": ragged(sizes)}
    cotangent = quarters(sizes[0], sizes[3], seed=4)
    expected = gradients(functional.conv1d_max_pool, arguments, cotangent)
    for threads in (2, 3, 12):
        set_threads(threads)
        found = gradients(functional.conv1d_max_pool, arguments, cotangent)
        assert all(map(torch.equal, found, expected)), f"{threads} threads"
    set_threads(1)
    few = {name: arguments[name][:15] for name in ("input", "lengths")}
    nothing = {name: torch.zeros_like(arguments[name][:2]) for name in few}
    more = {name: torch.cat((few[name], nothing[name])) for name in few}
    of_few = gradients(functional.conv1d_max_pool, arguments | few, cotangent[:15])
    cotangent = torch.cat((cotangent[:15], cotangent[:2]))
    of_more = gradients(functional.conv1d_max_pool, arguments | more, cotangent)
    assert torch.equal(of_more[0][:15], of_few[0]) and not of_more[0][15:].any()
    assert all(map(torch.equal, of_more[1:], of_few[1:]))


# Convolutions whose gradients are made of neighbouring windows together, in fours and twos.
TOGETHER = [
    ((9, 64, 70, 65, 3), {"pool_size": 1}),
    ((9, 65, 71, 64, 3), {"pool_size": 2, "padding": 1}),
    ((5, 64, 70, 65, 5), {"pool_size": 3, "pool_stride": 2}),
    ((5, 128, 70, 128, 2), {"pool_size": 1}),
    ((5, 65, 70, 64, 5), {"pool_size": 1, "padding": 2}),
    ((5, 40, 70, 66, 7), {"pool_size": 1}),
]


@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize(("sizes", "keywords"), TOGETHER, ids=str)
def test_lengths_of_windows_together(isa, sizes, keywords, channels_last):
    lengths = torch.tensor([70, 28, 0, 31, 5, 69, 2, 70, 16])[: sizes[0]]
    beyond = torch.arange(sizes[2]) >= lengths[:, None, None]
    arguments = tensors(sizes) | keywords | {"lengths": lengths}
    assert_right_gradients(laid_out(arguments, channels_last), torch.float32)
    single = converted(laid_out(arguments, channels_last), torch.float32)
    mask = beyond.transpose(1, 2) if channels_last else beyond
    spoilt = single | {"input": single["input"].masked_fill(mask, torch.nan)}
    found = gradients(functional.conv1d_max_pool, single)
    assert all(map(torch.equal, found, gradients(functional.conv1d_max_pool, spoilt)))
    assert not found[0][mask.expand_as(found[0])].any()
    cotangent = quarters(*functional.conv1d_max_pool(**single).shape, seed=4)
    for sample in range(sizes[0]):
        only = slice(sample, sample + 1)
        alone = single | {"input": single["input"][only], "lengths": lengths[only]}
        own = gradients(functional.conv1d_max_pool, alone, cotangent[only])
        assert torch.equal(own[0], found[0][only]), f"sample {sample}"


@pytest.mark.parametrize(("sizes", "keywords"), TOGETHER, ids=str)
def test_windows_without_gradient_give_none(kernels, sizes, keywords):
    arguments = converted(tensors(sizes) | keywords, torch.float32)
    cotangent = torch.zeros_like(functional.conv1d_max_pool(**arguments))
    cotangent[1, :, 11] = normal(sizes[3], seed=9)
    cotangent[3, 7, 20] = 1
    input, weight, _ = gradients(functional.conv1d_max_pool, arguments, cotangent)
    exact = converted(arguments, torch.float64)
    expected = gradients(functional.conv1d_max_pool, exact, cotangent)
    assert torch.equal(input.eq(0).all(1), expected[0].eq(0).all(1))
    torch.testing.assert_close(input.double(), expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(weight.double(), expected[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("sizes", "keywords"), TOGETHER, ids=str)
@pytest.mark.parametrize("special", [torch.nan, torch.inf, 2.0**60, -(2.0**100)])
def test_gradients_beside_numbers_that_cannot_be_multiplied_together(isa, sizes, keywords, special):
    """They reach what their windows do, and no other number."""
    plain = converted(tensors(sizes) | keywords, torch.float32)
    output = functional.conv1d_max_pool(**plain)
    cotangent = quarters(*output.shape, seed=4)
    expected = gradients(functional.conv1d_max_pool, plain, cotangent)

    spoilt = cotangent.clone()
    spoilt[2, 7, 11] = special
    input, weight, bias = gradients(functional.conv1d_max_pool, plain, spoilt)
    others = torch.arange(sizes[0]) != 2
    torch.testing.assert_close(input[others], expected[0][others])
    reached = (input[2] - expected[0][2]).abs().nan_to_num(1e9).gt(1).any(0)
    assert 1 <= reached.sum() <= sizes[-1]
    untouched = torch.arange(sizes[3]) != 7
    torch.testing.assert_close(weight[untouched], expected[1][untouched], rtol=0, atol=1e-4)
    torch.testing.assert_close(bias[untouched], expected[2][untouched])

    for name, place in (("input", (2, 3, 40)), ("weight", (7, 5, 1))):
        arguments = dict(plain)
        arguments[name] = arguments[name].clone()
        arguments[name][place] = special
        exact = converted(arguments, torch.float64)
        found = gradients(functional.conv1d_max_pool, arguments, cotangent)
        wanted = gradients(functional.conv1d_max_pool, exact, cotangent)
        torchs = gradients(by_torch, arguments, cotangent)
        for ours, others, right in zip(found[:2], torchs[:2], wanted[:2], strict=True):
            small = right.abs() < 2.0**40
            assert torch.equal(ours.abs() < 2.0**40, small)
            errors = [(g[small] - right[small]).abs().max() for g in (ours, others)]
            # Dense gradients, as torch's, are NaN where an infinity was not read too.
            assert errors[0] <= (max(1e-4, 4 * errors[1]) if errors[1].isfinite() else 1e-4)


def largest_errors(found, torchs, exact, where) -> list[torch.Tensor]:
    return [(gradient[where] - exact[where]).abs().max() for gradient in (found, torchs)]


@pytest.mark.parametrize(("sizes", "keywords"), TOGETHER, ids=str)
@pytest.mark.parametrize("outlier", [1e2, 1e4, 1e9])
def test_gradients_keep_their_digits_beside_large_inputs(isa, sizes, keywords, outlier):
    """Those that no window with the number reaches are as right as without it."""
    arguments = tensors(sizes) | keywords
    arguments["input"][1, 3, 40] = outlier
    arguments["weight"][:, 3] = -arguments["weight"][:, 3].abs()
    single = converted(arguments, torch.float32)
    found, torchs = (gradients(run, single) for run in (functional.conv1d_max_pool, by_torch))
    exact = gradients(functional.conv1d_max_pool, converted(single, torch.float64))
    for of_found, of_torch, right in zip(found[:2], torchs[:2], exact[:2], strict=True):
        ours, others = largest_errors(of_found, of_torch, right, right.abs() < outlier / 10)
        # As far as numbers 64 times as large may take one.
        assert ours <= (64 if outlier < 1e3 else 4) * others


@pytest.mark.parametrize(("sizes", "keywords"), TOGETHER, ids=str)
@pytest.mark.parametrize("outlier", [1e2, 1e4, 1e9])
def test_gradients_keep_their_digits_beside_large_gradients(isa, sizes, keywords, outlier):
    """Those of inputs do, where none of their windows has one."""
    single = converted(tensors(sizes) | keywords, torch.float32)
    cotangent = normal(*functional.conv1d_max_pool(**single).shape, seed=4).float()
    cotangent[2, :, 11] *= outlier
    exact = gradients(functional.conv1d_max_pool, converted(single, torch.float64), cotangent)
    found = gradients(functional.conv1d_max_pool, single, cotangent)
    torchs = gradients(by_torch, single, cotangent)
    where = torch.ones_like(exact[0], dtype=torch.bool)
    position = 11 * keywords.get("pool_stride", keywords["pool_size"])
    where[2, :, (torch.arange(sizes[2]) - position).abs() <= 2 * sizes[-1]] = False
    ours, others = largest_errors(found[0], torchs[0], exact[0], where)
    assert ours <= 4 * others


@pytest.mark.parametrize(("sizes", "keywords"), TOGETHER, ids=str)
@pytest.mark.parametrize("special", [torch.nan, -torch.inf, 2.0**60])
def test_short_samples_and_weights_that_cannot_be_multiplied_together(
    isa, sizes, keywords, special
):
    arguments = converted(tensors(sizes) | keywords, torch.float32)
    arguments["weight"][7, 5, 1] = special
    for lengths in ([0, 1, 2], [7, 0, 5], [3, 70, 8]):
        few = arguments | {"input": arguments["input"][:3], "lengths": torch.tensor(lengths)}
        cotangent = quarters(*functional.conv1d_max_pool(**few).shape, seed=4)
        found = gradients(functional.conv1d_max_pool, few, cotangent)[0]
        for sample, length in enumerate(lengths):
            only = slice(sample, sample + 1)
            alone = few | {"input": few["input"][only], "lengths": few["lengths"][only]}
            own = gradients(functional.conv1d_max_pool, alone, cotangent[only])[0]
            assert torch.equal(own.nan_to_num(9e9), found[only].nan_to_num(9e9))
            assert not found[sample, :, length:].any()
            if length + 2 * keywords.get("padding", 0) < sizes[-1]:
                assert not found[sample].any()


@pytest.mark.parametrize(("sizes", "keywords"), TOGETHER, ids=str)
def test_gradients_of_what_needs_no_rounding_are_exact(kernels, sizes, keywords):
    arguments = tensors(sizes, quarters) | keywords
    exact = gradients(reference.conv1d_max_pool, arguments)
    found = gradients(functional.conv1d_max_pool, converted(arguments, torch.float32))
    assert all(torch.equal(a.double(), b) for a, b in zip(found, exact, strict=True))


@pytest.mark.parametrize(("sizes", "keywords"), TOGETHER, ids=str)
def test_threads_and_strides_change_no_bit_of_windows_together(isa, set_threads, sizes, keywords):
    batch, channels, length, filters, taps = sizes
    arguments = tensors((3 * batch, channels, 5 * length, filters, taps)) | keywords
    arguments = converted(arguments, torch.float32)
    expected = None
    for threads in (1, 2, 3):
        set_threads(threads)
        found = gradients(functional.conv1d_max_pool, arguments)
        expected = expected or found
        assert all(map(torch.equal, found, expected)), f"{threads} threads"
    input, weight = arguments["input"], arguments["weight"]
    views = arguments | {
        "input": input.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "weight": weight.permute(2, 1, 0).contiguous().permute(2, 1, 0),
    }
    assert all(map(torch.equal, gradients(functional.conv1d_max_pool, views), expected))


@given(convolutions(), st.booleans(), st.integers(2, 5))
def test_runs_and_threads_change_no_bit(kernels, set_threads, convolution, channels_last, threads):
    sizes, keywords = convolution
    arguments = laid_out(converted(tensors(sizes), torch.float32), channels_last) | keywords
    results = []
    for count in (1, 1, threads):
        set_threads(count)
        results.append(gradients(functional.conv1d_max_pool, arguments))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*results, strict=True))


def test_strides_do_not_change_a_bit(kernels, dtype):
    arguments = converted(tensors((3, 6, 21, 11, 3), quarters), dtype)
    arguments |= {"padding": 1, "pool_size": 4}
    expected = gradients(functional.conv1d_max_pool, arguments)
    cotangent = quarters(3, 11, 5, seed=4)
    for name, view in {
        "input": arguments["input"].permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "weight": arguments["weight"].permute(2, 1, 0).contiguous().permute(2, 1, 0),
        "bias": torch.stack([arguments["bias"]] * 2, dim=1)[:, 0],
    }.items():
        found = gradients(functional.conv1d_max_pool, arguments | {name: view})
        assert all(map(torch.equal, found, expected)), name
    strided = cotangent.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    found = gradients(functional.conv1d_max_pool, arguments, strided)
    assert all(map(torch.equal, found, expected))
    ones = gradients(functional.conv1d_max_pool, arguments, torch.ones(3, 11, 5))
    found = gradients(functional.conv1d_max_pool, arguments, torch.ones(()).expand(3, 11, 5))
    assert all(map(torch.equal, found, ones))


def test_each_gradient_may_be_asked_for_alone(kernels):
    arguments = tensors((3, 6, 21, 11, 3))
    expected = dict(
        zip(
            ("input", "weight", "bias"),
            gradients(functional.conv1d_max_pool, arguments, torch.ones(3, 11)),
            strict=True,
        )
    )
    for name, gradient in expected.items():
        leaf = arguments[name].clone().requires_grad_()
        functional.conv1d_max_pool(**arguments | {name: leaf}).sum().backward()
        assert torch.equal(leaf.grad, gradient)


def test_a_graph_may_be_used_twice(kernels):
    arguments = tensors((3, 6, 21, 11, 3)) | {"activation": "tanh"}
    before = {name: value.clone() for name, value in arguments.items() if name != "activation"}
    leaves = [arguments[name].requires_grad_() for name in ("input", "weight", "bias")]
    output = functional.conv1d_max_pool(**arguments)
    cotangent = normal(3, 11)
    first = torch.autograd.grad(output, leaves, cotangent, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(output, leaves, cotangent)))
    assert all(torch.equal(arguments[name], value) for name, value in before.items())


def test_a_saved_tensor_changed_in_place_is_an_error():
    for name in ("input", "weight", "lengths"):
        arguments = tensors((3, 6, 21, 11, 3)) | {"lengths": torch.tensor([21, 3, 4])}
        arguments["bias"].requires_grad_()
        output = functional.conv1d_max_pool(**arguments, activation="tanh")
        arguments[name].add_(0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


CHECKED = [
    {},
    {"padding": 2, "stride": 2, "bias": None},
    {"padding": "same", "channels_last": True},
    {"dilation": 2, "pool_size": 3, "pool_stride": 2},
    {"padding": "same", "pool_size": 2, "channels_last": True},
    {"padding": 1, "lengths": torch.tensor([8, 1])},
    {"pool_size": 2, "lengths": torch.tensor([4, 8])},
]


def function_of_tensors(keywords: dict, activation: str):
    arguments = tensors((2, 3, 8, 3, 4)) | keywords | {"activation": activation}
    arguments["input"] = laid_out(arguments, keywords.get("channels_last", False))["input"]
    names = [name for name in ("input", "weight", "bias") if arguments[name] is not None]

    def function(*leaves):
        return functional.conv1d_max_pool(**arguments | dict(zip(names, leaves, strict=True)))

    return function, [arguments[name].clone().requires_grad_() for name in names]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("keywords", CHECKED, ids=str)
def test_gradcheck(kernels, keywords, activation):
    assert torch.autograd.gradcheck(*function_of_tensors(keywords, activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("keywords", CHECKED, ids=str)
def test_gradgradcheck(keywords, activation):
    assert torch.autograd.gradgradcheck(*function_of_tensors(keywords, activation), fast_mode=True)
