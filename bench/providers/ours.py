"""This package's layers: as they are, by an instruction set, a way or a precision, as a graph."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import seqkernels
from seqkernels import cpu, cuda, functional

from ..cases import Case
from ..operations import OPERATIONS, Data
from .base import (
    Provider,
    Refusal,
    Run,
    captured,
    passes,
    require_one_layer,
    require_whole_pass,
    torch_precision,
)

OPERATION_NAMES = ("conv1d_max_pool", "lstm", "rnn", "lstm_cell", "rnn_cell")


class Ours(Provider):
    operations = OPERATION_NAMES

    def __init__(
        self,
        isa: str | None = None,
        recompute: bool = False,
        packed: bool = False,
        graph: bool = False,
        precision: str | None = None,
    ) -> None:
        """Of a lower ``precision``, beside peers whose float32 products are of the highest.

        ``packed``: ragged sequences are packed in the call, as they are for torch's layers, in
        place of ``lengths``.
        """
        self.isa = isa
        self.recompute = recompute
        self.packed = packed
        self.graph = graph
        self.precision = precision
        ways = {"recompute": recompute, "packed": packed, "graph": graph}
        variant = isa or precision or next((way for way, taken in ways.items() if taken), None)
        self.name = f"seqkernels:{variant}" if variant else "seqkernels"

    def missing(self) -> str | None:
        if self.graph:
            return None if cuda.is_available() else "no CUDA device, or no kernels for it"
        available = cpu.available_isas()
        if self.precision and cpu.active_isa() != "amx":
            return "no matrix tiles in use, so every precision is the highest"
        if self.isa is None or self.isa in available:
            return None
        return f"this machine and build have {', '.join(available)}"

    def refuse(self, case: Case) -> None:
        dtype = getattr(torch, case.dtype)
        is_there = case.device == "cpu" or (
            cuda.is_available() and case.operation in cuda.OPERATIONS
        )
        if not is_there or dtype not in functional.NATIVE_DTYPES:
            raise Refusal(f"no {case.operation} kernel for {case.dtype} on {case.device}")
        if self.isa and case.device != "cpu":
            raise Refusal("measured on the CPU only")
        if case.device == "cuda" and case.operation in ("lstm", "rnn"):
            require_one_layer(case)  # by the function: the layers are cuDNN's there
        if self.graph:
            if case.device != "cuda":
                raise Refusal("measured on CUDA only")
            require_whole_pass(case)
        if self.precision and (case.dtype, case.precision) != ("float32", "highest"):
            raise Refusal("beside float32 at precision highest only")
        if self.precision and case.device != "cpu":
            raise Refusal("measured on the CPU only")
        if self.packed:
            if case.operation not in ("lstm", "rnn") or case.device != "cpu":
                raise Refusal("recurrences on the CPU only")
            if OPERATIONS[case.operation].sizes(case)["lengths"] == "full":
                raise Refusal("for shorter sequences among longer ones")
        if self.recompute and (case.operation != "lstm" or not case.has_gradient):
            raise Refusal("gradients of an LSTM only")

    def precision_of(self, case: Case) -> str:
        return self.precision or case.precision

    def settings(self, case: Case) -> contextlib.AbstractContextManager:
        settings = contextlib.ExitStack()
        if self.isa and case.device == "cpu":
            settings.enter_context(cpu.use_isa(self.isa))
        settings.enter_context(torch_precision(self.precision_of(case)))
        return settings

    def prepare(self, case: Case, data: Data) -> Run:
        run = {
            "conv1d_max_pool": self._convolution,
            "lstm": self._layers,
            "rnn": self._layers,
            "lstm_cell": self._cell,
            "rnn_cell": self._cell,
        }[case.operation](case, data)
        if not self.graph:
            return run
        with self.settings(case):
            return captured(run)

    def _convolution(self, case: Case, data: Data) -> Run:
        sizes = OPERATIONS[case.operation].sizes(case)
        operation, convolutions = OPERATIONS[case.operation], seqkernels.nn
        lengths_of_filters = tuple(operation.members(case).values())
        if len(lengths_of_filters) == 1:
            build, (kernel_size,) = convolutions.Conv1dMaxPool, lengths_of_filters
        else:
            build, kernel_size = convolutions.Conv1dMaxPoolBank, lengths_of_filters
        layer = build(sizes["C"], sizes["F"], kernel_size, **operation.keywords(case))
        leaves = with_parameters(layer, data)
        lengths = None if data.lengths is None else data.lengths.to(case.device)
        return passes(case, data, lambda: {"output": layer(data.input, lengths)}, leaves)

    def _layers(self, case: Case, data: Data) -> Run:
        if case.device == "cuda":
            return self._sequence(case, data)
        layer = recurrent_layer(seqkernels.nn, case)
        if self.recompute:
            layer.recompute = True
        leaves = with_parameters(layer, data)
        if self.packed:
            return passes(case, data, packed_forward(layer, data), leaves)
        return passes(
            case, data, lambda: named_states(*layer(data.input, lengths=data.lengths)), leaves
        )

    def _sequence(self, case: Case, data: Data) -> Run:
        """One layer in one direction by ``functional``, its lengths on the device."""
        nonlinearity = OPERATIONS[case.operation].sizes(case).get("nonlinearity")
        lengths = None if data.lengths is None else data.lengths.to(case.device)
        leaves = {"input": data.input, **data.parameters}

        def forward() -> dict[str, Tensor]:
            arguments = (data.input, None, *data.parameters.values())
            if nonlinearity is None:
                output, states = functional.lstm(*arguments, lengths=lengths)
                return named_states(output, tuple(state.unsqueeze(0) for state in states))
            output, state = functional.rnn(*arguments, nonlinearity=nonlinearity, lengths=lengths)
            return named_states(output, state.unsqueeze(0))

        return passes(case, data, forward, leaves)

    def _cell(self, case: Case, data: Data) -> Run:
        layer = recurrent_cell(seqkernels.nn, case)
        leaves = with_parameters(layer, data)
        return passes(case, data, cell_forward(layer, data), leaves)


def with_parameters(layer: nn.Module, data: Data) -> dict[str, Tensor]:
    """Give the layer the data's parameters; returns what gradients are taken for.

    The data's own tensors become the layer's, so that nothing is copied.
    """
    leaves = {"input": data.input}
    for name, value in data.parameters.items():
        parameter = nn.Parameter(value)
        path, _, attribute = name.rpartition(".")
        setattr(layer.get_submodule(path), attribute, parameter)
        leaves[name] = parameter
    return leaves


def recurrent_layer(module, case: Case) -> nn.Module:
    """``module.LSTM`` or ``module.RNN`` of the case's sizes."""
    sizes = OPERATIONS[case.operation].sizes(case)
    keywords = {"num_layers": sizes["layers"], "bidirectional": sizes["directions"] == 2}
    if case.operation == "rnn":
        keywords["nonlinearity"] = sizes["nonlinearity"]
    layer = module.LSTM if case.operation == "lstm" else module.RNN
    return layer(sizes["I"], sizes["H"], **keywords)


def recurrent_cell(module, case: Case) -> nn.Module:
    """``module.LSTMCell`` or ``module.RNNCell`` of the case's sizes."""
    sizes = OPERATIONS[case.operation].sizes(case)
    if case.operation == "lstm_cell":
        return module.LSTMCell(sizes["I"], sizes["H"])
    return module.RNNCell(sizes["I"], sizes["H"], nonlinearity=sizes["nonlinearity"])


def cell_forward(layer: nn.Module, data: Data):
    """One step of a cell as a function of nothing."""
    if len(data.states) == 2:
        hx = tuple(data.states.values())
        return lambda: dict(zip(("h", "c"), layer(data.input, hx), strict=True))
    return lambda: {"h": layer(data.input, data.states["h"])}


def packed_forward(layer: nn.Module, data: Data):
    """A recurrent layer over sequences packed in the call, as in a model, as such a function."""
    steps = len(data.input)

    def forward() -> dict[str, Tensor]:
        sequences = pack_padded_sequence(data.input, data.lengths, enforce_sorted=False)
        output, states = layer(sequences)
        output, _ = pad_packed_sequence(output, total_length=steps)
        return named_states(output, states)

    return forward


def named_states(output: Tensor, states: Tensor | tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """What a recurrent layer returns, by name."""
    if isinstance(states, tuple):
        return {"output": output, "h_n": states[0], "c_n": states[1]}
    return {"output": output, "h_n": states}


def providers() -> list[Provider]:
    ways = [Ours(recompute=True), Ours(packed=True), Ours(graph=True), Ours(precision="high")]
    return [Ours(), *ways, *map(Ours, ("scalar", "avx2", "avx512", "avx512_bf16", "amx"))]
