"""torch's convolutions with each way to pool.

``conv1d`` is what a model says: ``nn.Conv1d``, the activation, then ``amax``, ``max`` or
``max_pool1d``. ``conv2d`` is what runs faster: ``nn.Conv2d`` in channels_last format with the
pooling before the activation, which is the same since the activations are monotone.
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor

from seqkernels.checks import output_length, pooled_length

from ..cases import Case
from ..operations import OPERATIONS, Data
from ..operations.base import ACTIVATIONS
from .base import Provider, Refusal, Run, passes, torch_precision

# Each takes (N, F, W) and the size and step of the windows that are pooled, size 0 for all.
POOLS = {
    "amax": lambda values, size, step: values.amax(dim=2),
    "max": lambda values, size, step: values.max(dim=2).values,
    "max_pool1d": lambda values, size, step: F.max_pool1d(values, size, step),
}


class TorchConvolution(Provider):
    operations = ("conv1d_max_pool",)

    def __init__(self, convolution: str, pool: str) -> None:
        self.convolution, self.pool = convolution, pool
        self.name = f"torch:{convolution}+{pool}"

    def refuse(self, case: Case) -> None:
        if OPERATIONS[case.operation].sizes(case)["pool"] and self.pool != "max_pool1d":
            raise Refusal("pools over all time only")

    def settings(self, case: Case) -> contextlib.AbstractContextManager:
        return torch_precision(case.precision)

    def prepare(self, case: Case, data: Data) -> Run:
        forward, leaves = self.forward(case, data)
        shapes = {name: tuple(value.shape) for name, value in data.parameters.items()}
        return passes(case, data, forward, leaves, shapes)

    def forward(self, case: Case, data: Data):
        """The forward pass as a function of nothing, and what gradients are taken for."""
        geometry = OPERATIONS[case.operation].geometry(case)
        sizes = OPERATIONS[case.operation].sizes(case)
        is_plane = self.convolution == "conv2d"
        leaves = {"input": data.input, **data.parameters}
        members = []
        for prefix, kernel_size in OPERATIONS[case.operation].members(case).items():
            weight = leaves[f"{prefix}weight"]
            if is_plane:
                weight = weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
                leaves[f"{prefix}weight"] = weight
            finish = None if data.lengths is None else _masked(sizes, kernel_size, geometry, data)
            members.append((weight, leaves[f"{prefix}bias"], finish))
        activate = ACTIVATIONS[sizes["activation"]]
        nlc, has_lengths = sizes["layout"] == "NLC", data.lengths is not None
        stride, padding, dilation = geometry.stride, geometry.padding_left, geometry.dilation
        size, step = geometry.pool_size, geometry.pool_stride
        mask_input = has_lengths and padding > 0

        def forward() -> dict[str, Tensor]:
            input = data.input.transpose(1, 2) if nlc else data.input
            if mask_input:
                input = members[0][2].input(input)
            if is_plane:
                input = input.unsqueeze(2).contiguous(memory_format=torch.channels_last)
            outputs = [of_member(input, *member) for member in members]
            return {"output": outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)}

        def of_member(input: Tensor, weight: Tensor, bias: Tensor, finish) -> Tensor:
            if is_plane:
                steps = ((1, stride), (0, padding), (1, dilation))
                values = F.conv2d(input, weight, bias, *steps).squeeze(2)
            else:
                values = activate(F.conv1d(input, weight, bias, stride, padding, dilation))
            if has_lengths:
                values = finish.values(values)
            width = size or values.shape[2]
            pooled = POOLS[self.pool](values, width, step or width)
            if is_plane:
                pooled = activate(pooled)
            if self.pool == "max_pool1d" and not size:
                pooled = pooled.squeeze(2)
            if has_lengths:
                pooled = finish.pooled(pooled)
            return pooled.transpose(1, 2) if size and nlc else pooled

        return forward, leaves


class _masked:
    """What the padding behind shorter sequences needs: masks, made once, applied at every call."""

    def __init__(self, sizes: dict, kernel_size: int, geometry, data: Data) -> None:
        device = data.input.device
        windows = output_length(data.lengths, kernel_size, geometry)
        pooled = pooled_length(windows, geometry)
        width = output_length(sizes["L"], kernel_size, geometry)
        places = torch.arange(sizes["L"])
        self.beyond_input = (places >= data.lengths[:, None])[:, None].to(device)
        self.beyond_window = (torch.arange(width) >= windows[:, None])[:, None].to(device)
        if geometry.pool_size:
            count = pooled_length(width, geometry)
            self.beyond_pool = (torch.arange(count) >= pooled[:, None])[:, None].to(device)
        else:
            self.beyond_pool = (pooled == 0)[:, None].to(device)

    def input(self, input: Tensor) -> Tensor:
        return input.masked_fill(self.beyond_input, 0)

    def values(self, values: Tensor) -> Tensor:
        return values.masked_fill(self.beyond_window, -torch.inf)

    def pooled(self, pooled: Tensor) -> Tensor:
        return pooled.masked_fill(self.beyond_pool, 0)


def providers() -> list[Provider]:
    return [TorchConvolution(kind, pool) for kind in ("conv1d", "conv2d") for pool in POOLS]
