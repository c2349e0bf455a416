"""How the package was built and what it runs on."""

from __future__ import annotations

import pathlib
import platform
import warnings

import torch

from . import _cpu, cuda
from ._version import __version__


def bind_torch_threads() -> None:
    """Let the kernels run on the OpenMP runtime that torch has loaded, and on no other."""
    library = pathlib.Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not _cpu.bind_openmp(str(library)):
        warnings.warn(
            f"seqkernels: no OpenMP runtime behind {library}; its kernels run on one thread",
            stacklevel=3,
        )


def show_config() -> str:
    """The package's version, compiler, instruction sets, threads and torch, a line each."""
    isas = " ".join(
        f"[{name}]" if name == _cpu.active_isa() else name for name in _cpu.available_isas()
    )
    return "\n".join(
        (
            f"seqkernels {__version__}, torch {torch.__version__}, "
            f"Python {platform.python_version()}, {platform.machine()}",
            f"compiler: {_cpu.compiler}",
            f"CPU kernels: {isas}",
            f"CUDA kernels: {_cuda_kernels()}",
            f"threads: {torch.get_num_threads()}, of {_cpu.openmp_path() or 'none'}",
        )
    )


def _cuda_kernels() -> str:
    if not cuda.is_built():
        return "not in this build"
    found = " ".join(cuda.architectures())
    return found if torch.cuda.is_available() else f"{found}, and no GPU that torch can use"
