"""What the figures come from: machine, libraries, switches, and rates measured on the spot."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import seqkernels
from seqkernels import _cpu

from .timing import cache_sizes, synchronize

PEERS = ("onnx", "onnxruntime", "openvino", "flashrnn", "haste-pytorch")


def describe() -> dict[str, Any]:
    """Everything that is not measured."""
    described = {
        "seqkernels": seqkernels.__version__,
        "commit": _commit(),
        "isa": seqkernels.cpu.active_isa(),
        "isas": seqkernels.cpu.available_isas(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "caches": cache_sizes(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onednn": _onednn_version(),
        "threads": torch.get_num_threads(),
        "float32_products": {
            name: switch.fp32_precision for name, switch in float32_switches().items()
        },
        "peers": {name: version for name in PEERS if (version := _version(name))},
    }
    if torch.cuda.is_available():
        described["cuda"] = {
            "device": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return described


def float32_switches() -> dict[str, Any]:
    """torch's switches for what float32 products may be computed in, by name."""
    return {
        f"{backend}.{operation}": getattr(getattr(torch.backends, backend), operation)
        for backend, operations in (
            ("mkldnn", ("matmul", "conv", "rnn")),
            ("cuda", ("matmul",)),
            ("cudnn", ("conv", "rnn")),
        )
        for operation in operations
    }


def machine_name(environment: dict[str, Any], device: str) -> str:
    """A file name for the records of a machine's processor or GPU and a version of the package."""
    if device == "cuda":
        text = environment["cuda"]["device"]
    else:
        text = f"{environment['cpu']}-{environment['cores']}-cores-{environment['isa']}"
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return f"{words}-{environment['seqkernels']}"


# What runs leave in a checkout changes nothing that is measured.
_RESULTS = (":(top,exclude)bench/records", ":(top,exclude)docs")


def _commit() -> str | None:
    """The commit of the checkout that this runs from, and whether files differ from it."""
    git = ("git", "-C", str(Path(__file__).parent))
    try:
        found = [
            subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout
            for words in (
                ("ls-files", "--error-unmatch", __file__),
                ("rev-parse", "--short=12", "HEAD"),
                ("status", "--porcelain", "--untracked-files=no", "--", ":/", *_RESULTS),
            )
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return found[1].strip() + (" with changes" if found[2].strip() else "")


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"model name\s*:\s*(.+)", text)
    numbers = re.search(r"cpu family\s*:\s*(\d+)\s*\nmodel\s*:\s*(\d+)", text)
    name = found.group(1).strip() if found else platform.machine()
    # Virtual machines name the processor vaguely; family and model tell which it is.
    return f"{name} (family {numbers[1]}, model {numbers[2]})" if numbers else name


def _onednn_version() -> str | None:
    found = re.search(r"MKL-DNN v(\S+)", torch.__config__.show())
    return found.group(1) if found else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def measure_peaks(
    threads: int, device: str = "cpu", dtypes: tuple[str, ...] = ("float32",)
) -> dict[str, Any]:
    """Rates of this machine, on so many threads.

    "product": FLOP/s of ``torch.mm`` on square matrices, by dtype: the fastest of a few sizes. It
    is what a good library reaches.
    "peak": FLOP/s that the arithmetic units do at most: of float32 and float64 fused multiply-adds
    in registers, with the instruction set in use; of bfloat16 products where there are
    instructions for them. Of 16-bit types otherwise float32's peak, or the product rate if that is
    higher. On CUDA the product rate.
    "bandwidth": bytes per second. On the CPU of reading from L2, L3 and memory: every thread reads
    its own part over and over, half of a cache at once or far more than the last. On CUDA of
    ``Tensor.copy_``, read and written bytes.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        products = {}
        for dtype in dtypes:
            rate = _product_rate(getattr(torch, dtype), device)
            if rate:
                products[dtype] = rate
        return {
            "threads": threads,
            "device": device,
            "product": products,
            "peak": {
                dtype: product if device == "cuda" else _peak(dtype, product, threads)
                for dtype, product in products.items()
            },
            "bandwidth": _bandwidths(device, threads),
        }
    finally:
        torch.set_num_threads(before)


def _peak(dtype: str, product_rate: float, threads: int) -> float:
    """FLOP/s of a CPU's arithmetic units."""
    own = 0.0
    if dtype == "bfloat16":
        own = _rate(lambda repetitions: _cpu.bfloat16_products(repetitions, threads))
    if own:
        return own
    is_narrow = dtype in ("bfloat16", "float16")
    wide = "float32" if is_narrow else dtype
    peak = _rate(lambda repetitions: _cpu.multiply_adds(wide, repetitions, threads))
    return max(peak, product_rate) if is_narrow else peak


def _bandwidths(device: str, threads: int) -> dict[str, float]:
    if device == "cuda":
        return {"memory": _copy_rate(1 << 30, device)}
    caches = cache_sizes()
    # A level-2 cache belongs to a core: every thread brings its own.
    sizes = {"L2": caches["L2"] // 2 * threads} if "L2" in caches else {}
    sizes |= {"L3": caches["L3"] // 2} if "L3" in caches else {}
    sizes["memory"] = max(256 << 20, 4 * max(caches.values(), default=0))
    rates = {}
    for name, size in sizes.items():
        source = torch.randn(size // 4)
        rates[name] = _rate(lambda n, source=source: _cpu.reads(source, n, threads))
    return rates


def _rate(work: Callable[[int], float], budget: float = 0.12) -> float:
    """The most per second of what ``work(repetitions)`` does and counts; 0 if it does nothing."""
    repetitions, best, end = 1, 0.0, time.perf_counter() + budget
    while time.perf_counter() < end:
        start = time.perf_counter()
        done = work(repetitions)
        if not done:
            return 0.0
        seconds = time.perf_counter() - start
        best = max(best, done / seconds)
        if seconds < 5e-3:
            repetitions *= 2
    return best


def _product_rate(dtype: torch.dtype, device: str) -> float | None:
    sizes = (4096, 8192) if device == "cuda" else (256, 512, 1024, 1536)
    best = 0.0
    for size in sizes:
        try:
            first, second = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            output = first @ second
        except RuntimeError:  # no product in this dtype here
            return None
        seconds = _shortest(lambda a=first, b=second, c=output: torch.mm(a, b, out=c), device)
        best = max(best, 2.0 * size**3 / seconds)
        if seconds > 0.05:  # a larger one would take its time and be no faster
            break
    return best


def _copy_rate(size: int, device: str) -> float:
    source = torch.randn(size // 8, device=device)
    target = torch.empty_like(source)
    return 2.0 * source.nbytes / _shortest(lambda: target.copy_(source), device)


def _shortest(run: Callable[[], object], device: str, budget: float = 0.12) -> float:
    """Seconds a call in the quickest of the samples that fit in the budget, of 2 at least."""

    def timed(calls: int) -> float:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            run()
        synchronize(device)
        return (time.perf_counter() - start) / calls

    timed(1)
    calls = max(1, round(1e-3 / max(timed(1), 1e-7)))
    best, start, count = float("inf"), time.perf_counter(), 0
    while count < 2 or time.perf_counter() - start < budget:
        best = min(best, timed(calls))
        count += 1
    return best
