"""conv1d_max_pool_bank and its layer: several convolutions at once are what they are in turns."""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch
from torch import Tensor, nn

import seqkernels.nn
from conftest import in_use
from convolutions import Made
from seqkernels import _cpu, autograd, cuda, functional, reference
from tolerance import assert_no_worse

AT_ONCE = "_Conv1dMaxPoolBankBackward"
CASES = {
    "kim": ((4, 21, 12, (7, 5, 6), (3, 4, 5)), {"activation": "relu"}),
    "one": ((2, 9, 3, (4,), (3,)), {}),
    "same length twice": ((2, 9, 17, (33, 1), (2, 2)), {"activation": "tanh"}),
    "longer than a sample": ((3, 4, 5, (6, 6), (2, 7)), {"activation": "sigmoid"}),
    "same padding": ((3, 11, 5, (3, 2, 3), (1, 2, 4)), {"padding": "same"}),
    "stride, padding, dilation": (
        (2, 40, 6, (5, 5), (3, 2)),
        {"stride": 2, "padding": 3, "dilation": 4},
    ),
    "nine": ((2, 30, 4, (2,) * 9, range(1, 10)), {"activation": "relu"}),
    "empty batch": ((0, 7, 3, (2, 4), (2, 3)), {}),
    "no channels": ((2, 7, 0, (2, 4), (2, 3)), {"activation": "sigmoid"}),
}


def arguments_of(sizes, ragged: bool, channels_last: bool, bias: bool = True) -> dict:
    batch, length, channels, filters, taps = sizes
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    input = normal(batch, length, channels)
    return {
        "input": input if channels_last else input.transpose(1, 2).contiguous(),
        "weights": [normal(own, channels, k) for own, k in zip(filters, taps, strict=True)],
        "biases": [normal(own) for own in filters] if bias else None,
        "lengths": torch.tensor([length - 3 * n for n in range(batch)]).clamp(min=0)
        if ragged
        else None,
        "channels_last": channels_last,
    }


def converted(arguments: dict, dtype: torch.dtype) -> dict:
    def leaf(value: Tensor) -> Tensor:
        return value.to(dtype, copy=True).requires_grad_()

    return arguments | {
        "input": leaf(arguments["input"]),
        "weights": list(map(leaf, arguments["weights"])),
        "biases": arguments["biases"] and list(map(leaf, arguments["biases"])),
    }


def leaves(arguments: dict) -> list[Tensor]:
    return [arguments["input"], *arguments["weights"], *(arguments["biases"] or ())]


def in_turns(input, weights, biases, **keywords) -> Tensor:
    """The definition, by the function of one convolution."""
    parts = zip(weights, biases or [None] * len(weights), strict=True)
    return torch.cat([functional.conv1d_max_pool(input, *part, **keywords) for part in parts], -1)


def results(function, arguments: dict) -> list[Tensor]:
    """The output and, by a cotangent of varied numbers, all gradients."""
    output = function(**arguments)
    cotangent = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output).sin()
    return [output, *torch.autograd.grad(output, leaves(arguments), cotangent)]


@contextlib.contextmanager
def calls_of_kernels():
    """The names of the native convolutions that are called, in order."""
    called = []
    with pytest.MonkeyPatch.context() as patch:

        def recorded(name: str):
            kernel = getattr(_cpu, name)
            return lambda *arguments: called.append(name) or kernel(*arguments)

        for kind in ("forward", "bank_forward", "backward", "bank_backward"):
            name = f"conv1d_max_pool_{kind}"
            patch.setattr(_cpu, name, recorded(name))
        yield called


@pytest.mark.parametrize("dtype", functional.NATIVE_DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_a_bank_is_its_convolutions_in_turns(isa, name, dtype):
    sizes, keywords = CASES[name]
    turn = list(CASES).index(name)
    arguments = arguments_of(
        sizes, ragged=turn % 2 == 0, channels_last=turn % 3 > 0, bias=turn != 1
    )
    given = converted(arguments, dtype) | keywords
    with calls_of_kernels() as called:
        ours = results(functional.conv1d_max_pool_bank, given)
    assert called == ["conv1d_max_pool_bank_forward", "conv1d_max_pool_bank_backward"]
    expected = results(in_turns, given)
    assert functional.conv1d_max_pool_bank(**given).grad_fn.name() == AT_ONCE
    with torch.no_grad(), calls_of_kernels() as called:
        assert torch.equal(functional.conv1d_max_pool_bank(**given), expected[0])
    assert called == ["conv1d_max_pool_bank_forward"]
    # Of 16-bit numbers the input's gradient is rounded once, and not for each convolution.
    is_rounded_once = dtype.itemsize == 2
    for index, (mine, other) in enumerate(zip(ours, expected, strict=True)):
        assert torch.equal(mine, other) or (index == 1 and is_rounded_once), index
    in_double = converted({**given, "input": given["input"].detach()}, torch.float64)
    exact = results(reference.conv1d_max_pool_bank, in_double)
    assert_no_worse(ours[1], expected[1], exact[1])


def test_threads_change_no_bit(isa):
    sizes, keywords = CASES["kim"]
    given = converted(arguments_of(sizes, True, True), torch.float32) | keywords
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(functional.conv1d_max_pool_bank, given))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


UNUSUAL = {"plain": 1, "large": 2.0**60, "small": 2.0**-120, "nan": torch.nan}


# By vectors, windows of 64 channels are multiplied together, of 24 one by one.
@pytest.mark.parametrize("channels", [64, 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("unusual", UNUSUAL)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("threads", [2, 3])
def test_few_windows_go_side_by_side_to_the_same_bits(
    isa, set_threads, threads, batch, unusual, dtype, channels
):
    """In parts of their filters, of which one's numbers may decide how all of them go."""
    sizes = (batch, 45, channels, (100, 100, 100), (3, 4, 5))
    arguments = arguments_of(sizes, ragged=batch > 1, channels_last=True)
    arguments["weights"][1][98] *= UNUSUAL[unusual]
    given = converted(arguments, dtype) | {"activation": "relu"}
    set_threads(1)
    expected = results(in_turns, given)
    set_threads(threads)
    with torch.no_grad():
        found = [functional.conv1d_max_pool_bank(**given)]
    found += results(functional.conv1d_max_pool_bank, given)
    for mine, other in zip(found, [expected[0], *expected], strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True)


def test_a_sample_is_computed_as_if_it_were_alone():
    given = converted(arguments_of(CASES["kim"][0], True, True), torch.float32)
    lengths = given["lengths"]
    together = results(functional.conv1d_max_pool_bank, given)
    with torch.no_grad():
        for n, length in enumerate(lengths):
            given["input"][n, length:] = torch.nan
    spoilt = results(functional.conv1d_max_pool_bank, given)
    assert all(map(torch.equal, together, spoilt))
    with torch.no_grad():
        for n, length in enumerate(lengths):
            alone = given["input"][n, :length]
            found = functional.conv1d_max_pool_bank(
                alone, given["weights"], given["biases"], channels_last=True
            )
            assert torch.equal(found, together[0][n])


def test_only_the_gradients_that_are_wanted():
    given = converted(arguments_of(CASES["kim"][0], False, True), torch.float32)
    everything = results(functional.conv1d_max_pool_bank, given)[1:]
    for wanted in range(len(everything)):
        for place, leaf in enumerate(leaves(given)):
            leaf.requires_grad_(place == wanted)
        output = functional.conv1d_max_pool_bank(**given)
        cotangent = torch.linspace(-1, 1, output.numel()).view_as(output).sin()
        (found,) = torch.autograd.grad(output, leaves(given)[wanted], cotangent)
        assert torch.equal(found, everything[wanted])


def test_gradients_of_gradients():
    given = converted(arguments_of((2, 6, 2, (2, 3), (2, 3)), True, False), torch.float64)

    def function(*tensors):
        return functional.conv1d_max_pool_bank(
            tensors[0], tensors[1:3], tensors[3:], activation="tanh", lengths=given["lengths"]
        )

    assert function(*leaves(given)).grad_fn.name() == AT_ONCE
    assert torch.autograd.gradcheck(function, leaves(given))
    assert torch.autograd.gradgradcheck(function, leaves(given))


def test_several_cotangents_at_a_time():
    given = converted(arguments_of(CASES["kim"][0], False, True), torch.float32)
    output = functional.conv1d_max_pool_bank(**given)
    assert output.grad_fn.name() == AT_ONCE
    cotangents = torch.randn(3, *output.shape)
    together = torch.autograd.grad(
        output, leaves(given), cotangents, is_grads_batched=True, retain_graph=True
    )
    for index, cotangent in enumerate(cotangents):
        alone = torch.autograd.grad(output, leaves(given), cotangent, retain_graph=True)
        for some, one in zip(together, alone, strict=True):
            assert torch.equal(some[index], one)


def test_the_output_may_be_changed_in_place():
    given = converted(arguments_of(CASES["kim"][0], False, True), torch.float64)
    given["activation"] = "sigmoid"
    found = [
        torch.autograd.grad(function(**given).mul_(2).square().sum(), leaves(given))
        for function in (functional.conv1d_max_pool_bank, in_turns)
    ]
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other)


def test_compiled_autograd_goes_through_it():
    given = converted(arguments_of(CASES["kim"][0], False, True), torch.float32)
    expected = results(functional.conv1d_max_pool_bank, given)[1:]
    compiler = functools.partial(torch.compile, backend="eager", fullgraph=True)
    with torch._dynamo.compiled_autograd._enable(compiler):
        found = results(functional.conv1d_max_pool_bank, given)[1:]
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("kind", [Made, iter, tuple, nn.ParameterList])
def test_weights_may_come_in_any_form(kind):
    given = arguments_of((2, 9, 3, (5, 5), (2, 2)), False, True)
    with torch.no_grad(), calls_of_kernels() as called:
        expected = functional.conv1d_max_pool_bank(**given)
        forms = {"weights": kind(given["weights"]), "biases": kind(given["biases"])}
        assert torch.equal(functional.conv1d_max_pool_bank(**given | forms), expected)
        stacked = {"weights": torch.stack(given["weights"]), "biases": torch.stack(given["biases"])}
        assert torch.equal(functional.conv1d_max_pool_bank(**given | stacked), expected)
    assert called == 3 * ["conv1d_max_pool_bank_forward"]


def test_one_tensor_may_be_several_weights():
    given = converted(arguments_of((3, 9, 4, (5,), (2,)), False, True), torch.float64)
    once = results(functional.conv1d_max_pool_bank, given)
    twice = given | {"weights": given["weights"] * 2, "biases": given["biases"] * 2}
    output = functional.conv1d_max_pool_bank(**twice)
    cotangent = torch.linspace(-1, 1, 15, dtype=torch.float64).view(3, 5).sin()
    found = torch.autograd.grad(output, leaves(given), cotangent.repeat(1, 2))
    for mine, other in zip(found, once[1:], strict=True):
        torch.testing.assert_close(mine, 2 * other)


@pytest.mark.parametrize("how", ["autocast", "forward mode", "vmap", "some biases"])
def test_what_needs_more_than_the_kernels_goes_in_turns(how, monkeypatch):
    given = converted(arguments_of(CASES["kim"][0], False, True), torch.float32)
    weights, biases = given["weights"], given["biases"]
    options = {"channels_last": True, "activation": "tanh"}

    def call(function, input):
        if how == "some biases":
            return function(input, weights, [biases[0], None, biases[2]], **options)
        return function(input, weights, biases, **options)

    def called(function) -> Tensor:
        input = given["input"].detach()
        if how == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                return call(function, input)
        if how == "forward mode":
            tangents = (torch.ones_like(input),)
            return torch.func.jvp(lambda x: call(function, x), (input,), tangents)[1]
        if how == "vmap":
            return torch.vmap(lambda x: call(function, x))(input.unsqueeze(0))
        return call(function, input)

    expected = called(in_turns)
    for kernel in ("conv1d_max_pool_bank_forward", "conv1d_max_pool_bank_backward"):
        monkeypatch.setattr(_cpu, kernel, None)
    assert torch.equal(called(functional.conv1d_max_pool_bank), expected)


def test_on_a_gpu_convolutions_go_in_turns(monkeypatch):
    given = converted(arguments_of(CASES["kim"][0], False, True), torch.float32)
    with torch.no_grad():
        arguments = (*map(given.get, ("input", "weights", "biases")), (1, 0, 1), "relu", True)
        assert autograd.convolution_bank(*arguments) is not None
        assert functional._convolution._takes_bank(given["input"])
        monkeypatch.setattr(cuda, "is_on_device", lambda tensor: True)
        assert autograd.convolution_bank(*arguments) is None
    assert not functional._convolution._takes_bank(given["input"])


def test_an_error_of_the_kernel_is_raised_as_it_is(monkeypatch):
    def fail(*_):
        raise RuntimeError("no memory left")

    given = converted(arguments_of(CASES["kim"][0], False, True), torch.float32)
    given["input"].requires_grad_()
    monkeypatch.setattr(_cpu, "conv1d_max_pool_bank_forward", fail)
    with pytest.raises(RuntimeError, match="no memory left"):
        functional.conv1d_max_pool_bank(given["input"], given["weights"], channels_last=True)


MISTAKES = [
    ({"weights": []}, ValueError, "weights: expected at least one"),
    ({"biases": [None]}, ValueError, "biases: expected 2, one for each of weights, or None, got 1"),
    ({"input": torch.randn(2, 9, 4)}, RuntimeError, "input: expected 3 channels"),
    ({"input": torch.randn(9)}, RuntimeError, "input: expected shape"),
    ({"input": None}, TypeError, "input"),
    ({"weights": [torch.randn(4, 3, 2), torch.randn(4, 3)]}, RuntimeError, "weight: expected 3"),
    ({"weights": [torch.randn(4, 3, 2), torch.randn(0, 3, 2)]}, RuntimeError, "at least 1 filter"),
    ({"weights": [torch.randn(4, 3, 2), torch.randn(4, 3, 2).double()]}, RuntimeError, "dtype"),
    ({"biases": [torch.randn(4), torch.randn(5)]}, RuntimeError, "bias: expected shape"),
    ({"stride": 0}, RuntimeError, "stride: expected at least 1"),
    ({"padding": "all"}, RuntimeError, "padding"),
    ({"activation": "gelu"}, ValueError, "activation: expected one of"),
    ({"lengths": torch.tensor([9, 10])}, ValueError, "lengths: expected values from 0 to 9"),
    ({"lengths": torch.tensor([9])}, ValueError, "lengths"),
]


@pytest.mark.parametrize("wants_gradients", [False, True])
@pytest.mark.parametrize("module", [functional, reference])
@pytest.mark.parametrize("mistake,error,message", MISTAKES)
def test_mistakes_are_named(mistake, error, message, module, wants_gradients):
    right = {
        "input": torch.randn(2, 9, 3),
        "weights": [torch.randn(4, 3, 2, requires_grad=wants_gradients), torch.randn(4, 3, 3)],
        "channels_last": True,
    }
    with pytest.raises(error, match=message):
        module.conv1d_max_pool_bank(**right | mistake)


def layer_and_input() -> tuple[nn.Module, Tensor]:
    """Of sums below zero, so that zeros beside them win."""
    torch.manual_seed(0)
    bank = seqkernels.nn.Conv1dMaxPoolBank(3, 5, (2, 3), activation="sigmoid", channels_last=True)
    with torch.no_grad():
        for layer in bank.children():
            layer.weight.abs_()
    return bank, -torch.rand(2, 9, 3)


def layers_in_turns(bank: nn.Module, input: Tensor) -> Tensor:
    return torch.cat([layer(input) for layer in bank.children()], -1)


def test_the_layer_is_one_call():
    bank, input = layer_and_input()
    assert bank(input).grad_fn.name() == AT_ONCE
    assert torch.equal(bank(input), layers_in_turns(bank, input))
    with torch.no_grad():
        expected = layers_in_turns(bank, input)
        with calls_of_kernels() as called:
            assert torch.equal(bank(input), expected)
    assert called == ["conv1d_max_pool_bank_forward"]


HOOKS = {
    "forward": lambda layer, called: layer.register_forward_hook(lambda *_: called.append(1)),
    "before": lambda layer, called: layer.register_forward_pre_hook(lambda *_: called.append(1)),
    "backward": lambda layer, called: layer.register_full_backward_hook(
        lambda *_: called.append(1)
    ),
    "before backward": lambda layer, called: layer.register_full_backward_pre_hook(
        lambda *_: called.append(1)
    ),
    "global": lambda _, called: nn.modules.module.register_module_forward_hook(
        lambda *_: called.append(1)
    ),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_of_the_layers_are_called(kind):
    bank, input = layer_and_input()
    called = []
    handle = HOOKS[kind](bank.get_submodule("1"), called)
    try:
        output = bank(input)
        output.sum().backward()
    finally:
        handle.remove()
    assert called and torch.equal(output, layers_in_turns(bank, input))


def test_what_is_changed_in_a_layer_is_obeyed():
    for name, value in (
        ("activation", "tanh"),
        ("stride", (2,)),
        ("padding", (1,)),
        ("dilation", (2,)),
        ("forward", lambda input, lengths: torch.ones(2, 5)),
        ("bias", None),
        ("weight", nn.Parameter(torch.randn(6, 3, 4))),
    ):
        bank, input = layer_and_input()
        layer = bank.get_submodule("1")
        before = bank(input)
        if name == "weight":
            layer.bias = None
        setattr(layer, name, value)
        expected = torch.cat([layer(input, None) for layer in bank.children()], -1)
        assert torch.equal(bank(input), expected), name
        assert expected.shape != before.shape or not torch.equal(expected, before), name
    bank, input = layer_and_input()
    bank.get_submodule("1").stride = [1]  # an odd form of the same
    assert torch.equal(bank(input), layers_in_turns(bank, input))
    bank.get_submodule("1").pool_size = 0
    with pytest.raises(RuntimeError, match="pool_size: expected at least 1, got 0"):
        bank(input)
    bank.add_module("0", nn.Identity())
    with pytest.raises(TypeError):  # Identity takes no lengths
        bank(input)
    for name in ("0", "1"):
        delattr(bank, name)
    with pytest.raises((RuntimeError, ValueError), match="empty"):
        bank(input)


def test_a_compiled_layer_is_called():
    bank, input = layer_and_input()
    layer = bank.get_submodule("1")
    called = []
    layer._compiled_call_impl = lambda *arguments: called.append(1) or layer.forward(*arguments)
    assert torch.equal(bank(input), layers_in_turns(bank, input))
    assert len(called) == 2


def test_layers_may_be_leaves_of_a_symbolic_trace():
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, seqkernels.nn.Conv1dMaxPool)

    bank, input = layer_and_input()
    graph = torch.fx.GraphModule(bank, Tracer().trace(bank))
    assert torch.equal(graph(input), bank(input))


def test_other_layers_in_their_place_are_called():
    class Doubled(seqkernels.nn.Conv1dMaxPool):
        def forward(self, input, lengths=None):
            return 2 * super().forward(input, lengths)

    bank, input = layer_and_input()
    other = Doubled(3, 5, 3, activation="sigmoid", channels_last=True)
    other.load_state_dict(bank.get_submodule("1").state_dict())
    expected = bank(input) * torch.tensor([1.0] * 5 + [2.0] * 5)
    bank.add_module("1", other)
    assert torch.equal(bank(input), expected)


@pytest.mark.parametrize("name", ["highest", "high", "medium"])
def test_precision_is_that_of_the_convolution(name):
    sizes = (3, 60, 64, (32, 33), (3, 4))
    given = converted(arguments_of(sizes, False, True), torch.float32)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        with in_use(seqkernels.cpu.available_isas()[-1]):
            ours = functional.conv1d_max_pool_bank(**given)
            assert torch.equal(ours, in_turns(**given))
    finally:
        torch.set_float32_matmul_precision(before)
