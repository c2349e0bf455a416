"""torch.compile over the fastest forms of torch's operations."""

from __future__ import annotations

import contextlib
import shutil

import torch

from ..cases import Case
from ..operations import Data
from .base import Run, cudnn_chosen_by_measuring, passes
from .torch_convolution import TorchConvolution
from .torch_recurrence import Cells, Layer


class _Compiled:
    """Mixed into a provider of torch's: the same forward pass, compiled."""

    def missing(self) -> str | None:
        if shutil.which("g++") is None and shutil.which("clang++") is None:
            return "torch.compile needs a C++ compiler, g++ or clang++"
        return None

    def settings(self, case: Case) -> contextlib.AbstractContextManager:
        stack = contextlib.ExitStack()
        stack.enter_context(super().settings(case))
        if case.device == "cuda":
            stack.enter_context(cudnn_chosen_by_measuring())
        return stack

    def prepare(self, case: Case, data: Data) -> Run:
        forward, leaves = self.forward(case, data)
        # One compilation a case, of code that other cases have too.
        torch._dynamo.config.recompile_limit = 10_000
        torch._dynamo.config.accumulated_recompile_limit = 10_000
        shapes = {name: tuple(value.shape) for name, value in data.parameters.items()}
        return passes(case, data, torch.compile(forward, dynamic=False), leaves, shapes)


class CompiledConvolution(_Compiled, TorchConvolution):
    def __init__(self, convolution: str, pool: str) -> None:
        super().__init__(convolution, pool)
        self.name = f"torch-compile:{convolution}+{pool}"


class CompiledLayer(_Compiled, Layer):
    name = "torch-compile:layer"


class CompiledCells(_Compiled, Cells):
    name = "torch-compile:cell"
    operations = ("lstm_cell", "rnn_cell")


def providers():
    return [
        CompiledConvolution("conv1d", "amax"),
        CompiledConvolution("conv2d", "amax"),
        CompiledConvolution("conv2d", "max_pool1d"),
        CompiledLayer(),
        CompiledCells(),
    ]
