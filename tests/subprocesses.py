"""Python in a process of its own, for tests of what holds for a whole process."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import textwrap

import seqkernels

TESTS = pathlib.Path(__file__).parent
PACKAGES = pathlib.Path(seqkernels.__file__).parents[1]


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run ``code`` with the tests and the package importable; output is captured as text.

    The environment is this one's without what would choose threads or an instruction set.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("OMP_NUM_THREADS", "SEQKERNELS_ISA")
    }
    path = os.pathsep.join(map(str, (TESTS, PACKAGES)))
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        env=inherited | {"PYTHONPATH": path} | environment,
        timeout=300,
    )
