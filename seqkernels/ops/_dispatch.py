"""How operations are made known to torch, and when they can be called past its dispatcher."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _cpu, checks

library = torch.library.Library("seqkernels", "DEF")


def define(schema: str, kernel, shapes, devices: tuple[str, ...] = ("CPU",)) -> None:
    """Define an operation: its kernel for some devices, and its results' shapes for tracing."""
    library.define(schema)
    name = schema.partition("(")[0]
    for device in devices:
        library.impl(name, kernel, device)
    torch.library.register_fake(f"seqkernels::{name}", shapes, lib=library)
    torch.library.register_vmap(f"seqkernels::{name}", _one_after_the_other(name), lib=library)


def _one_after_the_other(name: str):
    """How ``torch.vmap`` maps an operation over a dimension that the kernels do not know."""

    def run(info, in_dims, *arguments):
        if info.batch_size == 0:
            raise RuntimeError(f"seqkernels::{name}: expected to be mapped over something, got 0")
        operation = getattr(torch.ops.seqkernels, name).default

        def of(argument, dimension, index: int):
            is_mapped = isinstance(argument, Tensor) and dimension is not None
            return argument.select(dimension, index) if is_mapped else argument

        results = [
            operation(*(of(*pair, index) for pair in zip(arguments, in_dims, strict=True)))
            for index in range(info.batch_size)
        ]
        stacked = tuple(map(torch.stack, zip(*results, strict=True)))
        return stacked, (0,) * len(stacked)

    return run


def callable_operation(name: str, kernel):
    """An operation as the floors above call it: directly where only the kernel needs it."""
    operation = getattr(torch.ops.seqkernels, name).default

    def call(*arguments):
        # The dispatcher, some 15 microseconds of it, would do nothing but call the kernel.
        if torch.compiler.is_compiling() or not are_plain(arguments):
            return operation(*arguments)
        return kernel(*arguments)

    return call


def room_for(needed: bool, like: Tensor, *sizes: int, dtype: torch.dtype | None = None) -> Tensor:
    """A new tensor for a result, without elements if it is not needed.

    Sizes one by one, since torch takes twice as long to read a tuple or a ``torch.Size``.
    """
    return like.new_empty(*(sizes if needed else (0,)), dtype=dtype)


def are_plain(arguments: tuple) -> bool:
    """Whether these are of no kind, and nothing is going on, that anything but the kernel must see.

    Tensors that have memory, and what else operations take; no mode, no transform, no tracing, no
    profiler.
    """
    return _cpu.are_plain(arguments, _ARGUMENTS)


def want_gradient(tensors: tuple[Tensor | None, ...]) -> bool | None:
    """Whether a gradient of any of the tensors is wanted; None where more than that may be.

    That is where one is no plain tensor, or a mode, a transform, a trace or forward mode is on.
    """
    return _cpu.want_gradient(tensors)


_ARGUMENTS = frozenset((type(None), str, bool, list, checks.ConvolutionGeometry))

# What says whether anything but the kernel is wanted: each function gives something false if not.
_cpu.bind_torch(
    Tensor,
    torch.nn.Parameter,
    (
        torch._C._functorch.is_legacy_batchedtensor,
        torch._C._functorch.is_functorch_wrapped_tensor,
        Tensor._is_zerotensor,
    ),
    (
        torch._C._len_torch_dispatch_stack,
        torch._C._functorch.peek_interpreter_stack,
        torch._C._get_tracing_state,
        torch.autograd._profiler_enabled,
    ),
    torch.autograd.forward_ad,
    torch.is_grad_enabled,
    torch.empty_like,
    torch.get_num_threads,
)
