"""The functions of the package, with the arguments checked and the shapes described.

float32, float64, bfloat16 and float16 tensors on the CPU are computed by the package's kernels, the
16-bit ones with sums, gates and states in float32. Where the processor has matrix tiles, products
of float32 are as precise as ``torch.set_float32_matmul_precision`` asks, or the operation's own
switch where it is set (``torch.backends.mkldnn.conv.fp32_precision``, ``rnn``). Tensors on CUDA
devices of compute capability 8.0 and more have kernels too, where the package was built for them.
There the operands of a float32 convolution are rounded to TF32 where
``torch.backends.cudnn.conv.fp32_precision`` says so, as torch's own are; and the inputs of a
recurrence meet their weights in torch's own product, whose last bits may depend on the batch.
Everything else goes to ``reference``, the same functions in torch operations, and a warning says so
once. Gradients flow to every floating-point argument, and gradients of gradients too.

Under autocast, tensors of different dtypes are brought to the widest of them.
"""

from __future__ import annotations

from ..checks import NATIVE_DTYPES
from ._convolution import conv1d_max_pool, conv1d_max_pool_bank
from ._coverage import has_kernel, is_autocast, say_once, takes_packed
from ._recurrence import lstm, lstm_cell, rnn, rnn_cell

__all__ = [
    "NATIVE_DTYPES",
    "conv1d_max_pool",
    "conv1d_max_pool_bank",
    "has_kernel",
    "is_autocast",
    "lstm",
    "lstm_cell",
    "rnn",
    "rnn_cell",
    "say_once",
    "takes_packed",
]
