"""A step whose gradient is wanted goes the short way, and is what the long way gives."""

from __future__ import annotations

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor

from recurrences import KINDS, converted, flatten, tensors
from seqkernels import functional, ops, reference

NEEDED = ("input", "hx", "w_ih", "w_hh", "b_ih", "b_hh")


def arguments_of(kind: str, batch: int = 3, hidden: int = 7, dtype=torch.float64) -> dict:
    arguments = converted(tensors(kind, (1, batch, 5, hidden)), dtype)
    return arguments | {"input": arguments["input"][0]}


def step(kind: str, arguments: dict, module=functional) -> list[Tensor]:
    if kind == "lstm":
        return flatten(module.lstm_cell(**arguments))
    return [module.rnn_cell(**arguments, nonlinearity=kind[4:])]


def gradients(kind: str, arguments: dict, module=functional, needed=NEEDED) -> list:
    """Of weighted sums of all results with respect to the needed arguments."""
    leaves = {name: given for name, given in arguments.items() if given is not None}
    for name, given in leaves.items():
        detached = [part.detach().requires_grad_(name in needed) for part in flatten([given])]
        leaves[name] = tuple(detached) if isinstance(given, tuple) else detached[0]
    results = step(kind, leaves, module)
    weights = [torch.linspace(-1, 2, result.numel()).view(result.shape) for result in results]
    torch.autograd.backward(results, [w.to(results[0].dtype) for w in weights])
    return [part.grad for given in leaves.values() for part in flatten([given])]


def is_short(result: Tensor) -> bool:
    return type(result.grad_fn).__name__ == "_RecurrenceStepBackward"


def learning(arguments: dict) -> dict:
    return arguments | {"w_hh": arguments["w_hh"].detach().requires_grad_()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_the_short_way_is_taken(isa, dtype, kind, bias):
    arguments = arguments_of(kind, dtype=dtype)
    if not bias:
        arguments |= {"b_ih": None, "b_hh": None}
    assert all(map(is_short, step(kind, learning(arguments))))
    # Rows of a longer sequence, as a loop over a batch reads them.
    rows = torch.stack([arguments["input"]] * 3, dim=1)[:, 1]
    assert all(map(is_short, step(kind, learning(arguments | {"input": rows}))))
    with torch.no_grad():
        assert not any(result.requires_grad for result in step(kind, learning(arguments)))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_out_of_the_ordinary_goes_the_long_way(kind):
    arguments = arguments_of(kind)
    expected = gradients(kind, arguments)
    wide = {name: arguments[name].T.contiguous().T for name in ("w_ih", "w_hh")}
    for change in (
        wide,
        {"input": arguments["input"].T.contiguous().T},
        {"b_ih": torch.stack([arguments["b_ih"]] * 2, dim=1)[:, 0]},
    ):
        odd = arguments | change
        assert not any(map(is_short, step(kind, learning(odd))))
        assert all(map(torch.equal, gradients(kind, odd), expected))
    without = arguments | {"b_hh": None}
    assert not any(map(is_short, step(kind, learning(without))))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = arguments | {"input": arguments["input"].bfloat16()}
        assert step(kind, learning(narrow))[0].dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_each_gradient_may_be_wanted_alone(kind):
    arguments = arguments_of(kind)
    exact = gradients(kind, arguments, reference)
    places = [name for name in NEEDED for _ in flatten([arguments[name]])]
    for needed in (*((name,) for name in NEEDED), ("w_ih", "b_hh"), ("input", "hx")):
        found = gradients(kind, arguments, needed=needed)
        for name, gradient, expected in zip(places, found, exact, strict=True):
            if name in needed:
                torch.testing.assert_close(gradient, expected)
            else:
                assert gradient is None


@pytest.mark.parametrize("used", [0, 1])
def test_one_of_both_states_may_be_used_alone(used):
    arguments = arguments_of("lstm")
    for module in (functional, reference):
        given = learning(arguments)
        step("lstm", given, module)[used].sum().backward()
        if module is functional:
            found = given["w_hh"].grad
    torch.testing.assert_close(found, given["w_hh"].grad)


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *tensors):
        return tensors[0].sum()

    @staticmethod
    def backward(ctx, _):
        return (None,) * len(ctx.needs_input_grad)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_of_any_state(kind):
    arguments = learning(arguments_of(kind))
    NoGradient.apply(*step(kind, arguments)).backward()
    assert arguments["w_hh"].grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_nan_comes_from_where_a_state_of_zeros_is(isa, kind):
    """0 * NaN, as in longer sequences."""
    arguments = converted(tensors(kind, (1, 3, 5, 7)), torch.float32) | {"hx": None}
    arguments["w_hh"].requires_grad_()
    how = {} if kind == "lstm" else {"nonlinearity": kind[4:]}
    output = getattr(functional, kind[:4].rstrip("_"))(**arguments, **how)[0]
    output.backward(torch.full_like(output, float("nan")))
    is_nan = arguments["w_hh"].grad.isnan()
    # relu passes no gradient on where it is 0.
    assert is_nan.any() if kind == "rnn_relu" else is_nan.all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_gradients_and_batches_of_them(kind):
    arguments = learning(arguments_of(kind))

    def first(module, **how):
        results = step(kind, arguments, module)
        weights = [result.detach().cos() for result in results]
        if how.get("is_grads_batched"):
            weights = [torch.stack([weight, weight.sin(), 3 * weight]) for weight in weights]
        return torch.autograd.grad(results, arguments["w_hh"], weights, **how)[0]

    for how in ({"create_graph": True}, {"is_grads_batched": True}, {"retain_graph": True}):
        torch.testing.assert_close(first(functional, **how), first(reference, **how))
    second = [
        torch.autograd.grad(first(module, create_graph=True).square().sum(), arguments["w_hh"])[0]
        for module in (functional, reference)
    ]
    torch.testing.assert_close(*second)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changed", ["input", "hx", "w_hh"])
def test_what_is_changed_in_place_before_the_backward_is_an_error(kind, changed):
    arguments = arguments_of(kind)
    arguments["w_ih"] = arguments["w_ih"].detach().requires_grad_()
    results = step(kind, arguments)
    with torch.no_grad():
        flatten([arguments[changed]])[-1].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        results[0].sum().backward()


@pytest.mark.parametrize("place", [0, 1])
def test_states_of_an_lstm_may_be_changed_in_place(dtype, place):
    """An episode ends: its state becomes zero. torch's cell takes that too."""
    found = []
    for module in (functional, reference):
        given = learning(
            arguments_of("lstm", dtype=dtype if module is functional else torch.float64)
        )
        states = step("lstm", given, module)
        if module is functional:
            assert all(map(is_short, states))
            states[place][1:] = 0
        else:
            states[place] = states[place] * torch.tensor([[1.0], [0.0], [0.0]])
        (states[0].sum() + states[1].sum()).backward()
        found.append(given["w_hh"].grad)
    tolerance = 0.05 if dtype.itemsize == 2 else 1e-5
    torch.testing.assert_close(found[0].double(), found[1], rtol=tolerance, atol=tolerance)


def changed_strides(tensor: Tensor) -> Tensor:
    return tensor.T.contiguous().T if tensor.dim() == 2 else tensor


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unpack", [Tensor.clone, changed_strides])
def test_saved_tensors_may_be_unpacked_otherwise(kind, unpack):
    arguments = arguments_of(kind)
    expected = gradients(kind, arguments)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
        found = gradients(kind, arguments)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_a_hook_is_raised_once(kind):
    calls = []

    def pack(tensor: Tensor) -> Tensor:
        calls.append(tensor)
        raise ValueError("of the hook")

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, pytest.raises(ValueError, match="of the hook"):
        step(kind, learning(arguments_of(kind)))
    assert len(calls) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints(kind):
    arguments = learning(arguments_of(kind))
    expected = torch.autograd.grad(step(kind, arguments)[0].sum(), arguments["w_hh"])
    result = torch.utils.checkpoint.checkpoint(
        lambda w_hh: step(kind, arguments | {"w_hh": w_hh})[0],
        arguments["w_hh"],
        use_reentrant=False,
    )
    assert torch.equal(torch.autograd.grad(result.sum(), arguments["w_hh"])[0], expected[0])


def test_a_loop_of_cells_learns_what_torchs_does():
    """Six steps, each reading the states that the one before has left."""
    inputs = torch.randn(6, 4, 5)
    found = []
    for module in (functional, reference):
        arguments = arguments_of("lstm", batch=4, dtype=torch.float64)
        leaves = {name: arguments[name].requires_grad_() for name in NEEDED if name[0] in "wb"}
        states = arguments["hx"]
        for each in inputs.double():
            states = module.lstm_cell(each, states, **leaves)
        sum(state.square().sum() for state in states).backward()
        found.append([leaf.grad for leaf in leaves.values()])
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact)


def test_what_the_native_step_refuses():
    weights = (torch.randn(16, 3), torch.randn(16, 4), torch.randn(16), torch.randn(16))
    input, state = torch.randn(2, 3), torch.randn(2, 4)
    for place, wrong in (
        (0, torch.randn(2, 5)),
        (0, torch.randn(3)),
        (1, torch.randn(3, 4)),
        (1, torch.randn(4, 2).T),
        (2, None),
        (3, torch.randn(3, 16).T),
        (4, torch.randn(16, 5)),
        (5, None),
        (6, torch.randn(15)),
    ):
        given = [input, state, state, *weights]
        given[place] = wrong
        with pytest.raises((AttributeError, TypeError, ValueError)):
            ops.recurrence_step_forward("lstm", *given)
    _, gates, cells = ops.recurrence_step_forward("lstm", input, state, state, *weights)
    given = [input, state, state, *weights[:3], None, gates, cells, state, None]
    assert [g.shape for g in ops.recurrence_step_backward("lstm", *given, [True] * 6)] == [
        g.shape for g in (input, state, state, *weights[:3])
    ]
    for place, wrong in (
        (0, torch.randn(2, 5)),
        (1, state[:1]),
        (2, None),
        (3, torch.randn(16, 4)),
        (7, gates[:, :15]),
        (8, None),
        (9, state[:, :3]),
        (10, state[0]),
    ):
        changed = [*given[:place], wrong, *given[place + 1 :]]
        with pytest.raises((TypeError, ValueError)):
            ops.recurrence_step_backward("lstm", *changed, [True] * 6)
