"""Which CPU kernels there are, and which are in use."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from . import _cpu

_switching = threading.RLock()
_HAS_LOWER_PRECISIONS = "avx512_bf16" in _cpu.available_isas()
#: What torch's switches for float32 products are set to, and what that means here.
_PRECISIONS = {"tf32": "high", "bf16": "medium"}


def available_isas() -> list[str]:
    """The instruction sets whose kernels this build has and this machine runs, slowest first.

    Of "scalar", "avx2", "avx512", "avx512_bf16", which is AVX-512 with products of bfloat16, and
    "amx", the same with matrix tiles for products of all types but float64. The environment
    variable ``SEQKERNELS_ISA``, read when the package is imported, forces one of them; otherwise
    the last is in use.
    """
    return _cpu.available_isas()


def active_isa() -> str:
    """The instruction set in use."""
    return _cpu.active_isa()


def release_scratch() -> int:
    """Free the scratch memory that the kernels keep from one call to the next.

    They keep what their largest calls needed, 512 MiB at most, since touching fresh memory costs
    more than most calls' work. Returns the number of bytes freed.
    """
    return _cpu.release_scratch()


@contextlib.contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Use another instruction set's kernels within a ``with`` block.

    The choice is the whole process's, backward passes included: a thread that enters such a block
    waits until no other thread is in one.

    Raises:
        ValueError: ``name`` is not one of ``available_isas()``.
    """
    with _switching:
        before = _cpu.active_isa()
        _cpu.set_active_isa(name)
        try:
            yield
        finally:
            _cpu.set_active_isa(before)


def where(input: Tensor, operation: str) -> tuple[int, str]:
    """What the kernels of an operation, "conv" or "rnn", are told: threads and float32's precision.

    The precision is that of ``torch.backends.mkldnn.conv`` or ``rnn`` or, where it says nothing, of
    ``torch.set_float32_matmul_precision``.
    """
    threads = torch.get_num_threads()
    if not _HAS_LOWER_PRECISIONS or input.dtype is not torch.float32:
        return threads, "highest"
    # What torch.backends.mkldnn.conv.fp32_precision asks, without a microsecond of attributes.
    precision_of = torch._C._get_fp32_precision_getter
    switch = precision_of("mkldnn", operation)
    if switch == "none":
        switch = precision_of("mkldnn", "matmul")
    return threads, _PRECISIONS.get(switch, "highest")
