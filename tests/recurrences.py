"""What the tests of lstm, rnn and their cells share: numbers, the same by torch, comparisons."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from remembered import remembered
from seqkernels import functional, reference
from tolerance import assert_no_worse

KINDS = ("lstm", "rnn_tanh", "rnn_relu")
# Every vector width, one less and one more; primes among them.
WIDTHS = (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65)
# Around the rows of a tile.
BATCHES = (1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14, 25)
# So many hidden units, of 16 samples or more, are multiplied in matrix tiles where there are such.
UNITS_IN_TILES = {"lstm": 100, "rnn_tanh": 390, "rnn_relu": 390}
# Weights of more than 4 MiB, which few samples read as they lie; a bit more than whole vectors.
UNITS_BEYOND_CACHES = {"lstm": 513, "rnn_tanh": 1030, "rnn_relu": 1030}
# T, N, I, H
SIZES = {
    "one of everything": (1, 1, 1, 1),
    "one step": (1, 5, 6, 7),
    "one step, whole vectors": (1, 2, 8, 64),
    "one step of more rows than a block": (1, 130, 30, 21),
    "one step of many rows and units": (1, 32, 35, 150),
    "one sample": (9, 1, 6, 7),
    "one input": (5, 3, 1, 9),
    "no input": (5, 3, 0, 9),
    "one hidden unit": (6, 4, 5, 1),
    "primes": (11, 7, 13, 19),
    "many steps": (300, 2, 3, 5),
    "more rows than a block": (120, 5, 30, 9),
    "wide input": (30, 5, 700, 10),
    "weights beyond a cache": (2, 40, 8, 300),
    "few samples, many units": (4, 2, 20, 130),
    "few samples, many units, more steps": (7, 3, 20, 150),
    "as many rows as are projected unpacked": (32, 4, 9, 8),
    "one more step than without packing": (5, 4, 9, 33),
}


@st.composite
def any_sizes_and_lengths(draw) -> tuple[tuple[int, ...], dict]:
    """Sizes (T, N, I, H), and the direction and perhaps lengths to go with them."""
    sizes = draw(
        st.tuples(st.integers(0, 9), st.integers(1, 15), st.integers(1, 40), st.integers(1, 40))
    )
    more = {"reverse": draw(st.booleans())}
    if draw(st.booleans()):
        lengths = st.lists(st.integers(0, sizes[0]), min_size=sizes[1], max_size=sizes[1])
        more["lengths"] = torch.tensor(draw(lengths))
    return sizes, more


def tensors(kind: str, sizes: tuple[int, int, int, int], bias: bool = True) -> dict:
    """Arguments of a sequence in float64, of numbers that float32 represents exactly."""
    steps, batch, inputs, hidden = sizes
    generator = torch.Generator().manual_seed(sum(sizes))
    rows = (4 if kind == "lstm" else 1) * hidden

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).double()

    def uniform(*shape: int) -> Tensor:
        return ((2 * torch.rand(shape, generator=generator) - 1) * hidden**-0.5).double()

    h, c = normal(batch, hidden), normal(batch, hidden)
    return {
        "input": normal(steps, batch, inputs),
        "hx": (h, c) if kind == "lstm" else h,
        "w_ih": uniform(rows, inputs),
        "w_hh": uniform(rows, hidden),
        "b_ih": uniform(rows) if bias else None,
        "b_hh": uniform(rows) if bias else None,
    }


def mapped(function, value):
    """``function`` of a tensor, or of each in a tuple of such; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(mapped(function, part) for part in value)
    return function(value) if isinstance(value, Tensor) else value


def converted(arguments: dict, dtype: torch.dtype) -> dict:
    """The arguments with floating-point tensors in another dtype."""

    def convert(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return {name: mapped(convert, value) for name, value in arguments.items()}


def packed(arguments: dict) -> tuple[dict, tuple[Tensor, Tensor]]:
    """The same sequences packed, longest first as their lengths are, and where their rows lay."""
    lengths = arguments["lengths"]
    runs = torch.arange(int(lengths.max()))[:, None] < lengths
    rows = runs.nonzero(as_tuple=True)
    given = {"input": arguments["input"][rows], "lengths": None, "batch_sizes": runs.sum(1)}
    return arguments | given, rows


def ragged_and_packed(kind: str, dtype: torch.dtype, reverse: bool):
    """Arguments with lengths, the same packed, and where their rows lay: of several sizes."""
    for sizes, lengths in (
        ((7, 8, 5, 21), [7, 7, 5, 3, 2, 2, 1, 1]),
        ((1, 3, 6, 5), [1, 1, 1]),
        ((9, 1, 6, 7), [9]),
        ((40, 20, 9, UNITS_IN_TILES[kind]), list(range(40, 0, -2))),
    ):
        arguments = converted(tensors(kind, sizes), dtype)
        arguments |= {"reverse": reverse, "lengths": torch.tensor(lengths)}
        given, rows = packed(arguments)
        assert functional.takes_packed(given["input"])
        yield arguments, given, rows


def flatten(result) -> list[Tensor]:
    """The tensors in nested tuples, in order."""
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in flatten(part)]


def run(kind: str, arguments: dict, module=functional) -> list[Tensor]:
    """output, h_n and, of an LSTM, c_n, by ``functional`` or ``reference``."""
    if kind == "lstm":
        return flatten(module.lstm(**arguments))
    return flatten(module.rnn(**arguments, nonlinearity=kind[4:]))


def run_reference(kind: str, arguments: dict) -> list[Tensor]:
    return run(kind, arguments, reference)


def run_torch(
    kind: str, arguments: dict, lengths: Tensor | None = None, reverse: bool = False
) -> list[Tensor]:
    """The same by torch's recurrent layers; of ragged or reversed sequences one by one."""
    names = ("input", "hx", "w_ih", "w_hh", "b_ih", "b_hh")
    input, hx, w_ih, w_hh, b_ih, b_hh = map(arguments.get, names)
    lengths, reverse = arguments.get("lengths", lengths), arguments.get("reverse", reverse)
    steps, batch, _ = input.shape
    if hx is None:
        hx = input.new_zeros(batch, w_hh.shape[1])
        hx = (hx, hx) if kind == "lstm" else hx
    if lengths is not None:
        alone = []
        for n, length in enumerate(lengths.tolist()):
            cut = arguments | {"input": input[:length, n : n + 1], "lengths": None}
            cut["hx"] = mapped(lambda state, n=n: state[n : n + 1], hx)
            output, *states = run_torch(kind, cut)
            alone.append([F.pad(output, (0, 0, 0, 0, 0, steps - length)), *states])
        output, *states = zip(*alone, strict=True)
        return [torch.cat(output, dim=1), *map(torch.cat, states)]
    if steps == 0:
        return [input.new_zeros(0, batch, w_hh.shape[1]), *flatten(hx)]
    zeros = input.new_zeros(len(w_hh))
    weights = [w_ih, w_hh, *(zeros if bias is None else bias for bias in (b_ih, b_hh))]
    layer = getattr(torch, kind)
    output, *states = layer(
        input.flip(0) if reverse else input,
        mapped(lambda state: state.unsqueeze(0), hx),
        weights,
        True,  # has_biases
        1,  # num_layers
        0.0,  # dropout
        False,  # train
        False,  # bidirectional
        False,  # batch_first
    )
    return [output.flip(0) if reverse else output, *(state.squeeze(0) for state in states)]


def terms_of(arguments: dict) -> int:
    """Products on the way from an input to the last output."""
    steps, _, inputs = arguments["input"].shape
    return max(1, steps) * (inputs + arguments["w_hh"].shape[1] + 2)


@remembered
def expected_of(kind: str, given: dict) -> list[list[Tensor]]:
    """The results by torch, and exactly."""
    return [run_torch(kind, given), run_reference(kind, converted(given, torch.float64))]


def assert_right(kind: str, arguments: dict, dtype: torch.dtype) -> list[Tensor]:
    """Ours beside torch's in ``dtype``, against the reference in float64; returns ours."""
    given = converted(arguments, dtype)
    ours = run(kind, given)
    torchs, exact = expected_of(kind, given)
    assert all(result.is_contiguous() for result in ours)
    assert_no_worse_than_of_one(ours, torchs, exact, terms=terms_of(arguments), what=kind)
    return ours


def assert_no_worse_than_of_one(ours, torchs, exact, *, terms: int, what: str) -> None:
    """``assert_no_worse`` with the rounding of numbers of 1 at least.

    The sums from which gates, states and gradients are made are about 1, also where what is made of
    them happens to be small, as it can be all through a result of few elements.
    """
    with_one = [
        [torch.cat([tensor.flatten(), tensor.new_ones(1)]) for tensor in tensors]
        for tensors in (ours, torchs, exact)
    ]
    assert_no_worse(*with_one, terms=terms, what=what)
    shapes = [[tensor.shape for tensor in tensors] for tensors in (ours, torchs, exact)]
    assert shapes[0] == shapes[1] == shapes[2], what


def assert_like(found: list[Tensor], torchs: list[Tensor], **keywords) -> None:
    """``torch.testing.assert_close``, 16-bit tensors with room for the errors of numbers of 1."""
    if found[0].dtype.itemsize == 2:
        eps = torch.finfo(found[0].dtype).eps
        keywords |= {"rtol": 4 * eps, "atol": 16 * eps}
    torch.testing.assert_close(found, torchs, **keywords)


def leaves_of(arguments: dict) -> dict:
    """The arguments with every floating-point tensor a leaf that requires a gradient."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor

    return {name: mapped(leaf, value) for name, value in arguments.items()}


def floating(arguments: dict) -> list[Tensor]:
    """The floating-point tensors among the arguments, in order."""
    given = [value for value in arguments.values() if isinstance(value, (Tensor, tuple))]
    return [tensor for tensor in flatten(given) if tensor.is_floating_point()]


def cotangents_of(results: list[Tensor]) -> list[Tensor]:
    """Fixed gradients for results, numbers that float32 represents exactly."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(result.shape, generator=generator).to(result.dtype) for result in results]


def assert_same(isa: str, found: Tensor, expected: Tensor) -> None:
    """To the bit; with matrix tiles, which batches of some sizes use, as near as rounding."""
    if isa != "amx":
        assert torch.equal(found, expected)
    else:
        assert_near(found, expected)


def assert_near(found: Tensor, expected: Tensor, roundings: int = 8) -> None:
    """As near as rounding, of sums in another order."""
    eps = torch.finfo(found.dtype).eps
    scale = float(expected.detach().abs().amax()) if expected.numel() else 0.0
    allowed = roundings * eps
    torch.testing.assert_close(found, expected, rtol=allowed, atol=allowed * max(scale, 1e-3))


def gradients(run, kind: str, arguments: dict, cotangents=None) -> list[Tensor]:
    """Gradients of input, states, weights and biases for fixed gradients of the results."""
    leaves = leaves_of(arguments)
    results = run(kind, leaves)
    if cotangents is None:
        cotangents = cotangents_of(results)
    # Of torch's, an output without steps does not come from its arguments.
    pairs = [pair for pair in zip(results, cotangents, strict=True) if pair[0].requires_grad]
    results, cotangents = zip(*pairs, strict=True)
    found = torch.autograd.grad(results, floating(leaves), cotangents, materialize_grads=True)
    return list(found)


@remembered
def expected_gradients_of(kind: str, given: dict) -> list[list[Tensor]]:
    """The gradients by torch, and exactly."""
    exact = gradients(run_reference, kind, converted(given, torch.float64))
    return [gradients(run_torch, kind, given), exact]


def assert_right_gradients(kind: str, arguments: dict, dtype: torch.dtype) -> list[Tensor]:
    """The same for the gradients; returns ours."""
    given = converted(arguments, dtype)
    ours = gradients(run, kind, given)
    torchs, exact = expected_gradients_of(kind, given)
    terms = terms_of(arguments) * max(1, arguments["input"].shape[1])
    assert_no_worse_than_of_one(ours, torchs, exact, terms=terms, what=f"gradients of {kind}")
    return ours
