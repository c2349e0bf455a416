"""OpenVINO on the CPU, from the same ONNX graphs."""

from __future__ import annotations

import functools
import importlib.util

import torch

from ..cases import Case
from ..operations import Data
from . import onnx_graphs
from .base import Provider, Refusal, Run


class OpenVino(Provider):
    name = "openvino"
    operations = ("conv1d_max_pool", "lstm", "rnn", "lstm_cell", "rnn_cell")
    # A compiled model keeps its buffers.
    frees_memory = False

    def missing(self) -> str | None:
        if importlib.util.find_spec("openvino") is None:
            return "the package openvino is not installed"
        return onnx_graphs.missing()

    def refuse(self, case: Case) -> None:
        onnx_graphs.refuse(case)
        if case.precision == "high":
            raise Refusal("its precisions are float32 and bfloat16")

    def prepare(self, case: Case, data: Data) -> Run:
        model, inputs, names = onnx_graphs.build(case, data)
        core = _core()
        compiled = core.compile_model(
            core.read_model(model),
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": "bf16" if case.precision == "medium" else "f32",
                "INFERENCE_NUM_THREADS": case.threads,
            },
        )
        request = compiled.create_infer_request()
        outputs = [compiled.output(name) for name in names]

        def run() -> dict[str, torch.Tensor]:
            found = request.infer(inputs, share_inputs=True)
            return {
                name: torch.from_numpy(found[output])
                for name, output in zip(names, outputs, strict=True)
            }

        return run


@functools.cache
def _core():
    """The library's plugins, loaded once."""
    import openvino

    return openvino.Core()


def providers() -> list[Provider]:
    return [OpenVino()]
