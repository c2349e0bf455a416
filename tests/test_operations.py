"""The operations keep torch's rules, and the shapes of their results are known beforehand."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from seqkernels import autograd, ops

OPERATIONS = (
    "conv1d_max_pool",
    "conv1d_max_pool_backward",
    "recurrence",
    "recurrence_backward",
)
EMPTY = (torch.empty(0), torch.empty(0))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator)


def samples(operation: str):
    """Arguments of an operation of torch.ops.seqkernels."""
    convolution = (normal(4, 9, 3), normal(6, 3, 3))
    for geometry, shape in (((1, 1, 1, 1, 0, 0), ()), ((2, 0, 0, 1, 2, 1), (3,))):
        for lengths in (None, torch.tensor([9, 2, 0, 5])):
            for channels_last in (False, True):
                how = (lengths, list(geometry), "relu", channels_last)
                if operation == "conv1d_max_pool":
                    yield *convolution, normal(6), *how
                elif operation == "conv1d_max_pool_backward":
                    output = normal(4, *shape, 6) if channels_last else normal(4, 6, *shape)
                    argmax = torch.zeros(4, *shape, 6, dtype=torch.int32)
                    for needs in ([True] * 3, [False, True, False]):
                        yield output, output.cos(), argmax, *convolution, *how, needs
    shapes = ((7, 4, 3), (20, 3), (20, 5), (20,), (20,))
    input, w_ih, w_hh, b_ih, b_hh = (normal(*shape) for shape in shapes)
    for cell, gates in (("lstm", 4), ("rnn_tanh", 1), ("rnn_relu", 1)):
        weights = (w_ih[: 5 * gates], w_hh[: 5 * gates])
        biases = (b_ih[: 5 * gates], b_hh[: 5 * gates])
        states = (normal(4, 5), normal(4, 5, seed=1) if gates == 4 else None)
        for lengths in (None, torch.tensor([7, 3, 0, 5])):
            if operation == "recurrence":
                # What is kept for the backward pass is left as it was where lengths end.
                for training in (False, True) if lengths is None else (False,):
                    yield cell, False, input, *states, *weights, *biases, lengths, None, training
                yield cell, False, input, None, None, *weights, *biases, lengths, None, False
            elif operation == "recurrence_backward":
                output, kept = normal(7, 4, 5), gates == 4
                grads = (output.cos(), None, states[1])
                all_needed = [True, True, kept, True, True, True]
                only_weight_hh = [False, False, False, False, True, False]
                for before, needs in (
                    (states, all_needed),
                    (states, only_weight_hh),
                    ((None, None), only_weight_hh),
                ):
                    arguments = (
                        cell,
                        True,
                        input,
                        *before,
                        *weights,
                        *biases,
                        lengths,
                        None,
                        output,
                    )
                    if kept:
                        yield *arguments, normal(7, 4, 20), normal(7, 4, 5), *grads, needs
                    yield *arguments, *EMPTY, *grads, needs


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_keep_torchs_rules(operation):
    overload = getattr(torch.ops.seqkernels, operation).default
    for arguments in samples(operation):
        torch.library.opcheck(overload, arguments)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_tensor_with_the_negative_bit(operation):
    """Its memory holds the values with the other sign."""
    function = getattr(ops, operation)
    for arguments in samples(operation):
        expected = function(*arguments)
        for place, argument in enumerate(arguments):
            if isinstance(argument, torch.Tensor) and argument.is_floating_point():
                twin = torch.complex(torch.zeros_like(argument), -argument).conj().imag
                assert twin.is_neg()
                results = function(*arguments[:place], twin, *arguments[place + 1 :])
                assert all(map(torch.equal, results, expected)), place


@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_a_step_on_tensors_without_plain_memory(cell):
    """The way around the dispatcher declines them: the functions above then take the other."""
    gates, states = (4, 2) if cell == "lstm" else (1, 1)
    shapes = [(2, 3), *[(2, 5)] * states, (5 * gates, 3), (5 * gates, 5), *[(5 * gates,)] * 2]
    plain = [normal(*shape) for shape in shapes]

    def step(input, *rest):
        return ops.recurrence_step(cell, input, rest[:states], *rest[states:])

    assert step(*plain) is not None
    for place, shape in enumerate(shapes):
        negated = torch.complex(torch.zeros(shape), plain[place]).conj().imag
        for odd in (negated, torch._efficientzerotensor(shape), torch.empty(shape, device="meta")):
            assert step(*plain[:place], odd, *plain[place + 1 :]) is None


@pytest.mark.parametrize("learns", [False, True])
def test_a_convolution_on_tensors_without_plain_memory(learns):
    shapes = [(2, 9, 3), (5, 3, 3), (5,)]
    plain = [normal(*shape) for shape in shapes]

    def convolve(*tensors, **how):
        defaults = {"geometry": ((1,), (0,), (1,), 2, None), "activation": "relu"}
        tensors = [tensor.detach().requires_grad_(learns) for tensor in tensors]
        found = autograd.convolution(*tensors, **defaults | how, channels_last=True)
        assert found is None or found.requires_grad == learns
        return found

    (expected, _) = torch.ops.seqkernels.conv1d_max_pool(
        *plain, None, [1, 0, 0, 1, 2, 2], "relu", True
    )
    assert torch.equal(convolve(*plain), expected)
    for place, shape in enumerate(shapes):
        negated = torch.complex(torch.zeros(shape), plain[place]).conj().imag
        for odd in (negated, torch._efficientzerotensor(shape), torch.empty(shape, device="meta")):
            assert convolve(*plain[:place], odd, *plain[place + 1 :]) is None
    for wrong in (True, 1.0, (1, 1), (1.0,), (True,), 0, "1", None):
        assert convolve(*plain, geometry=(wrong, 0, 1, 2, None)) is None, wrong
    assert convolve(*plain, activation="gelu") is None
    assert convolve(plain[0][0], *plain[1:]) is None


@pytest.mark.parametrize("operation", OPERATIONS)
def test_fake_tensors_have_the_real_shapes(operation):
    overload = getattr(torch.ops.seqkernels, operation).default
    for arguments in samples(operation):
        real = overload(*arguments)
        with FakeTensorMode() as mode:
            fakes = [
                mode.from_tensor(argument) if isinstance(argument, torch.Tensor) else argument
                for argument in arguments
            ]
            fake = overload(*fakes)
        assert len(fake) == len(real)
        for one, other in zip(fake, real, strict=True):
            assert (one.shape, one.dtype, one.stride()) == (
                other.shape,
                other.dtype,
                other.stride(),
            )
