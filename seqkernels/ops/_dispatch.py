"""How operations are made known to torch, and when they can be called past its dispatcher."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks

library = torch.library.Library("seqkernels", "DEF")


def define(schema: str, kernel, shapes, devices: tuple[str, ...] = ("CPU",)) -> None:
    """Define an operation: its kernel for some devices, and its results' shapes for tracing."""
    library.define(schema)
    name = schema.partition("(")[0]
    for device in devices:
        library.impl(name, kernel, device)
    torch.library.register_fake(f"seqkernels::{name}", shapes, lib=library)


def callable_operation(name: str, kernel):
    """A forward operation as the floors above call it: directly where only the kernel needs it.

    Backward ones always go through torch's dispatcher: batched gradients (``is_grads_batched``)
    look like plain tensors and are told apart there.
    """
    operation = getattr(torch.ops.seqkernels, name).default

    def call(*arguments):
        if torch.compiler.is_compiling() or not is_plain(arguments, _ARGUMENTS):
            return operation(*arguments)
        return kernel(*arguments)

    return call


_TENSORS = frozenset((Tensor, torch.nn.Parameter))
OPTIONAL_TENSORS = _TENSORS | {type(None)}
_ARGUMENTS = OPTIONAL_TENSORS | {str, bool, list, checks.ConvolutionGeometry}


def is_plain(arguments: tuple, types: frozenset) -> bool:
    """Whether all are of these types, tensors plain ones, and no mode, transform or trace is on.

    Then torch's dispatcher, some 15 microseconds of it, would do nothing but call the kernel. A
    tensor with the negative bit is not plain: its memory holds the values with the other sign.
    """
    for value in arguments:
        kind = type(value)
        if kind not in types or (kind in _TENSORS and value.is_neg()):
            return False
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
        and not torch.autograd._profiler_enabled()
    )


def has_no_gradient(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether no derivative of either mode can be wanted."""
    if torch.autograd.forward_ad._current_level >= 0:
        return False
    if not torch.is_grad_enabled():
        return True
    return not any(tensor is not None and tensor.requires_grad for tensor in tensors)
