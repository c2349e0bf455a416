"""Conv1dMaxPool and Conv1dMaxPoolBank beside nn.Conv1d, an activation and torch's pooling."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

import seqkernels.nn
from seqkernels import _cpu, checks, functional
from tolerance import assert_no_worse

CHANNELS, FILTERS, LENGTH, BATCH = 3, 5, 11, 4
ACTIVATIONS = {
    "identity": lambda value: value,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
GEOMETRIES = [
    {},
    {"stride": 2},
    {"padding": 2},
    {"dilation": 3},
    {"padding": "same"},
    {"padding": "same", "dilation": 2},
    {"padding": "valid", "bias": False},
    {"stride": 3, "padding": 1, "dilation": 2, "bias": False},
]


class TorchLayer(nn.Conv1d):
    """Convolution, activation and pooling by torch's operations."""

    def __init__(self, *arguments, activation, pool_size, pool_stride, channels_last, **keywords):
        super().__init__(*arguments, **keywords)
        self.activation = ACTIVATIONS[activation]
        self.pool_size, self.pool_stride = pool_size, pool_stride
        self.channels_last = channels_last

    def forward(self, input):
        input = input.transpose(-1, -2) if self.channels_last else input
        values = self.activation(super().forward(input))
        if self.pool_size is None:
            return values.max(dim=-1).values
        pooled = F.max_pool1d(values, self.pool_size, self.pool_stride)
        return pooled.transpose(-1, -2) if self.channels_last else pooled


def results_and_gradients(layer, input):
    dtype = layer.weight.dtype
    input = input.to(dtype, copy=True).requires_grad_()
    result = layer(input)
    generator = torch.Generator().manual_seed(2)
    cotangent = torch.randn(result.shape, generator=generator, dtype=torch.float64).to(dtype)
    return result, torch.autograd.grad(result, [input, *layer.parameters()], cotangent)


def random_input(batched: bool = True, channels_last: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = (LENGTH, CHANNELS) if channels_last else (CHANNELS, LENGTH)
    return torch.randn(*((BATCH,) if batched else ()), *shape, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("pool_size", "pool_stride"), [(None, None), (2, None), (3, 1), (1, 2)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_results_and_gradients_are_torchs(
    geometry, activation, pool_size, pool_stride, channels_last, batched, dtype
):
    arguments = {
        "activation": activation,
        "pool_size": pool_size,
        "pool_stride": pool_stride,
        "channels_last": channels_last,
        "dtype": dtype,
        **geometry,
    }
    torch.manual_seed(1)
    torchs = TorchLayer(CHANNELS, FILTERS, 3, **arguments)
    ours = seqkernels.nn.Conv1dMaxPool(CHANNELS, FILTERS, 3, **arguments)
    ours.load_state_dict(torchs.state_dict(), strict=True)
    exact = copy.deepcopy(torchs).double()
    input = random_input(batched, channels_last)
    ours, torchs, exact = (results_and_gradients(layer, input) for layer in (ours, torchs, exact))
    assert ours[0].is_contiguous()
    assert_no_worse(ours[0], torchs[0], exact[0], terms=3 * CHANNELS + 1, what="result")
    terms = BATCH * LENGTH * FILTERS
    assert_no_worse(ours[1], torchs[1], exact[1], terms=terms, what="gradients")


def test_too_short_samples_yield_zeros_and_no_gradient():
    layer = seqkernels.nn.Conv1dMaxPool(CHANNELS, FILTERS, 4, activation="sigmoid")
    input = random_input()[:, :, :3].requires_grad_()
    output = layer(input)
    assert torch.equal(output, torch.zeros(BATCH, FILTERS))
    output.sum().backward()
    assert not input.grad.any() and not layer.weight.grad.any() and not layer.bias.grad.any()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("padding", [0, 2, "same"])
def test_lengths_treat_each_sample_as_if_alone(padding, channels_last):
    layer = seqkernels.nn.Conv1dMaxPool(
        CHANNELS, FILTERS, 3, padding=padding, activation="tanh", channels_last=channels_last
    ).double()
    input = random_input(channels_last=channels_last).double()
    lengths = torch.tensor([LENGTH, 2, 0, 7])
    time_first = input if channels_last else input.transpose(1, 2)
    for sample, length in enumerate(lengths):
        time_first[sample, length:] = torch.nan
    output = layer(input, lengths)
    for sample, length in enumerate(lengths):
        cut = time_first[sample, :length]
        torch.testing.assert_close(output[sample], layer(cut if channels_last else cut.T))


CONSTRUCTIONS = [
    ((3, 5, 4), {}),
    ((3, 5, (4,)), {"stride": (2,)}),
    ((3, 5, 4, 2, 1, 3, False), {"dtype": torch.float64}),
    ((3, 5, 4), {"padding": "same", "dilation": 2, "device": "cpu"}),
    ((3, 5, 4), {"padding": "valid", "bias": False}),
]


@pytest.mark.parametrize(("arguments", "keywords"), CONSTRUCTIONS)
def test_construction_is_torchs(arguments, keywords):
    named = dict(
        zip(
            ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "bias"),
            arguments,
            strict=False,
        )
    )
    torch.manual_seed(0)
    torchs = nn.Conv1d(**named, **keywords)
    after_torchs = torch.random.get_rng_state()
    torch.manual_seed(0)
    ours = seqkernels.nn.Conv1dMaxPool(*arguments, **keywords)
    assert torch.equal(torch.random.get_rng_state(), after_torchs)
    assert repr(ours) == repr(torchs).replace("Conv1d(", "Conv1dMaxPool(")
    assert ours.state_dict().keys() == torchs.state_dict().keys()
    for name, parameter in torchs.named_parameters():
        assert torch.equal(getattr(ours, name), parameter)
        assert getattr(ours, name).dtype == parameter.dtype
    with torch.no_grad():
        torchs.weight += 1
    ours.load_state_dict(torchs.state_dict(), strict=True)
    torchs.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(ours.weight, torchs.weight)


def test_repr_shows_what_differs_from_the_defaults():
    layer = seqkernels.nn.Conv1dMaxPool(
        3, 5, 4, activation="tanh", pool_size=3, pool_stride=2, channels_last=True
    )
    assert repr(layer) == (
        "Conv1dMaxPool(3, 5, kernel_size=(4,), stride=(1,), activation=tanh, pool_size=3, "
        "pool_stride=2, channels_last=True)"
    )


def test_a_bank_is_its_filters_side_by_side():
    sizes = (1, 3, LENGTH + 1)
    torch.manual_seed(1)
    torchs = nn.ModuleList(nn.Conv1d(CHANNELS, FILTERS, size) for size in sizes)
    torch.manual_seed(1)
    bank = seqkernels.nn.Conv1dMaxPoolBank(CHANNELS, FILTERS, sizes, activation="relu")
    for parameter, other in zip(bank.parameters(), torchs.parameters(), strict=True):
        assert torch.equal(parameter, other)
    bank.load_state_dict(torchs.state_dict(), strict=True)
    torchs.load_state_dict(bank.state_dict(), strict=True)
    input = random_input()
    output = bank(input)
    expected = [torch.relu(layer(input)).amax(-1) for layer in torchs[:2]]
    assert output.shape == (BATCH, 3 * FILTERS)
    torch.testing.assert_close(output[:, : 2 * FILTERS], torch.cat(expected, dim=1))
    assert not output[:, 2 * FILTERS :].any()
    torch.testing.assert_close(bank(input[0]), output[0])


def test_a_bank_takes_lengths_layout_and_same_padding():
    bank = seqkernels.nn.Conv1dMaxPoolBank(
        CHANNELS,
        FILTERS,
        [2, 5],
        padding="same",
        bias=False,
        activation="tanh",
        channels_last=True,
        dtype=torch.float64,
    )
    input = random_input(channels_last=True).double()
    output = bank(input, torch.tensor([4, 1, LENGTH, 6]))
    torch.testing.assert_close(output[0], bank(input[0, :4]))
    torch.testing.assert_close(output[1], bank(input[1, :1]))
    assert "bias=False" in repr(bank) and "padding=same" in repr(bank)


def test_a_bank_needs_a_filter_length():
    with pytest.raises(ValueError, match="kernel_sizes: expected at least one"):
        seqkernels.nn.Conv1dMaxPoolBank(3, 5, [])


LAYERS = [
    lambda: seqkernels.nn.Conv1dMaxPool(CHANNELS, FILTERS, 3, activation="tanh", pool_size=2),
    lambda: seqkernels.nn.Conv1dMaxPoolBank(CHANNELS, FILTERS, (2, 3), activation="relu"),
]


@pytest.mark.parametrize("build", LAYERS)
def test_copies_compute_the_same(build):
    layer, input = build(), random_input()
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
    ):
        assert repr(other) == repr(layer)
        assert torch.equal(other(input), layer(input))
    converted = copy.deepcopy(layer).to(torch.float64)(input.double())
    assert converted.dtype == torch.float64
    torch.testing.assert_close(converted.float(), layer(input))


@pytest.mark.parametrize("build", LAYERS)
def test_functional_call_and_parametrization_are_obeyed(build):
    layer, input = build(), random_input()
    parameters = {name: 2 * value.detach() for name, value in layer.named_parameters()}
    doubled = copy.deepcopy(layer)
    doubled.load_state_dict(parameters)
    expected = doubled(input)
    assert torch.equal(torch.func.functional_call(layer, parameters, (input,)), expected)

    class Double(nn.Module):
        def forward(self, value):
            return 2 * value

    for name, _ in list(layer.named_parameters()):
        path, _, attribute = name.rpartition(".")
        parametrize.register_parametrization(layer.get_submodule(path), attribute, Double())
    assert torch.equal(layer(input), expected)


@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("build", LAYERS)
def test_layers_compile_without_a_break_in_the_graph(build, with_lengths):
    layer, input = build(), random_input()
    arguments = (input, torch.tensor([5, 0, LENGTH, 1])) if with_lengths else (input,)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), layer(*arguments))


BAD_CONSTRUCTIONS = [
    {"kernel_size": -1},
    {"kernel_size": 1.5},
    {"kernel_size": "3"},
    {"in_channels": -1},
    {"out_channels": 2.0},
    {"padding": "full"},
    {"padding": "same", "stride": 2},
    {"dtype": torch.int64},
    {"unknown": 1},
]


@pytest.mark.parametrize("spoilt", BAD_CONSTRUCTIONS, ids=str)
def test_bad_constructions_raise_torchs_class(spoilt):
    arguments = {"in_channels": 3, "out_channels": 5, "kernel_size": 3} | spoilt
    with pytest.raises(Exception) as torchs:
        nn.Conv1d(**arguments)
    with pytest.raises(Exception) as ours:
        seqkernels.nn.Conv1dMaxPool(**arguments)
    assert ours.type is torchs.type


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"activation": "gelu"}, ValueError),
        ({"pool_stride": 2}, ValueError),
        ({"pool_size": 0}, RuntimeError),
        ({"pool_size": 2, "pool_stride": -1}, RuntimeError),
        ({"pool_size": 2.0}, TypeError),
    ],
)
def test_bad_activation_or_pooling_is_refused_at_construction(keywords, error):
    with pytest.raises(error, match=f"{list(keywords)[-1]}: expected"):
        seqkernels.nn.Conv1dMaxPool(3, 5, 3, **keywords)


BAD_CALLS = [
    ({"stride": 0}, random_input),
    ({"stride": -2}, random_input),
    ({"dilation": 0}, random_input),
    ({"padding": -1}, random_input),
    ({"padding": 1.5}, random_input),
    ({"kernel_size": (3, 3)}, random_input),
    ({"stride": (1, 1)}, random_input),
    ({}, lambda: random_input()[0, 0]),
    ({}, lambda: random_input()[None]),
    ({}, lambda: random_input()[:, :2]),
    ({}, lambda: random_input().double()),
    ({}, lambda: [1.0]),
]


@pytest.mark.parametrize(("spoilt", "input"), BAD_CALLS)
def test_bad_calls_raise_torchs_class(spoilt, input):
    arguments = {"in_channels": 3, "out_channels": 5, "kernel_size": 3} | spoilt
    with pytest.raises(Exception) as torchs:
        nn.Conv1d(**arguments)(input())
    layer = seqkernels.nn.Conv1dMaxPool(**arguments)
    with pytest.raises(Exception, match="expected") as ours:
        layer(input())
    assert ours.type is torchs.type


def test_other_dtypes_are_computed_by_torch_and_said_so_once(monkeypatch):
    def refuse(*_):
        raise ValueError("input: expected float32")

    monkeypatch.setattr(functional._coverage, "_said", set())
    monkeypatch.setattr(checks, "NATIVE_DTYPES", (torch.float32,))
    monkeypatch.setattr(_cpu, "conv1d_max_pool_forward", refuse)
    layer = seqkernels.nn.Conv1dMaxPool(CHANNELS, FILTERS, 3, dtype=torch.bfloat16)
    input = random_input().bfloat16()
    with pytest.warns(UserWarning, match="torch.bfloat16 on cpu") as record:
        output = layer(input)
        layer(input)
    assert len(record) == 1
    expected = nn.functional.conv1d(input, layer.weight, layer.bias).amax(-1)
    torch.testing.assert_close(output, expected)


def test_input_of_autocast_is_accepted():
    layer = seqkernels.nn.Conv1dMaxPool(CHANNELS, FILTERS, 3)
    input = random_input()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(input.bfloat16())
    torch.testing.assert_close(output.float(), layer(input), rtol=0.05, atol=0.05)
