"""Products of float32 at the precision that torch's switches allow."""

from __future__ import annotations

import pytest
import torch

import convolutions
import recurrences
from conftest import BFLOAT16_ISAS
from seqkernels import cpu, functional

#: Of the largest number of a result, by switch; see csrc/cpu/tile_product.h.
ERRORS = {"highest": 1e-6, "high": 2e-5, "medium": 2e-2}
SIZES = (12, 24, 70, 96)


@pytest.fixture
def precision(request):
    """torch's switch for float32 matrix products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def errors(found, exact) -> list[float]:
    pairs = zip(found, exact, strict=True)
    return [float((one - other).abs().max() / other.abs().max()) for one, other in pairs]


def results(dtype: torch.dtype) -> list[torch.Tensor]:
    """Outputs and gradients of a convolution and of both recurrences."""
    arguments = convolutions.converted(convolutions.tensors((5, 33, 40, 50, 3)), dtype)
    found = [functional.conv1d_max_pool(**arguments)]
    for kind in ("lstm", "rnn_tanh"):
        given = recurrences.converted(recurrences.tensors(kind, SIZES), dtype)
        found += recurrences.run(kind, given)
        found += recurrences.gradients(recurrences.run, kind, given)
    return found


@pytest.mark.parametrize("precision", list(ERRORS), indirect=True)
def test_errors_are_within_what_the_switch_allows(isa, precision):
    assert max(errors(results(torch.float32), results(torch.float64))) < ERRORS[precision]


@pytest.mark.parametrize("precision", ["high", "medium"], indirect=True)
def test_a_lower_precision_takes_fewer_products(isa, precision):
    """Where there are bfloat16 products, and of several where these are matrix tiles'."""
    found = results(torch.float32)
    torch.set_float32_matmul_precision("highest")
    lower = ("amx",) if precision == "high" else BFLOAT16_ISAS
    assert all(map(torch.equal, found, results(torch.float32))) == (isa not in lower)


@pytest.mark.parametrize("precision", ["high"], indirect=True)
def test_an_operations_own_switch_comes_first(isa, precision):
    input = torch.ones(1)
    high, medium = ("high", "medium") if cpu._HAS_LOWER_PRECISIONS else ("highest", "highest")
    for operation in ("conv", "rnn"):
        switch = getattr(torch.backends.mkldnn, operation)
        assert cpu.where(input, operation)[1] == high
        assert cpu.where(input.double(), operation)[1] == "highest"
        before = switch.fp32_precision
        try:
            switch.fp32_precision = "ieee"
            assert cpu.where(input, operation)[1] == "highest"
            switch.fp32_precision = "bf16"
            assert cpu.where(input, operation)[1] == medium
        finally:
            switch.fp32_precision = before
