"""LSTM, RNN and their cells beside torch.nn's: results and gradients."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import seqkernels.nn
from recurrent_layers import (
    BATCH,
    FORMS,
    HIDDEN_SIZE,
    INPUT_SIZE,
    KINDS,
    SORTED,
    STEPS,
    TERMS,
    UNSORTED,
    build,
    build_three,
    flatten,
    random_input,
    random_states,
    results_and_gradients,
)
from tolerance import assert_no_worse


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_results_and_gradients_are_torchs(
    kind, form, num_layers, bias, batch_first, bidirectional, with_states, dtype
):
    three = build_three(
        kind,
        dtype,
        num_layers=num_layers,
        bias=bias,
        batch_first=batch_first,
        bidirectional=bidirectional,
    )
    input = random_input(form, batch_first)
    hx = random_states(kind, form, num_layers * (1 + bidirectional)) if with_states else None
    pack_lengths = {"packed_sorted": SORTED, "packed_unsorted": UNSORTED}.get(form)
    ours, torchs, exact = (results_and_gradients(layer, input, hx, pack_lengths) for layer in three)
    assert_no_worse(ours[0], torchs[0], exact[0], terms=TERMS, what="results")
    assert_no_worse(ours[1], torchs[1], exact[1], terms=TERMS * BATCH, what="gradients")


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.parametrize("hidden", [5, 33, 260])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_and_directions_side_by_side_change_no_bit(
    isa, set_threads, kind, bidirectional, hidden, with_states, threads
):
    """Without gradients all layers are one call, in which layers or directions run at once."""
    set_threads(threads)
    cases = ((17, 1, 4, True), (17, 4, 3, False), (1, 4, 2, False), (9, 13, 2, True))
    for steps, batch, num_layers, bias in cases:
        how = {"num_layers": num_layers, "bidirectional": bidirectional, "bias": bias}
        layer = build(seqkernels.nn, kind, 6, hidden, **how)
        lengths = torch.linspace(steps, 1, batch).long()
        input = torch.randn(steps, batch, 6)
        count, states = num_layers * (1 + bidirectional), 2 if kind == "LSTM" else 1
        hx = tuple(torch.randn(count, batch, hidden) for _ in range(states))
        hx = (hx if kind == "LSTM" else hx[0]) if with_states else None
        packed = pack_padded_sequence(input[: int(lengths.max())], lengths)
        for given, keywords in ((input, {}), (input, {"lengths": lengths}), (packed, {})):
            expected = flatten(layer(given, hx, **keywords))
            with mock.patch.object(layer, "_layer", side_effect=AssertionError), torch.no_grad():
                found = flatten(layer(given, hx, **keywords))
            assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        (torch.bfloat16, "highest"),
        (torch.float16, "highest"),
        (torch.float64, "highest"),
        (torch.float32, "medium"),
    ],
    ids=str,
)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_layers_of_other_types_are_one_call_too(isa, set_threads, dtype, precision, bidirectional):
    set_threads(2)
    layer = build(seqkernels.nn, "LSTM", 6, 33, num_layers=3, bidirectional=bidirectional).to(dtype)
    input = torch.randn(20, 2, 6).to(dtype)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        expected = flatten(layer(input))
        with mock.patch.object(layer, "_layer", side_effect=AssertionError), torch.no_grad():
            assert all(map(torch.equal, flatten(layer(input)), expected))
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_output_has_the_metadata_of_the_input(kind):
    layer = build(seqkernels.nn, kind, INPUT_SIZE, HIDDEN_SIZE)
    for lengths in (SORTED, UNSORTED):
        packed = pack_padded_sequence(
            random_input("padded", False), torch.tensor(lengths), enforce_sorted=lengths == SORTED
        )
        output, _ = layer(packed)
        assert isinstance(output, PackedSequence)
        assert output.batch_sizes is packed.batch_sizes
        assert output.sorted_indices is packed.sorted_indices
        assert output.unsorted_indices is packed.unsorted_indices


@pytest.mark.parametrize("form", ["padded", "packed_unsorted"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_falls_on_the_same_elements_as_torchs(kind, training, form):
    three = build_three(kind, torch.float32, num_layers=3, dropout=0.4, bidirectional=True)
    input = random_input(form, False)
    pack_lengths = UNSORTED if form == "packed_unsorted" else None
    outcomes = []
    for layer in three:
        layer.train(training)
        torch.manual_seed(5)
        outcomes.append(results_and_gradients(layer, input, None, pack_lengths))
    ours, torchs, exact = outcomes
    if training:  # the masks of float64 are drawn differently: torch's float32 is the standard
        exact = [[tensor.double() for tensor in tensors] for tensors in torchs]
    assert_no_worse(ours[0], torchs[0], exact[0], terms=TERMS, what="results")
    assert_no_worse(ours[1], torchs[1], exact[1], terms=TERMS * BATCH, what="gradients")


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_give_what_torch_gives_packed(kind, bidirectional, batch_first):
    ours, torchs, exact = build_three(
        kind, torch.float32, num_layers=2, bidirectional=bidirectional, batch_first=batch_first
    )
    input = random_input("padded", batch_first)
    hx = random_states(kind, "padded", 2 * (1 + bidirectional))

    def run_packed(layer):
        def call(packed, hx):
            output, states = layer(packed, hx)
            return pad_packed_sequence(output, batch_first=batch_first)[0], states

        call.parameters, call.batch_first = layer.parameters, batch_first
        return results_and_gradients(call, input, hx, UNSORTED)

    torchs, exact = run_packed(torchs), run_packed(exact)
    time_major = input.transpose(0, 1) if batch_first else input
    for sample, length in enumerate(UNSORTED):
        time_major[length:, sample] = torch.nan
    ours = results_and_gradients(ours, input, hx, lengths=torch.tensor(UNSORTED))
    assert_no_worse(ours[0], torchs[0], exact[0], terms=TERMS, what="results")
    assert_no_worse(ours[1], torchs[1], exact[1], terms=TERMS * BATCH, what="gradients")


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_of_length_zero_keeps_its_states(kind, bidirectional):
    layer = build(seqkernels.nn, kind, INPUT_SIZE, HIDDEN_SIZE, bidirectional=bidirectional)
    hx = random_states(kind, "padded", 1 + bidirectional)
    lengths = torch.tensor([3, 0, 6, 0])
    output, states = layer(
        random_input("padded", False), tuple(hx) if kind == "LSTM" else hx[0], lengths
    )
    assert torch.equal(output[:, 1::2], torch.zeros_like(output[:, 1::2]))
    for before, after in zip(hx, flatten(states), strict=True):
        assert torch.equal(after[:, 1::2], before[:, 1::2])
        assert not torch.equal(after[:, ::2], before[:, ::2])


@pytest.mark.parametrize("kind", KINDS)
def test_an_unbatched_sequence_takes_a_length_without_dimensions(kind):
    layer = build(seqkernels.nn, kind, INPUT_SIZE, HIDDEN_SIZE, bidirectional=True)
    input = random_input("unbatched", False)
    output, states = layer(input, lengths=torch.tensor(4))
    expected, expected_states = layer(input[:4])
    torch.testing.assert_close(output[:4], expected)
    assert output.shape[0] == STEPS and not output[4:].any()
    torch.testing.assert_close(states, expected_states)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_works(kind):
    layer = build(seqkernels.nn, kind, INPUT_SIZE, HIDDEN_SIZE, num_layers=2, bidirectional=True)
    output, states = layer(torch.zeros(STEPS, 0, INPUT_SIZE))
    assert output.shape == (STEPS, 0, 2 * HIDDEN_SIZE)
    assert all(state.shape == (4, 0, HIDDEN_SIZE) for state in flatten(states))


# Cells


def build_cell(module, kind: str, **keywords):
    torch.manual_seed(1)
    if kind == "LSTM":
        return module.LSTMCell(INPUT_SIZE, HIDDEN_SIZE, **keywords)
    return module.RNNCell(INPUT_SIZE, HIDDEN_SIZE, nonlinearity=kind[4:].lower(), **keywords)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_cells_are_torchs(kind, batched, bias, with_states, dtype):
    torchs = build_cell(nn, kind, bias=bias, dtype=dtype)
    ours = build_cell(seqkernels.nn, kind, bias=bias, dtype=dtype)
    ours.load_state_dict(torchs.state_dict(), strict=True)
    exact = copy.deepcopy(torchs).double()
    input = random_input("padded", False)[0]
    hx = [state[0] for state in random_states(kind, "padded", 1)]
    if not batched:
        input, hx = input[0], [state[0] for state in hx]
    ours, torchs, exact = (
        results_and_gradients(layer, input, hx if with_states else None)
        for layer in (ours, torchs, exact)
    )
    assert_no_worse(ours[0], torchs[0], exact[0], terms=TERMS, what="results")
    assert_no_worse(ours[1], torchs[1], exact[1], terms=TERMS, what="gradients")
