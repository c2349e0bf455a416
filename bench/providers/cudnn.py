"""cuDNN through torch, and the same replayed as a CUDA graph.

float32 at precision "highest" is without TensorFloat32, at "high" and "medium" with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ..cases import Case
from ..operations import Data
from .base import (
    Provider,
    Refusal,
    Run,
    captured,
    cudnn_chosen_by_measuring,
    require_whole_pass,
)
from .torch_convolution import TorchConvolution
from .torch_recurrence import Layer


class _Cudnn:
    """Mixed into a provider of torch's: on a CUDA device, with cuDNN choosing by measuring."""

    graph = False

    def missing(self) -> str | None:
        if not torch.cuda.is_available():
            return "no CUDA device"
        return None if torch.backends.cudnn.is_available() else "torch has no cuDNN"

    def refuse(self, case: Case) -> None:
        if case.device != "cuda":
            raise Refusal("measured on CUDA only")
        super().refuse(case)
        if self.graph:
            require_whole_pass(case)

    @contextlib.contextmanager
    def settings(self, case: Case) -> Iterator[None]:
        with cudnn_chosen_by_measuring(), super().settings(case):
            yield

    def prepare(self, case: Case, data: Data) -> Run:
        with self.settings(case):
            run = super().prepare(case, data)
            return captured(run) if self.graph else run


class CudnnConvolution(_Cudnn, TorchConvolution):
    def __init__(self, convolution: str, pool: str, graph: bool) -> None:
        super().__init__(convolution, pool)
        self.graph = graph
        self.name = f"{'cudnn-graph' if graph else 'cudnn'}:{convolution}+{pool}"


class CudnnLayer(_Cudnn, Layer):
    def __init__(self, graph: bool) -> None:
        self.graph = graph
        self.name = "cudnn-graph:layer" if graph else "cudnn:layer"

    def prepare(self, case: Case, data: Data) -> Run:
        if self.graph and data.lengths is not None:
            raise Refusal("packing reads the lengths on the CPU, which a graph cannot")
        return super().prepare(case, data)


def providers() -> list[Provider]:
    return [
        provider
        for graph in (False, True)
        for provider in (
            CudnnConvolution("conv1d", "amax", graph),
            CudnnConvolution("conv2d", "amax", graph),
            CudnnConvolution("conv2d", "max_pool1d", graph),
            CudnnLayer(graph),
        )
    ]
