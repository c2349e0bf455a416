"""The operations that torch sees: schemas, kernels and shapes for tracing; and ways past it.

``torch.library`` makes them opaque to ``torch.compile`` and ``torch.export``; gradients are
attached one floor up, in ``autograd``. Arguments have been checked in ``functional``; the native
module checks sizes, strides and dtypes once more, since memory depends on them.

They carry neither gradients nor autocast: call ``functional``, which sees to both.

An output of an operation that was not asked for comes back as a tensor without elements.
"""

from ._convolution import (
    conv1d_max_pool,
    conv1d_max_pool_backward,
    conv1d_max_pool_bank,
    conv1d_max_pool_bank_backward,
    convolution,
    known_geometry,
)
from ._dispatch import are_plain, want_gradient
from ._recurrence import (
    recurrence,
    recurrence_backward,
    recurrence_sequence,
    recurrence_stack,
    recurrence_step,
    recurrence_step_backward,
    recurrence_step_forward,
)

__all__ = [
    "are_plain",
    "conv1d_max_pool",
    "conv1d_max_pool_backward",
    "conv1d_max_pool_bank",
    "conv1d_max_pool_bank_backward",
    "convolution",
    "known_geometry",
    "recurrence",
    "recurrence_backward",
    "recurrence_sequence",
    "recurrence_stack",
    "recurrence_step",
    "recurrence_step_backward",
    "recurrence_step_forward",
    "want_gradient",
]
