"""Gradients of lstm, rnn and their cells on every instruction set."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from recurrences import (
    BATCHES,
    KINDS,
    SIZES,
    UNITS_IN_TILES,
    WIDTHS,
    any_sizes_and_lengths,
    assert_like,
    assert_near,
    assert_right_gradients,
    assert_same,
    converted,
    cotangents_of,
    flatten,
    floating,
    gradients,
    leaves_of,
    mapped,
    ragged_and_packed,
    run,
    run_reference,
    run_torch,
    tensors,
)
from seqkernels import functional, reference
from subprocesses import run_python
from tolerance import assert_no_worse

NAN = float("nan")
RAGGED = torch.tensor([7, 3, 0, 5, 7, 1, 0, 2])


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_units_and_inputs_around_vector_widths(kernels, dtype, kind):
    for width in WIDTHS:
        for sizes in ((3, 2, 5, width), (2, 3, width, 5), (2, 2, width, width), (1, 2, 3, width)):
            assert_right_gradients(kind, tensors(kind, sizes), dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_around_tiles_of_rows(kernels, dtype, kind):
    for batch in BATCHES:
        for steps in (3, 1):
            assert_right_gradients(kind, tensors(kind, (steps, batch, 4, 9)), dtype)


@pytest.mark.parametrize(("bias", "reverse"), [(True, False), (False, True)])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_sizes(kernels, dtype, kind, size, bias, reverse):
    assert_right_gradients(kind, tensors(kind, SIZES[size], bias) | {"reverse": reverse}, dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(60, 20, 12), (3, 130, 20), (4, 17, 70)])
def test_sizes_for_matrix_tiles(isa, dtype, kind, sizes):
    """Several blocks of rows, of samples, and a tile with one row too many."""
    arguments = tensors(kind, (*sizes, UNITS_IN_TILES[kind]))
    assert_right_gradients(kind, arguments, dtype)


def test_gates_that_are_written_past_the_caches(isa):
    """16 MiB of them or more, in whole vectors."""
    arguments = tensors("lstm", (70, 60, 20, 256))
    assert_right_gradients("lstm", arguments, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_rows_than_gradients_of_gates_are_kept_of(isa, dtype, set_threads):
    """4 MiB of them or more, where blocks of rows end amid a step's samples."""
    steps, batch = 100, 64
    lengths = torch.randint(steps // 2, steps + 1, (batch,))
    arguments = tensors("lstm", (steps, batch, 3, 130)) | {"lengths": lengths, "reverse": True}
    assert_right_gradients("lstm", arguments, dtype)
    given = converted(arguments, dtype)
    expected = gradients(run, "lstm", given)
    set_threads(2)
    assert all(map(torch.equal, gradients(run, "lstm", given), expected))


STEPS_APART = """
    import os, sys
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    import torch
    from recurrences import converted, cotangents_of, floating, leaves_of, run, tensors

    steps, batch, wanted = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    arguments = converted(tensors("lstm", (steps, batch, 3, 256)), torch.float32)
    leaves = leaves_of(arguments)
    if wanted == "initial states":
        leaves = arguments | {"hx": leaves["hx"]}
    results = run("lstm", leaves)
    wanted = [tensor for tensor in floating(leaves) if tensor.requires_grad]

    def found(threads):
        torch.set_num_threads(threads)
        return torch.autograd.grad(results, wanted, cotangents_of(results), retain_graph=True)

    expected = found(1)
    for _ in range(10):
        assert all(map(torch.equal, found(2), expected))
"""


@pytest.mark.parametrize(
    ("steps", "batch", "wanted"), [(30, 901, "all"), (200, 13, "initial states")]
)
def test_threads_with_samples_of_their_own_may_be_steps_apart(steps, batch, wanted):
    """More rows than gradients of gates are kept of: none is written before all have read it.

    On one core, where threads take turns, one is ahead of the other for as long as it can.
    """
    result = run_python(STEPS_APART, str(steps), str(batch), wanted)
    assert result.returncode == 0, result.stderr


@given(any_sizes_and_lengths())
@pytest.mark.parametrize("kind", KINDS)
def test_any_shape(kernels, dtype, kind, case):
    sizes, more = case
    assert_right_gradients(kind, tensors(kind, sizes) | more, dtype)


USED = [(kind, used) for used in ("output", "h_n", "one step", "one unit") for kind in KINDS]
USED += [("lstm", "c_n"), ("lstm", "output and c_n")]


@pytest.mark.parametrize(("kind", "used"), USED)
def test_results_used_in_part(kernels, dtype, kind, used):
    def only_used(run):
        def results(kind, arguments):
            output, h_n, *c_n = run(kind, arguments)
            return {
                "output": [output],
                "h_n": [h_n],
                "c_n": c_n,
                "output and c_n": [output, *c_n],
                "one step": [output[2]],
                "one unit": [output[..., 3]],
            }[used]

        return results

    arguments = tensors(kind, (6, 8, 4, 9))
    for lengths in (None, RAGGED.clamp(max=6)):
        for reverse in (False, True):
            given = converted(arguments, dtype) | {"lengths": lengths, "reverse": reverse}
            ours = gradients(only_used(run), kind, given)
            full = gradients(run, kind, given, zeros_but(used, kind, given))
            assert all(map(torch.equal, ours, full))
            torchs = gradients(only_used(run_torch), kind, given)
            assert_like(ours, torchs)


def zeros_but(used: str, kind: str, arguments: dict) -> list[torch.Tensor]:
    """Gradients of all results, zero but for the part used: there as cotangents_of has it."""
    results = run(kind, arguments)
    given = [torch.zeros_like(result) for result in results]
    output, _, *c_n = results
    if used == "output and c_n":
        given[0], given[2] = cotangents_of([output, *c_n])
    elif used == "one step":
        (given[0][2],) = cotangents_of([output[2]])
    elif used == "one unit":
        (given[0][..., 3],) = cotangents_of([output[..., 3]])
    else:
        place = ["output", "h_n", "c_n"].index(used)
        (given[place],) = cotangents_of([results[place]])
    return given


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_without_steps_or_samples(kernels, dtype, kind, reverse):
    for sizes in ((0, 3, 4, 5), (6, 0, 4, 5)):
        arguments = converted(tensors(kind, sizes), dtype) | {"reverse": reverse}
        input, *rest = gradients(run, kind, arguments)
        assert input.shape == (*sizes[:2], 4)
        states, weights = rest[: len(rest) - 4], rest[len(rest) - 4 :]
        assert all(map(torch.equal, states, cotangents_of(run(kind, arguments))[1:]))
        assert not any(weight.any() for weight in weights)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_batch_mates_and_padding_change_no_bit(isa, dtype, kind, reverse):
    arguments = converted(tensors(kind, (7, 8, 5, 21)), dtype) | {"reverse": reverse}
    beyond = (torch.arange(7)[:, None] >= RAGGED)[..., None]
    padded, zeroed = (
        arguments | {"input": arguments["input"].masked_fill(beyond, filling), "lengths": RAGGED}
        for filling in (NAN, 0.0)
    )
    together = gradients(run, kind, padded)
    assert all(map(torch.equal, together, gradients(run, kind, zeroed)))
    cotangents = cotangents_of(run(kind, padded))
    spoilt = [cotangents[0].masked_fill(beyond, NAN), *cotangents[1:]]
    assert all(map(torch.equal, together, gradients(run, kind, padded, spoilt)))
    input, *states = together[: 3 if kind == "lstm" else 2]
    assert not input.masked_select(beyond).any()
    for n, length in enumerate(RAGGED.tolist()):
        cut = arguments | {
            "input": arguments["input"][:length, n : n + 1],
            "hx": mapped(lambda state, n=n: state[n : n + 1], arguments["hx"]),
        }
        own = [cotangents[0][:length, n : n + 1], *(each[n : n + 1] for each in cotangents[1:])]
        alone = gradients(run, kind, cut, own)
        # A single step adds its products up in another order than a sequence.
        check = assert_near if length == 1 else functools.partial(assert_same, isa)
        check(input[:length, n : n + 1], alone[0])
        for of_all, of_one in zip(states, alone[1:], strict=False):
            check(of_all[n : n + 1], of_one)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences_are_read_as_they_are(isa, dtype, kind, reverse):
    for arguments, tight, rows in ragged_and_packed(kind, dtype, reverse):
        grad_output, *rest = cotangents_of(run(kind, arguments))
        grad_input, *expected = gradients(run, kind, arguments, [grad_output, *rest])
        found = gradients(run, kind, tight, [grad_output[rows], *rest])
        assert all(map(torch.equal, found, [grad_input[rows], *expected]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_tiles", [False, True])
@pytest.mark.parametrize("batch", [7, 24])
def test_what_batch_mates_hold_changes_no_bit(isa, dtype, kind, batch, in_tiles):
    """Of the gradients of inputs and states: neither their numbers nor those of their gradients."""
    hidden = UNITS_IN_TILES[kind] if in_tiles else 37
    arguments = converted(tensors(kind, (6, batch, 40, hidden)), dtype)
    cotangents = cotangents_of(run(kind, arguments))
    expected = gradients(run, kind, arguments, cotangents)
    others = torch.arange(batch) % 3 != 0
    factors = torch.tensor([1e-38, 1e30, torch.nan, torch.inf, 0.0, -3.0])
    factors = factors[torch.arange(batch) % 6][others, None].to(dtype)
    input, output = arguments["input"].clone(), cotangents[0].clone()
    input[:, others] *= factors
    output[:, others] *= factors
    found = gradients(run, kind, arguments | {"input": input}, [output, *cotangents[1:]])
    assert torch.equal(found[0][:, ~others], expected[0][:, ~others])
    for state, of_state in zip(found[1:], expected[1:], strict=True):
        if len(state) == batch:
            assert torch.equal(state[~others], of_state[~others])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(3, 20, 33, 35), (30, 20, 12, "in tiles")])
@pytest.mark.parametrize("factor", [1e-42, 1e-37, 1e-30, 1e30])
def test_numbers_near_the_ends_of_their_range(isa, kind, factor, sizes):
    """Matrix tiles scale blocks of them, or leave them to vectors."""
    *sizes, hidden = sizes
    hidden = UNITS_IN_TILES[kind] if hidden == "in tiles" else hidden
    arguments = converted(tensors(kind, (*sizes, hidden)), torch.float32)
    cotangents = [each * factor for each in cotangents_of(run(kind, arguments))]
    ours, torchs = (gradients(by, kind, arguments, cotangents) for by in (run, run_torch))
    wide = converted(arguments, torch.float64)
    exact = gradients(run_reference, kind, wide, [each.double() for each in cotangents])
    assert_no_worse(ours, torchs, exact, terms=sizes[0] * sizes[1] * 4 * hidden)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "sizes", [(3, 2, 20, 300), (4, 64, 9, 32), (2, 50, 5, 280), (5, 1, 7, 65), (1, 16, 90, 150)]
)
def test_runs_and_threads_change_no_bit(isa, dtype, kind, sizes, set_threads):
    arguments = converted(tensors(kind, sizes), dtype)
    results = []
    for threads in (1, 1, 2, 2, 3, 8):
        set_threads(threads)
        results.append(gradients(run, kind, arguments))
    assert all(all(map(torch.equal, result, results[0])) for result in results)


@given(
    st.tuples(st.integers(1, 6), st.integers(1, 20), st.integers(1, 9), st.integers(1, 70)),
    st.booleans(),
    st.integers(2, 5),
    st.data(),
)
@pytest.mark.parametrize("kind", KINDS)
def test_threads_change_no_bit_of_any_shape(isa, set_threads, kind, sizes, reverse, threads, data):
    arguments = converted(tensors(kind, sizes), torch.float32) | {"reverse": reverse}
    lengths = st.lists(st.integers(0, sizes[0]), min_size=sizes[1], max_size=sizes[1])
    arguments["lengths"] = torch.tensor(data.draw(lengths))
    set_threads(1)
    expected = gradients(run, kind, arguments)
    set_threads(threads)
    assert all(map(torch.equal, gradients(run, kind, arguments), expected))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [5, 1])
def test_strides_do_not_change_a_bit(isa, dtype, kind, steps):
    arguments = converted(tensors(kind, (steps, 4, 6, 19)), dtype)
    expected = gradients(run, kind, arguments)
    for name, view in {
        "input": arguments["input"].transpose(0, 1).contiguous().transpose(0, 1),
        "hx": mapped(lambda state: state.T.contiguous().T, arguments["hx"]),
        "w_ih": arguments["w_ih"].T.contiguous().T,
        "w_hh": arguments["w_hh"].T.contiguous().T,
        "b_hh": torch.stack([arguments["b_hh"]] * 2, dim=1)[:, 0],
    }.items():
        found = gradients(run, kind, arguments | {name: view})
        assert all(map(torch.equal, found, expected)), name
    results = run(kind, arguments)
    strided = [each.mT.contiguous().mT for each in cotangents_of(results)]
    assert all(map(torch.equal, gradients(run, kind, arguments, strided), expected))
    ones = gradients(run, kind, arguments, [torch.ones_like(result) for result in results])
    wide = [torch.ones((), dtype=dtype).expand_as(result) for result in results]
    assert all(map(torch.equal, gradients(run, kind, arguments, wide), ones))


@pytest.mark.parametrize("lengths", [None, RAGGED], ids=["whole", "ragged"])
@pytest.mark.parametrize("kind", KINDS)
def test_absent_states_are_zeros(kernels, dtype, kind, lengths):
    for sizes in ((7, 8, 6, 9), (7, 8, 20, 130)):
        arguments = converted(tensors(kind, sizes), dtype) | {"lengths": lengths}
        zeros = mapped(torch.zeros_like, arguments["hx"])
        input, *_, w_ih, w_hh, b_ih, b_hh = gradients(run, kind, arguments | {"hx": zeros})
        found = gradients(run, kind, arguments | {"hx": None})
        assert all(map(torch.equal, found, (input, w_ih, w_hh, b_ih, b_hh)))


@pytest.mark.parametrize("kind", KINDS)
def test_each_gradient_may_be_asked_for_alone(kernels, kind):
    arguments = tensors(kind, (5, 4, 6, 9))
    arguments["hx"] = mapped(lambda state: state.T.contiguous().T, arguments["hx"])
    cotangents = cotangents_of(run(kind, arguments))
    expected = gradients(run, kind, arguments)
    for place, gradient in enumerate(expected):
        copies = {name: mapped(torch.clone, value) for name, value in arguments.items()}
        leaf = floating(copies)[place].requires_grad_()
        torch.autograd.backward(run(kind, copies), cotangents)
        assert torch.equal(leaf.grad, gradient)


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_may_be_used_twice(kernels, kind):
    arguments = tensors(kind, (5, 4, 6, 9))
    before = [tensor.clone() for tensor in floating(arguments)]
    leaves = leaves_of(arguments)
    results = run(kind, leaves)
    cotangents = cotangents_of(results)
    first = torch.autograd.grad(results, floating(leaves), cotangents, retain_graph=True)
    again = torch.autograd.grad(results, floating(leaves), cotangents)
    assert all(map(torch.equal, first, again))
    assert all(map(torch.equal, before, floating(arguments)))


@pytest.mark.parametrize("kind", KINDS)
def test_both_biases_have_a_gradient_of_their_own(kind):
    leaves = leaves_of(tensors(kind, (5, 4, 6, 9)))
    run(kind, leaves)[0].sum().backward()
    assert torch.equal(leaves["b_ih"].grad, leaves["b_hh"].grad)
    kept = leaves["b_hh"].grad.clone()
    leaves["b_ih"].grad.zero_()
    assert torch.equal(leaves["b_hh"].grad, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tensor_changed_in_place_is_an_error(kind):
    for name in ("input", "hx", "w_ih", "w_hh", "lengths", "output"):
        arguments = tensors(kind, (5, 2, 6, 9)) | {"lengths": torch.tensor([5, 3])}
        arguments["b_ih"].requires_grad_()
        results = run(kind, arguments)
        changed = results[0] if name == "output" else arguments[name]
        with torch.no_grad():
            flatten([changed])[0].add_(0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            results[1].sum().backward()


@pytest.mark.parametrize("kind", ["lstm", "rnn_tanh"])
def test_saturated_gates_pass_no_nan(kernels, dtype, kind):
    for scale in (100.0, 1e4, 1e30):
        if 9 * scale > torch.finfo(dtype).max:
            continue
        arguments = tensors(kind, (6, 4, 1, 9))
        arguments["input"] = scale * arguments["input"].sign()
        arguments["w_ih"] = arguments["w_ih"].mul(9).round() / 4
        found = gradients(run, kind, converted(arguments, dtype))
        assert all(gradient.isfinite().all() for gradient in found)
        expected = gradients(run_torch, kind, converted(arguments, dtype))
        assert_like(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_goes_where_torchs_goes(kernels, dtype, kind):
    arguments = converted(tensors(kind, (6, 4, 5, 9)), dtype)
    for step in (0, 2, 5):
        input = arguments["input"].clone()
        input[step, 1, 3] = NAN
        found = gradients(run, kind, arguments | {"input": input})
        expected = gradients(run_torch, kind, arguments | {"input": input})
        assert_like(found, expected, equal_nan=True)
        assert found[0][:, [0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("sizes", [(7, 5, 3, 9), (1, 2, 3, 4), (0, 2, 3, 4), (40, 3, 20, 33)])
def test_gates_computed_again_change_no_bit(isa, dtype, set_threads, sizes):
    set_threads(2)
    arguments = converted(tensors("lstm", sizes), dtype)
    ragged = torch.arange(sizes[1]) % (sizes[0] + 1)
    for more in ({}, {"lengths": ragged}, {"reverse": True, "b_ih": None}):
        kept = gradients(run, "lstm", arguments | more)
        found = gradients(run, "lstm", arguments | more | {"recompute": True})
        assert all(map(torch.equal, found, kept))


def test_recomputing_keeps_less():
    """Only arguments and output: of gates and cell states, 5 T N H, nothing."""
    steps, batch, _, hidden = sizes = (40, 6, 10, 30)
    bytes_kept = {}
    for recompute in (False, True):
        kept = {}

        def note(tensor, kept=kept):
            kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        leaves = leaves_of(tensors("lstm", sizes))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            run("lstm", leaves | {"recompute": recompute})
        bytes_kept[recompute] = sum(kept.values())
    assert bytes_kept[False] - bytes_kept[True] == 5 * steps * batch * hidden * 8


@pytest.mark.parametrize("module", [functional, reference])
def test_recomputed_gradients_can_be_differentiated(module):
    arguments = tensors("lstm", (4, 2, 3, 5)) | {"recompute": True}
    leaves = floating(leaves_of(arguments))

    def function(*leaves):
        input, h, c, *weights = leaves
        return flatten(module.lstm(input, (h, c), *weights, recompute=True))

    assert gradcheck(function, leaves) and gradgradcheck(function, leaves)


@pytest.mark.parametrize("name", ["lstm_cell", "rnn_tanh_cell", "rnn_relu_cell"])
def test_cells(kernels, dtype, name):
    kind = name.removesuffix("_cell")

    def sequence(kind, arguments):
        return run(kind, arguments)[1:]

    def cell(kind, arguments):
        step = arguments | {"input": arguments["input"][0]}
        if kind == "lstm":
            return flatten(functional.lstm_cell(**step))
        return [functional.rnn_cell(**step, nonlinearity=kind[4:])]

    for batch in (1, 6, 13):
        arguments = converted(tensors(kind, (1, batch, 7, 17)), dtype)
        expected = gradients(sequence, kind, arguments)
        assert all(map(torch.equal, gradients(cell, kind, arguments), expected))


CHECKED = [
    {},
    {"reverse": True},
    {"lengths": torch.tensor([4, 0, 2])},
    {"lengths": torch.tensor([1, 3, 4]), "reverse": True},
    {"b_ih": None, "b_hh": None},
    {"b_ih": None},
    {"hx": None},
    {"batch_sizes": torch.tensor([3, 3, 2, 1])},
]


def function_of_tensors(kind: str, keywords: dict):
    arguments = tensors(kind, (4, 3, 2, 3)) | keywords
    if "batch_sizes" in keywords:
        arguments["input"] = arguments["input"].flatten(0, 1)[: keywords["batch_sizes"].sum()]
    leaves = leaves_of(arguments)
    names = [name for name in leaves if leaves[name] is not None and name in ARGUMENTS]

    def function(*given):
        given = list(given)
        arguments = dict(leaves)
        for name in names:
            arguments[name] = mapped(lambda _: given.pop(0), leaves[name])
        return tuple(run(kind, arguments))

    return function, [tensor for name in names for tensor in flatten([leaves[name]])]


ARGUMENTS = ("input", "hx", "w_ih", "w_hh", "b_ih", "b_hh")


@pytest.mark.parametrize("keywords", CHECKED, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kernels, kind, keywords):
    assert gradcheck(*function_of_tensors(kind, keywords), fast_mode=False)


@pytest.mark.parametrize("keywords", CHECKED, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_gradgradcheck(kind, keywords):
    assert gradgradcheck(*function_of_tensors(kind, keywords), fast_mode=True)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_states_that_are_not_read_pass_no_nan(kernels, dtype, kind, reverse):
    arguments = converted(tensors(kind, (4, 3, 5, 6)), dtype)
    arguments |= {"lengths": torch.tensor([4, 0, 2]), "reverse": reverse}
    for state in flatten(arguments["hx"]):
        state[1] = torch.nan
    _, *rest = gradients(run, kind, arguments)
    weights = rest[2 if kind == "lstm" else 1 :]
    assert not any(gradient.isnan().any() for gradient in weights)


def test_a_large_gradient_does_not_drown_others(isa, set_threads):
    """Numbers that are multiplied together are scaled together: never so that small ones vanish."""
    arguments = converted(tensors("rnn_relu", (2, 16, 7, 384)), torch.float32)
    cotangents = [torch.zeros_like(each) for each in run("rnn_relu", arguments)]
    cotangents[0] += 1e-3
    arguments["hx"] = arguments["hx"].abs()
    for number in (2e36, torch.nan):
        cotangents[0][0, 0, 5] = number
        found = []
        for threads in (1, 2, 3):
            set_threads(threads)
            found.append(gradients(run, "rnn_relu", arguments, cotangents))
        for other in found[1:]:
            assert all(
                torch.equal(one.nan_to_num(7), two.nan_to_num(7))
                for one, two in zip(found[0], other, strict=True)
            )
        wide = converted(arguments, torch.float64)
        exact = gradients(run_reference, "rnn_relu", wide, [each.double() for each in cotangents])
        others = torch.arange(384) != 5
        for ours, expected in zip(found[0][2:], exact[2:], strict=True):
            torch.testing.assert_close(
                ours[others].double(), expected[others], rtol=1e-4, atol=1e-6, equal_nan=True
            )
