"""Choosing an instruction set: the list, the environment, the context manager."""

from __future__ import annotations

import threading

import pytest
import torch

import recurrences
import seqkernels
from conftest import KNOWN_ISAS
from convolutions import CASES, converted, gradients, tensors
from seqkernels import cpu, functional
from subprocesses import run_python

RUN = """
    import torch, seqkernels
    seqkernels.functional.conv1d_max_pool(torch.zeros(1, 1, 3), torch.zeros(1, 1, 1))
    print(seqkernels.cpu.active_isa())
"""


def test_the_list_ends_with_the_one_in_use():
    available = cpu.available_isas()
    assert available == [name for name in KNOWN_ISAS if name in available]
    assert available[0] == "scalar"
    for environment in ({}, {"SEQKERNELS_ISA": ""}):
        process = run_python(RUN, **environment)
        assert process.stdout.strip() == available[-1], process.stderr


def test_the_environment_forces_one(isa):
    process = run_python(RUN, SEQKERNELS_ISA=isa)
    assert process.stdout.strip() == isa, process.stderr


@pytest.mark.parametrize("name", ["sse9", *KNOWN_ISAS])
def test_an_unknown_isa_in_the_environment_is_an_error(name):
    available = cpu.available_isas()
    if name in available:
        pytest.skip(f"this machine has {name}")
    process = run_python("import seqkernels; print('imported')", SEQKERNELS_ISA=name)
    assert process.returncode != 0 and not process.stdout
    message = process.stderr.splitlines()[-1]
    assert "SEQKERNELS_ISA" in message and repr(name) in message
    assert ", ".join(available) in message


@pytest.mark.parametrize("name", ["sse9", "Scalar", "", *KNOWN_ISAS])
def test_an_unknown_name_is_an_error_that_lists_the_others(name):
    available = cpu.available_isas()
    if name in available:
        pytest.skip(f"this machine has {name}")
    before = cpu.active_isa()
    with (
        pytest.raises(ValueError, match=f"{', '.join(available)}.* got '{name}'"),
        cpu.use_isa(name),
    ):
        pytest.fail("entered")
    assert cpu.active_isa() == before
    with pytest.raises(TypeError), cpu.use_isa(None):
        pytest.fail("entered")


def test_what_was_in_use_comes_back(isa):
    outside = cpu.active_isa()
    for inner in cpu.available_isas():
        with cpu.use_isa(inner):
            assert cpu.active_isa() == inner
            with cpu.use_isa(isa):
                assert cpu.active_isa() == isa
            assert cpu.active_isa() == inner
            with pytest.raises(KeyError), cpu.use_isa(isa):
                raise KeyError
            assert cpu.active_isa() == inner
            with pytest.raises(ValueError, match="expected one of"), cpu.use_isa("sse9"):
                pytest.fail("entered")
            assert cpu.active_isa() == inner
        assert cpu.active_isa() == outside == isa


def test_the_configuration_names_the_one_in_use(isa):
    line = next(line for line in seqkernels.show_config().splitlines() if "[" in line)
    assert f"[{isa}]" in line
    assert line.count("[") == 1
    assert all(name in line for name in cpu.available_isas())


def test_another_thread_waits_for_the_block_to_end():
    first, *_, last = cpu.available_isas()
    seen = []

    def other():
        with cpu.use_isa(last):
            seen.append(cpu.active_isa())

    thread = threading.Thread(target=other)
    with cpu.use_isa(first):
        thread.start()
        thread.join(timeout=0.2)
        assert thread.is_alive() and not seen
        assert cpu.active_isa() == first
    thread.join()
    assert seen == [last]


def results_of_everything(dtype: torch.dtype, *, with_blocks: bool = True) -> list[torch.Tensor]:
    """Outputs and gradients of every operation; `with_blocks`, also those that are summed in
    blocks of as many numbers as the vectors of an ISA hold."""
    results = []
    for sizes, keywords in CASES.values():
        arguments = converted(tensors(sizes), dtype) | keywords
        results.append(functional.conv1d_max_pool(**arguments))
        grad_input, *others = gradients(functional.conv1d_max_pool, arguments)
        results += [grad_input] if with_blocks or "pool_size" not in keywords else []
        results += others
    for kind in recurrences.KINDS:
        for sizes in ((5, 7, 13, 33), (3, 2, 5, 8)):
            arguments = recurrences.converted(recurrences.tensors(kind, sizes), dtype)
            results += recurrences.run(kind, arguments)
            results += recurrences.gradients(recurrences.run, kind, arguments)
    return results


def test_avx2_and_avx512_agree_to_the_last_bit(dtype):
    """Both fuse each multiply-add of one chain for an element, whatever their width."""
    missing = {"avx2", "avx512"} - set(cpu.available_isas())
    if missing:
        pytest.skip(f"no {' and no '.join(sorted(missing))} here")
    with cpu.use_isa("avx2"):
        narrow = results_of_everything(dtype, with_blocks=False)
    with cpu.use_isa("avx512"):
        wide = results_of_everything(dtype, with_blocks=False)
    assert all(map(torch.equal, narrow, wide))


def test_the_scalar_kernels_are_others(dtype):
    """That they differ in some last bit shows that the choice is obeyed."""
    available = cpu.available_isas()
    if available == ["scalar"]:
        pytest.skip("only the scalar kernels here")
    with cpu.use_isa("scalar"):
        scalar = results_of_everything(dtype)
    with cpu.use_isa(available[-1]):
        fast = results_of_everything(dtype)
    assert not all(map(torch.equal, scalar, fast))
    for one, other in zip(scalar, fast, strict=True):
        # Matrix tiles round the states that are multiplied: errors are of the largest number.
        rounding = 4 * torch.finfo(dtype).eps * float(one.detach().abs().amax())
        torch.testing.assert_close(one, other, atol=max(rounding, 1e-5), rtol=1e-5)
