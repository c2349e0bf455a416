"""What tests build with CMake."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import filelock

ROOT = pathlib.Path(__file__).resolve().parent.parent


def build(folder: pathlib.Path, target: str, *options: str) -> None:
    """Build a target of the project; AssertionError, with what was said, if it fails or warns.

    One process at a time builds in a folder.
    """
    with filelock.FileLock(folder.with_suffix(".lock")):
        for command in (
            ("cmake", "-G", "Ninja", "-S", ROOT, "-B", folder, *options),
            ("cmake", "--build", folder, "--target", target),
        ):
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            printed = result.stdout + result.stderr
            assert result.returncode == 0, f"{command}\n{printed}"
            assert "warning" not in printed.lower(), f"{command}\n{printed}"


def build_for_processor(folder: pathlib.Path, target: str) -> None:
    """Build the C++ tests, or the CUDA module for an emulated GPU.

    They share one folder, since they have most of their code in common.
    """
    options = ("-DSEQKERNELS_TESTS=ON", "-DSEQKERNELS_EMULATED_CUDA=ON")
    build(folder, target, *options, f"-DPython_EXECUTABLE={sys.executable}")
