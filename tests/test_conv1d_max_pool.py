"""conv1d_max_pool forward on every instruction set: beside torch, and what its docs promise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import seqkernels
from convolutions import (
    ACTIVATIONS,
    CASES,
    LAYOUTS,
    WIDTHS,
    assert_right,
    by_torch,
    converted,
    convolutions,
    laid_out,
    normal,
    quarters,
    tensors,
)
from seqkernels import functional, reference
from subprocesses import run_python

# Sizes of convolutions whose windows are multiplied together, in fours and twos.
TOGETHER = [
    (6, 64, 70, 65, 3),
    (6, 64, 70, 65, 5),
    (6, 128, 70, 128, 2),
    (6, 57, 70, 65, 7),
    (6, 49, 70, 49, 8),
    (6, 129, 70, 36, 3),
    (6, 128, 70, 66, 7),
]


@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("pooling", [{}, {"pool_size": 3, "pool_stride": 2}], ids=str)
def test_filters_and_channels_around_vector_widths(kernels, dtype, channels_last, pooling):
    for width in WIDTHS:
        for sizes in ((2, 3, 12, width, 3), (3, width, 12, 5, 2), (1, width, 9, width, 3)):
            arguments = laid_out(tensors(sizes), channels_last) | pooling
            assert_right(arguments | {"activation": "tanh"}, dtype)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_cases(kernels, dtype, case, channels_last, bias):
    sizes, keywords = CASES[case]
    assert_right(laid_out(tensors(sizes, bias=bias), channels_last) | keywords, dtype)


@given(convolutions(), st.booleans(), st.booleans(), st.booleans(), st.data())
def test_any_shape(kernels, dtype, convolution, bias, channels_last, ragged, data):
    sizes, keywords = convolution
    arguments = laid_out(tensors(sizes, bias=bias), channels_last) | keywords
    if ragged:
        lengths = st.lists(st.integers(0, sizes[2]), min_size=sizes[0], max_size=sizes[0])
        arguments["lengths"] = torch.tensor(data.draw(lengths))
    assert_right(arguments, dtype)


@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"stride": 3, "dilation": 2, "padding": 4},
        {"pool_size": 7},
        {"pool_size": 64, "pool_stride": 5, "padding": "same"},
        {"pool_size": 2900, "pool_stride": 11},
    ],
    ids=str,
)
def test_sequences_of_several_stretches(kernels, dtype, channels_last, keywords):
    length = 1000 if kernels.startswith("cuda") else 3000
    arguments = laid_out(tensors((2, 64, length, 19, 3)), channels_last) | keywords
    arguments |= {"lengths": torch.tensor([length, length - 50]), "activation": "tanh"}
    if "pool_size" in keywords:
        arguments["pool_size"] = min(keywords["pool_size"], length - 100)
    assert_right(arguments, dtype)


@pytest.mark.parametrize("pooling", [{}, {"pool_size": 1000, "pool_stride": 333}], ids=str)
def test_the_winner_may_stand_in_any_stretch(kernels, dtype, pooling):
    arguments = converted(tensors((1, 64, 3000, 9, 2)), dtype) | pooling
    arguments["bias"].zero_()
    for place in (0, 700, 1500, 2997):
        arguments["input"].zero_()
        arguments["input"][0, :, place : place + 2] = arguments["weight"][4]
        output = functional.conv1d_max_pool(**arguments)
        peak = arguments["weight"][4].square().sum()
        torch.testing.assert_close(output[0, 4].max(), peak)
        if pooling:
            begin = 333 * torch.arange(7)
            holds = (begin <= place) & (place < begin + 1000)
            assert torch.equal(output[0, 4] > 0.9 * peak, holds)


def views_of_input(values: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same (N, C, L) numbers in memory of other strides."""
    batch, channels, length = values.shape
    wide = torch.full((2 * batch, channels + 3, 3 * length + 1), torch.nan, dtype=values.dtype)
    sliced = wide[::2, 2 : channels + 2, 1::3]
    sliced.copy_(values)
    return {
        "transposed": values.transpose(1, 2).contiguous().transpose(1, 2),
        "permuted": values.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "batch inmost": values.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "sliced": sliced,
        "sliced and transposed": sliced.transpose(1, 2).contiguous()[:, :, :].transpose(1, 2),
    }


@pytest.mark.parametrize("channels, filters", [(1, 11), (6, 11), (8, 11), (57, 64)])
@pytest.mark.parametrize("pooling", [{}, {"pool_size": 4}], ids=str)
def test_strides_do_not_change_a_bit(kernels, dtype, pooling, channels, filters):
    arguments = converted(tensors((3, channels, 21, filters, 3)), dtype) | {"padding": 1} | pooling
    expected = functional.conv1d_max_pool(**arguments)
    for name, view in views_of_input(arguments["input"]).items():
        assert torch.equal(view, arguments["input"])
        output = functional.conv1d_max_pool(**arguments | {"input": view})
        assert torch.equal(output, expected), name
        last = arguments | {"input": view.transpose(1, 2), "channels_last": True}
        output = functional.conv1d_max_pool(**last)
        assert output.is_contiguous()
        assert torch.equal(output.transpose(1, 2) if pooling else output, expected), name
    weight, bias = arguments["weight"], arguments["bias"]
    others = {
        "weight": weight.permute(2, 1, 0).contiguous().permute(2, 1, 0),
        "bias": torch.stack([bias, bias + 1], dim=1)[:, 0],
    }
    for name, view in others.items():
        assert torch.equal(functional.conv1d_max_pool(**arguments | {name: view}), expected), name


def test_expanded_tensors(kernels, dtype):
    one = tensors((1, 1, 1, 1, 1))
    for shape in ((4, 1, 1), (1, 5, 1), (1, 1, 9), (4, 5, 9)):
        arguments = {
            "input": one["input"].expand(shape),
            "weight": normal(7, shape[1], 1).expand(7, shape[1], 3),
            "bias": one["bias"].expand(7),
            "padding": 2,
        }
        assert_right(arguments, dtype)
    numbers = normal(2, 5, 9)
    repeated = numbers[:, :, :1].expand_as(numbers)
    assert_right(arguments | {"input": repeated}, dtype)
    assert_right(arguments | {"input": numbers[:1].expand_as(numbers)}, dtype)
    overlapping = normal(30).as_strided((2, 5, 9), (3, 1, 2))
    assert_right(arguments | {"input": overlapping}, dtype)


@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("pooling", [{}, {"pool_size": 2}], ids=str)
def test_without_a_batch(kernels, dtype, channels_last, pooling):
    arguments = laid_out(converted(tensors((2, 5, 9, 7, 3)), dtype), channels_last) | pooling
    expected = functional.conv1d_max_pool(**arguments, lengths=torch.tensor([9, 6]))
    for sample, length in ((0, None), (1, torch.tensor(6))):
        alone = arguments | {"input": arguments["input"][sample], "lengths": length}
        assert torch.equal(functional.conv1d_max_pool(**alone), expected[sample])


@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize(
    ("keywords", "pooled"),
    [({}, ()), ({"pool_size": 2}, (3,)), ({"pool_size": 8}, (0,)), ({"padding": 1}, ())],
)
def test_an_empty_batch(kernels, dtype, channels_last, keywords, pooled):
    arguments = laid_out(converted(tensors((0, 5, 9, 7, 3)), dtype), channels_last) | keywords
    for lengths in (None, torch.zeros(0, dtype=torch.int64)):
        output = functional.conv1d_max_pool(**arguments, lengths=lengths)
        assert output.shape == ((0, *pooled, 7) if channels_last else (0, 7, *pooled))
        assert output.dtype == dtype


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_too_short_for_a_window_is_exactly_zero(kernels, dtype, activation):
    arguments = converted(tensors((3, 4, 5, 9, 6)), dtype) | {"activation": activation}
    output = functional.conv1d_max_pool(**arguments)
    assert torch.equal(output, torch.zeros(3, 9, dtype=dtype))
    assert functional.conv1d_max_pool(**arguments, pool_size=2).shape == (3, 9, 0)
    arguments["input"] = arguments["input"][:, :, :0]
    assert torch.equal(functional.conv1d_max_pool(**arguments), output)

    ragged = converted(tensors((5, 4, 12, 9, 3)), dtype) | {"activation": activation}
    ragged["lengths"] = torch.tensor([2, 12, 0, 3, 6])
    output = functional.conv1d_max_pool(**ragged)
    assert not output[[0, 2]].any() and output[[1, 3, 4]].any(dim=1).all()
    output = functional.conv1d_max_pool(**ragged, pool_size=4, pool_stride=3)
    assert output.shape == (5, 9, 3)
    assert not output[[0, 2, 3]].any() and not output[4, :, 1:].any()
    assert output[4, :, 0].any() and output[1].any(dim=0).all()


def test_without_channels_only_the_bias_is_left(kernels, dtype):
    arguments = converted(tensors((2, 0, 9, 7, 3)), dtype)
    for pooling in ({}, {"pool_size": 2}):
        exact = reference.conv1d_max_pool(**arguments, **pooling)
        assert torch.equal(functional.conv1d_max_pool(**arguments, **pooling), exact)


SPECIALS = [torch.nan, torch.inf, -torch.inf]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pooling", [{}, {"pool_size": 3, "pool_stride": 2, "padding": 1}], ids=str)
def test_nan_and_infinities(kernels, dtype, activation, pooling):
    for name, places in (("input", 6), ("weight", 3), ("bias", 2)):
        for special in SPECIALS:
            arguments = tensors((3, 4, 17, 9, 3)) | {"activation": activation} | pooling
            spoilt = arguments[name].view(-1)
            spoilt[torch.arange(1, len(spoilt), len(spoilt) // places)] = special
            assert_right(arguments, dtype)


@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("pooling", [{}, {"pool_size": 3}], ids=str)
def test_windows_of_minus_infinity_only(kernels, dtype, channels_last, pooling):
    arguments = laid_out(converted(tensors((2, 4, 9, 9, 3)), dtype), channels_last) | pooling
    arguments["weight"].abs_()
    arguments["input"].fill_(-torch.inf)
    for activation, value in (("identity", -torch.inf), ("relu", 0.0), ("tanh", -1.0)):
        output = functional.conv1d_max_pool(**arguments, activation=activation)
        assert torch.equal(output, torch.full_like(output, value))


@pytest.mark.parametrize("scale", [2.0**-140, 2.0**-60, 2.0**60, 2.0**120])
def test_weights_of_extreme_scale(kernels, scale):
    arguments = tensors((3, 5, 17, 9, 3))
    arguments["weight"] *= scale
    arguments["bias"] *= scale
    for activation in ("identity", "tanh", "sigmoid"):
        assert_right(arguments | {"activation": activation}, torch.float32)


@pytest.mark.parametrize("sizes", TOGETHER, ids=str)
@pytest.mark.parametrize("special", [*SPECIALS, 2.0**60, -(2.0**100)])
@pytest.mark.parametrize("keywords", [{"padding": 1}, {"pool_size": 3}], ids=str)
def test_numbers_that_cannot_be_multiplied_together(isa, sizes, special, keywords):
    """A sample that has one is as right as others, whose bits are the same."""
    arguments = tensors(sizes) | keywords
    plain = functional.conv1d_max_pool(**converted(arguments, torch.float32))
    for position in (0, 31, 69):
        arguments["input"][position % 5, 3, position] = special
        assert_right(arguments, torch.float32)
        output = functional.conv1d_max_pool(**converted(arguments, torch.float32))
        spoilt = arguments["input"].ne(tensors(sizes)["input"]).any(2).any(1)
        assert torch.equal(output[~spoilt], plain[~spoilt])
    for filter in (7, -1):
        weight = tensors(sizes)
        weight["weight"][filter, 5, 1] = special
        assert_right(weight | keywords, torch.float32)


@pytest.mark.parametrize("sizes", TOGETHER, ids=str)
@pytest.mark.parametrize("outlier", [1e2, 1e4, 1e6, 1e9])
@pytest.mark.parametrize("pooling", [{}, {"pool_size": 1}], ids=str)
def test_windows_keep_their_digits_beside_large_numbers(isa, sizes, outlier, pooling):
    """Those that do not read one are as right as without it."""
    arguments = tensors(sizes) | pooling
    arguments["input"][:, 3, 40] = outlier
    arguments["weight"][:, 3] = -arguments["weight"][:, 3].abs()
    single = converted(arguments, torch.float32)
    exact = by_torch(**converted(arguments, torch.float64))
    error = (functional.conv1d_max_pool(**single).double() - exact).abs()
    torchs = (by_torch(**single).double() - exact).abs()
    if pooling:
        beyond = (torch.arange(exact.shape[2]) - 40).abs() >= sizes[-1]
        error, torchs = error[..., beyond], torchs[..., beyond]
    # As far as numbers 64 times as large may take one; without the outlier torch's is about 1e-6.
    assert error.max() <= 64 * torchs.max()
    if outlier > 1e3:
        assert error.max() <= 8 * torchs.max()


@pytest.mark.parametrize("sizes", TOGETHER, ids=str)
@pytest.mark.parametrize("scale", [2.0**-140, 2.0**-101, 2.0**-90, 2.0**45, 2.0**51])
@pytest.mark.parametrize("filter", [5, -1])
def test_filters_of_extreme_scale_among_others(isa, sizes, scale, filter):
    arguments = tensors(sizes) | {"bias": None}
    arguments["weight"][filter] *= scale
    arguments["weight"] = arguments["weight"].float().double()
    assert_right(arguments, torch.float32)
    only = arguments | {"weight": arguments["weight"][[filter]].expand(64, -1, -1)}
    assert_right(only, torch.float32)


@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("sizes", TOGETHER, ids=str)
def test_what_memory_held_before_changes_no_bit(isa, sizes, channels_last):
    batch, channels, length, filters, taps = sizes
    arguments = laid_out(converted(tensors(sizes), torch.float32), channels_last)
    expected = functional.conv1d_max_pool(**arguments)
    for more in (0, 8, 16):
        spoilt = tensors((batch, (channels + more) // 16 * 16, length, filters, taps))
        spoilt["input"].fill_(torch.nan)
        spoilt = laid_out(converted(spoilt, torch.float32), channels_last)
        assert functional.conv1d_max_pool(**spoilt).isnan().all()
        assert torch.equal(functional.conv1d_max_pool(**arguments), expected)


@pytest.mark.parametrize("sizes", TOGETHER, ids=str)
@pytest.mark.parametrize("pooling", [{}, {"pool_size": 4, "pool_stride": 3}], ids=str)
def test_what_needs_no_rounding_is_exact(kernels, sizes, pooling):
    arguments = tensors(sizes, quarters) | {"padding": 2} | pooling
    exact = reference.conv1d_max_pool(**arguments)
    output = functional.conv1d_max_pool(**converted(arguments, torch.float32))
    assert torch.equal(output.double(), exact)


RAGGED = torch.tensor([17, 3, 0, 9, 1, 16])
HOW = [
    {"padding": 2},
    {"padding": "same", "dilation": 2},
    {"stride": 2, "padding": 3, "activation": "tanh"},
    {"pool_size": 3, "pool_stride": 2, "padding": "same", "activation": "sigmoid"},
]


@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("keywords", HOW, ids=str)
@pytest.mark.parametrize("sizes", [(6, 5, 17, 21, 4), TOGETHER[-2]], ids=str)
def test_batch_mates_and_padding_change_no_bit(kernels, dtype, channels_last, keywords, sizes):
    assert_batch_mates_and_padding_change_no_bit(dtype, channels_last, keywords, sizes)


@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("keywords", HOW, ids=str)
@pytest.mark.parametrize("sizes", TOGETHER[:-2] + TOGETHER[-1:], ids=str)
def test_nor_where_windows_are_multiplied_together(isa, dtype, channels_last, keywords, sizes):
    assert_batch_mates_and_padding_change_no_bit(dtype, channels_last, keywords, sizes)


def assert_batch_mates_and_padding_change_no_bit(dtype, channels_last, keywords, sizes):
    arguments = converted(tensors(sizes), dtype) | keywords
    values = arguments["input"]
    lengths = RAGGED if sizes[2] == 17 else torch.tensor([70, 28, 0, 31, 5, 69])
    padding = torch.arange(sizes[2]) >= lengths[:, None, None]
    padded = laid_out(arguments | {"input": values.masked_fill(padding, torch.nan)}, channels_last)
    output = functional.conv1d_max_pool(**padded, lengths=lengths)
    for sample, length in enumerate(lengths.tolist()):
        cut = arguments | {"input": values[sample : sample + 1, :, :length]}
        alone = functional.conv1d_max_pool(**laid_out(cut, channels_last))[0]
        if "pool_size" in keywords:
            time = 0 if channels_last else 1
            count = alone.shape[time]
            together, beyond = output[sample].tensor_split([count], dim=time)
            assert not beyond.any()
        else:
            together = output[sample]
        assert torch.equal(together, alone), f"sample {sample}"


@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize(
    "keywords",
    [{}, {"pool_size": 50, "pool_stride": 19}, {"pool_size": 3, "pool_stride": 2}],
    ids=str,
)
@pytest.mark.parametrize(
    "sizes",
    [(1, 64, 700, 130, 3), (7, 9, 60, 33, 4), (2, 64, 501, 65, 5), (1, 64, 60, 130, 5)],
    ids=str,
)
def test_runs_and_threads_change_no_bit(
    kernels, dtype, sizes, channels_last, keywords, set_threads
):
    arguments = laid_out(converted(tensors(sizes), dtype), channels_last) | keywords
    outputs = []
    for threads in (1, 1) if kernels.startswith("cuda") else (1, 1, 2, 2, 3, 8):
        set_threads(threads)
        outputs.append(functional.conv1d_max_pool(**arguments))
    assert all(torch.equal(output, outputs[0]) for output in outputs)


@given(convolutions(), st.booleans(), st.integers(2, 5))
def test_threads_change_no_bit_of_any_shape(
    kernels, set_threads, convolution, channels_last, threads
):
    sizes, keywords = convolution
    arguments = laid_out(converted(tensors(sizes), torch.float32), channels_last) | keywords
    set_threads(1)
    expected = functional.conv1d_max_pool(**arguments)
    set_threads(threads)
    assert torch.equal(functional.conv1d_max_pool(**arguments), expected)


@pytest.mark.parametrize("narrow", [False, True], ids=["float32 medium", "bfloat16"])
@pytest.mark.parametrize("keywords", [{"stride": 4}, {"pool_size": 2, "pool_stride": 3}], ids=str)
def test_nan_that_no_window_reads_changes_no_bit_at_any_thread_count(
    isa, set_threads, keywords, narrow
):
    """Threads cut a sample where it may lie."""
    arguments = laid_out(tensors((1, 65, 2000, 113, 1)), channels_last=True) | keywords
    arguments = converted(arguments, torch.bfloat16 if narrow else torch.float32)
    apart = keywords.get("stride", 3)
    try:
        torch.set_float32_matmul_precision("medium")
        for position in range(300 - 300 % apart + apart - 1, 540, apart):
            input = arguments["input"].clone()
            input[:, position] = torch.nan
            outputs = []
            for threads in (1, 4):
                set_threads(threads)
                outputs.append(functional.conv1d_max_pool(**arguments | {"input": input}))
            assert outputs[0].isfinite().all() and torch.equal(*outputs), position
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("channels", [5, 65])
def test_what_an_earlier_call_left_in_scratch_does_not_matter(isa, dtype, channels_last, channels):
    """Of an odd number of depths a pair of them reaches beyond the last window."""
    arguments = laid_out(converted(tensors((3, channels, 41, 64, 3)), dtype), channels_last)
    arguments |= {"padding": 1}
    seqkernels.cpu.release_scratch()
    expected = functional.conv1d_max_pool(**arguments)
    for longer in (0, 1, 8, 64):
        sizes = (3, channels, 41 + longer, 64, 3)
        nothing = laid_out(converted(tensors(sizes), dtype), channels_last)["input"] * torch.nan
        functional.conv1d_max_pool(**arguments | {"input": nothing})
        assert torch.equal(functional.conv1d_max_pool(**arguments), expected)


def test_arguments_are_left_as_they_were(kernels):
    arguments = tensors((3, 5, 17, 9, 3)) | {"lengths": torch.tensor([17, 0, 9])}
    before = {name: value.clone() for name, value in arguments.items()}
    functional.conv1d_max_pool(**arguments, activation="relu", pool_size=2)
    assert all(torch.equal(arguments[name], value) for name, value in before.items())


MEMORY = """
    import resource, sys, torch
    from seqkernels import functional
    from convolutions import by_torch

    torch.set_num_threads(1)
    batch, length, filters, channels = 2, 60000, 256, 4
    function = {"ours": functional.conv1d_max_pool, "torch": by_torch}[sys.argv[1]]
    weight = torch.randn(filters, channels, 3, requires_grad=True)
    small, large = (torch.randn(batch, channels, n, requires_grad=True) for n in (50, length))
    function(small, weight).sum().backward()
    spare = 4 * large.numel() * 4 + 2**23  # input, its gradient, as much again, and 8 MiB
    assert spare * 4 < batch * length * filters * 4
    taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + spare, resource.RLIM_INFINITY))
    function(large, weight, activation="tanh").sum().backward()
    print("enough")
"""


def test_the_convolutions_output_is_never_in_memory():
    """Of as much memory as ours needs, torch, which writes N F L numbers, has not enough."""
    outputs = {whose: run_python(MEMORY, whose) for whose in ("ours", "torch")}
    assert outputs["ours"].stdout == "enough\n", outputs["ours"].stderr
    assert outputs["torch"].stdout == ""
    assert "alloc" in outputs["torch"].stderr or "memory" in outputs["torch"].stderr


@pytest.mark.parametrize("factor", [1e-42, 1e-37, 1e-18, 1e25, 1e37])
@pytest.mark.parametrize("names", [("input",), ("weight",), ("input", "weight")])
def test_numbers_near_the_ends_of_their_range(isa, names, factor):
    """Matrix tiles leave to vectors what they cannot multiply."""
    if len(names) == 2 and not 1e-30 < factor < 1e18:
        factor = 1e-18 if factor < 1 else 1e17
    arguments = tensors((3, 65, 40, 64, 3)) | {"bias": None}
    for name in names:
        arguments[name] = (arguments[name] * factor).float().double()
    assert_right(arguments, torch.float32)


def test_small_numbers_at_any_padded_length(isa):
    """How long other samples are changes no bit, whatever stretches a sequence is cut into."""
    arguments = converted(tensors((1, 64, 1100, 40, 3)), torch.float32)
    arguments["input"][..., :600] *= 1e-20
    alone = functional.conv1d_max_pool(**arguments)
    longer = torch.nn.functional.pad(arguments["input"], (0, 900), value=3.0)
    padded = functional.conv1d_max_pool(
        **arguments | {"input": longer}, lengths=torch.tensor([1100])
    )
    assert torch.equal(alone, padded)


@pytest.mark.parametrize("stride", [1, 7, 2**31 - 1])
def test_one_window_at_any_stride(isa, dtype, stride):
    arguments = tensors((2, 70, 3, 20, 3)) | {"stride": stride}
    assert_right(arguments, dtype)
