"""How the functions with gradients are applied, and where they end up otherwise."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops


class Refused(Exception):
    """An argument of a short way is not as the kernels take it, and nothing has been computed.

    The checks of the long way say what is wrong.
    """


def or_refuse(function, *arguments):
    """``function(*arguments)``, whose errors are a refusal, those of what runs around it not."""
    try:
        return function(*arguments)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise Refused from error


def wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )


def in_forward_mode() -> bool:
    """Whether tangents may be travelling with the tensors, which the kernels would drop."""
    return torch.autograd.forward_ad._current_level >= 0


def apply(function: type[torch.autograd.Function], *arguments) -> tuple[Tensor, ...]:
    """``function.apply``, past what torch does in Python for transforms where there are none.

    Most of that is to match the arguments with forward's signature: 20 us.
    """
    if torch.compiler.is_compiling() or not ops.are_plain(arguments):
        return function.apply(*arguments)
    return apply_plain(function, *arguments)


def apply_plain(function: type[torch.autograd.Function], *arguments):
    """The same where it is known that there are none."""
    return super(torch.autograd.Function, function).apply(*arguments)


def through_reference(function, inputs, needs, grads) -> list[Tensor | None]:
    """Gradients of ``function(*inputs)`` that can themselves be differentiated.

    ``grads`` has one gradient, or None, for each output; ``needs`` says which inputs want one.
    """
    wanted = [tensor for tensor, need in zip(inputs, needs, strict=True) if need]

    def of_wanted(*given):
        given = iter(given)
        outputs = function(
            *(next(given) if need else tensor for tensor, need in zip(inputs, needs, strict=True))
        )
        return tuple(
            output for output, grad in zip(outputs, grads, strict=True) if grad is not None
        )

    # The kernels compute in the dtype of their arguments, under autocast too: so must this.
    with torch.enable_grad(), torch.autocast(inputs[0].device.type, enabled=False):
        _, pull_back = torch.func.vjp(of_wanted, *wanted)
        found = iter(pull_back(tuple(grad for grad in grads if grad is not None)))
    return [next(found) if need else None for need in needs]
