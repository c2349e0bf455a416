"""Haste's LSTM (the package haste-pytorch) on CUDA; float32, and float64."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor, nn

from ..cases import Case
from ..operations import OPERATIONS, Data
from .base import Provider, Refusal, Results, Run, passes, require_plain_layer
from .ours import named_states

# Its gates are in the order i, g, f, o; torch's in i, f, g, o. Its matrices are transposed.
_GATES = (0, 2, 1, 3)


class Haste(Provider):
    name = "haste"
    operations = ("lstm",)

    def missing(self) -> str | None:
        if importlib.util.find_spec("haste_pytorch") is None:
            return "the package haste-pytorch is not installed"
        return None if torch.cuda.is_available() else "no CUDA device"

    def refuse(self, case: Case) -> None:
        if case.device != "cuda":
            raise Refusal("measured on CUDA only")
        require_plain_layer(case)
        if case.dtype not in ("float32", "float64"):
            raise Refusal(f"no kernel for {case.dtype}")

    def prepare(self, case: Case, data: Data) -> Run:
        import haste_pytorch

        sizes = OPERATIONS[case.operation].sizes(case)
        parameters = data.parameters
        layer = haste_pytorch.LSTM(sizes["I"], sizes["H"])
        layer.kernel = nn.Parameter(_reordered(parameters["weight_ih_l0"]).t().contiguous())
        recurrent = _reordered(parameters["weight_hh_l0"]).t().contiguous()
        layer.recurrent_kernel = nn.Parameter(recurrent)
        bias = parameters["bias_ih_l0"] + parameters["bias_hh_l0"]
        layer.bias = nn.Parameter(_reordered(bias))
        layer.train(case.has_gradient)
        leaves = {
            "input": data.input,
            "weight_ih_l0": layer.kernel,
            "weight_hh_l0": layer.recurrent_kernel,
            "bias_ih_l0": layer.bias,
        }
        return passes(case, data, lambda: named_states(*layer(data.input)), leaves)

    def converted(self, case: Case, results: Results) -> Results:
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0"):
            gradient = results.get(f"gradient of {name}")
            if gradient is not None:
                results[f"gradient of {name}"] = _reordered(gradient.t())
        if "gradient of bias_ih_l0" in results:
            results["gradient of bias_hh_l0"] = results["gradient of bias_ih_l0"]
        return results


def _reordered(value: Tensor) -> Tensor:
    """Rows of one order of gates in the other; the exchange is its own inverse."""
    chunks = value.chunk(4)
    return torch.cat([chunks[gate] for gate in _GATES])


def providers() -> list[Provider]:
    return [Haste()]
