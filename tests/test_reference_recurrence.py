"""The reference's recurrences against their equations written out as loops; their derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from naive import ACTIVATIONS, randn, results_and_derivatives
from seqkernels import functional, reference


def naive_affine(rows, vector) -> list[float]:
    return [sum(w * x for w, x in zip(row, vector, strict=True)) for row in rows]


def naive_gates(x, h, w_ih, w_hh, b_ih, b_hh) -> list[float]:
    terms = naive_affine(w_ih, x), naive_affine(w_hh, h), b_ih, b_hh
    return [sum(parts) for parts in zip(*terms, strict=True)]


def naive_lstm_step(x, states, weights) -> tuple[list[float], list[float]]:
    h, c = states
    size, gates = len(h), naive_gates(x, h, *weights)
    sigmoid = ACTIVATIONS["sigmoid"]
    new_h, new_c = [], []
    for unit in range(size):
        i, f, g, o = (gates[gate * size + unit] for gate in range(4))
        new_c.append(sigmoid(f) * c[unit] + sigmoid(i) * math.tanh(g))
        new_h.append(sigmoid(o) * math.tanh(new_c[-1]))
    return new_h, new_c


def naive_rnn_step(nonlinearity):
    def step(x, states, weights) -> tuple[list[float]]:
        gates = naive_gates(x, states[0], *weights)
        return ([ACTIVATIONS[nonlinearity](gate) for gate in gates],)

    return step


def naive_sequence(step, words, states, weights, reverse):
    """One sequence: the outputs in the order of the words, and the final states."""
    outputs = [None] * len(words)
    order = range(len(words))
    for t in reversed(order) if reverse else order:
        states = step(words[t], states, weights)
        outputs[t] = states[0]
    return outputs, states


STEPS, BATCH, FEATURES, HIDDEN = 4, 4, 2, 2
LENGTHS = torch.tensor([3, 0, 4, 1])


def recurrence(kind: str, one_step: bool = False):
    """(function(input, *states, w_ih, w_hh, b_ih, b_hh, **keywords) -> tensors, gates, states)."""
    name = {"LSTM": "lstm"}.get(kind, "rnn") + ("_cell" if one_step else "")
    function = getattr(reference, name)
    if kind == "LSTM":

        def call(input, h, c, *weights, **keywords):
            result = function(input, (h, c), *weights, **keywords)
            return result if one_step else (result[0], *result[1])

        return call, 4, 2

    def call(input, h, *weights, **keywords):
        result = function(input, h, *weights, nonlinearity=kind, **keywords)
        return (result,) if one_step else result

    return call, 1, 1


def arguments_of(kind: str, one_step: bool = False) -> list[torch.Tensor]:
    _, gates, states = recurrence(kind)
    rows = gates * HIDDEN
    return [
        randn(*(() if one_step else (STEPS,)), BATCH, FEATURES),
        *(randn(BATCH, HIDDEN, seed=seed) for seed in range(states)),
        randn(rows, FEATURES, seed=2),
        randn(rows, HIDDEN, seed=3),
        randn(rows, seed=4),
        randn(rows, seed=5),
    ]


KINDS = ["LSTM", "tanh", "relu"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("with_lengths", [False, True])
def test_sequences_are_their_loops(with_lengths, reverse, kind):
    function, _, count = recurrence(kind)
    arguments = arguments_of(kind)
    lengths = LENGTHS if with_lengths else torch.full((BATCH,), STEPS)
    keywords = {"lengths": lengths} if with_lengths else {}
    output, *states = function(*arguments, reverse=reverse, **keywords)
    step = naive_lstm_step if kind == "LSTM" else naive_rnn_step(kind)
    input, weights = arguments[0], [t.tolist() for t in arguments[1 + count :]]
    for sample, length in enumerate(lengths.tolist()):
        initial = tuple(state[sample].tolist() for state in arguments[1 : 1 + count])
        outputs, final = naive_sequence(
            step, input[:length, sample].tolist(), initial, weights, reverse
        )
        outputs += [[0.0] * HIDDEN] * (STEPS - length)
        torch.testing.assert_close(output[:, sample], torch.tensor(outputs, dtype=torch.float64))
        for state, expected in zip(states, final, strict=True):
            torch.testing.assert_close(state[sample], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_cells_are_their_loops(kind):
    function, _, count = recurrence(kind, one_step=True)
    arguments = arguments_of(kind, one_step=True)
    states = function(*arguments)
    step = naive_lstm_step if kind == "LSTM" else naive_rnn_step(kind)
    weights = [t.tolist() for t in arguments[1 + count :]]
    for sample in range(BATCH):
        before = tuple(state[sample].tolist() for state in arguments[1 : 1 + count])
        after = step(arguments[0][sample].tolist(), before, weights)
        for state, expected in zip(states, after, strict=True):
            torch.testing.assert_close(state[sample], torch.tensor(expected, dtype=torch.float64))


def flatten(result) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result for tensor in flatten(part)]


@pytest.mark.parametrize("module", [functional, reference])
@pytest.mark.parametrize("name", ["lstm", "rnn", "lstm_cell", "rnn_cell"])
def test_states_and_biases_may_be_left_out(name, module):
    kind, one_step = ("LSTM" if "lstm" in name else "tanh"), name.endswith("cell")
    function, (_, _, count) = getattr(module, name), recurrence(kind)
    arguments = arguments_of(kind, one_step)
    input, (w_ih, w_hh, b_ih, b_hh) = arguments[0], arguments[1 + count :]
    zeros = torch.zeros(BATCH, HIDDEN, dtype=torch.float64)
    zeros = (zeros, zeros) if kind == "LSTM" else zeros
    none, both = torch.zeros_like(b_ih), b_ih + b_hh
    torch.testing.assert_close(
        function(input, None, w_ih, w_hh), function(input, zeros, w_ih, w_hh, none, none)
    )
    torch.testing.assert_close(
        function(input, None, w_ih, w_hh, b_ih, b_hh), function(input, None, w_ih, w_hh, None, both)
    )


@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.parametrize("module", [functional, reference])
@pytest.mark.parametrize("name", ["lstm", "rnn", "lstm_cell", "rnn_cell"])
def test_without_batch(name, module, with_states):
    kind, one_step = ("LSTM" if "lstm" in name else "tanh"), name.endswith("cell")
    function, (_, _, count) = getattr(module, name), recurrence(kind)
    arguments = arguments_of(kind, one_step)
    input, states, weights = arguments[0], arguments[1 : 1 + count], arguments[1 + count :]

    def call(input, states, **keywords):
        hx = tuple(states) if kind == "LSTM" else states[0]
        return flatten(function(input, hx if with_states else None, *weights, **keywords))

    batched = call(input, states)
    one = [state[1] for state in states]
    for single, several in zip(call(input[..., 1, :], one), batched, strict=True):
        torch.testing.assert_close(single, several[..., 1, :])
    if not one_step:
        output, *last = call(input[:, 1], one, lengths=torch.tensor(2), reverse=True)
        expected, *expected_last = call(input[:2, 1], one, reverse=True)
        torch.testing.assert_close(output[:2], expected)
        assert output.shape[0] == STEPS and not output[2:].any()
        torch.testing.assert_close(last, expected_last)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("with_lengths", [False, True])
def test_sequence_derivatives(with_lengths, reverse, kind):
    function, _, _ = recurrence(kind)
    keywords = {"lengths": LENGTHS} if with_lengths else {}
    arguments = [argument.requires_grad_() for argument in arguments_of(kind)]

    def call(*arguments):
        return function(*arguments, reverse=reverse, **keywords)

    assert gradcheck(call, arguments)
    assert gradgradcheck(call, arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_cell_derivatives(kind):
    function, _, _ = recurrence(kind, one_step=True)
    arguments = [argument.requires_grad_() for argument in arguments_of(kind, one_step=True)]
    assert gradcheck(function, arguments)
    assert gradgradcheck(function, arguments)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_the_padding_reaches_a_recurrence(kind, reverse):
    function, _, _ = recurrence(kind)
    input, *others = arguments_of(kind)
    padding = torch.arange(STEPS)[:, None] >= LENGTHS

    def call(*arguments):
        return function(*arguments, lengths=LENGTHS, reverse=reverse)

    outcomes = [
        results_and_derivatives(call, (input.masked_fill(padding[..., None], filling), *others))
        for filling in (0.0, math.nan, math.inf)
    ]
    for clean, *spoilt in zip(*outcomes, strict=True):
        assert clean.isfinite().all()
        for other in spoilt:
            assert torch.equal(other, clean)
    results = len(function(input, *others))
    gradient = outcomes[1][results]
    assert not gradient.masked_select(padding[..., None]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_batch_mates_change_no_bit_of_a_recurrence(kind):
    function, _, _ = recurrence(kind)
    input, *others = arguments_of(kind)
    results = function(input, *others, lengths=LENGTHS)
    changed = input.clone()
    changed[:, [0, 1, 3]] = math.nan
    other_results = function(changed, *others, lengths=torch.tensor([4, 4, 4, 0]))
    for result, other in zip(results, other_results, strict=True):
        assert torch.equal(result[..., 2, :], other[..., 2, :])


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_without_steps_keeps_its_states(kind):
    function, _, count = recurrence(kind)
    input, *others = arguments_of(kind)
    output, *states = function(input[:0], *others)
    assert output.shape == (0, BATCH, HIDDEN)
    for before, after in zip(others[:count], states, strict=True):
        assert torch.equal(before, after)
