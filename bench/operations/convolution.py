"""Convolution over time, activation and max pooling; several of them side by side."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from seqkernels import reference
from seqkernels.checks import ConvolutionGeometry, output_length, pooled_length

from ..cases import Case, UsageError, Value
from .base import ACTIVATIONS, Data, Operation, bytes_of, lengths_of, normal, uniform


class Convolution(Operation):
    name = "conv1d_max_pool"
    required: ClassVar = {
        "N": "sequences in the batch",
        "L": "elements of a sequence",
        "C": "channels of an element",
        "F": "filters",
        "k": "elements under a filter",
    }
    defaults: ClassVar = {
        "stride": 1,
        "padding": 0,
        "dilation": 1,
        "pool": 0,
        "pool_stride": 0,
        "activation": "tanh",
        "layout": "NLC",
        "lengths": "full",
        "bank": 1,
    }
    choices: ClassVar = {
        "activation": ("identity", "relu", "tanh", "sigmoid"),
        "layout": ("NLC", "NCL"),
        "lengths": ("full", "reviews"),
    }
    outputs = ("output",)

    def shape(self, given: dict[str, Value]) -> tuple[tuple[str, Value], ...]:
        shape = super().shape(given)
        if given.get("bank", 1) != 1 and given.get("pool", 0) != 0:
            raise UsageError(f"{self.name}: a bank's filters pool over all time, got a pool")
        return shape

    def members(self, case: Case) -> dict[str, int]:
        """The elements under the filters of each convolution, by the prefix of its parameters.

        One convolution's are not prefixed; a bank's are as in a list of layers, and filters of
        each are one longer than those of the one before.
        """
        sizes = self.sizes(case)
        if sizes["bank"] == 1:
            return {"": sizes["k"]}
        return {f"{i}.": sizes["k"] + i for i in range(sizes["bank"])}

    def geometry(self, case: Case) -> ConvolutionGeometry:
        sizes = self.sizes(case)
        pool = sizes["pool"]
        return ConvolutionGeometry(
            sizes["stride"],
            sizes["padding"],
            sizes["padding"],
            sizes["dilation"],
            pool,
            sizes["pool_stride"] or pool,
        )

    def _lengths(self, case: Case) -> list[int]:
        sizes = self.sizes(case)
        return lengths_of(sizes["lengths"], sizes["N"], sizes["L"])

    def data(self, case: Case) -> Data:
        sizes = self.sizes(case)
        generator = torch.Generator().manual_seed(0)
        batch, length, channels = sizes["N"], sizes["L"], sizes["C"]
        filters = sizes["F"]
        inner = (length, channels) if sizes["layout"] == "NLC" else (channels, length)
        dtype = getattr(torch, case.dtype)
        data = Data(normal(generator, batch, *inner).to(dtype), {})
        for prefix, kernel_size in self.members(case).items():
            bound = 1 / math.sqrt(channels * kernel_size)
            weight = uniform(generator, bound, filters, channels, kernel_size)
            data.parameters[f"{prefix}weight"] = weight.to(dtype)
            data.parameters[f"{prefix}bias"] = uniform(generator, bound, filters).to(dtype)
        if sizes["lengths"] != "full":
            data.lengths = torch.tensor(self._lengths(case))
        if case.has_gradient:
            geometry = self.geometry(case)
            pooled = pooled_length(output_length(length, sizes["k"], geometry), geometry)
            shape = (batch, filters * sizes["bank"])
            if geometry.pool_size:
                nlc = sizes["layout"] == "NLC"
                shape = (batch, pooled, filters) if nlc else (batch, filters, pooled)
            data.gradients["output"] = normal(generator, *shape).to(dtype)
        return data

    def keywords(self, case: Case) -> dict:
        """The arguments of the function besides the tensors, and a layer's besides its sizes."""
        sizes = self.sizes(case)
        keywords = {
            "stride": sizes["stride"],
            "padding": sizes["padding"],
            "dilation": sizes["dilation"],
            "activation": sizes["activation"],
            "channels_last": sizes["layout"] == "NLC",
        }
        if sizes["bank"] == 1:
            keywords["pool_size"] = sizes["pool"] or None
            keywords["pool_stride"] = sizes["pool_stride"] or None
        return keywords

    def exact(self, case: Case, data: Data, gradient: bool) -> dict[str, Tensor]:
        data = data.to("cpu", torch.float64)
        leaves = {"input": data.input, **data.parameters}
        for leaf in leaves.values():
            leaf.requires_grad_(gradient)
        outputs = [
            reference.conv1d_max_pool(
                data.input,
                data.parameters[f"{prefix}weight"],
                data.parameters[f"{prefix}bias"],
                lengths=data.lengths,
                **self.keywords(case),
            )
            for prefix in self.members(case)
        ]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
        result = {"output": output.detach()}
        if gradient:
            found = torch.autograd.grad(output, leaves.values(), data.gradients["output"])
            result |= {f"gradient of {name}": g for name, g in zip(leaves, found, strict=True)}
        return result

    def hide_ties(self, case: Case, data: Data) -> None:
        """Of a maximum and a runner-up that rounding cannot tell apart, either may win.

        Their distance must be beyond what either sum of C*k products may be off, else the
        gradient of that output is set to 0 for the comparison. So it is where relu's bend is as
        near as that.
        """
        members = self.members(case)
        parts = data.gradients["output"].tensor_split(len(members), dim=1)
        for (prefix, kernel_size), part in zip(members.items(), parts, strict=True):
            self._hide_ties_of(case, data, prefix, kernel_size, part)

    def _hide_ties_of(
        self, case: Case, data: Data, prefix: str, kernel_size: int, gradient: Tensor
    ) -> None:
        double = data.to("cpu", torch.float64)
        sizes, geometry = self.sizes(case), self.geometry(case)
        nlc = sizes["layout"] == "NLC"
        every_window = {"activation": "identity", "pool_size": 1, "pool_stride": 1}
        sums = reference.conv1d_max_pool(
            double.input,
            double.parameters[f"{prefix}weight"],
            double.parameters[f"{prefix}bias"],
            **self.keywords(case) | every_window,
        )
        sums = sums.transpose(1, 2) if nlc else sums
        size = geometry.pool_size or sums.shape[2]
        if size == 0 or sums.shape[2] < size:
            return
        margin = 8 * torch.finfo(data.input.dtype).eps * sums.abs().max().item()
        values = ACTIVATIONS[sizes["activation"]](sums)
        if data.lengths is not None:
            windows = output_length(data.lengths, kernel_size, geometry)
            beyond = torch.arange(sums.shape[2]) >= windows[:, None, None]
            sums, values = (v.masked_fill(beyond, -torch.inf) for v in (sums, values))
        step = geometry.pool_stride or size
        unsure = sums.unfold(2, size, step).amax(dim=3).abs() <= margin
        if sizes["activation"] != "relu":
            unsure[:] = False
        if size > 1:
            first, second = values.unfold(2, size, step).topk(2, dim=3).values.unbind(dim=3)
            unsure |= first - second <= margin
        if not geometry.pool_size:
            unsure = unsure.squeeze(2)
        elif nlc:
            unsure = unsure.transpose(1, 2)
        gradient.masked_fill_(unsure.to(data.input.device), 0)

    def slack(self, case: Case, data: Data) -> dict[str, float]:
        """Rounding of a bias's gradient, u * sum|terms| by the same paper as the rule's.

        It is one sum for each filter. Where there are few filters, and the terms cancel, the
        largest of the sums says little of the size of the terms.
        """
        gradient = data.gradients["output"].double().abs()
        filters = gradient.dim() - 1
        if self.sizes(case)["pool"] and self.sizes(case)["layout"] == "NCL":
            filters = 1
        terms = gradient.sum(dim=[d for d in range(gradient.dim()) if d != filters]).max().item()
        unit = torch.finfo(data.input.dtype).eps / 2
        error = _activation_error(case, self) * unit * terms
        return {f"gradient of {prefix}bias": error for prefix in self.members(case)}

    def terms(self, case: Case) -> int:
        return self.sizes(case)["C"] * max(self.members(case).values()) + 1

    def gradient_terms(self, case: Case) -> int:
        """Filters times windows, or samples times windows, whichever are more.

        tanh and sigmoid, with errors of some units in the last place, enter by the square.
        """
        sizes = self.sizes(case)
        geometry = self.geometry(case)
        windows = output_length(sizes["L"], sizes["k"], geometry)
        pooled = max(1, pooled_length(windows, geometry))
        scale = _activation_error(case, self) ** 2
        return scale * pooled * max(sizes["N"], sizes["F"] * sizes["bank"])

    def flops(self, case: Case) -> float:
        """Forward 2 W F C k for W windows; backward 4 P F C k for P pooled positions.

        W and P count all samples. A pooled position has one window that receives a gradient, and
        that window enters the gradient of the weight and of the input once.
        """
        sizes = self.sizes(case)
        geometry = self.geometry(case)
        forward = backward = 0.0
        for kernel_size in self.members(case).values():
            windows = [output_length(n, kernel_size, geometry) for n in self._lengths(case)]
            pooled = sum(pooled_length(count, geometry) for count in windows)
            products = 2.0 * sizes["F"] * sizes["C"] * kernel_size
            forward += products * sum(windows)
            backward += 2 * products * pooled
        return {"backward": backward, "training": forward + backward}.get(case.pass_name, forward)

    def bytes(self, case: Case) -> float:
        """Forward: input, weight and bias read, the output written.

        Backward: the same once more, and their gradients.
        """
        sizes = self.sizes(case)
        geometry = self.geometry(case)
        lengths = self._lengths(case)
        elements = sum(lengths) * sizes["C"]
        for kernel_size in self.members(case).values():
            windows = [output_length(n, kernel_size, geometry) for n in lengths]
            pooled = sum(pooled_length(count, geometry) for count in windows)
            elements += sizes["F"] * (sizes["C"] * kernel_size + 1 + pooled)
        forward = elements * bytes_of(case.dtype)
        scale = {"backward": 2, "training": 3}.get(case.pass_name, 1)
        return float(scale * forward)


def _activation_error(case: Case, operation: Convolution) -> int:
    """How many times the rounding of a product an activation's own error may be."""
    return 4 if operation.sizes(case)["activation"] in ("tanh", "sigmoid") else 1
