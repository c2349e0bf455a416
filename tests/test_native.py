"""The C++ tests of the kernels, plain and under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import shutil
import subprocess

import pytest

import builds


def run(command) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr


def passes(binary: pathlib.Path) -> bool:
    """Whether all tests of the binary pass, a few of them at a time on each processor."""
    processors = os.cpu_count() or 1
    parts = 8 * processors
    commands = [[binary, "", str(parts), str(part)] for part in range(parts)]
    with concurrent.futures.ThreadPoolExecutor(processors) as pool:
        outputs = list(pool.map(run, commands))
    return all(" 0 failures" in output for output in outputs)


NAME = "seqkernels_native_tests"


@pytest.fixture(scope="module")
def plain(build_folder) -> pathlib.Path:
    builds.build_for_processor(build_folder, NAME)
    return build_folder / NAME


def test_kernels(plain):
    assert passes(plain)


def test_kernels_under_sanitizers(tmp_path):
    folder = tmp_path / "sanitized"
    options = ("-DSEQKERNELS_PYTHON=OFF", "-DSEQKERNELS_TESTS=ON", "-DSEQKERNELS_SANITIZE=ON")
    builds.build(folder, NAME, *options)
    assert passes(folder / NAME)


@pytest.mark.parametrize("isa", ["avx2", "avx512", "avx512_bf16", "amx"])
def test_nothing_compiled_for_one_isa_can_be_linked_into_another(plain, isa):
    """The linker keeps one of equal inline functions: no ISA may define one that others use."""
    objects = list(plain.parent.glob(f"**/kernels_{isa}.cpp.o"))
    if not objects:
        pytest.skip(f"this build has no {isa} kernels")
    if shutil.which("nm") is None:
        pytest.skip("no nm on this machine")
    (found,) = objects
    symbols = run(["nm", "--demangle", "--defined-only", found]).splitlines()
    weak = [line.split(maxsplit=2)[2] for line in symbols if line.split(maxsplit=2)[1] in "WVu"]
    own = {
        "avx2": ("Avx2Vector",),
        "avx512": ("Avx512Vector",),
        "avx512_bf16": ("Avx512Vector", "VectorUnit", "Tile"),
        "amx": ("Avx512Vector", "AmxUnit", "Tile"),
    }
    allowed = (*own[isa], "DW.ref")
    assert [name for name in weak if not any(part in name for part in allowed)] == []
    strong = [line.split(maxsplit=2)[2] for line in symbols if line.split(maxsplit=2)[1] == "T"]
    assert strong == [f"seqkernels::{isa}_kernels()"]
