"""Fused kernels for sequence models: convolution with max pooling, LSTM and RNN, for PyTorch."""

from __future__ import annotations

from ._requirements import require_torch

require_torch()

from . import cpu, cuda, functional, nn, reference  # noqa: E402
from ._config import bind_torch_threads, show_config  # noqa: E402
from ._version import __version__  # noqa: E402

cpu.active_isa()  # so that a wrong SEQKERNELS_ISA is an error here and not at the first call
bind_torch_threads()

__all__ = ["__version__", "cpu", "cuda", "functional", "nn", "reference", "show_config"]
