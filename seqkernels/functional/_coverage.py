"""Which tensors the kernels take, what is said of the rest, and how the kernels read them."""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from .. import checks, cuda


def has_kernel(operation: str, input: Tensor) -> bool:
    """Whether the package's own kernels compute it on tensors of input's dtype and device."""
    if input.dtype not in checks.NATIVE_DTYPES:
        return False
    return input.is_cpu or cuda.has_kernel(operation, input)


def takes_packed(input: Tensor) -> bool:
    """Whether packed sequences like ``input`` are read as they are: else they are padded first.

    So they are on a GPU, whose kernels know lengths only, and in compiled graphs, where the sizes
    of a batch are no plain numbers.
    """
    if not isinstance(input, Tensor) or torch.compiler.is_compiling():
        return False
    return input.is_cpu and not cuda.is_on_device(input)


def say_once(operation: str, input: Tensor) -> None:
    """Warn, once per operation, dtype and device type, that torch's operations compute it."""
    case = (operation, input.dtype, input.device.type)
    if case in _said or torch.compiler.is_compiling():
        return
    _said.add(case)
    warnings.warn(
        f"seqkernels.{operation}: no kernel for {input.dtype} on {input.device.type}, "
        "computing it with torch's operations",
        stacklevel=3,
    )


_said: set[tuple[str, torch.dtype, str]] = set()


def is_autocast(input: Tensor) -> bool:
    """Whether autocast is on for the device of ``input``."""
    if not isinstance(input, Tensor):
        return False
    device_type = input.device.type
    if device_type in ("cpu", "cuda"):  # torch 2.11 cannot trace the question below
        return torch.is_autocast_enabled(device_type)
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def widest(*arguments):
    """The arguments, tensors and tuples of them, with floating-point tensors in one dtype."""
    tensors = [
        tensor
        for argument in arguments
        for tensor in (argument if isinstance(argument, (tuple, list)) else (argument,))
        if isinstance(tensor, Tensor) and tensor.is_floating_point()
    ]
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))

    def widen(argument):
        if isinstance(argument, (tuple, list)):
            return tuple(map(widen, argument))
        if isinstance(argument, Tensor) and argument.is_floating_point():
            return argument.to(dtype)
        return argument

    return tuple(map(widen, arguments))


def batched_lengths(lengths: Tensor | None, input: Tensor) -> Tensor | None:
    """The lengths as the kernels read them: contiguous int64 on input's device, (N,)."""
    if lengths is None:
        return None
    return lengths.to(input.device, torch.int64).reshape(-1).contiguous()
