"""The native operations with their gradients, for arguments that ``functional`` has checked.

``convolution``, ``convolution_bank`` and ``recurrence_step`` take arguments that nobody has
checked, and give None where these are not as a kernel takes them: the short ways.

First-order gradients come from the native backward kernels. Where gradients of gradients are
wanted (``create_graph=True``) the backward runs through ``reference`` instead, which is made of
torch's own operations and differentiable any number of times. So do forward-mode derivatives.
"""

from ._apply import in_forward_mode
from ._convolution import (
    conv1d_max_pool,
    conv1d_max_pool_bank,
    convolution,
    convolution_bank,
)
from ._recurrence import lstm, lstm_cell, recurrence_step, rnn, rnn_cell

__all__ = [
    "conv1d_max_pool",
    "conv1d_max_pool_bank",
    "convolution",
    "convolution_bank",
    "in_forward_mode",
    "lstm",
    "lstm_cell",
    "recurrence_step",
    "rnn",
    "rnn_cell",
]
