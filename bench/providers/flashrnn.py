"""FlashRNN (Pöppel, Beck, Hochreiter, arXiv 2412.07752) on CUDA, which builds itself at first use.

It computes the recurrence from input products that are given; here torch's linear makes them.
"""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F

from ..cases import Case
from ..operations import OPERATIONS, Data
from .base import Provider, Refusal, Results, Run, passes, require_plain_layer


class FlashRnn(Provider):
    operations = ("lstm", "rnn")

    def __init__(self, name: str, backend: str) -> None:
        self.name, self.backend = name, backend

    def missing(self) -> str | None:
        for package in ("flashrnn", "triton", "einops"):
            if importlib.util.find_spec(package) is None:
                return f"the package {package} is not installed"
        return None if torch.cuda.is_available() else "no CUDA device"

    def refuse(self, case: Case) -> None:
        if case.device != "cuda":
            raise Refusal("measured on CUDA only")
        require_plain_layer(case)
        if case.dtype == "float64":
            raise Refusal("no kernel for float64")
        if case.sizes.get("nonlinearity") == "relu":
            raise Refusal("no kernel for relu")

    def prepare(self, case: Case, data: Data) -> Run:
        from flashrnn import flashrnn

        operation = OPERATIONS[case.operation]
        sizes, gates = operation.sizes(case), operation.gates
        batch, steps, hidden = sizes["N"], sizes["T"], sizes["H"]
        parameters = data.parameters
        weight = parameters["weight_ih_l0"]
        recurrent = parameters["weight_hh_l0"].view(gates, 1, hidden, hidden)
        bias = (parameters["bias_ih_l0"] + parameters["bias_hh_l0"]).view(gates, 1, hidden)
        function = "lstm" if gates == 4 else "elman"

        def forward() -> Results:
            products = F.linear(data.input.transpose(0, 1), weight)
            states, last = flashrnn(
                products.view(batch, steps, gates, 1, hidden),
                recurrent,
                bias,
                function=function,
                backend=self.backend,
                dtype=case.dtype,
            )
            # (states, N, T or 1, heads, H)
            names = ("h_n", "c_n")[: len(last)]
            finals = {name: last[i, :, 0, 0][None] for i, name in enumerate(names)}
            return {"output": states[0, :, :, 0].transpose(0, 1), **finals}

        leaves = {
            "input": data.input,
            "weight_ih_l0": weight,
            "weight_hh_l0": recurrent,
            "bias_ih_l0": bias,
        }
        shapes = {"weight_hh_l0": (gates * hidden, hidden), "bias_ih_l0": (gates * hidden,)}
        return passes(case, data, forward, leaves, shapes)

    def converted(self, case: Case, results: Results) -> Results:
        """Its one bias stands for torch's two."""
        if "gradient of bias_ih_l0" in results:
            results["gradient of bias_hh_l0"] = results["gradient of bias_ih_l0"]
        return results


def providers() -> list[Provider]:
    return [
        FlashRnn("flashrnn:fused", "cuda_fused"),
        FlashRnn("flashrnn:alternating", "cuda"),
    ]
