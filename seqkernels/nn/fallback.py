"""A whole recurrence by torch's own operation, where this package has no kernel for it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

_OPERATIONS = {
    "LSTM": torch._VF.lstm,
    "RNN_TANH": torch._VF.rnn_tanh,
    "RNN_RELU": torch._VF.rnn_relu,
}

States = tuple[Tensor, ...]


def run_padded(
    layer,
    input: Tensor,
    hx: States | None,
    weights: list[list[Tensor]],
    lengths: Tensor | None,
) -> tuple[Tensor, States]:
    """``layer`` over (T, N, I) input; hx and results as in ``RecurrentLayers._run_layers``."""
    steps, batch, _ = input.shape
    hx = _initial_states(layer, input, hx, batch)
    if lengths is None or batch == 0:
        return _run(layer, (input,), hx, weights, batch_first=(False,))

    # torch packs no sequence of length 0: it gets one step here, over zeros, and loses it below.
    lengths = lengths.to(input.device)
    runs = torch.arange(steps, device=input.device)[:, None] < lengths
    input = torch.where(runs[:, :, None], input, 0.0)
    packed = pack_padded_sequence(input, lengths.clamp(min=1).cpu(), enforce_sorted=False)
    sorted_hx = tuple(state.index_select(1, packed.sorted_indices) for state in hx)
    data, states = run_packed(layer, packed.data, packed.batch_sizes, sorted_hx, weights)
    output, _ = pad_packed_sequence(PackedSequence(data, *packed[1:]), total_length=steps)
    states = tuple(state.index_select(1, packed.unsorted_indices) for state in states)

    is_empty = (lengths == 0)[:, None]
    output = torch.where(is_empty, 0.0, output)
    return output, tuple(
        torch.where(is_empty, old, new) for old, new in zip(hx, states, strict=True)
    )


def run_packed(
    layer,
    data: Tensor,
    batch_sizes: Tensor,
    hx: States | None,
    weights: list[list[Tensor]],
) -> tuple[Tensor, States]:
    """``layer`` over the rows of a PackedSequence, hx in their (sorted) order."""
    hx = _initial_states(layer, data, hx, int(batch_sizes[0]))
    return _run(layer, (data, batch_sizes), hx, weights, batch_first=())


def _run(
    layer, sequence: tuple[Tensor, ...], hx: States, weights: list[list[Tensor]], batch_first: tuple
) -> tuple[Tensor, States]:
    output, *states = _OPERATIONS[layer.mode](
        *sequence,
        hx if layer.mode == "LSTM" else hx[0],
        [weight for group in weights for weight in group],
        layer.bias,
        layer.num_layers,
        layer.dropout,
        layer.training,
        bool(layer.bidirectional),
        *batch_first,
    )
    return output, tuple(states)


def _initial_states(layer, input: Tensor, hx: States | None, batch: int) -> States:
    if hx is not None:
        return hx
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    return tuple(input.new_zeros(count, batch, size) for size in layer.state_sizes())
