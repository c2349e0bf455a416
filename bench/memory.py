"""Peak memory of one call beyond what the process held before it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch

from seqkernels import cpu


def peak(run: Callable[[], object], device: str) -> int | None:
    """Bytes: inputs and weights are there before the call, its outputs are counted.

    On the CPU the growth of the process's resident memory, in pages, after the allocator, and this
    package's scratch, have given back what was free; None where the system does not tell. On CUDA
    what torch allocated.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        cpu.release_scratch()
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # sets the peak to what is resident now
        before = _status("VmRSS")
    except (OSError, AttributeError, KeyError):
        return None
    results = run()
    highest = _status("VmHWM")
    del results
    return max(0, highest - before)


def _status(name: str) -> int:
    """A size from the process's status, in bytes."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(name + ":"):
                return int(line.split()[1]) << 10
    raise KeyError(name)
