"""bfloat16 and float16: float32's results, rounded once.

Their errors, layouts and lengths are tested with those of the other dtypes.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import convolutions
import recurrences
import seqkernels
from conftest import BFLOAT16_ISAS
from seqkernels import functional

NARROW = [torch.bfloat16, torch.float16]
by_dtype = pytest.mark.parametrize("narrow", NARROW, ids=str)


@pytest.fixture
def not_in_tiles(request):
    """Tiles add in another order, and a recurrence rounds the states they multiply."""
    parameters = request.node.callspec.params
    if parameters.get("isa") in BFLOAT16_ISAS and parameters["narrow"] == torch.bfloat16:
        pytest.skip("products in tiles are not float32's rounded")


def assert_rounded(found: list[Tensor], wide: list[Tensor]) -> None:
    for place, (result, exact) in enumerate(zip(found, wide, strict=True)):
        assert torch.equal(result, exact.to(result.dtype)), place


@by_dtype
@pytest.mark.parametrize("channels_last", convolutions.LAYOUTS)
@pytest.mark.parametrize("case", convolutions.CASES)
def test_a_convolution_is_float32s_rounded(
    isa, not_in_tiles, set_threads, case, channels_last, narrow
):
    sizes, keywords = convolutions.CASES[case]
    arguments = convolutions.laid_out(convolutions.tensors(sizes), channels_last) | keywords
    given = convolutions.converted(arguments, narrow)
    widened = convolutions.converted(given, torch.float32)
    set_threads(2)
    found = functional.conv1d_max_pool(**given)
    assert_rounded([found], [functional.conv1d_max_pool(**widened)])
    if keywords.get("activation", "identity") not in ("identity", "relu"):
        return  # the backward makes their derivatives of the rounded output
    assert_rounded(
        convolutions.gradients(functional.conv1d_max_pool, given),
        convolutions.gradients(functional.conv1d_max_pool, widened),
    )


@by_dtype
@pytest.mark.parametrize("kind", recurrences.KINDS)
@pytest.mark.parametrize("size", recurrences.SIZES)
def test_a_recurrence_is_float32s_rounded(isa, not_in_tiles, set_threads, kind, size, narrow):
    """States and gates between the steps are not rounded."""
    given = recurrences.converted(recurrences.tensors(kind, recurrences.SIZES[size]), narrow)
    given["lengths"] = torch.arange(given["input"].shape[1]) % (len(given["input"]) + 1)
    widened = recurrences.converted(given, torch.float32)
    set_threads(2)
    for more in ({}, {"lengths": None}, {"reverse": True, "hx": None}):
        found = recurrences.run(kind, given | more)
        assert_rounded(found, recurrences.run(kind, widened | more))
        trained = recurrences.run(kind, recurrences.leaves_of(given | more))
        assert all(map(torch.equal, trained, found))


@by_dtype
def test_weights_of_any_strides(isa, narrow):
    """They are packed, widened or as they are, or read as they lie."""
    for kind, sizes in (
        ("lstm", (9, 3, 21, 35)),
        ("lstm", (2, 3, 21, 35)),
        ("lstm", (1, 2, 24, 64)),
        ("lstm", (3, 5, 21, 81)),
        ("rnn_tanh", (3, 7, 40, 273)),
    ):
        given = recurrences.converted(recurrences.tensors(kind, sizes), narrow)
        expected = recurrences.run(kind, given)
        wide = torch.full((given["w_hh"].shape[0], 2 * sizes[3]), torch.nan, dtype=narrow)
        wide[:, ::2] = given["w_hh"]
        for w_hh in (wide[:, ::2], given["w_hh"].t().contiguous().t()):
            assert all(map(torch.equal, recurrences.run(kind, given | {"w_hh": w_hh}), expected))


@by_dtype
@pytest.mark.parametrize("name", ["LSTM", "RNN", "LSTMCell", "RNNCell"])
def test_layers_say_nothing_and_train(name, narrow, recwarn):
    torch.manual_seed(0)
    layer = getattr(seqkernels.nn, name)(5, 9).to(narrow)
    input = torch.randn(6, 4, 5).to(narrow).requires_grad_()
    results = recurrences.flatten(layer(input[0] if name.endswith("Cell") else input))
    assert all(result.dtype == narrow for result in results)
    sum(result.float().sum() for result in results).backward()
    for tensor in (input, *layer.parameters()):
        assert tensor.grad.dtype == narrow and tensor.grad.isfinite().all()
    assert not [w for w in recwarn if "seqkernels" in str(w.message)]


@by_dtype
def test_compiled_and_twice_differentiated(narrow):
    arguments = convolutions.converted(convolutions.tensors((3, 5, 12, 7, 3)), narrow)
    leaves = {name: value.requires_grad_() for name, value in arguments.items()}
    compiled = torch.compile(functional.conv1d_max_pool, fullgraph=True, backend="aot_eager")
    expected = convolutions.gradients(functional.conv1d_max_pool, leaves)
    assert all(map(torch.equal, convolutions.gradients(compiled, leaves), expected))

    output = functional.conv1d_max_pool(**leaves, activation="tanh")
    graph = torch.autograd.grad(output.float().sum(), leaves["weight"], create_graph=True)
    (second,) = torch.autograd.grad(graph[0].float().square().sum(), leaves["weight"])
    assert second.dtype == narrow and second.isfinite().all() and second.any()

    given = recurrences.converted(recurrences.tensors("lstm", (4, 3, 5, 7)), narrow)
    compiled = torch.compile(functional.lstm, fullgraph=True, backend="aot_eager")
    of_compiled = lambda kind, arguments: recurrences.flatten(compiled(**arguments))  # noqa: E731
    found = recurrences.gradients(of_compiled, "lstm", given)
    assert all(map(torch.equal, found, recurrences.gradients(recurrences.run, "lstm", given)))
