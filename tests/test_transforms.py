"""torch.func over the layers: gradients of each sample, ensembles of weights."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.func import functional_call, grad, vmap

from seqkernels import nn

LAYERS = {
    "convolution": (lambda: nn.Conv1dMaxPool(3, 5, 2), (2, 3, 7)),
    "windowed convolution": (
        lambda: nn.Conv1dMaxPool(3, 5, 2, pool_size=2, channels_last=True),
        (2, 7, 3),
    ),
    "LSTM": (lambda: nn.LSTM(3, 5), (6, 2, 3)),
    "LSTM, two layers, both directions": (
        lambda: nn.LSTM(3, 5, 2, bidirectional=True),
        (6, 1, 3),
    ),
    "RNN": (lambda: nn.RNN(3, 5, batch_first=True), (2, 6, 3)),
    "LSTM cell": (lambda: nn.LSTMCell(3, 5), (2, 3)),
    "RNN cell": (lambda: nn.RNNCell(3, 5), (2, 3)),
}


@pytest.fixture(params=LAYERS)
def layer_and_inputs(request):
    """A layer in float64, and four inputs of it."""
    build, shape = LAYERS[request.param]
    torch.manual_seed(0)
    return build().double(), torch.randn(4, *shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*seqkernels::.*")
        yield


def first(result) -> torch.Tensor:
    return result[0] if isinstance(result, tuple) else result


def assert_each(together, alone) -> None:
    """``alone(n)`` is the n'th of ``together``, both tensors by name."""
    for n in range(4):
        for name, expected in alone(n).items():
            torch.testing.assert_close(together[name][n], expected)


def test_results_of_several_inputs(layer_and_inputs):
    layer, inputs = layer_and_inputs

    def result(input):
        return {"result": first(layer(input))}

    with torch.no_grad():
        assert_each(vmap(result)(inputs), lambda n: result(inputs[n]))
    assert_each(vmap(result)(inputs), lambda n: result(inputs[n]))


def test_gradients_of_each_input(layer_and_inputs):
    layer, inputs = layer_and_inputs
    parameters = dict(layer.named_parameters())

    def loss(parameters, input):
        return first(functional_call(layer, parameters, (input,))).square().sum()

    together = vmap(grad(loss), in_dims=(None, 0))(parameters, inputs)
    assert_each(together, lambda n: grad(loss)(parameters, inputs[n]))


def test_an_ensemble_of_weights(layer_and_inputs):
    layer, inputs = layer_and_inputs
    parameters = {
        name: torch.stack([parameter.detach() * (1 + n) for n in range(4)])
        for name, parameter in layer.named_parameters()
    }

    def result(parameters):
        return {"result": first(functional_call(layer, parameters, (inputs[0],)))}

    def of(n):
        return result({name: parameter[n] for name, parameter in parameters.items()})

    assert_each(vmap(result)(parameters), of)


def test_mapped_over_nothing(layer_and_inputs):
    layer, inputs = layer_and_inputs
    with pytest.raises(RuntimeError, match="expected to be mapped over something, got 0"):
        vmap(lambda input: first(layer(input)))(inputs[:0])
