"""Every mistake in an argument raises its class of error, by name, in both sets of functions."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from seqkernels import checks, functional, reference

LARGE = 2**62


def convolution_arguments() -> dict:
    return {"input": torch.randn(2, 3, 8), "weight": torch.randn(4, 3, 3), "bias": torch.randn(4)}


def sequence_arguments(name: str) -> dict:
    gates = 4 if "lstm" in name else 1
    shape = (2, 3) if "cell" in name else (7, 2, 3)
    h = torch.zeros(2, 5)
    return {
        "input": torch.randn(shape),
        "hx": (h, h.clone()) if "lstm" in name else h,
        "w_ih": torch.randn(5 * gates, 3),
        "w_hh": torch.randn(5 * gates, 5),
        "b_ih": torch.randn(5 * gates),
        "b_hh": torch.randn(5 * gates),
    }


CONVOLUTION_MISTAKES = [
    ({"input": [1.0]}, TypeError, "input: expected a torch.Tensor, got list"),
    ({"weight": None}, TypeError, "weight: expected a torch.Tensor, got NoneType"),
    ({"bias": 1.0}, TypeError, "bias: expected a torch.Tensor, got float"),
    ({"lengths": [8, 8]}, TypeError, "lengths: expected a torch.Tensor, got list"),
    ({"lengths": torch.ones(2)}, TypeError, "lengths: expected an integer tensor, got .*float32"),
    ({"lengths": torch.ones(2) > 0}, TypeError, "lengths: expected an integer tensor, got .*bool"),
    ({"input": None}, TypeError, "input: expected a torch.Tensor, got NoneType"),
    ({"activation": b"relu"}, ValueError, "activation: expected one of"),
    ({"stride": 1.0}, TypeError, "stride: expected an int, got float"),
    ({"stride": True}, TypeError, "stride: expected an int, got bool"),
    ({"dilation": "1"}, TypeError, "dilation: expected an int, got str"),
    ({"padding": None}, TypeError, "padding: expected an int, got NoneType"),
    ({"pool_size": 2.0}, TypeError, "pool_size: expected an int, got float"),
    ({"input": torch.randn(8)}, RuntimeError, r"input: expected shape \(N, C, L\)"),
    ({"input": torch.randn(1, 2, 3, 8)}, RuntimeError, r"got \(1, 2, 3, 8\)"),
    ({"input": torch.randn(2, 4, 8)}, RuntimeError, r"input: expected 3 channels .* got 4"),
    ({"channels_last": True}, RuntimeError, r"input: expected 3 channels .* got 8"),
    ({"weight": torch.randn(4, 3)}, RuntimeError, r"weight: expected 3 dimensions \(F, C, k\)"),
    ({"weight": torch.randn(4, 3, 0)}, RuntimeError, "weight: expected at least 1 filter"),
    ({"weight": torch.randn(0, 3, 3)}, RuntimeError, "weight: expected at least 1 filter"),
    ({"bias": torch.randn(3)}, RuntimeError, r"bias: expected shape \(4,\), got \(3,\)"),
    ({"bias": torch.randn(1, 4)}, RuntimeError, r"bias: expected shape \(4,\), got \(1, 4\)"),
    ({"weight": torch.randn(4, 3, 3).double()}, RuntimeError, "weight: .*float32.*float64"),
    ({"bias": torch.randn(4).double()}, RuntimeError, "bias: .*float32.*float64"),
    ({"input": torch.ones(2, 3, 8).long()}, RuntimeError, "input: expected a floating-point"),
    ({"weight": torch.randn(4, 3, 3, device="meta")}, RuntimeError, "weight: .*cpu.*meta"),
    ({"lengths": torch.ones(2, device="meta").int()}, RuntimeError, "lengths: .*cpu.*meta"),
    ({"stride": 0}, RuntimeError, "stride: expected at least 1, got 0"),
    ({"stride": (1, 1)}, RuntimeError, r"stride: expected a single integer, got \(1, 1\)"),
    ({"dilation": -1}, RuntimeError, "dilation: expected at least 1, got -1"),
    ({"padding": -1}, RuntimeError, "padding: expected at least 0, got -1"),
    ({"padding": "full"}, RuntimeError, "padding: expected an int, 'same' or 'valid', got 'full'"),
    ({"padding": "same", "stride": 2}, RuntimeError, "padding: expected stride 1"),
    ({"pool_size": 0}, RuntimeError, "pool_size: expected at least 1, got 0"),
    ({"pool_size": 2, "pool_stride": 0}, RuntimeError, "pool_stride: expected at least 1, got 0"),
    ({"pool_stride": 2}, ValueError, "pool_stride: expected None where pool_size is None, got 2"),
    ({"activation": "gelu"}, ValueError, "activation: expected one of identity, .* got 'gelu'"),
    ({"activation": None}, ValueError, "activation: expected one of identity, .* got None"),
    ({"lengths": torch.ones(3).int()}, ValueError, r"lengths: expected shape \(2,\), got \(3,\)"),
    ({"lengths": torch.tensor(3)}, ValueError, r"lengths: expected shape \(2,\), got \(\)"),
    (
        {"lengths": torch.tensor([8, -1])},
        ValueError,
        "lengths: expected values from 0 to 8, got -1",
    ),
    ({"lengths": torch.tensor([9, 0])}, ValueError, "lengths: expected values from 0 to 8, got 9"),
    ({"stride": 2**63}, ValueError, "stride: expected a number that fits 64 bits"),
    ({"padding": LARGE}, ValueError, "input: expected sizes that fit 64 bits"),
    ({"dilation": LARGE}, ValueError, "input: expected sizes that fit 64 bits"),
    ({"padding": LARGE // 32, "pool_size": 1}, ValueError, "fit 64 bits"),
]


@pytest.mark.parametrize("module", [functional, reference])
@pytest.mark.parametrize(("mistake", "error", "message"), CONVOLUTION_MISTAKES)
def test_convolution_mistakes(module, mistake, error, message):
    with pytest.raises(error, match=message):
        module.conv1d_max_pool(**convolution_arguments() | mistake)


def test_input_that_only_pretends_to_be_large():
    wide = torch.zeros(1, 1, 1).expand(2**31, 3, 2**29)
    with pytest.raises(ValueError, match="input: expected sizes that fit 64 bits"):
        functional.conv1d_max_pool(wide, torch.zeros(4, 3, 3))


def test_lengths_without_batch():
    arguments = convolution_arguments()
    arguments["input"] = arguments["input"][0]
    functional.conv1d_max_pool(**arguments, lengths=torch.tensor(8))
    for wrong in (torch.tensor([8]), torch.tensor(9)):
        with pytest.raises(ValueError, match="lengths: expected"):
            functional.conv1d_max_pool(**arguments, lengths=wrong)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str
)
def test_any_integer_dtype_is_good_for_lengths(dtype):
    arguments = convolution_arguments()
    output, expected = (
        functional.conv1d_max_pool(**arguments, lengths=torch.tensor([8, 3]).to(dtype))
        for dtype in (dtype, torch.int64)
    )
    assert torch.equal(output, expected)


def test_tuples_of_one_are_integers_as_in_torch():
    arguments = convolution_arguments()
    output = functional.conv1d_max_pool(**arguments, stride=(2,), padding=[1], dilation=(1,))
    assert torch.equal(output, functional.conv1d_max_pool(**arguments, stride=2, padding=1))


SEQUENCE_MISTAKES = [
    ({"input": [1.0]}, TypeError, "input: expected a torch.Tensor, got list"),
    ({"w_ih": None}, TypeError, "w_ih: expected a torch.Tensor, got NoneType"),
    ({"w_hh": [1.0]}, TypeError, "w_hh: expected a torch.Tensor, got list"),
    ({"b_ih": 0.0}, TypeError, "b_ih: expected a torch.Tensor, got float"),
    ({"b_hh": 0}, TypeError, "b_hh: expected a torch.Tensor, got int"),
    ({"hx": 0}, TypeError, "hx: expected a "),
    ({"input": torch.tensor(1.0)}, ValueError, "input: expected shape"),
    ({"input": torch.zeros(1, 1, 1, 3)}, ValueError, "input: expected shape"),
    ({"w_hh": torch.zeros(20)}, RuntimeError, "w_hh: expected shape .* got"),
    ({"w_hh": torch.zeros(7, 5)}, RuntimeError, "w_hh: expected shape .* got"),
    ({"w_ih": torch.zeros(7, 3)}, RuntimeError, "w_ih: expected shape .* with H = 5"),
    ({"w_ih": torch.zeros(20)}, RuntimeError, "w_ih: expected shape"),
    ({"b_ih": torch.zeros(7)}, RuntimeError, "b_ih: expected shape"),
    ({"b_hh": torch.zeros(1, 20)}, RuntimeError, "b_hh: expected shape"),
    ({"b_hh": torch.zeros(20, dtype=torch.float64)}, RuntimeError, "b_hh: expected .*float32"),
    ({"w_hh": torch.zeros(20, 5, device="meta")}, RuntimeError, "w_hh: expected device cpu"),
]


@pytest.mark.parametrize("module", [functional, reference])
@pytest.mark.parametrize("name", ["lstm", "rnn", "lstm_cell", "rnn_cell"])
@pytest.mark.parametrize(("mistake", "error", "message"), SEQUENCE_MISTAKES)
def test_recurrence_mistakes(module, name, mistake, error, message):
    with pytest.raises(error, match=message):
        getattr(module, name)(**sequence_arguments(name) | mistake)


@pytest.mark.parametrize("module", [functional, reference])
@pytest.mark.parametrize("name", ["lstm", "rnn", "lstm_cell", "rnn_cell"])
def test_mistakes_of_fit(module, name):
    function, arguments = getattr(module, name), sequence_arguments(name)
    with pytest.raises(RuntimeError, match=r"input: expected 3 features .* got 2"):
        function(**arguments | {"input": arguments["input"][..., :2]})
    with pytest.raises(RuntimeError, match="input: expected a floating-point dtype"):
        function(**arguments | {"input": arguments["input"].long()})
    pair = "lstm" in name
    for spoilt, error in (
        (torch.zeros(3, 5), RuntimeError),
        (torch.zeros(2, 4), RuntimeError),
        (torch.zeros(5), RuntimeError),
        (torch.zeros(1, 2, 5), ValueError if "cell" in name else RuntimeError),
        (torch.zeros(2, 5).double(), RuntimeError),
        (torch.zeros(2, 5, device="meta"), RuntimeError),
    ):
        hx = (arguments["hx"][0], spoilt) if pair else spoilt
        with pytest.raises(error, match=r"hx\[1\]: expected" if pair else "hx: expected"):
            function(**arguments | {"hx": hx})


@pytest.mark.parametrize("module", [functional, reference])
def test_states_come_in_pairs(module):
    for name in ("lstm", "lstm_cell"):
        arguments = sequence_arguments(name)
        with pytest.raises(
            TypeError, match=r"hx: expected a tuple \(h, c\) of tensors, got Tensor"
        ):
            getattr(module, name)(**arguments | {"hx": arguments["hx"][0]})
        with pytest.raises(RuntimeError, match="hx: expected two states"):
            getattr(module, name)(**arguments | {"hx": arguments["hx"][:1]})


@pytest.mark.parametrize("module", [functional, reference])
def test_unknown_nonlinearities(module):
    for name in ("rnn", "rnn_cell"):
        with pytest.raises(
            ValueError, match="nonlinearity: expected one of tanh, relu, got 'gelu'"
        ):
            getattr(module, name)(**sequence_arguments(name), nonlinearity="gelu")


@pytest.mark.parametrize("module", [functional, reference])
@pytest.mark.parametrize("name", ["lstm", "rnn"])
@pytest.mark.parametrize("lengths", [[8, 1], [1, -1], [1], [[1, 1]]])
def test_wrong_lengths_of_sequences(module, name, lengths):
    with pytest.raises(ValueError, match="lengths: expected"):
        getattr(module, name)(**sequence_arguments(name), lengths=torch.tensor(lengths))


BATCH_SIZE_MISTAKES = [
    ([2, 1], TypeError, "batch_sizes: expected a torch.Tensor, got list"),
    (torch.tensor([2.0, 1.0]), TypeError, "batch_sizes: expected an integer tensor"),
    (torch.tensor([[2, 1]]), ValueError, r"batch_sizes: expected shape \(T,\)"),
    (torch.tensor([], dtype=torch.int64), ValueError, r"batch_sizes: expected shape \(T,\)"),
    (torch.tensor([1, 2]), ValueError, "from 1 to 1, that of the step before, at step 1, got 2"),
    (torch.tensor([2, 0]), ValueError, "from 1 to 2, that of the step before, at step 1, got 0"),
    (torch.tensor([4, 5]), ValueError, "from 1 to 3, the rows of input, at step 0, got 4"),
    (torch.tensor([2, 2]), ValueError, "batch_sizes: expected a sum of 3, .* got 4"),
    (torch.tensor([1, 1]), ValueError, "batch_sizes: expected a sum of 3, .* got 2"),
    (torch.tensor([2, 1], device="meta"), RuntimeError, "batch_sizes: expected device cpu"),
]


@pytest.mark.parametrize("module", [functional, reference])
@pytest.mark.parametrize("name", ["lstm", "rnn"])
def test_mistakes_of_packed_sequences(module, name):
    function = getattr(module, name)
    right = {"input": torch.randn(3, 3), "batch_sizes": torch.tensor([2, 1])}
    arguments = sequence_arguments(name) | right
    function(**arguments)
    for wrong, error, message in BATCH_SIZE_MISTAKES:
        with pytest.raises(error, match=message):
            function(**arguments | {"batch_sizes": wrong})
    with pytest.raises(ValueError, match=r"input: expected shape \(rows, I\) with batch_sizes"):
        function(**arguments | {"input": torch.randn(2, 2, 3)})
    with pytest.raises(ValueError, match="lengths: expected None with batch_sizes"):
        function(**arguments, lengths=torch.tensor([2, 1]))
    hx = torch.zeros(3, 5)
    with pytest.raises(RuntimeError, match=r"hx.*: expected shape \(2, 5\), got \(3, 5\)"):
        function(**arguments | {"hx": (hx, hx) if name == "lstm" else hx})


def test_lengths_that_hold_no_numbers_are_not_read():
    with FakeTensorMode():
        fake = torch.ones(2, dtype=torch.int64)
        checks.check_lengths(fake, 2, 0, torch.ones(2, 3, 8))
    checks.check_lengths(
        torch.ones(2, dtype=torch.int64, device="meta"), 2, 0, torch.ones(2, 3, 8, device="meta")
    )


GEOMETRIES = [
    checks.ConvolutionGeometry(1, 0, 0, 1, 0, 0),
    checks.ConvolutionGeometry(2, 1, 2, 3, 0, 0),
    checks.ConvolutionGeometry(3, 0, 0, 2, 3, 2),
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_lengths_of_outputs_are_counts_of_places(geometry, kernel_size):
    lengths = torch.arange(20)
    windows = checks.output_length(lengths, kernel_size, geometry)
    pooled = checks.pooled_length(windows, geometry)
    for length in range(20):
        padded = length + geometry.padding_left + geometry.padding_right
        span = geometry.dilation * (kernel_size - 1) + 1
        places = range(0, padded - span + 1, geometry.stride)
        assert checks.output_length(length, kernel_size, geometry) == len(places)
        assert windows[length] == len(places)
        pooled_places = range(0, len(places) - geometry.pool_size + 1, geometry.pool_stride or 1)
        expected = len(pooled_places) if geometry.pool_size else min(1, len(places))
        assert checks.pooled_length(len(places), geometry) == expected
        assert pooled[length] == expected


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_lengths_of_outputs_follow_symbolic_sizes(geometry):
    @torch.compile(backend="eager", dynamic=True, fullgraph=True)
    def shape(input):
        windows = checks.output_length(input.shape[0], 3, geometry)
        return input.new_zeros(windows, checks.pooled_length(windows, geometry))

    for length in (12, 7, 2):
        windows = checks.output_length(length, 3, geometry)
        expected = (windows, checks.pooled_length(windows, geometry))
        assert shape(torch.zeros(length)).shape == expected
