"""The GPU that tests run the CUDA kernels on: the machine's, or else an emulated one.

An emulated one takes the CPU's tensors. The machine's gets copies of them, whichever test they come
from, and gives copies of its results back.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import pathlib
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import Tensor

import builds
from seqkernels import cuda, functional


@contextlib.contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """torch's own switch: "ieee", or "tf32"."""
    switch = torch.backends.cudnn.conv
    before, switch.fp32_precision = switch.fp32_precision, precision
    try:
        yield
    finally:
        switch.fp32_precision = before


@contextlib.contextmanager
def kernels(name: str, folder: Callable[[], pathlib.Path]) -> Iterator[None]:
    """Let what has CUDA kernels in ``functional`` run on the GPU, with one set of them.

    ``folder`` is called for a place to build the emulated one in.
    """
    if cuda.is_available():
        moving = {name: on_gpu(getattr(functional, name)) for name in cuda.OPERATIONS}
        replaced = mock.patch.multiple(functional, **moving)
    else:
        replaced = mock.patch.multiple(
            cuda,
            _native=lambda: emulated_module(folder()),
            _stream=lambda tensor: 0,
            is_on_device=lambda input: True,
        )
    with replaced, cuda.use_kernels(name), float32_products("ieee"):
        yield


def on_gpu(function):
    """The function, of arguments on the CPU, computed on the GPU."""

    def to(value, device: str):
        if isinstance(value, (tuple, list)):
            return tuple(to(part, device) for part in value)
        return value.to(device) if isinstance(value, Tensor) else value

    @functools.wraps(function)
    def call(*arguments, **keywords):
        moved = [to(value, "cuda") for value in arguments]
        return to(function(*moved, **{k: to(v, "cuda") for k, v in keywords.items()}), "cpu")

    return call


def emulated_module(folder: pathlib.Path):
    """The CUDA module built for an emulated GPU."""
    module, failure = _built(folder)
    assert module is not None, failure
    return module


@functools.lru_cache(maxsize=1)
def _built(folder: pathlib.Path) -> tuple:
    """The module, or None and what the build said: a build that failed is not tried again."""
    try:
        builds.build_for_processor(folder, "_emulated_cuda")
    except AssertionError as error:
        return None, str(error)
    (library,) = folder.glob("_emulated_cuda*.so")
    specification = importlib.util.spec_from_file_location("_emulated_cuda", library)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module, None
