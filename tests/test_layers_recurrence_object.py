"""The recurrent layers as objects: constructors, parameters, copies, parameters in their place."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import seqkernels.nn
from recurrent_layers import (
    ALL,
    BATCH,
    HIDDEN_SIZE,
    flatten,
    layer_and_input,
)

CONSTRUCTIONS = [
    ("LSTM", (3, 5), {}),
    ("LSTM", (3, 5, 2, False, True, 0.25, True, 2), {"dtype": torch.float64}),
    ("LSTM", (3, 5, 2, True, False, 0.0, True), {"device": "cpu"}),
    ("LSTM", (3, 5), {"proj_size": 4}),
    ("LSTM", (), {"input_size": 1, "hidden_size": 1, "num_layers": 3}),
    ("RNN", (3, 5), {}),
    ("RNN", (3, 5, 2, "relu", False, True, 0.25, True), {"dtype": torch.float64}),
    ("RNN", (3, 5), {"nonlinearity": "relu", "bidirectional": True}),
    ("LSTMCell", (3, 5), {}),
    ("LSTMCell", (3, 5, False, "cpu", torch.float64), {}),
    ("RNNCell", (3, 5), {}),
    ("RNNCell", (3, 5, False, "relu", "cpu", torch.float64), {}),
]


@pytest.mark.parametrize(("name", "arguments", "keywords"), CONSTRUCTIONS)
def test_construction_is_torchs(name, arguments, keywords):
    torch.manual_seed(0)
    torchs = getattr(nn, name)(*arguments, **keywords)
    after_torchs = torch.random.get_rng_state()
    torch.manual_seed(0)
    ours = getattr(seqkernels.nn, name)(*arguments, **keywords)
    assert torch.equal(torch.random.get_rng_state(), after_torchs)
    assert repr(ours) == repr(torchs)
    ours_parameters, torch_parameters = dict(ours.named_parameters()), torchs.named_parameters()
    for (name, torch_parameter), our_name in zip(torch_parameters, ours_parameters, strict=True):
        assert our_name == name
        assert ours_parameters[name].dtype == torch_parameter.dtype
        assert torch.equal(ours_parameters[name], torch_parameter)
    with torch.no_grad():
        for parameter in torchs.parameters():
            parameter += 1
    ours.load_state_dict(torchs.state_dict(), strict=True)
    torchs.load_state_dict(ours.state_dict(), strict=True)
    for ours_parameter, parameter in zip(ours.parameters(), torchs.parameters(), strict=True):
        assert torch.equal(ours_parameter, parameter)


@pytest.mark.parametrize("name", ["LSTM", "RNN"])
def test_attributes_are_torchs(name):
    arguments = {"num_layers": 2, "dropout": 0.5, "bidirectional": True, "batch_first": True}
    torchs, ours = (getattr(module, name)(3, 5, **arguments) for module in (nn, seqkernels.nn))
    for attribute in (
        "mode",
        "input_size",
        "hidden_size",
        "num_layers",
        "bias",
        "batch_first",
        "dropout",
        "bidirectional",
        "proj_size",
    ):
        assert getattr(ours, attribute) == getattr(torchs, attribute)
    assert [len(group) for group in ours.all_weights] == [len(w) for w in torchs.all_weights]
    assert ours.all_weights[1][0] is ours.weight_ih_l0_reverse
    assert ours.flatten_parameters() is None


@pytest.mark.parametrize("name", ALL)
def test_copies_compute_the_same(name):
    layer, input = layer_and_input(name)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
    ):
        assert repr(other) == repr(layer)
        torch.testing.assert_close(other(input), layer(input), rtol=0, atol=0)
    converted = copy.deepcopy(layer).to(torch.float64)
    for ours, exact in zip(flatten(layer(input)), flatten(converted(input.double())), strict=True):
        assert exact.dtype == torch.float64
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5)


def parameter_name(name: str) -> str:
    return "weight_hh" if name.endswith("Cell") else "weight_hh_l0"


@pytest.mark.parametrize("name", ALL)
def test_functional_call_uses_the_given_parameters(name):
    layer, input = layer_and_input(name)
    parameters = {key: value.detach() * 2 for key, value in layer.named_parameters()}
    weight_name = "weight_ih" if name.endswith("Cell") else "weight_ih_l0"
    parameters[weight_name].requires_grad_()
    results = flatten(torch.func.functional_call(layer, parameters, (input,)))
    doubled = copy.deepcopy(layer)
    doubled.load_state_dict(parameters)
    for ours, expected in zip(results, flatten(doubled(input)), strict=True):
        assert torch.equal(ours, expected)
    results[0].sum().backward()
    assert getattr(layer, weight_name).grad is None
    assert parameters[weight_name].grad.abs().sum() > 0


@pytest.mark.parametrize("name", ALL)
def test_parametrized_weights_are_read(name):
    layer, input = layer_and_input(name)
    doubled = copy.deepcopy(layer)
    with torch.no_grad():
        getattr(doubled, parameter_name(name)).mul_(2)

    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    parametrize.register_parametrization(layer, parameter_name(name), Double())
    for ours, expected in zip(flatten(layer(input)), flatten(doubled(input)), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("name", ALL)
def test_a_dropped_weight_is_read(name):
    layer, input = layer_and_input(name)
    weight = getattr(layer, parameter_name(name))
    delattr(layer, parameter_name(name))
    layer.register_parameter("raw", weight)
    mask = (torch.arange(weight.numel()) % 3 > 0).float().reshape(weight.shape)
    setattr(layer, parameter_name(name), weight * mask)
    results = flatten(layer(input))
    plain, _ = layer_and_input(name)
    with torch.no_grad():
        getattr(plain, parameter_name(name)).mul_(mask)
    for ours, expected in zip(results, flatten(plain(input)), strict=True):
        assert torch.equal(ours, expected)
    sum(result.sum() for result in results).backward()
    assert torch.equal(weight.grad * mask, weight.grad)


@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_layers_compile_without_a_break_in_the_graph(name, with_states):
    layer, input = layer_and_input(name)
    shape = (len(input), HIDDEN_SIZE) if name.endswith("Cell") else (1, BATCH, HIDDEN_SIZE)
    h, c = torch.randn(shape), torch.randn(shape)
    arguments = (input, (h, c) if name.startswith("LSTM") else h) if with_states else (input,)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), layer(*arguments))


def test_recompute_is_a_setting_of_the_layer():
    layer = seqkernels.nn.LSTM(3, 5, num_layers=2, bidirectional=True, recompute=True)
    assert repr(layer) == "LSTM(3, 5, num_layers=2, bidirectional=True, recompute=True)"
    assert copy.deepcopy(layer).recompute and pickle.loads(pickle.dumps(layer)).recompute
    input = torch.randn(7, 4, 3)
    gradients = []
    for layer.recompute in (True, False):
        output, _ = layer(input)
        gradients.append(torch.autograd.grad(output.square().sum(), layer.parameters()))
    assert all(map(torch.equal, *gradients))
    with pytest.raises(ValueError, match="recompute: expected False with proj_size"):
        seqkernels.nn.LSTM(3, 5, proj_size=2, recompute=True)
