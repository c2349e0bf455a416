"""No kernel leaves the memory of its arguments, and the native face refuses what does not fit."""

from __future__ import annotations

import pytest
import torch

from convolutions import Made
from seqkernels import _cpu
from subprocesses import run_python

FENCES = """
    import guarded, sys
    memory = guarded.GuardedMemory(3, guarded.torch.float32, at_end=sys.argv[1] == "end")
    size = memory.elements.nbytes
    offset = size if sys.argv[1] == "end" else -1
    guarded.ctypes.string_at(memory.elements.data_ptr(), size)
    print("inside", flush=True)
    guarded.ctypes.string_at(memory.elements.data_ptr() + offset, 1)
    print("outside")
"""


@pytest.mark.parametrize("place", ["end", "beginning"])
def test_guarded_memory_is_guarded(place):
    process = run_python(FENCES, place)
    assert process.returncode < 0 and process.stdout == "inside\n", process.stderr


def test_kernels_stay_within_their_arguments(isa):
    process = run_python("import guarded, sys; guarded.run_all(sys.argv[1])", isa)
    lines = process.stdout.splitlines()
    last = f"exit status {process.returncode} in: {lines[-1:]}\n{process.stderr}"
    assert process.returncode == 0 and lines[-1] == "done", last


def convolution_forward() -> dict:
    return {
        "input": torch.randn(2, 9, 3),
        "weight": torch.randn(5, 3, 3),
        "bias": torch.randn(5),
        "lengths": torch.tensor([9, 4]),
        "output": torch.full((2, 3, 5), 7.0),
        "argmax": torch.full((2, 3, 5), 7, dtype=torch.int32),
        "geometry": (1, 0, 0, 1, 2, 2),
        "activation": "relu",
        "where": (1, "highest"),
    }


def convolution_backward() -> dict:
    return {
        "grad_output": torch.randn(2, 3, 5),
        "output": torch.randn(2, 3, 5),
        "argmax": torch.zeros(2, 3, 5, dtype=torch.int32),
        "input": torch.randn(2, 9, 3),
        "weight": torch.randn(5, 3, 3),
        "lengths": torch.tensor([9, 4]),
        "grad_input": torch.full((2, 9, 3), 7.0),
        "grad_weight": torch.full((5, 3, 3), 7.0),
        "grad_bias": torch.full((5,), 7.0),
        "geometry": (1, 0, 0, 1, 2, 2),
        "activation": "relu",
        "where": (1, "highest"),
    }


def bank_forward() -> dict:
    return {
        "input": torch.randn(2, 9, 3),
        "weights": [torch.randn(5, 3, 3), torch.randn(4, 3, 2)],
        "biases": [torch.randn(5), torch.randn(4)],
        "lengths": torch.tensor([9, 4]),
        "output": torch.full((2, 9), 7.0),
        "argmax": torch.full((18,), 7, dtype=torch.int32),
        "geometries": [(1, 0, 0, 1, 0, 0), (2, 1, 1, 1, 0, 0)],
        "activation": "relu",
        "where": (1, "highest"),
    }


def bank_backward() -> dict:
    return {
        "grad_output": torch.randn(2, 9),
        "output": torch.randn(2, 9),
        "argmax": torch.zeros(18, dtype=torch.int32),
        "input": torch.randn(2, 9, 3),
        "weights": [torch.randn(5, 3, 3), torch.randn(4, 3, 2)],
        "lengths": torch.tensor([9, 4]),
        "grad_input": torch.full((2, 9, 3), 7.0),
        "grad_weights": [torch.full((5, 3, 3), 7.0), torch.full((4, 3, 2), 7.0)],
        "grad_biases": [torch.full((5,), 7.0), torch.full((4,), 7.0)],
        "geometries": [(1, 0, 0, 1, 0, 0), (2, 1, 1, 1, 0, 0)],
        "activation": "relu",
        "where": (1, "highest"),
    }


def recurrence_forward() -> dict:
    return {
        "cell": "lstm",
        "reverse": False,
        "input": torch.randn(4, 2, 3),
        "initial_hidden": torch.randn(2, 5),
        "initial_cell": torch.randn(2, 5),
        "weight_ih": torch.randn(20, 3),
        "weight_hh": torch.randn(20, 5),
        "bias_ih": torch.randn(20),
        "bias_hh": torch.randn(20),
        "lengths": torch.tensor([4, 1]),
        "batch_sizes": None,
        "output": torch.full((4, 2, 5), 7.0),
        "final_hidden": torch.full((2, 5), 7.0),
        "final_cell": torch.full((2, 5), 7.0),
        "gates": torch.full((4, 2, 20), 7.0),
        "cells": torch.full((4, 2, 5), 7.0),
        "where": (1, "highest"),
    }


def recurrence_backward() -> dict:
    return {
        "cell": "lstm",
        "reverse": False,
        "input": torch.randn(4, 2, 3),
        "initial_hidden": torch.randn(2, 5),
        "initial_cell": torch.randn(2, 5),
        "weight_ih": torch.randn(20, 3),
        "weight_hh": torch.randn(20, 5),
        "lengths": torch.tensor([4, 1]),
        "batch_sizes": None,
        "output": torch.randn(4, 2, 5),
        "gates": torch.rand(4, 2, 20),
        "cells": torch.randn(4, 2, 5),
        "grad_output": torch.randn(4, 2, 5),
        "grad_final_hidden": torch.randn(2, 5),
        "grad_final_cell": torch.randn(2, 5),
        "grad_input": torch.full((4, 2, 3), 7.0),
        "grad_initial_hidden": torch.full((2, 5), 7.0),
        "grad_initial_cell": torch.full((2, 5), 7.0),
        "grad_weight_ih": torch.full((20, 3), 7.0),
        "grad_weight_hh": torch.full((20, 5), 7.0),
        "grad_bias": torch.full((20,), 7.0),
        "where": (1, "highest"),
    }


KERNELS = {
    _cpu.conv1d_max_pool_forward: (convolution_forward, ("output", "argmax")),
    _cpu.conv1d_max_pool_backward: (
        convolution_backward,
        ("grad_input", "grad_weight", "grad_bias"),
    ),
    _cpu.conv1d_max_pool_bank_forward: (bank_forward, ("output", "argmax")),
    _cpu.conv1d_max_pool_bank_backward: (
        bank_backward,
        ("grad_input", "grad_weights", "grad_biases"),
    ),
    _cpu.recurrence_forward: (
        recurrence_forward,
        ("output", "final_hidden", "final_cell", "gates", "cells"),
    ),
    _cpu.recurrence_backward: (
        recurrence_backward,
        (
            "grad_input",
            "grad_initial_hidden",
            "grad_initial_cell",
            "grad_weight_ih",
            "grad_weight_hh",
            "grad_bias",
        ),
    ),
}


def assert_refused(kernel, mistake: dict, error, message: str | None = None) -> None:
    """The call raises that error and writes to none of its outputs."""
    build, outputs = KERNELS[kernel]
    arguments = build() | mistake
    with pytest.raises(error, match=message):
        kernel(*arguments.values())
    for name in outputs:
        if name not in mistake:
            assert all(torch.all(part == 7) for part in parts_of(arguments[name])), name


def parts_of(value) -> list:
    return value if isinstance(value, list) else [value]


def tensors_of(arguments: dict):
    """The name by which each tensor is accused, the tensor, and what gives another in its place."""
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            yield name, value, lambda other, name=name: {name: other}
        for place, part in enumerate(value if isinstance(value, list) else ()):
            if not isinstance(part, torch.Tensor):
                continue

            def instead(other, name=name, place=place, parts=value) -> dict:
                return {name: [*parts[:place], other, *parts[place + 1 :]]}

            yield name.replace("weights", "weight").replace("biases", "bias"), part, instead


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_right_arguments_are_taken_and_every_output_written(isa, kernel):
    build, outputs = KERNELS[kernel]
    arguments = build()
    kernel(*arguments.values())
    for name in outputs:
        if "gates" in name or name == "cells":  # not where lengths end
            assert not torch.any(arguments[name][0] == 7) and arguments[name][2, 1].eq(7).all()
        else:
            assert not any(torch.any(part == 7) for part in parts_of(arguments[name])), name


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_every_tensor_must_have_its_dtype_shape_and_strides(kernel):
    for name, value, instead in tensors_of(KERNELS[kernel][0]()):
        # From input's dtype that of all others follows.
        accused = r"\w+" if name == "input" else name
        for other in {torch.float32, torch.float64, torch.bfloat16, torch.float16} - {value.dtype}:
            assert_refused(kernel, instead(value.to(other)), ValueError, f"^{accused}: expected")
        others = (value.repeat(*[1] * (value.dim() - 1), 2), value[..., :-1])
        if name == "weight" and kernel is _cpu.conv1d_max_pool_bank_forward:
            others = ()  # filters of another length may be meant
        for wrong in (value[None], value[..., 0], value[:0], *others):
            accused = r"\w+" if name in ("input", "weight_hh", "weight") else name
            assert_refused(kernel, instead(wrong), ValueError, f"^{accused}: expected")
        for impossible in (torch.complex(*[value.float()] * 2), value > 0):
            assert_refused(kernel, instead(impossible), ValueError, "^tensor: expected")
        elsewhere = value.to("meta")
        assert_refused(kernel, instead(elsewhere), (ValueError, RuntimeError))
        assert_refused(kernel, instead(value.to_sparse()), (ValueError, RuntimeError))
        for no_tensor in (value.numpy(), value.tolist(), "input", 1):
            assert_refused(kernel, instead(no_tensor), TypeError)


ANY_STRIDES = {
    _cpu.conv1d_max_pool_forward: {"input", "weight", "output"},
    _cpu.conv1d_max_pool_backward: {"input", "weight", "grad_output", "output"},
    _cpu.conv1d_max_pool_bank_forward: {"input", "weight", "output"},
    _cpu.conv1d_max_pool_bank_backward: {"input", "weight", "grad_output", "output"},
    _cpu.recurrence_forward: {"weight_ih", "weight_hh"},
    _cpu.recurrence_backward: {"weight_ih", "weight_hh"},
}


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_strides_are_refused_where_they_matter(kernel):
    for name, value, instead in tensors_of(KERNELS[kernel][0]()):
        if name in ANY_STRIDES[kernel]:
            continue
        spread = torch.stack([value, value], dim=-1)[..., 0]
        assert_refused(kernel, instead(spread), ValueError, f"^{name}: expected .*stride")
    if kernel in (_cpu.conv1d_max_pool_forward, _cpu.conv1d_max_pool_bank_forward):
        shape = KERNELS[kernel][0]()["output"].shape
        overlapping = torch.full((*shape[:-1], 1), 7.0).expand(shape)
        assert_refused(kernel, {"output": overlapping}, ValueError, "^output: expected distinct")


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_values_out_of_range_are_refused(kernel):
    for lengths in ([-1, 4], [4, 10], [2**40, 1], [-(2**63), 4]):
        mistake = {"lengths": torch.tensor(lengths)}
        assert_refused(kernel, mistake, ValueError, "^lengths: expected values from 0 to")
    for threads in (0, -1):
        mistake = {"where": (threads, "highest")}
        assert_refused(kernel, mistake, ValueError, "^threads: expected at least 1")
    assert_refused(kernel, {"where": (1, "low")}, ValueError, "^precision: expected one of highest")
    if kernel in (_cpu.recurrence_forward, _cpu.recurrence_backward):
        assert_refused(kernel, {"cell": "gru"}, ValueError, "^cell: expected lstm")
        return
    assert_refused(kernel, {"activation": "gelu"}, ValueError, "^activation: expected identity")
    if "geometries" in KERNELS[kernel][0]():
        refuses_banks(kernel)
        return
    names = ("stride", "padding_left", "padding_right", "dilation", "pool_size", "pool_stride")
    for place, name in enumerate(names):
        geometry = list(convolution_forward()["geometry"])
        kind = name.removesuffix("_left").removesuffix("_right")
        for value, bound in ((-1, "least"), (2**31, "most 2147483647"), (2**62, "most 2147483647")):
            geometry[place] = value
            mistake = {"geometry": tuple(geometry)}
            assert_refused(kernel, mistake, ValueError, f"^{kind}.*: expected at {bound}")
    padding = (1, 2**31 - 9, 2**31 - 9, 1, 0, 0)
    assert_refused(kernel, {"geometry": padding}, ValueError, "^length with padding: expected at")
    assert_refused(kernel, {"geometry": (1, 0, 0, 1, 2)}, TypeError)
    over_time = {"geometry": (1, 0, 0, 1, 0, 0)}
    assert_refused(kernel, over_time, ValueError, r"expected float32 of shape \(2, 5\), got")


def refuses_banks(kernel) -> None:
    """A bank whose lists do not fit together, or of pools."""
    right = KERNELS[kernel][0]()
    for name, value in right.items():
        if not isinstance(value, list):
            continue
        if isinstance(value[0], torch.Tensor):
            assert_refused(kernel, {name: Made(value)}, TypeError)
        for wrong in (value[:1], value * 2):
            assert_refused(kernel, {name: wrong}, ValueError, r"^\w+: expected")
    assert_refused(kernel, {"weights": []}, ValueError, "^weights: count: expected at least 1")
    with_none = {"weights": [right["weights"][0], None]}
    assert_refused(kernel, with_none, TypeError, "^weights: expected tensors, got None")
    over_time = right["geometries"][0]
    for wrong, message in (
        ((1, 0, 0, 1, 2, 2), "^geometries: expected pooling over all time"),
        ((0, 0, 0, 1, 0, 0), "^stride: expected at least 1"),
        ((1, 0, 0, 2**31, 0, 0), "^dilation: expected at most"),
    ):
        mistake = {"geometries": [over_time, wrong]}
        assert_refused(kernel, mistake, ValueError, message)
    assert_refused(kernel, {"geometries": [over_time, (1, 0)]}, TypeError)


def stack_of_layers() -> dict:
    """Two layers in two directions: 3 inputs, 5 hidden units."""
    return {
        "cell": "lstm",
        "directions": 2,
        "input": torch.randn(4, 2, 3),
        "states": (torch.randn(4, 2, 5), torch.randn(4, 2, 5)),
        "lengths": torch.tensor([4, 1]),
        "batch_sizes": None,
        "weights": [
            [torch.randn(20, inputs), torch.randn(20, 5), torch.randn(20), torch.randn(20)]
            for inputs in (3, 3, 10, 10)
        ],
        "where": (2, "highest"),
    }


def test_a_stack_of_layers_declines_what_does_not_fit():
    def answer(**changes):
        return _cpu.recurrence_stack(*(stack_of_layers() | changes).values())

    def odd(tensor):
        yield from (tensor[..., :-1], tensor.double(), tensor[None], tensor[:-1])
        yield from (torch.empty_like(tensor, device="meta"), tensor.to_sparse(), tensor.numpy(), 1)
        yield torch._efficientzerotensor(tensor.shape)
        yield torch.complex(torch.zeros_like(tensor), tensor).conj().imag

    right = stack_of_layers()
    output, *final = answer()
    assert output.shape == (4, 2, 10) and [len(state) for state in final] == [4, 4]
    packed = {"input": torch.randn(5, 3), "lengths": None}
    assert answer(**packed, batch_sizes=[2, 1, 1, 1])[0].shape == (5, 10)
    assert answer(states=None) is not None
    assert answer(weights=[group[:2] for group in right["weights"]]) is not None
    for wrong in odd(right["input"]):
        if not (isinstance(wrong, torch.Tensor) and wrong.shape == (3, 2, 3)):
            assert answer(input=wrong) is None
    first, second = right["states"]
    for wrong in (*odd(first), first.transpose(1, 2).contiguous().transpose(1, 2)):
        assert answer(states=(wrong, second)) is answer(states=(first, wrong)) is None
    for states in ((first,), (first, second, second), (None, None), (first, None), (), 1, first):
        assert answer(states=states) is None
    for layer, group in enumerate(right["weights"]):
        for place, tensor in enumerate(group):
            for wrong in odd(tensor):
                weights = stack_of_layers()["weights"]
                weights[layer][place] = wrong
                assert answer(weights=weights) is None, (layer, place)
    wider = [[torch.randn(24, 10), torch.randn(24, 6), torch.randn(24), torch.randn(24)]] * 2
    for weights in ([], right["weights"][:3], right["weights"][:2] + wider, [[], []]):
        assert answer(weights=weights) is None
    for directions in (0, 3, -1, 2**62):
        assert answer(directions=directions) is None
    assert answer(lengths=torch.tensor([5, 1])) is answer(lengths=torch.tensor([4])) is None
    for sizes in (
        [],
        [2, 2],
        [2, 3],
        [4, 0, 1],
        [6, -1],
        [5, 2**62, 2**62],
        [5.0],
        [[5]],
        5,
        [2**70],
    ):
        assert answer(**packed, batch_sizes=sizes) is None
    assert answer(cell="gru") is answer(where=(0, "highest")) is answer(where=(1, "low")) is None
    wanting = right["weights"][0][0].clone().requires_grad_()
    assert answer(weights=[[wanting, *right["weights"][0][1:]], *right["weights"][1:]]) is None


@pytest.mark.parametrize("kernel", [_cpu.recurrence_forward, _cpu.recurrence_backward])
def test_batch_sizes_that_do_not_fit_are_refused(kernel):
    packed = {"lengths": None, "input": torch.randn(5, 3)}
    for sizes, message in (
        ([], "a sum of 5"),
        ([2, 2], "a sum of 5"),
        ([3, 3], "a sum of 5"),
        ([2, 3], "from 1 to 2, that of the step before, at step 1, got 3"),
        ([4, 0, 1], "from 1 to 4, that of the step before, at step 1, got 0"),
        ([6, -1], "from 1 to 5, the rows of input, at step 0, got 6"),
        ([5, 2**62, 2**62], "from 1 to 5, that of the step before, at step 1, got 4611"),
    ):
        mistake = packed | {"batch_sizes": sizes}
        assert_refused(kernel, mistake, ValueError, f"^batch_sizes: expected {message}")
    mistake = packed | {"batch_sizes": [2, 2, 1]}
    assert_refused(kernel, mistake, ValueError, "^output: expected float32 of shape")
    mistake = {"batch_sizes": [2, 2]}
    assert_refused(kernel, mistake, ValueError, "^input: expected 2 dimensions")
    mistake = packed | {"batch_sizes": [2, 2, 1], "lengths": torch.tensor([3, 2])}
    assert_refused(kernel, mistake, ValueError, "^lengths: expected None, got a tensor")


@pytest.mark.parametrize("kernel", [_cpu.recurrence_forward, _cpu.recurrence_backward])
def test_tensors_that_a_cell_has_not(kernel):
    for name in ("initial_cell", "final_cell", "cells", "gates"):
        arguments = KERNELS[kernel][0]()
        optional = name != "cells" or kernel is _cpu.recurrence_backward
        if name in arguments and optional:
            message = f"^{name}: expected a tensor, got None"
            assert_refused(kernel, {name: None}, ValueError, message)
    if kernel is _cpu.recurrence_forward:
        message = "^gates: expected None, got a tensor"
        assert_refused(kernel, {"cells": None}, ValueError, message)
    rnn = {"cell": "rnn_tanh", "weight_ih": torch.randn(5, 3), "weight_hh": torch.randn(5, 5)}
    assert_refused(kernel, rnn, ValueError, "^initial_cell: expected None, got a tensor")


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_sizes_beyond_64_bits_are_refused(kernel):
    wide = torch.zeros(3).expand(2**30, 2**31, 3)
    mistake = {"input": wide.transpose(0, 1) if "conv" in kernel.__name__ else wide}
    assert_refused(kernel, mistake, ValueError, "fits 64 bits")


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_tensors_without_memory_are_refused(kernel):
    arguments = KERNELS[kernel][0]()
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            nowhere = {name: torch._efficientzerotensor(value.shape, dtype=value.dtype)}
            assert_refused(kernel, nowhere, ValueError, "^tensor: expected elements in memory")


def test_a_nonsense_argmax_does_no_harm(isa):
    """What is not a window of its pool counts as none."""
    input, weight = torch.randn(2, 9, 3), torch.randn(5, 3, 3)
    for window in (-1, -(2**31), 2**31 - 1, 7, 100):
        gradients = torch.ops.seqkernels.conv1d_max_pool_backward(
            torch.ones(2, 5),
            torch.ones(2, 5),
            torch.full((2, 5), window, dtype=torch.int32),
            input,
            weight,
            None,
            (1, 0, 0, 1, 0, 0),
            "identity",
            False,
            [True] * 3,
        )
        assert not any(gradient.any() for gradient in gradients)
