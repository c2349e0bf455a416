"""On a machine with a GPU: build the CUDA kernels, test them, look for memory errors, time them.

It uses the Python that runs it, with its torch, pybind11, cmake, ninja, pytest and hypothesis, and
needs no network. ``--all-architectures`` builds for every GPU in place of this one's; ``--quick``
leaves out the timings.
"""

from __future__ import annotations

import argparse
import importlib.util
import pathlib
import shutil
import subprocess
import sys
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "gpu"


def run(title: str, *command: object) -> bool:
    """Run a command in the project's folder, its output shown; returns whether it succeeded."""
    print(f"== {title}", flush=True)
    start = time.monotonic()
    status = subprocess.run(list(map(str, command)), cwd=ROOT, check=False).returncode
    print(f"== {title}: exit status {status}, {time.monotonic() - start:.0f} s", flush=True)
    return status == 0


def build(all_architectures: bool) -> bool:
    """Build both modules and put them into the package's folder."""
    options = ["-DSEQKERNELS_CUDA=ON", f"-DPython_EXECUTABLE={sys.executable}"]
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
    files = ("test_cuda.py", "test_conv1d_max_pool.py", "test_conv1d_max_pool_gradient.py")
    paths = (ROOT / "tests" / name for name in files)
    return run("tests", sys.executable, "-m", "pytest", *parallel, "-k", "cuda", *paths)


def sanitize() -> bool:
    """NVIDIA's checkers over calls of small shapes."""
    checker = shutil.which("compute-sanitizer")
    if checker is None:
        print("== compute-sanitizer is not installed: nothing looked for memory errors", flush=True)
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
    return run(
        "timings",
        *(sys.executable, "-m", "bench", "run", "--device", "cuda", "--record"),
        *("--suite", "gpu-convolution", "--precision", "highest,high"),
        *("--provider", "all", "--min-time", "0.03", "--max-time", "0.09"),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all-architectures", action="store_true")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"gpu-check: torch {torch.__version__} finds no GPU that it can use")
        return 1
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
