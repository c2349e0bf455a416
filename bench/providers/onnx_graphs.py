"""The operations as ONNX graphs in memory, for the inference engines."""

from __future__ import annotations

import importlib.util

import numpy
import torch
from torch import Tensor

from ..cases import Case
from ..operations import OPERATIONS, Data
from .base import Refusal

_ACTIVATIONS = {"identity": None, "relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}
# ONNX has the gates in the order i, o, f, g (Operators, LSTM); torch in i, f, g, o.
_GATES = {4: (0, 3, 1, 2), 1: (0,)}
OPSET, IR_VERSION = 18, 10


def missing() -> str | None:
    return None if importlib.util.find_spec("onnx") else "the package onnx is not installed"


def refuse(case: Case) -> None:
    """Refuse what these graphs do not say."""
    if case.device != "cpu":
        raise Refusal("measured on the CPU only")
    if case.pass_name != "inference":
        raise Refusal("inference only")
    if case.dtype != "float32":
        raise Refusal(f"no graph for {case.dtype}")
    if case.operation == "conv1d_max_pool" and "lengths" in case.sizes:
        raise Refusal("no lengths in a convolution")


def build(case: Case, data: Data, pool: str = "ReduceMax") -> tuple[bytes, dict, tuple[str, ...]]:
    """The serialised model, its inputs as arrays, and its outputs' names."""
    graph = _Graph()
    if case.operation == "conv1d_max_pool":
        names, inputs = _convolution(graph, case, data, pool)
    else:
        names, inputs = _recurrence(graph, case, data)
    return graph.serialise(inputs, names), inputs, names


class _Graph:
    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self.helper, self.numpy_helper = helper, numpy_helper
        self.nodes, self.constants = [], []

    def constant(self, name: str, value) -> str:
        array = value.numpy() if isinstance(value, Tensor) else numpy.asarray(value, numpy.int64)
        self.constants.append(self.numpy_helper.from_array(numpy.ascontiguousarray(array), name))
        return name

    def add(self, kind: str, inputs: list[str], outputs: list[str], **attributes) -> str:
        self.nodes.append(self.helper.make_node(kind, inputs, outputs, **attributes))
        return outputs[0]

    def serialise(self, inputs: dict, outputs: tuple[str, ...]) -> bytes:
        from onnx import TensorProto

        def described(name: str, array):
            kind = TensorProto.INT32 if array.dtype == numpy.int32 else TensorProto.FLOAT
            return self.helper.make_tensor_value_info(name, kind, array.shape)

        graph = self.helper.make_graph(
            self.nodes,
            "benchmark",
            [described(name, array) for name, array in inputs.items()],
            [self.helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
            self.constants,
        )
        opsets = [self.helper.make_opsetid("", OPSET)]
        model = self.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        return model.SerializeToString()


def _convolution(graph: _Graph, case: Case, data: Data, pool: str):
    """Conv, the pooling, then the activation, which is monotone."""
    operation = OPERATIONS[case.operation]
    sizes, geometry = operation.sizes(case), operation.geometry(case)
    nlc = sizes["layout"] == "NLC"
    input = graph.add("Transpose", ["input"], ["ncl"], perm=[0, 2, 1]) if nlc else "input"
    axes = graph.constant("axes", [2])
    outputs = []
    for prefix in operation.members(case):
        parameters = [f"{prefix}{name}" for name in ("weight", "bias")]
        value = graph.add(
            "Conv",
            [input, *(graph.constant(name, data.parameters[name]) for name in parameters)],
            [f"{prefix}values"],
            strides=[geometry.stride],
            pads=[geometry.padding_left, geometry.padding_right],
            dilations=[geometry.dilation],
        )
        pooled = [f"{prefix}pooled"]
        if geometry.pool_size:
            size, step = [geometry.pool_size], [geometry.pool_stride]
            value = graph.add("MaxPool", [value], pooled, kernel_shape=size, strides=step)
            value = graph.add("Transpose", [value], ["nlc"], perm=[0, 2, 1]) if nlc else value
        elif pool == "ReduceMax":
            value = graph.add("ReduceMax", [value, axes], pooled, keepdims=0)
        else:
            value = graph.add("GlobalMaxPool", [value], pooled)
            value = graph.add("Squeeze", [value, axes], [f"{prefix}squeezed"])
        outputs.append(value)
    value = outputs[0] if len(outputs) == 1 else graph.add("Concat", outputs, ["together"], axis=1)
    graph.add(_ACTIVATIONS[sizes["activation"]] or "Identity", [value], ["output"])
    return ("output",), {"input": data.input.numpy()}


def _recurrence(graph: _Graph, case: Case, data: Data):
    operation = OPERATIONS[case.operation]
    sizes, gates = operation.sizes(case), operation.gates
    hidden, directions = sizes["H"], sizes["directions"]
    is_cell = case.operation.endswith("_cell")
    inputs = {"input": data.input.numpy()}
    value, lengths = "input", ""
    if data.lengths is not None:
        lengths, inputs["lengths"] = "lengths", data.lengths.int().numpy()
    initial = ["", ""]
    if is_cell:
        first = graph.constant("first", [0])
        value = graph.add("Unsqueeze", ["input", first], ["sequence"])
        initial = []
        for name, state in data.states.items():
            inputs[f"{name}_0"] = state.numpy()
            initial.append(graph.add("Unsqueeze", [f"{name}_0", first], [f"{name}_initial"]))
    attributes = {"hidden_size": hidden}
    if directions == 2:
        attributes["direction"] = "bidirectional"
    if gates == 1:
        attributes["activations"] = [sizes["nonlinearity"].capitalize()] * directions
    finals: list[list[str]] = []
    suffixes = [suffix for suffix, _ in operation.directions(case)]
    for layer in range(sizes["layers"]):
        own = suffixes[layer * directions : (layer + 1) * directions]
        weights = [
            graph.constant(f"{kind}{layer}", _stacked(data, kinds, own, gates, is_cell))
            for kind, kinds in (
                ("W", ("weight_ih",)),
                ("R", ("weight_hh",)),
                ("B", ("bias_ih", "bias_hh")),
            )
        ]
        states = [f"{name}_{layer}n" for name in ("h", "c")[: 2 if gates == 4 else 1]]
        graph.add(
            "LSTM" if gates == 4 else "RNN",
            [value, *weights, lengths, *initial[: len(states)]],
            [f"Y{layer}", *states],
            **attributes,
        )
        finals.append(states)
        # (T, directions, N, H) to (T, N, directions * H)
        moved = graph.add("Transpose", [f"Y{layer}"], [f"moved{layer}"], perm=[0, 2, 1, 3])
        shape = graph.constant(f"shape{layer}", [0, 0, directions * hidden])
        value = graph.add("Reshape", [moved, shape], [f"output{layer}"])
    if is_cell:
        for name, state in zip(("h", "c"), finals[0], strict=False):
            graph.add("Squeeze", [state, first], [name])
        return tuple(data.states), inputs
    graph.add("Identity", [value], ["output"])
    names = ("h_n", "c_n")[: len(finals[0])]
    for name, states in zip(names, zip(*finals, strict=True), strict=True):
        graph.add("Concat", list(states), [name], axis=0)
    return ("output", *names), inputs


def _stacked(data: Data, kinds, suffixes: list[str], gates: int, is_cell: bool) -> Tensor:
    """A parameter of every direction, (directions, rows, ...), the gates in ONNX's order."""

    def ordered(kind: str, suffix: str) -> Tensor:
        value = data.parameters[kind if is_cell else kind + suffix]
        chunks = value.chunk(gates)
        return torch.cat([chunks[gate] for gate in _GATES[gates]])

    return torch.stack([torch.cat([ordered(kind, s) for kind in kinds]) for s in suffixes])
