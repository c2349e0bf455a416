"""ONNX Runtime on the CPU."""

from __future__ import annotations

import importlib.util

import torch

from ..cases import Case
from ..operations import Data
from . import onnx_graphs
from .base import Provider, Refusal, Run


class OnnxRuntime(Provider):
    # Its arena keeps what a call took.
    frees_memory = False
    # Its threads wait for the next call awake, which makes short calls a fifth faster, and go to
    # sleep after some 30 ms only.
    settling = 0.05

    def __init__(self, name: str, operations: tuple[str, ...], pool: str = "") -> None:
        self.name, self.operations, self.pool = name, operations, pool

    def missing(self) -> str | None:
        if importlib.util.find_spec("onnxruntime") is None:
            return "the package onnxruntime is not installed"
        return onnx_graphs.missing()

    def refuse(self, case: Case) -> None:
        onnx_graphs.refuse(case)
        if case.precision != "highest":
            raise Refusal(f"no switch for precision {case.precision}")
        if self.pool == "GlobalMaxPool" and case.sizes.get("pool"):
            raise Refusal("pools over all time only")

    def prepare(self, case: Case, data: Data) -> Run:
        import onnxruntime

        model, inputs, names = onnx_graphs.build(case, data, self.pool)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = case.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

        def run() -> dict[str, torch.Tensor]:
            outputs = session.run(names, inputs)
            return dict(zip(names, map(torch.from_numpy, outputs), strict=True))

        return run


def providers() -> list[Provider]:
    convolution, recurrences = ("conv1d_max_pool",), ("lstm", "rnn", "lstm_cell", "rnn_cell")
    return [
        OnnxRuntime("onnxruntime:ReduceMax", convolution, "ReduceMax"),
        OnnxRuntime("onnxruntime:GlobalMaxPool", convolution, "GlobalMaxPool"),
        OnnxRuntime("onnxruntime", recurrences),
    ]
