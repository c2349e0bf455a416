"""The CUDA module: its build, its face, and what only a GPU shows."""

from __future__ import annotations

import re
import runpy
import struct
import subprocess
import sys
from unittest import mock

import pytest
import torch

import builds
import gpu
import recurrences
import seqkernels
from convolutions import converted, gradients, laid_out, tensors
from seqkernels import checks, cuda, functional

needs_gpu = pytest.mark.skipif(
    not cuda.is_available(), reason="no GPU here, or no CUDA kernels in this installation"
)


@pytest.fixture(scope="module")
def emulated(build_folder):
    return gpu.emulated_module(build_folder)


# The build


def setup_arguments(monkeypatch, **environment: str) -> list[str]:
    """What setup.py tells CMake."""
    monkeypatch.delenv("SEQKERNELS_CUDA", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(builds.ROOT / "setup.py"), run_name="__main__")
    return setup.call_args.kwargs["cmake_args"]


@pytest.fixture
def some_compiler(tmp_path, monkeypatch):
    compiler = tmp_path / "nvcc"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CUDACXX", str(compiler))
    return compiler


def test_the_environment_decides_whether_cuda_kernels_are_built(some_compiler, monkeypatch):
    on = ["-DSEQKERNELS_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={some_compiler}"]
    assert setup_arguments(monkeypatch, SEQKERNELS_CUDA="1") == on
    assert setup_arguments(monkeypatch, SEQKERNELS_CUDA="0") == ["-DSEQKERNELS_CUDA=OFF"]
    with pytest.raises(SystemExit, match="SEQKERNELS_CUDA: expected 0 or 1, got 'yes'"):
        setup_arguments(monkeypatch, SEQKERNELS_CUDA="yes")


@pytest.mark.parametrize(
    ("line", "built"),
    [
        ("cuda: Optional[str] = None", False),
        ("cuda: str | None = None", False),
        ("cuda = None", False),
        ("cuda: Optional[str] = '13.0'", True),
        (None, True),
    ],
)
def test_they_are_built_where_torch_can_use_them(some_compiler, monkeypatch, tmp_path, line, built):
    if line is not None:
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "version.py").write_text(f"debug = False\n{line}\n")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert ("-DSEQKERNELS_CUDA=ON" in setup_arguments(monkeypatch)) == built


def embedded_code(library: bytes) -> set[str]:
    """The architectures of the machine code ("sm_80") and PTX ("compute_90") in a library.

    Of each "fat binary": a header of magic number, version, its own size and that of what follows;
    and entries with a header each: kind (1: PTX, 2: machine code), version, its own size, the size
    of what follows, and at 28 bytes the architecture.
    """
    found = set()
    for match in re.finditer(re.escape(struct.pack("<I", 0xBA55ED50)), library):
        _, _, header, size = struct.unpack_from("<IHHQ", library, match.start())
        place = match.start() + header
        end = place + size
        while place < end:
            kind, _, header, size = struct.unpack_from("<HHIQ", library, place)
            (architecture,) = struct.unpack_from("<I", library, place + 28)
            found.add(f"{ {1: 'compute', 2: 'sm'}[kind] }_{architecture}")
            place += header + size
    return found


def test_compiles_quietly_for_every_architecture(tmp_path):
    compiler = runpy.run_path(str(builds.ROOT / "setup.py"))["cuda_compiler"]()
    if compiler is None:
        pytest.skip("no CUDA compiler (nvcc) on this machine")
    options = ("-DSEQKERNELS_CUDA=ON", f"-DPython_EXECUTABLE={sys.executable}")
    builds.build(tmp_path, "_cuda", *options, f"-DCMAKE_CUDA_COMPILER={compiler}")
    (library,) = tmp_path.glob("_cuda*.so")
    assert embedded_code(library.read_bytes()) == {"sm_80", "sm_86", "sm_89", "sm_90", "compute_90"}
    process = subprocess.run(
        [sys.executable, "-c", "import _cuda; print(_cuda.architectures)"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert process.stdout == "sm_80 sm_86 sm_89 sm_90a compute_90\n", process.stderr


def test_an_old_compiler_builds_no_cuda_kernels(some_compiler, monkeypatch, capsys):
    monkeypatch.setattr("sysconfig.get_path", lambda name: "/nowhere")
    for release, built in (("11.8", False), ("12.3", False), ("12.4", True), ("13.0", True)):
        some_compiler.write_text(
            f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V'\n"
        )
        assert ("-DSEQKERNELS_CUDA=ON" in setup_arguments(monkeypatch)) == built
        assert ("older than CUDA 12.4" in capsys.readouterr().out) != built
    some_compiler.write_text("#!/bin/sh\necho 'release 11.8, V'\n")
    with pytest.raises(SystemExit, match=r"older than CUDA 12\.4"):
        setup_arguments(monkeypatch, SEQKERNELS_CUDA="1")


def test_the_configuration_says_whether_there_are_cuda_kernels():
    lines = seqkernels.show_config().splitlines()
    (line,) = (line for line in lines if line.startswith("CUDA kernels: "))
    assert ("not in this build" in line) != cuda.is_built()


def test_without_cuda_kernels_nothing_is_said_to_be_there():
    if cuda.is_built():
        pytest.skip("this installation has CUDA kernels")
    assert not cuda.is_available()
    assert not cuda.has_kernel("conv1d_max_pool", torch.empty(1, device="meta"))
    with pytest.raises(RuntimeError, match="no CUDA kernels"):
        cuda.architectures()


# The face


def forward_arguments(**changes) -> dict:
    """Of a forward that needs scratch memory."""
    return {
        "input": torch.randn(2, 9, 8),
        "weight": torch.randn(5, 8, 3),
        "bias": torch.randn(5),
        "lengths": torch.tensor([9, 4]),
        "output": torch.full((2, 3, 5), 7.0),
        "argmax": torch.full((2, 3, 5), 7, dtype=torch.int32),
        "geometry": (1, 0, 0, 1, 2, 2),
        "activation": "relu",
        "where": (0, torch.empty(1 << 16, dtype=torch.int64), "fast", False),
    } | changes


def scratch_elements(emulated, arguments: dict) -> int:
    names = ("input", "weight", "geometry")
    bytes_needed = emulated.conv1d_max_pool_forward_scratch(*map(arguments.get, names), "fast")
    assert bytes_needed > 0 and bytes_needed % 256 == 0
    return bytes_needed // 8


def test_the_face_takes_what_is_right(emulated):
    arguments = forward_arguments()
    count = scratch_elements(emulated, arguments)
    arguments["where"] = (0, torch.empty(count, dtype=torch.int64), "fast", False)
    emulated.conv1d_max_pool_forward(*arguments.values())
    assert not torch.any(arguments["output"] == 7) and not torch.any(arguments["argmax"] == 7)


def test_the_face_refuses_what_does_not_fit(emulated):
    count = scratch_elements(emulated, forward_arguments())
    right = torch.empty(count, dtype=torch.int64)
    mistakes = [
        ({"where": (0, None, "fast", False)}, "^scratch: expected .* bytes, got none"),
        ({"where": (0, right[1:], "fast", False)}, "^scratch: expected int64 of shape"),
        ({"where": (0, right.double(), "fast", False)}, "^scratch: expected int64 of shape"),
        ({"where": (0, right, "best", False)}, "^kernels: expected simple or fast, got 'best'"),
        ({"lengths": torch.tensor([9])}, "^lengths: expected int64 of shape"),
        ({"lengths": torch.tensor([9, 4], dtype=torch.int32)}, "^lengths: expected int64"),
        ({"weight": torch.randn(5, 7, 3)}, "^weight: expected float32 of shape"),
        ({"output": torch.full((2, 4, 5), 7.0)}, "^output: expected float32 of shape"),
        ({"input": torch.randn(2, 9, 8).long()}, "^input: expected float32, float64, bfloat16"),
    ]
    for mistake, message in mistakes:
        changed = {"where": (0, right, "fast", False)} | mistake
        arguments = forward_arguments(**changed)
        with pytest.raises(ValueError, match=message):
            emulated.conv1d_max_pool_forward(*arguments.values())
        assert torch.all(arguments["argmax"] == 7)


def test_the_face_of_the_backward_asks_for_scratch(emulated):
    arguments = forward_arguments()
    count = scratch_elements(emulated, arguments)
    arguments["where"] = (0, torch.empty(count, dtype=torch.int64), "fast", False)
    emulated.conv1d_max_pool_forward(*arguments.values())
    gradients_of = {"input": (2, 9, 8), "weight": (5, 8, 3), "bias": (5,)}
    results = {name: torch.full(shape, 7.0) for name, shape in gradients_of.items()}

    def run(scratch):
        emulated.conv1d_max_pool_backward(
            torch.ones(2, 3, 5),
            *map(arguments.get, ("output", "argmax", "input", "weight", "lengths")),
            *results.values(),
            *map(arguments.get, ("geometry", "activation")),
            (0, scratch, "fast", False),
        )

    names = ("input", "weight", "geometry")
    count = emulated.conv1d_max_pool_backward_scratch(*map(arguments.get, names), "fast") // 8
    assert count > 0
    with pytest.raises(ValueError, match=r"^scratch: expected .* bytes, got none"):
        run(None)
    with pytest.raises(ValueError, match=r"^scratch: expected int64 of shape"):
        run(torch.empty(count - 1, dtype=torch.int64))
    assert all(torch.all(result == 7) for result in results.values())
    run(torch.empty(count, dtype=torch.int64))
    assert not any(torch.any(result == 7) for result in results.values())


def test_the_face_of_recurrences_refuses_a_step_that_is_none(emulated):
    steps, batch, hidden = 3, 2, 4
    tensors = {
        "projections": torch.randn(steps, batch, hidden),
        "initial_hidden": torch.randn(batch, hidden),
        "initial_cell": None,
        "weight": torch.randn(hidden, hidden),
        "bias_ih": None,
        "bias_hh": None,
        "lengths": None,
        "output": torch.full((steps, batch, hidden), 7.0),
        "final_hidden": torch.zeros(batch, hidden),
        "final_cell": None,
        "running_cell": None,
        "gates": None,
        "cells": None,
        "recurrent": torch.randn(batch, hidden),
    }
    where = (0, None, "simple", False)

    def run(step, **changes):
        emulated.recurrence_forward("rnn_tanh", False, *(tensors | changes).values(), step, where)

    run(0)
    assert torch.all(tensors["output"][0] != 7) and torch.all(tensors["output"][1:] == 7)
    for step in (-1, 3):
        with pytest.raises(ValueError, match=f"^step: expected 0 to 2, got {step}"):
            run(step)
    with pytest.raises(ValueError, match=r"^recurrent: expected float32 of shape"):
        run(1, recurrent=torch.randn(batch + 1, hidden))


# What is peculiar to these kernels


@pytest.fixture(params=cuda.KERNELS)
def cuda_kernels(request, build_folder):
    """Each set of CUDA kernels, on the machine's GPU or an emulated one."""
    with gpu.kernels(request.param, lambda: build_folder):
        yield request.param


@pytest.mark.parametrize("pooling", [{}, {"pool_size": 2}], ids=str)
def test_wrong_lengths_on_the_device_do_no_harm(cuda_kernels, pooling):
    """Nobody waits for a device to look at them: what is beyond L counts as L, below 0 as 0."""
    arguments = tensors((4, 5, 9, 7, 3)) | pooling
    arguments["lengths"] = torch.tensor([9, 0, 9, 4])
    expected = gradients(functional.conv1d_max_pool, arguments)
    with mock.patch.object(checks, "check_lengths"):
        arguments["lengths"] = torch.tensor([2**62, -(2**62), 10, 4])
        found = gradients(functional.conv1d_max_pool, arguments)
    assert all(map(torch.equal, found, expected))


def test_float32_is_rounded_to_tf32_only_by_torchs_leave(cuda_kernels):
    arguments = laid_out(converted(tensors((3, 64, 40, 20, 3)), torch.float32), True)
    exact = functional.conv1d_max_pool(**converted(arguments, torch.float64))
    errors = {}
    for precision in ("ieee", "tf32"):
        with gpu.float32_products(precision):
            output = functional.conv1d_max_pool(**arguments)
        errors[precision] = ((output - exact).abs().max() / exact.abs().max()).item()
    assert errors["ieee"] < 2.0**-20
    if cuda_kernels == "fast":
        assert 2.0**-16 < errors["tf32"] < 2.0**-9
    else:
        assert errors["tf32"] == errors["ieee"]


# What only a GPU shows


def on_device(dtype=torch.bfloat16, sizes=(16, 64, 200, 96, 3)) -> dict:
    arguments = laid_out(converted(tensors(sizes), dtype), True) | {"activation": "relu"}
    return {
        name: value.cuda() if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }


@needs_gpu
def test_runs_in_torchs_current_stream_on_cuda():
    arguments = on_device()
    expected = functional.conv1d_max_pool(**arguments)
    source = arguments["input"].clone()
    arguments["input"].zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        arguments["input"].copy_(source)
        output = functional.conv1d_max_pool(**arguments)
    stream.synchronize()
    assert torch.equal(output, expected)


@needs_gpu
@pytest.mark.parametrize("dtype", functional.NATIVE_DTYPES, ids=str)
@pytest.mark.parametrize("pooling", [{}, {"pool_size": 2}], ids=str)
def test_a_cuda_graph_replays_forward_and_backward(dtype, pooling):
    arguments = on_device(dtype) | pooling
    arguments["lengths"] = torch.arange(200, 184, -1, device="cuda")
    leaves = [arguments[name].requires_grad_() for name in ("input", "weight", "bias")]

    def run():
        output = functional.conv1d_max_pool(**arguments)
        return output.detach(), *torch.autograd.grad(output, leaves, torch.ones_like(output))

    expected = run()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    for result in results:
        result.detach().zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, results, expected))


def recurrence_on_device(sizes=(20, 32, 48, 256), dtype=torch.bfloat16) -> dict:
    arguments = recurrences.converted(recurrences.tensors("lstm", sizes), dtype)
    lengths = torch.arange(sizes[1]) % (sizes[0] + 1)
    return {
        name: recurrences.mapped(lambda tensor: tensor.cuda(), value)
        for name, value in (arguments | {"lengths": lengths}).items()
    }


def lstm_and_gradients(arguments: dict) -> list[torch.Tensor]:
    leaves = recurrences.leaves_of(arguments)
    output, states = functional.lstm(**leaves)
    results = [output, *states]
    ones = [torch.ones_like(result) for result in results]
    return [*results, *torch.autograd.grad(results, recurrences.floating(leaves), ones)]


@needs_gpu
def test_a_cuda_graph_replays_a_recurrence():
    """Twice: what its blocks count of each other begins anew."""
    arguments = recurrence_on_device()
    expected = lstm_and_gradients(arguments)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        lstm_and_gradients(arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = lstm_and_gradients(arguments)
    for _ in range(2):
        for result in results:
            result.detach().zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert all(map(torch.equal, results, expected))


@needs_gpu
def test_blocks_on_cuda_find_what_others_wrote_time_and_again():
    arguments = recurrence_on_device((200, 64, 48, 768))
    with cuda.use_kernels("simple"):
        expected = lstm_and_gradients(arguments)
    first = lstm_and_gradients(arguments)
    for found, exact in zip(first, expected, strict=True):
        scale = exact.abs().max().clamp(min=1)
        assert (found - exact).abs().max() <= 2.0**-4 * scale
    for _ in range(20):
        assert all(map(torch.equal, lstm_and_gradients(arguments), first))


@needs_gpu
def test_recurrences_in_two_cuda_streams_at_once_do_not_wait_for_each_other():
    arguments = recurrence_on_device((100, 16, 48, 768))
    expected = lstm_and_gradients(arguments)
    streams = [torch.cuda.Stream() for _ in range(2)]
    results = []
    torch.cuda.synchronize()
    for _ in range(5):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(lstm_and_gradients(arguments))
    torch.cuda.synchronize()
    for found in results:
        assert all(map(torch.equal, found, expected))


@needs_gpu
def test_cuda_tensors_are_computed_by_the_packages_kernels(recwarn):
    arguments = on_device()
    functional.conv1d_max_pool(**arguments)
    layer = seqkernels.nn.Conv1dMaxPool(64, 96, 3, channels_last=True, device="cuda")
    layer(torch.randn(4, 20, 64, device="cuda")).sum().backward()
    assert not [warning for warning in recwarn if "seqkernels" in str(warning.message)]


@needs_gpu
def test_compiles_whole_on_cuda():
    arguments = on_device(torch.float32)

    def function(input, weight, bias):
        return functional.conv1d_max_pool(input, weight, bias, channels_last=True).relu()

    tensors_given = [arguments[name] for name in ("input", "weight", "bias")]
    compiled = torch.compile(function, fullgraph=True)
    assert torch.equal(compiled(*tensors_given), function(*tensors_given))


@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_runs_on_the_cuda_device_of_its_tensors():
    arguments = on_device()
    expected = functional.conv1d_max_pool(**arguments)
    moved = {
        name: value.to("cuda:1") if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }
    output = functional.conv1d_max_pool(**moved)
    assert output.device.index == 1 and torch.cuda.current_device() == 0
    assert torch.equal(output.to("cuda:0"), expected)
