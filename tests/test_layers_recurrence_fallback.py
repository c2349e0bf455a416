"""Recurrences without a kernel: torch's own operation computes them, and a warning says so."""

from __future__ import annotations

import warnings

import pytest
import torch

import seqkernels.nn
from recurrent_layers import (
    ALL,
    BATCH,
    FORMS,
    HIDDEN_SIZE,
    INPUT_SIZE,
    KINDS,
    SORTED,
    TERMS,
    UNSORTED,
    build,
    build_three,
    flatten,
    layer_and_input,
    random_input,
    random_states,
    results_and_gradients,
)
from seqkernels import checks, functional
from tolerance import assert_no_worse


@pytest.fixture
def unsaid(monkeypatch):
    """No fallback has been warned of yet."""
    monkeypatch.setattr(functional._coverage, "_said", set())


@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_projections_are_computed_by_torch_and_said_so_once(
    unsaid, bidirectional, form, with_states
):
    ours, torchs, exact = build_three(
        "LSTM", torch.float32, num_layers=2, bidirectional=bidirectional, proj_size=2
    )
    input = random_input(form, False)
    layers = 2 * (1 + bidirectional)
    hx = random_states("LSTM", form, layers, projected=2) if with_states else None
    pack_lengths = {"packed_sorted": SORTED, "packed_unsorted": UNSORTED}.get(form)
    with pytest.warns(UserWarning, match="seqkernels.nn.LSTM with proj_size") as record:
        ours_outcome = results_and_gradients(ours, input, hx, pack_lengths)
        results_and_gradients(ours, input, hx, pack_lengths)
    assert sum("seqkernels" in str(warning.message) for warning in record) == 1
    torchs, exact = (
        results_and_gradients(layer, input, hx, pack_lengths) for layer in (torchs, exact)
    )
    assert_no_worse(ours_outcome[0], torchs[0], exact[0], terms=TERMS)
    assert_no_worse(ours_outcome[1], torchs[1], exact[1], terms=TERMS * BATCH)


def test_projections_with_lengths_treat_each_sequence_as_if_alone():
    layer = build(
        seqkernels.nn, "LSTM", INPUT_SIZE, HIDDEN_SIZE, proj_size=2, bidirectional=True
    ).double()
    input = random_input("padded", False).double()
    h, c = (state.double() for state in random_states("LSTM", "padded", 2, projected=2))
    lengths = torch.tensor([3, 0, 6, 1])
    spoilt = input.clone()
    for sample, length in enumerate(lengths):
        spoilt[length:, sample] = torch.nan
    spoilt.requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output, (h_n, c_n) = layer(spoilt, (h, c), lengths)
        (output.sum() + h_n.sum() + c_n.sum()).backward()
        for sample, length in enumerate(lengths.tolist()):
            assert not output[length:, sample].any()
            assert not spoilt.grad[length:, sample].any()
            states = h[:, sample], c[:, sample]
            alone = (output[:0, sample], states)
            if length:
                alone = layer(input[:length, sample], states)
            torch.testing.assert_close(output[:length, sample], alone[0])
            torch.testing.assert_close((h_n[:, sample], c_n[:, sample]), alone[1])
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_other_dtypes_are_computed_by_torch_and_said_so_once(unsaid, monkeypatch, kind):
    monkeypatch.setattr(checks, "NATIVE_DTYPES", (torch.float32,))
    ours, torchs, _ = build_three(kind, torch.bfloat16, bidirectional=True)
    input = random_input("padded", False).bfloat16()
    with pytest.warns(UserWarning, match="torch.bfloat16 on cpu") as record:
        results = flatten(ours(input))
        ours(input)
    assert sum("seqkernels" in str(warning.message) for warning in record) == 1
    for result, expected in zip(results, flatten(torchs(input)), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("name", ALL)
def test_input_of_autocast_is_accepted(name):
    layer, input = layer_and_input(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = flatten(layer(input.bfloat16()))
    for result, expected in zip(results, flatten(layer(input)), strict=True):
        torch.testing.assert_close(result.float(), expected, rtol=0.05, atol=0.05)
