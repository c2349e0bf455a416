"""The recurrent layers raise torch's classes of error for the same mistakes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import seqkernels.nn
from recurrent_layers import (
    HIDDEN_SIZE,
    INPUT_SIZE,
    SORTED,
    layer_and_input,
    random_input,
    random_states,
)

BAD_CONSTRUCTIONS = [
    ("LSTM", (0, 5), {}),
    ("LSTM", (-1, 5), {}),
    ("LSTM", (3, 0), {}),
    ("LSTM", (3.0, 5), {}),
    ("LSTM", (3, "5"), {}),
    ("LSTM", (3, 5, 0), {}),
    ("LSTM", (3, 5, 1.5), {}),
    ("LSTM", (3,), {}),
    ("LSTM", (3, 5), {"dropout": 2}),
    ("LSTM", (3, 5), {"dropout": -0.1}),
    ("LSTM", (3, 5), {"dropout": True}),
    ("LSTM", (3, 5), {"dropout": "a"}),
    ("LSTM", (3, 5), {"dropout": None}),
    ("LSTM", (3, 5), {"dropout": float("nan")}),
    ("LSTM", (3, 5), {"bias": 1}),
    ("LSTM", (3, 5), {"batch_first": None}),
    ("LSTM", (3, 5), {"proj_size": 5}),
    ("LSTM", (3, 5), {"proj_size": -1}),
    ("LSTM", (3, 5), {"nonlinearity": "tanh"}),
    ("LSTM", (3, 5), {"dtype": torch.int64}),
    ("RNN", (3, 5), {"nonlinearity": "sigmoid"}),
    ("RNN", (3, 5), {"proj_size": 2}),
    ("RNN", (3, 5), {"unknown": 2}),
    ("LSTMCell", (3, -5), {}),
    ("LSTMCell", (3.0, 5), {}),
    ("LSTMCell", (3, 5), {"nonlinearity": "tanh"}),
    ("RNNCell", (-3, 5), {}),
]


@pytest.mark.parametrize(("name", "arguments", "keywords"), BAD_CONSTRUCTIONS)
def test_bad_constructions_raise_torchs_class(name, arguments, keywords):
    with pytest.raises(Exception) as torchs:
        getattr(nn, name)(*arguments, **keywords)
    with pytest.raises(Exception) as ours:
        getattr(seqkernels.nn, name)(*arguments, **keywords)
    assert ours.type is torchs.type


@pytest.mark.parametrize("name", ["LSTM", "RNN"])
def test_dropout_of_a_single_layer_warns_where_it_is_built(name):
    with pytest.warns(UserWarning, match="dropout") as record:
        getattr(seqkernels.nn, name)(3, 5, dropout=0.5)
    assert record[0].filename == __file__


def each(function):
    """``function`` applied to a state, or to each of a pair of states."""
    return lambda hx: tuple(map(function, hx)) if isinstance(hx, tuple) else function(hx)


BAD_SEQUENCES = {
    "one dimension": (lambda x: x[0, 0], None),
    "four dimensions": (lambda x: x[None], None),
    "features": (lambda x: x[..., :2], None),
    "dtype": (lambda x: x.double(), None),
    "integers": (lambda x: x.long(), None),
    "no step": (lambda x: x[:0], None),
    "device": (lambda x: x.to("meta"), None),
    "state without batch": (lambda x: x, each(lambda state: state[:, 0])),
    "state with batch": (lambda x: x[:, 0], each(lambda state: state)),
    "state size": (lambda x: x, each(lambda state: state[..., :4])),
    "state batch": (lambda x: x, each(lambda state: state[:, :1])),
    "state layers": (lambda x: x, each(lambda state: state[:0])),
    "state dtype": (lambda x: x, each(lambda state: state.double())),
    "state device": (lambda x: x, each(lambda state: state.to("meta"))),
}


@pytest.mark.parametrize("mistake", BAD_SEQUENCES)
@pytest.mark.parametrize("name", ["LSTM", "RNN"])
def test_bad_input_raises_torchs_class(name, mistake):
    spoil_input, spoil_states = BAD_SEQUENCES[mistake]
    hx = random_states(name, "padded", 1)
    hx = tuple(hx) if name == "LSTM" else hx[0]
    arguments = [spoil_input(random_input("padded", False))]
    arguments += [spoil_states(hx)] if spoil_states else []
    with pytest.raises(Exception) as torchs:
        getattr(nn, name)(INPUT_SIZE, HIDDEN_SIZE)(*arguments)
    with pytest.raises(torchs.type, match="hx" if spoil_states else "input|w_ih") as ours:
        getattr(seqkernels.nn, name)(INPUT_SIZE, HIDDEN_SIZE)(*arguments)
    assert ours.type is torchs.type


BAD_STEPS = {
    "no dimension": (lambda x: x[0, 0], None),
    "three dimensions": (lambda x: x[None], None),
    "features": (lambda x: x[..., :2], None),
    "dtype": (lambda x: x.double(), None),
    "device": (lambda x: x.to("meta"), None),
    "state without batch": (lambda x: x, each(lambda state: state[0])),
    "state with batch": (lambda x: x[0], each(lambda state: state)),
    "state dimensions": (lambda x: x, each(lambda state: state[None])),
    "state size": (lambda x: x, each(lambda state: state[..., :4])),
    "state batch": (lambda x: x, each(lambda state: state[:1])),
    "state dtype": (lambda x: x, each(lambda state: state.double())),
    "state device": (lambda x: x, each(lambda state: state.to("meta"))),
}


@pytest.mark.parametrize("mistake", BAD_STEPS)
@pytest.mark.parametrize("name", ["LSTMCell", "RNNCell"])
def test_bad_steps_raise_torchs_class(name, mistake):
    spoil_input, spoil_states = BAD_STEPS[mistake]
    hx = [state[0] for state in random_states(name[:-4], "padded", 1)]
    hx = tuple(hx) if name == "LSTMCell" else hx[0]
    arguments = [spoil_input(random_input("padded", False)[0])]
    arguments += [spoil_states(hx)] if spoil_states else []
    with pytest.raises(Exception) as torchs:
        getattr(nn, name)(INPUT_SIZE, HIDDEN_SIZE)(*arguments)
    with pytest.raises(torchs.type, match="hx" if spoil_states else "input|w_ih") as ours:
        getattr(seqkernels.nn, name)(INPUT_SIZE, HIDDEN_SIZE)(*arguments)
    assert ours.type is torchs.type


def test_an_unknown_nonlinearity_of_a_cell_raises_at_the_call_as_in_torch():
    for module in (nn, seqkernels.nn):
        cell = module.RNNCell(3, 5, nonlinearity="sigmoid")
        with pytest.raises(RuntimeError, match="nonlinearity"):
            cell(torch.zeros(2, 3))


def test_wrong_pairs_of_states():
    layer, input = layer_and_input("LSTM")
    h, c = random_states("LSTM", "padded", 1)
    with pytest.raises(TypeError, match="hx: expected a tuple"):
        layer(input, h)
    with pytest.raises(RuntimeError, match="hx: expected two states"):
        layer(input, (h, c, c))
    with pytest.raises(TypeError, match=r"hx\[1\]: expected a torch.Tensor, got NoneType"):
        layer(input, (h, None))
    with pytest.raises(TypeError, match=r"input: expected a torch\.Tensor, got list"):
        layer([1.0])


def test_lengths_are_not_for_packed_sequences():
    layer, input = layer_and_input("LSTM")
    packed = pack_padded_sequence(input, torch.tensor(SORTED))
    with pytest.raises(ValueError, match="lengths: expected None for a PackedSequence"):
        layer(packed, None, torch.tensor(SORTED))


@pytest.mark.parametrize("name", ["LSTM", "RNN"])
@pytest.mark.parametrize("lengths", [[7, 1, 1, 1], [-1, 1, 1, 1], [1, 1, 1], [[1, 1, 1, 1]]])
def test_wrong_lengths(name, lengths):
    layer, input = layer_and_input(name)
    with pytest.raises(ValueError, match="lengths: expected"):
        layer(input, lengths=torch.tensor(lengths))
