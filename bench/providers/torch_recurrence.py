"""torch's recurrent layers, packed sequences, and its cells in a loop."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from ..cases import Case
from ..operations import OPERATIONS, Data
from .base import (
    Provider,
    Refusal,
    Run,
    passes,
    require_plain_layer,
    torch_precision,
)
from .ours import (
    cell_forward,
    named_states,
    packed_forward,
    recurrent_cell,
    recurrent_layer,
    with_parameters,
)


class TorchRecurrence(Provider):
    """What the providers below share."""

    def settings(self, case: Case) -> contextlib.AbstractContextManager:
        return torch_precision(case.precision)

    def prepare(self, case: Case, data: Data) -> Run:
        return passes(case, data, *self.forward(case, data))

    def forward(self, case: Case, data: Data):
        """The forward pass as a function of nothing, and what gradients are taken for."""
        raise NotImplementedError


class Layer(TorchRecurrence):
    """``nn.LSTM`` and ``nn.RNN``; with lengths, sequences packed in the call as in a model."""

    name = "torch:layer"
    operations = ("lstm", "rnn")

    def forward(self, case: Case, data: Data):
        layer = recurrent_layer(nn, case).to(data.input.device)
        leaves = with_parameters(layer, data)
        # On CUDA side by side in one buffer, without which cuDNN would copy them at every call.
        layer.flatten_parameters()
        if data.lengths is None:
            return lambda: named_states(*layer(data.input)), leaves
        return packed_forward(layer, data), leaves


class Padded(TorchRecurrence):
    """Shorter sequences run to the end of the longest, and what is beyond them is cut away.

    The output and the last h are those of packed sequences; the last c cannot be had.
    """

    name = "torch:padded"
    operations = ("lstm", "rnn")

    def refuse(self, case: Case) -> None:
        sizes = OPERATIONS[case.operation].sizes(case)
        if sizes["lengths"] == "full":
            raise Refusal("for shorter sequences among longer ones")
        if sizes["layers"] != 1 or sizes["directions"] != 1:
            raise Refusal("one layer in one direction only")

    def forward(self, case: Case, data: Data):
        layer = recurrent_layer(nn, case).to(data.input.device)
        leaves = with_parameters(layer, data)
        lengths = data.lengths.to(data.input.device)
        steps = torch.arange(len(data.input), device=lengths.device)
        beyond = (steps[:, None] >= lengths)[:, :, None]
        last, rows = lengths - 1, torch.arange(len(lengths), device=lengths.device)

        def padded() -> dict[str, Tensor]:
            output = layer(data.input)[0]
            return {"output": output.masked_fill(beyond, 0), "h_n": output[last, rows][None]}

        return padded, leaves


class Cells(TorchRecurrence):
    """``nn.LSTMCell`` and ``nn.RNNCell``, one step or in a loop over time."""

    name = "torch:cell"
    operations = ("lstm", "rnn", "lstm_cell", "rnn_cell")

    def refuse(self, case: Case) -> None:
        require_plain_layer(case)

    def forward(self, case: Case, data: Data):
        if not case.operation.endswith("_cell"):
            return self._loop(case, data)
        layer = recurrent_cell(nn, case).to(data.input.device)
        leaves = with_parameters(layer, data)
        return cell_forward(layer, data), leaves

    def _loop(self, case: Case, data: Data):
        sizes = OPERATIONS[case.operation].sizes(case)
        is_lstm = case.operation == "lstm"
        layer = nn.LSTMCell if is_lstm else nn.RNNCell
        keywords = {} if is_lstm else {"nonlinearity": sizes["nonlinearity"]}
        layer = layer(sizes["I"], sizes["H"], **keywords).to(data.input.device)
        leaves = {"input": data.input}
        for name, value in data.parameters.items():
            leaves[name] = nn.Parameter(value)
            setattr(layer, name.removesuffix("_l0"), leaves[name])

        def loop() -> dict[str, Tensor]:
            state, outputs = None, []
            for element in data.input:
                state = layer(element, state)
                outputs.append(state[0] if is_lstm else state)
            finals = tuple(s[None] for s in state) if is_lstm else state[None]
            return named_states(torch.stack(outputs), finals)

        return loop, leaves


def providers() -> list[Provider]:
    return [Layer(), Padded(), Cells()]
