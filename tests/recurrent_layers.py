"""What the tests of the recurrent layers share: layers, inputs, results and gradients."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import seqkernels.nn

INPUT_SIZE, HIDDEN_SIZE, STEPS, BATCH = 3, 5, 6, 4
TERMS = STEPS * (INPUT_SIZE + 2 * HIDDEN_SIZE + 2)
SORTED, UNSORTED = (6, 4, 4, 1), (4, 1, 6, 4)
KINDS = ["LSTM", "RNN_TANH", "RNN_RELU"]
ALL = ["LSTM", "RNN", "LSTMCell", "RNNCell"]
FORMS = ["padded", "unbatched", "packed_sorted", "packed_unsorted"]


def build(module, kind: str, *arguments, **keywords):
    """A layer of ``module`` (torch.nn or seqkernels.nn), from a fixed seed."""
    torch.manual_seed(1)
    if kind == "LSTM":
        return module.LSTM(*arguments, **keywords)
    return module.RNN(*arguments, nonlinearity=kind[4:].lower(), **keywords)


def build_three(kind: str, dtype: torch.dtype, **keywords):
    """Ours, torch's, and torch's in float64 with the same weights."""
    torchs = build(nn, kind, INPUT_SIZE, HIDDEN_SIZE, dtype=dtype, **keywords)
    ours = build(seqkernels.nn, kind, INPUT_SIZE, HIDDEN_SIZE, dtype=dtype, **keywords)
    ours.load_state_dict(torchs.state_dict(), strict=True)
    return ours, torchs, copy.deepcopy(torchs).double()


def flatten(result) -> list[torch.Tensor]:
    """The floating-point tensors in a result, in order."""
    if isinstance(result, PackedSequence):
        return [result.data]
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result for tensor in flatten(part)]


def results_and_gradients(layer, input, hx=None, pack_lengths=None, **keywords):
    """Results, and gradients of input, hx and parameters for fixed gradients of the results.

    input and hx are converted to the layer's dtype.
    """
    dtype = next(layer.parameters()).dtype
    input = input.to(dtype, copy=True).requires_grad_()
    states = [] if hx is None else [state.to(dtype, copy=True).requires_grad_() for state in hx]
    given = input
    if pack_lengths is not None:
        given = pack_padded_sequence(
            input,
            torch.tensor(pack_lengths),
            batch_first=layer.batch_first,
            enforce_sorted=pack_lengths == SORTED,
        )
    if hx is not None:
        keywords["hx"] = tuple(states) if len(states) == 2 else states[0]
    results = flatten(layer(given, **keywords))
    generator = torch.Generator().manual_seed(2)
    cotangents = [
        torch.randn(result.shape, generator=generator, dtype=torch.float64).to(dtype)
        for result in results
    ]
    gradients = torch.autograd.grad(results, [input, *states, *layer.parameters()], cotangents)
    return results, gradients


def random_input(form: str, batch_first: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = (BATCH, STEPS) if batch_first else (STEPS, BATCH)
    shape = (STEPS,) if form == "unbatched" else shape
    return torch.randn(*shape, INPUT_SIZE, generator=generator)


def random_states(kind: str, form: str, layers: int, size=HIDDEN_SIZE, projected=None):
    generator = torch.Generator().manual_seed(4)
    batch = () if form == "unbatched" else (BATCH,)
    sizes = (projected or size, size) if kind == "LSTM" else (size,)
    return [torch.randn(layers, *batch, size, generator=generator) for size in sizes]


def layer_and_input(name: str):
    torch.manual_seed(1)
    layer = getattr(seqkernels.nn, name)(INPUT_SIZE, HIDDEN_SIZE)
    return layer, random_input("unbatched" if name.endswith("Cell") else "padded", False)
