"""The recurrent layers on a GPU, where they are this package's or cuDNN's, whichever is ahead."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import seqkernels
from seqkernels import cuda

pytestmark = pytest.mark.skipif(
    not cuda.is_available(), reason="no GPU here, or no CUDA kernels in this installation"
)

TOLERANCES = {torch.float32: 2.0**-18, torch.bfloat16: 2.0**-5, torch.float16: 2.0**-8}


def layers_and_input(kind: str, dtype: torch.dtype, hidden: int, **keywords):
    """One of ours, torch's with the same weights in float64, and an input (T, N, I)."""
    generator = torch.Generator().manual_seed(3)
    exact = getattr(torch.nn, kind)(24, hidden, dtype=torch.float64, **keywords)
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.uniform_(-(hidden**-0.5), hidden**-0.5, generator=generator)
            parameter.copy_(parameter.to(dtype))
    ours = getattr(seqkernels.nn, kind)(24, hidden, dtype=dtype, device="cuda", **keywords)
    ours.load_state_dict(exact.state_dict())
    input = torch.randn(23, 13, 24, generator=generator).to(dtype)
    return ours, exact, input


def results(layer, input, lengths=None):
    """Output, final states and the gradients of input and weights."""
    input = input.detach().clone().requires_grad_()
    given = input
    if lengths is not None:
        given = pack_padded_sequence(input, lengths, enforce_sorted=False)
    output, states = layer(given)
    if lengths is not None:
        output, _ = pad_packed_sequence(output, total_length=len(input))
    states = states if isinstance(states, tuple) else (states,)
    total = sum((result.double() ** 2).sum() for result in (output, *states))
    gradients = torch.autograd.grad(total, [input, *layer.parameters()])
    return [output, *states, *gradients]


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("keywords", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("hidden", [64, 300])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "RNN"])
def test_layers_on_cuda(kind, dtype, hidden, keywords, is_packed):
    ours, exact, input = layers_and_input(kind, dtype, hidden, **keywords)
    lengths = torch.tensor([23, 1, 7, 12, 23, 5, 2, 9, 22, 14, 3, 8, 20]) if is_packed else None
    found = results(ours, input.cuda(), lengths)
    expected = results(exact, input.double(), lengths)
    for one, other in zip(found, expected, strict=True):
        error = (one.cpu().double() - other).abs().max() / other.abs().max()
        assert error < 4 * TOLERANCES[dtype], error


@pytest.mark.skipif(
    cuda.is_available() and torch.cuda.get_device_capability() != (9, 0),
    reason="nothing was measured on such a GPU: layers are cuDNN's",
)
def test_the_choice_of_layers_is_made_by_what_was_measured():
    def is_ours(dtype, batch, hidden, is_ragged=False):
        input = torch.empty(1, device="cuda", dtype=dtype)
        return cuda.is_ahead_of_cudnn("lstm", input, 100, batch, hidden, is_ragged)

    assert is_ours(torch.bfloat16, 16, 512) and is_ours(torch.float16, 16, 128)
    assert not is_ours(torch.float16, 16, 512) and is_ours(torch.float16, 16, 512, True)
    assert not is_ours(torch.bfloat16, 16, 8000)
