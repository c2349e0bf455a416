"""What all tests share: kernels, dtypes, torch's thread count, hypothesis' profile."""

from __future__ import annotations

import contextlib
import os

import hypothesis
import pytest
import torch

import gpu
import seqkernels
from seqkernels import functional

KNOWN_ISAS = ("scalar", "avx2", "avx512", "avx512_bf16", "amx")
#: Those that multiply bfloat16 as it is, in tiles.
BFLOAT16_ISAS = ("avx512_bf16", "amx")

# The same examples in every run, and few enough that the suite stays quick. A test's fixtures hold
# for all its examples: an instruction set is forced for the whole of it.
hypothesis.settings.register_profile(
    "seqkernels",
    deadline=None,
    derandomize=True,
    max_examples=25,
    database=None,
    suppress_health_check=[
        hypothesis.HealthCheck.function_scoped_fixture,
        hypothesis.HealthCheck.too_slow,
    ],
)
hypothesis.settings.load_profile("seqkernels")


def pytest_collection_modifyitems(items):
    """What builds comes first, since it takes longest: files run side by side (make test)."""
    first = ("test_native", "test_cuda", "test_install")
    items.sort(key=lambda item: item.module.__name__ not in first)


def pytest_configure(config):
    config.addinivalue_line(
        "filterwarnings", "ignore:Using padding='same' with even kernel lengths:UserWarning"
    )


@contextlib.contextmanager
def in_use(isa: str):
    available = seqkernels.cpu.available_isas()
    if isa not in available:
        pytest.skip(f"no {isa} here: this machine and build have {', '.join(available)}")
    with seqkernels.cpu.use_isa(isa):
        yield


@pytest.fixture(params=KNOWN_ISAS)
def isa(request):
    """Each instruction set's name, with its kernels in use; skipped where the machine lacks it."""
    with in_use(request.param):
        yield request.param


def anywhere(name: str, build_folder) -> contextlib.AbstractContextManager:
    if name.startswith("cuda-"):
        return gpu.kernels(name.removeprefix("cuda-"), lambda: build_folder)
    return in_use(name)


@pytest.fixture(scope="session")
def build_folder(tmp_path_factory):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return tmp_path_factory.mktemp("for_processor")
    # One for all workers, of whom one builds while the others wait.
    folder = tmp_path_factory.getbasetemp().parent / "for_processor"
    folder.mkdir(exist_ok=True)
    return folder


CUDA_KERNELS = tuple(f"cuda-{name}" for name in seqkernels.cuda.KERNELS)


@pytest.fixture(params=(*KNOWN_ISAS, *CUDA_KERNELS))
def kernels(request, build_folder):
    """``isa``'s, and each set of CUDA kernels: on the machine's GPU, or else on an emulated one."""
    with anywhere(request.param, build_folder):
        yield request.param


@pytest.fixture(params=functional.NATIVE_DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture(autouse=True)
def set_threads():
    """``torch.set_num_threads``, undone after the test.

    Tests begin on one thread: on small work the threads of a busy machine mostly wait for each
    other. Those of several threads say how many.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)
