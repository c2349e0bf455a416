"""LSTM and RNN over a sequence, and one step of either."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from seqkernels import reference

from ..cases import Case
from .base import Data, Operation, bytes_of, lengths_of, normal, uniform


class Recurrence(Operation):
    """Layers of an LSTM or RNN, in one or two directions, from a state of zeros."""

    required: ClassVar = {
        "N": "sequences in the batch",
        "T": "steps of a sequence",
        "H": "hidden units",
    }

    def __init__(self, name: str) -> None:
        self.name = name
        self.gates = 4 if name.startswith("lstm") else 1
        self.defaults = {"I": 0, "layers": 1, "directions": 1, "lengths": "full"}
        self.choices = {"directions": (1, 2), "lengths": ("full", "reviews")}
        if self.gates == 1:
            self.defaults["nonlinearity"] = "tanh"
            self.choices["nonlinearity"] = ("tanh", "relu")
        self.outputs = ("output", "h_n")

    def sizes(self, case: Case) -> dict:
        """``I``, features of the input, is H where it is not given."""
        sizes = super().sizes(case)
        return sizes | {"I": sizes["I"] or sizes["H"]}

    def _lengths(self, case: Case) -> list[int]:
        sizes = self.sizes(case)
        return lengths_of(sizes["lengths"], sizes["N"], sizes["T"])

    def directions(self, case: Case) -> list[tuple[str, int]]:
        """The suffix of the parameters of each layer and direction, and its input's features."""
        sizes = self.sizes(case)
        return [
            (f"_l{layer}{suffix}", sizes["H"] * sizes["directions"] if layer else sizes["I"])
            for layer in range(sizes["layers"])
            for suffix in ("", "_reverse")[: sizes["directions"]]
        ]

    def data(self, case: Case) -> Data:
        sizes = self.sizes(case)
        generator = torch.Generator().manual_seed(0)
        hidden, rows = sizes["H"], self.gates * sizes["H"]
        dtype = getattr(torch, case.dtype)
        parameters = {}
        for suffix, features in self.directions(case):
            for kind, shape in (
                ("weight_ih", (rows, features)),
                ("weight_hh", (rows, hidden)),
                ("bias_ih", (rows,)),
                ("bias_hh", (rows,)),
            ):
                value = uniform(generator, 1 / math.sqrt(hidden), *shape)
                parameters[kind + suffix] = value.to(dtype)
        steps, batch = sizes["T"], sizes["N"]
        data = Data(normal(generator, steps, batch, sizes["I"]).to(dtype), parameters)
        if sizes["lengths"] != "full":
            data.lengths = torch.tensor(self._lengths(case))
        if case.has_gradient:
            features = hidden * sizes["directions"]
            data.gradients["output"] = normal(generator, steps, batch, features).to(dtype)
        return data

    def exact(self, case: Case, data: Data, gradient: bool) -> dict[str, Tensor]:
        data = data.to("cpu", torch.float64)
        leaves = {"input": data.input, **data.parameters}
        for leaf in leaves.values():
            leaf.requires_grad_(gradient)
        result = self._by_reference(case, data)
        if gradient:
            read = self.outputs[0]
            found = torch.autograd.grad(result[read], leaves.values(), data.gradients[read])
            result |= {f"gradient of {name}": g for name, g in zip(leaves, found, strict=True)}
        return {name: value.detach() for name, value in result.items()}

    def slack(self, case: Case, data: Data) -> dict[str, float]:
        """What moves if relu's bend is passed on the other side.

        A sum nearer to 0 than its rounding error may fall on either side of it, and then the
        gradient differs by more than rounding. So the biases are moved both ways by such an error,
        u * sqrt(terms) * max|output|, and the gradients compared.
        """
        if self.gates != 1 or self.sizes(case)["nonlinearity"] != "relu":
            return {}
        largest = self.exact(case, data, gradient=False)[self.outputs[0]].abs().max().item()
        distance = torch.finfo(data.input.dtype).eps / 2 * math.sqrt(self.terms(case)) * largest
        moved = data.to("cpu", torch.float64)
        found = []
        for step in (distance, -distance):
            moved.parameters = {
                name: value.double().cpu() + step * name.startswith("bias_ih")
                for name, value in data.parameters.items()
            }
            found.append(self.exact(case, moved, gradient=True))
        return {
            name: (found[0][name] - found[1][name]).abs().max().item()
            for name in found[0]
            if name.startswith("gradient of")
        }

    def _by_reference(self, case: Case, data: Data) -> dict[str, Tensor]:
        sizes = self.sizes(case)
        how = {"lengths": data.lengths}
        if self.gates == 1:
            how["nonlinearity"] = sizes["nonlinearity"]
        function = reference.lstm if self.gates == 4 else reference.rnn
        features, finals = data.input, []
        suffixes = [suffix for suffix, _ in self.directions(case)]
        for layer in range(sizes["layers"]):
            outputs = []
            for direction in range(sizes["directions"]):
                suffix = suffixes[layer * sizes["directions"] + direction]
                kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                weights = [data.parameters[kind + suffix] for kind in kinds]
                output, state = function(features, None, *weights, reverse=direction == 1, **how)
                outputs.append(output)
                finals.append(state if self.gates == 4 else (state,))
            features = torch.cat(outputs, dim=2)
        names = ("h_n", "c_n")[: len(finals[0])]
        states = (torch.stack(states) for states in zip(*finals, strict=True))
        return {"output": features, **dict(zip(names, states, strict=True))}

    def terms(self, case: Case) -> int:
        """The products of one gate, counted for every layer that an error passes through."""
        sizes = self.sizes(case)
        features = max(count for _, count in self.directions(case))
        return (features + sizes["H"] + 2) * sizes["layers"]

    def gradient_terms(self, case: Case) -> int:
        return self.terms(case) * max(1, sum(self._lengths(case)))

    def flops(self, case: Case) -> float:
        """Forward 2 S G H (I + H) for S steps of all samples and G gates; backward twice that.

        Summed over layers and directions; the gates' activations, some G S H, are not counted.
        """
        sizes = self.sizes(case)
        steps = sum(self._lengths(case))
        forward = sum(
            2.0 * steps * self.gates * sizes["H"] * (features + sizes["H"])
            for _, features in self.directions(case)
        )
        return {"backward": 2, "training": 3}.get(case.pass_name, 1) * forward

    def bytes(self, case: Case) -> float:
        """Forward: the input and all weights read once, the output written.

        Backward: the same once more, and their gradients.
        """
        sizes = self.sizes(case)
        steps = sum(self._lengths(case))
        rows = self.gates * sizes["H"]
        weights = sum(rows * (features + sizes["H"] + 2) for _, features in self.directions(case))
        elements = weights + steps * (sizes["I"] + sizes["H"] * sizes["directions"])
        scale = {"backward": 2, "training": 3}.get(case.pass_name, 1)
        return float(scale * elements * bytes_of(case.dtype))


class Cell(Recurrence):
    """One step of an LSTM or RNN, from a state of random numbers."""

    required: ClassVar = {"N": "rows of the batch", "H": "hidden units"}

    def __init__(self, name: str) -> None:
        super().__init__(name)
        for name in ("layers", "directions", "lengths"):
            del self.defaults[name]
            self.choices.pop(name, None)
        self.outputs = ("h",)

    def sizes(self, case: Case) -> dict:
        return super().sizes(case) | {"T": 1, "layers": 1, "directions": 1, "lengths": "full"}

    def data(self, case: Case) -> Data:
        data = super().data(case)
        sizes = self.sizes(case)
        generator = torch.Generator().manual_seed(1)
        # A cell's parameters have no layer in their names.
        data.parameters = {
            name.removesuffix("_l0"): value for name, value in data.parameters.items()
        }
        data.input = data.input[0]
        if case.has_gradient:
            data.gradients = {"h": data.gradients["output"][0]}
        for name in ("h", "c")[: 2 if self.gates == 4 else 1]:
            state = normal(generator, sizes["N"], sizes["H"]).to(data.input.dtype)
            data.states[name] = state
        return data

    def bytes(self, case: Case) -> float:
        """A layer's of one step, the states before it read, and an LSTM's c written."""
        sizes = self.sizes(case)
        states = {4: 3, 1: 1}[self.gates] * sizes["N"] * sizes["H"]
        scale = {"backward": 2, "training": 3}.get(case.pass_name, 1)
        return super().bytes(case) + float(scale * states * bytes_of(case.dtype))

    def _by_reference(self, case: Case, data: Data) -> dict[str, Tensor]:
        weights = data.parameters.values()
        if self.gates == 4:
            h, c = reference.lstm_cell(data.input, tuple(data.states.values()), *weights)
            return {"h": h, "c": c}
        nonlinearity = self.sizes(case)["nonlinearity"]
        h = reference.rnn_cell(data.input, data.states["h"], *weights, nonlinearity=nonlinearity)
        return {"h": h}
