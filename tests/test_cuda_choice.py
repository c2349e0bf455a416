"""The choice of CUDA kernels, by name, and what is said of it."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

import gpu
import recurrences
from seqkernels import cuda


@pytest.mark.parametrize(
    ("use", "what", "first", "one", "other", "names"),
    [
        (cuda.use_kernels, "kernels", "fast", "simple", "fast", "simple, fast"),
        (
            cuda.use_recurrence,
            "recurrence",
            "fastest",
            "cluster",
            "steps",
            "fastest, cluster, persistent, steps",
        ),
    ],
)
def test_kernels_are_chosen_by_name(use, what, first, one, other, names):
    with pytest.raises(ValueError, match=f"name: expected one of {names}, got 'best'"), use("best"):
        pass
    assert getattr(cuda._in_use, what) == first
    with use(one):
        assert getattr(cuda._in_use, what) == one
        with use(other):
            assert getattr(cuda._in_use, what) == other
        assert getattr(cuda._in_use, what) == one
    assert getattr(cuda._in_use, what) == first


@pytest.mark.parametrize(
    "choice",
    [lambda: cuda.use_kernels("simple"), lambda: cuda.use_recurrence("persistent")],
    ids=["kernels", "recurrence"],
)
def test_layers_that_are_compiled_keep_to_the_choice(choice):
    call = ("lstm", torch.empty(0), 4, 3, 40, False)
    with mock.patch.object(torch.compiler, "is_compiling", return_value=True):
        assert not cuda.is_ahead_of_cudnn(*call)
        with choice():
            assert cuda.is_ahead_of_cudnn(*call)


@pytest.fixture
def fast_kernels(build_folder):
    with gpu.kernels("fast", lambda: build_folder):
        yield


def gpu_to_explain() -> str:
    return "cuda" if cuda.is_available() else "cpu"  # the emulated one's


@pytest.mark.parametrize("name", cuda.RECURRENCES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", recurrences.KINDS)
def test_a_chosen_recurrence_computes_or_says_why_not(fast_kernels, kind, dtype, name):
    sizes = (4, 3, 5, 40)
    arguments = recurrences.tensors(kind, sizes)
    plans = cuda.explain_recurrence(kind, sizes[0], sizes[1], sizes[3], dtype, gpu_to_explain())
    refusal = plans["forward"].get(name, "")
    with cuda.use_recurrence(name):
        if refusal.startswith("expected"):
            with pytest.raises(ValueError, match=f"^use_recurrence: {refusal}"):
                recurrences.run(kind, recurrences.converted(arguments, dtype))
        else:
            recurrences.assert_right(kind, arguments, dtype)
            given = recurrences.converted(arguments, dtype)
            found = recurrences.gradients(recurrences.run, kind, given)
            with cuda.use_kernels("simple"):
                expected = recurrences.gradients(recurrences.run, kind, given)
            for gradient, exact in zip(found, expected, strict=True):
                tolerance = 8 * torch.finfo(dtype).eps * exact.abs().max().clamp(min=1)
                assert (gradient - exact).abs().max() <= tolerance


def test_each_chosen_recurrence_is_its_own_kernel(fast_kernels):
    """As is seen by what the native module is asked for: only the exchange through memory needs
    scratch, and a step at a time is a call each."""
    native = cuda._native()
    sizes = (4, 3, 5, 40)
    arguments = recurrences.converted(recurrences.tensors("lstm", sizes), torch.bfloat16)
    needed, calls = {}, {}
    for name in ("cluster", "persistent", "steps"):
        if explained(name).startswith("expected"):
            continue  # a GPU without clusters
        needed[name] = []

        def scratch(*arguments, sizes=needed[name], function=native.recurrence_scratch):
            sizes.append(function(*arguments))
            return sizes[-1]

        with (
            cuda.use_recurrence(name),
            mock.patch.object(native, "recurrence_scratch", scratch),
            mock.patch.object(
                native, "recurrence_forward", wraps=native.recurrence_forward
            ) as forward,
        ):
            recurrences.run("lstm", arguments)
        calls[name] = forward.call_count
    assert needed.pop("steps") == [] and calls.pop("steps") == sizes[0]
    assert len(needed["persistent"]) == 1 and needed.pop("persistent")[0] > 0
    assert needed in ({}, {"cluster": [0]})
    assert set(calls.values()) == {1}


def explained(name: str, dtype=torch.bfloat16, sizes=(4, 3, 40)) -> str:
    return cuda.explain_recurrence("lstm", *sizes, dtype, gpu_to_explain())["forward"].get(name, "")


def test_recurrences_are_explained(fast_kernels):
    assert explained("persistent").endswith(" units, 1 x 8 samples a step")
    assert explained("kernel") in ("cluster", "persistent")
    assert explained("kernel", torch.float64) == "simple"
    assert explained("persistent", torch.float64) == "expected numbers of 2 or 4 bytes, got 8"
    assert explained("kernel", sizes=(1, 3, 40)) == "steps"
    assert explained("cluster", sizes=(1, 3, 40)) == "expected 2 steps or more, got 1"
    assert explained("kernel", sizes=(4, 0, 40)) == "simple"
    no_cluster = "expected a GPU with clusters, got one without"
    too_large = "expected up to 256 hidden units, got 300"
    assert explained("cluster", sizes=(4, 3, 300)) in (too_large, no_cluster)
    assert explained("kernel", sizes=(4, 3, 10**6)) == "steps"
    with pytest.raises(ValueError, match="64 bits"):
        explained("kernel", sizes=(4, 2**62, 40))
    with pytest.raises(RuntimeError, match=r"^hidden: expected at least 0, got -1"):
        explained("kernel", sizes=(4, 3, -1))
    with pytest.raises(
        ValueError, match=r"^dtype: expected one of torch\.float32, .*, got torch\.int16"
    ):
        explained("kernel", torch.int16)
    with pytest.raises(
        ValueError, match=r"^cell: expected one of lstm, rnn_tanh, rnn_relu, got 'gru'"
    ):
        cuda.explain_recurrence("gru", 4, 3, 40, torch.bfloat16, gpu_to_explain())


def test_a_device_without_kernels_is_not_explained(fast_kernels):
    device = "cpu" if cuda.is_available() else "cuda:0"
    message = rf"^device: expected a GPU of compute capability 8\.0 or more, got {device}"
    with pytest.raises(RuntimeError, match=message):
        cuda.explain_recurrence("lstm", 4, 3, 40, torch.bfloat16, device)
