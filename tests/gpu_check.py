"""On a machine with a GPU: build the CUDA kernels, test them, look for memory errors, time them.

It uses the Python that runs it, with its torch, pybind11, cmake, ninja, pytest, hypothesis and
rich, and needs no network. ``--all-architectures`` builds for every GPU in place of this one's;
``--quick`` leaves out the timings.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pathlib
import runpy
import shutil
import signal
import subprocess
import sys
import sysconfig
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "gpu"


def run(title: str, *command: object, limit: float | None = None) -> bool:
    """Run a command in the project's folder, its output shown; returns whether it succeeded.

    After ``limit`` seconds it is interrupted, as by Ctrl-C.
    """
    print(f"== {title}", flush=True)
    start = time.monotonic()
    with subprocess.Popen(list(map(str, command)), cwd=ROOT) as process:
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            status = process.wait()
    print(f"== {title}: exit status {status}, {time.monotonic() - start:.0f} s", flush=True)
    return status == 0


def build(all_architectures: bool) -> bool:
    """Build both modules and put them into the package's folder."""
    compiler = runpy.run_path(str(ROOT / "setup.py"))["cuda_compiler"]()
    if compiler is None:
        print("== found no CUDA compiler (nvcc)", flush=True)
        return False
    options = [
        "-DSEQKERNELS_CUDA=ON",
        f"-DCMAKE_CUDA_COMPILER={compiler}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    if not all_architectures:
        major, minor = torch.cuda.get_device_capability()
        specific = "a" if (major, minor) == (9, 0) else ""
        options.append(f"-DCMAKE_CUDA_ARCHITECTURES={major}{minor}{specific}-real")
    configured = run("configure", "cmake", "-G", "Ninja", "-S", ROOT, "-B", BUILD, *options)
    if not (configured and run("build", "cmake", "--build", BUILD)):
        return False
    for library in BUILD.glob("_c*.so"):
        shutil.copy(library, ROOT / "seqkernels")
    return True


def test() -> bool:
    parallel = ("-n", "8") if importlib.util.find_spec("xdist") else ()
    # Those of the build and of the emulated GPU belong to every machine's suite.
    chosen = "cuda and not quietly and not face"
    names = ("cuda", "cuda_gradients", "cuda_layers", "conv1d_max_pool")
    more = ("conv1d_max_pool_gradient", "recurrence", "recurrence_gradient")
    paths = [ROOT / "tests" / f"test_{name}.py" for name in (*names, *more)]
    return run("tests", sys.executable, "-m", "pytest", *parallel, "-k", chosen, *paths)


def sanitize() -> bool:
    """NVIDIA's checkers over calls of small shapes."""
    checker = shutil.which("compute-sanitizer")
    if checker is None:
        print("== compute-sanitizer is not installed: nothing looked for memory errors", flush=True)
        return True
    trial = (checker, sys.executable, "-c", "import torch; torch.zeros(1, device='cuda')")
    found = subprocess.run(trial, capture_output=True, text=True, check=False)
    if "Device not supported" in found.stdout + found.stderr:
        print("== compute-sanitizer does not support this device: nothing looked", flush=True)
        return True
    return all(
        [
            run(
                f"compute-sanitizer {tool}",
                checker,
                f"--tool={tool}",
                "--error-exitcode=1",
                sys.executable,
                ROOT / "tests" / "gpu_small_shapes.py",
            )
            for tool in ("memcheck", "racecheck")
        ]
    )


def measure() -> bool:
    """Time the suites and record it; what four minutes were enough for is in timings.json."""
    bench = (sys.executable, "-m", "bench", "run", "--device", "cuda")
    short = ("--min-time", "0.02", "--max-time", "0.06")
    recorded = run(
        "timings",
        *(*bench, *short, "--record", "--save", BUILD / "timings.json"),
        *("--suite", "gpu-convolution,gpu-recurrence", "--precision", "highest,high"),
        *("--provider", "seqkernels:graph,cudnn,cudnn-graph,torch-compile:conv1d+amax"),
        limit=240,
    )
    cells = run(
        "timings of cells",
        *(*bench, *short, "--op", "lstm_cell,rnn_cell", "--shapes", "N=1,16", "H=256"),
        *("--dtype", "bfloat16,float32", "--provider", "seqkernels,torch:cell"),
        *("--save", BUILD / "cells.json"),
        limit=60,
    )
    return recorded and cells


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all-architectures", action="store_true")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"gpu-check: torch {torch.__version__} finds no GPU that it can use")
        return 1
    tools = [sysconfig.get_path("scripts"), "/usr/local/cuda/bin"]
    os.environ["PATH"] = os.pathsep.join([*tools, os.environ.get("PATH", "")])
    if not build(arguments.all_architectures):
        return 1
    run("configuration", sys.executable, "-c", "import seqkernels as s; print(s.show_config())")
    results = {"tests": test(), "sanitizer": sanitize()}
    if not arguments.quick:
        results["timings"] = measure()
    print("== " + ", ".join(f"{name}: {'ok' if ok else 'FAILED'}" for name, ok in results.items()))
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
