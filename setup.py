"""Hands the build over to CMake, and decides whether there are to be CUDA kernels.

SEQKERNELS_CUDA=1 asks for them, SEQKERNELS_CUDA=0 forbids them. Without it they are built where
there is a CUDA compiler, unless torch is installed in a build that has no use for them.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sysconfig

from setuptools import setup

LEAST_CUDA = (12, 4)


def cuda_compiler() -> str | None:
    """CUDACXX, nvcc on the PATH, or that of CUDA_HOME or the usual place."""
    homes = filter(None, (os.environ.get("CUDA_HOME"), "/usr/local/cuda"))
    candidates = (os.environ.get("CUDACXX"), "nvcc", *(f"{home}/bin/nvcc" for home in homes))
    return next(filter(None, map(shutil.which, filter(None, candidates))), None)


def torch_is_without_cuda() -> bool:
    """Whether the environment that is installed into has a torch for the CPU only.

    Its files are read: a build in isolation cannot import it.
    """
    for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        version = pathlib.Path(folder) / "torch" / "version.py"
        if version.is_file() and re.search(
            r"^cuda\b[^=]*= *None", version.read_text(), re.MULTILINE
        ):
            return True
    return False


def is_too_old(compiler: str) -> bool:
    """Whether a CUDA compiler is older than what the kernels are written for."""
    text = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", text)
    return found is not None and tuple(map(int, found.groups())) < LEAST_CUDA


def cmake_arguments() -> list[str]:
    asked = os.environ.get("SEQKERNELS_CUDA", "")
    if asked not in ("", "0", "1"):
        raise SystemExit(f"SEQKERNELS_CUDA: expected 0 or 1, got {asked!r}")
    compiler = cuda_compiler()
    if asked == "1" and compiler is None:
        raise SystemExit("SEQKERNELS_CUDA=1: found no CUDA compiler (nvcc)")
    if asked == "0" or compiler is None or (asked == "" and torch_is_without_cuda()):
        return ["-DSEQKERNELS_CUDA=OFF"]
    if is_too_old(compiler):
        least = ".".join(map(str, LEAST_CUDA))
        text = f"seqkernels: {compiler} is older than CUDA {least}: no CUDA kernels"
        if asked == "1":
            raise SystemExit(text)
        print(text)
        return ["-DSEQKERNELS_CUDA=OFF"]
    return ["-DSEQKERNELS_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={compiler}"]


if __name__ == "__main__":
    setup(cmake_source_dir=".", cmake_args=cmake_arguments())
