"""The functions and layers under torch.compile, torch.export, torch.func and autocast."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn
from torch._functorch.aot_autograd import aot_module_simplified, make_boxed_func

import seqkernels
from seqkernels import functional

# What torch says of itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def forget_compiled_code():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator)


def recurrence_arguments(gates: int) -> tuple[torch.Tensor, ...]:
    """input, w_ih, w_hh, b_ih, b_hh"""
    rows = gates * 5
    shapes = ((7, 4, 3), (rows, 3), (rows, 5), (rows,), (rows,))
    return tuple(normal(*shape, seed=place) for place, shape in enumerate(shapes))


LENGTHS = torch.tensor([7, 3, 0, 5])


def over_time(input, weight, bias):
    return functional.conv1d_max_pool(input, weight, bias, padding="same", activation="tanh")


def by_window(input, weight, bias):
    return functional.conv1d_max_pool(
        input, weight, bias, 2, 1, pool_size=2, lengths=LENGTHS, activation="sigmoid"
    )


def lstm(input, w_ih, w_hh, b_ih, b_hh):
    output, (h_n, c_n) = functional.lstm(input, None, w_ih, w_hh, b_ih, b_hh, reverse=True)
    return output + h_n, c_n


def ragged_lstm(input, w_ih, w_hh, b_ih, b_hh):
    h = input.mean(dim=0).repeat(1, 2)[:, :5]
    return functional.lstm(input, (h, h.cos()), w_ih, w_hh, b_ih, b_hh, lengths=LENGTHS)[0]


def rnn(input, w_ih, w_hh, b_ih, b_hh):
    return functional.rnn(input, None, w_ih, w_hh, b_ih, b_hh, nonlinearity="relu")


def lstm_cell(input, w_ih, w_hh, b_ih, b_hh):
    return functional.lstm_cell(input[0], None, w_ih, w_hh, b_ih, b_hh)


def rnn_cell(input, w_ih, w_hh, b_ih, b_hh):
    return functional.rnn_cell(input[0], None, w_ih, w_hh, b_ih, b_hh)


CONVOLUTION = (normal(4, 3, 7), normal(6, 3, 3), normal(6))
FUNCTIONS = {
    over_time: CONVOLUTION,
    by_window: CONVOLUTION,
    lstm: recurrence_arguments(4),
    ragged_lstm: recurrence_arguments(4),
    rnn: recurrence_arguments(1),
    lstm_cell: recurrence_arguments(4),
    rnn_cell: recurrence_arguments(1),
}


def layers() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    torch.manual_seed(0)
    ours = seqkernels.nn
    return {
        "Conv1dMaxPool": (ours.Conv1dMaxPool(3, 6, 3, pool_size=2), normal(4, 3, 9)),
        "Conv1dMaxPoolBank": (
            ours.Conv1dMaxPoolBank(3, 6, (2, 3), activation="relu", channels_last=True),
            normal(4, 9, 3),
        ),
        "LSTM": (ours.LSTM(3, 5, num_layers=2, bidirectional=True), normal(7, 4, 3)),
        "LSTM, recomputing": (ours.LSTM(3, 5, recompute=True), normal(7, 4, 3)),
        "LSTM, batch first": (ours.LSTM(3, 5, bias=False, batch_first=True), normal(4, 7, 3)),
        "RNN": (ours.RNN(3, 5, nonlinearity="relu", bidirectional=True), normal(7, 4, 3)),
        "LSTMCell": (ours.LSTMCell(3, 5), normal(4, 3)),
        "RNNCell": (ours.RNNCell(3, 5), normal(4, 3)),
    }


LAYERS = tuple(layers())


def flatten(result) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result for tensor in flatten(part)]


def results_and_gradients(function, arguments, parameters=()) -> list[torch.Tensor]:
    leaves = [argument.clone().requires_grad_() for argument in arguments]
    results = flatten(function(*leaves))
    loss = sum((place + 1) * result.square().sum() for place, result in enumerate(results))
    wanted = [*leaves, *parameters]
    gradients = torch.autograd.grad(loss, wanted, materialize_grads=True)
    return [*results, *gradients]


def assert_equal(found, expected) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_compiled_functions_are_the_eager_ones(function):
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    arguments = FUNCTIONS[function]
    expected = results_and_gradients(function, arguments)
    assert_equal(results_and_gradients(compiled, arguments), expected)
    with torch.no_grad():
        assert_equal(flatten(compiled(*arguments)), flatten(function(*arguments)))


@pytest.mark.parametrize("name", LAYERS)
def test_compiled_layers_are_the_eager_ones(name):
    layer, input = layers()[name]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    parameters = list(layer.parameters())
    expected = results_and_gradients(layer, (input,), parameters)
    assert_equal(results_and_gradients(compiled, (input,), parameters), expected)


@pytest.mark.parametrize("name", ["Conv1dMaxPool", "LSTM", "RNN"])
def test_compiled_layers_take_lengths(name):
    layer, input = layers()[name]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for lengths in (torch.tensor([7, 3, 0, 5]), torch.tensor([1, 2, 3, 4])):
        expected = flatten(layer(input, lengths=lengths))
        assert_equal(flatten(compiled(input, lengths=lengths)), expected)


def test_compiled_code_checks_the_values_of_lengths():
    input, weight, bias = CONVOLUTION
    compiled = torch.compile(functional.conv1d_max_pool, fullgraph=True, backend="aot_eager")
    for wrong in ([1, 2, 3, 99], [-1, 0, 0, 0]):
        with pytest.raises(ValueError, match="lengths: expected values from 0 to 7"):
            compiled(input, weight, bias, lengths=torch.tensor(wrong))


def test_the_compiled_backward_pass_is_the_native_one():
    """And not the reference's, which many operations would show."""
    graphs = []

    def keep(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return make_boxed_func(graph.forward)

    def backend(graph, examples):
        return aot_module_simplified(graph, examples, fw_compiler=keep, bw_compiler=keep)

    for function in (over_time, lstm):
        graphs.clear()
        compiled = torch.compile(function, fullgraph=True, backend=backend)
        results_and_gradients(compiled, FUNCTIONS[function])
        operation = "conv1d_max_pool" if function is over_time else "recurrence"
        forward, backward = graphs
        assert f"seqkernels.{operation}.default" in forward
        assert f"seqkernels.{operation}_backward.default" in backward
        assert not any("aten.tanh" in target or "aten.mm" in target for target in backward)


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler for torch's inductor")
def test_inductor():
    def network(words, lengths, maps, *weights):
        pooled = functional.conv1d_max_pool(words.sin(), maps, lengths=lengths, channels_last=True)
        output, _ = functional.lstm(words.transpose(0, 1), None, *weights)
        return pooled.tanh(), output.exp().mean(0)

    words, lengths, maps = normal(4, 7, 3), torch.tensor([7, 3, 0, 5]), normal(6, 3, 2)
    compiled = torch.compile(network, fullgraph=True)
    weights = recurrence_arguments(4)[1:]
    found, expected = (
        results_and_gradients(
            lambda *given, network=network: network(given[0], lengths, *given[1:]),
            (words, maps, *weights),
        )
        for network in (compiled, network)
    )
    torch.testing.assert_close(found, expected)


def test_dynamic_shapes_need_one_graph():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    layer = seqkernels.nn.Conv1dMaxPool(3, 6, 3, padding=1, pool_size=2, pool_stride=3)
    recurrent = seqkernels.nn.LSTM(3, 5)

    def network(input):
        pooled = layer(input)
        output, (_, c_n) = recurrent(input.permute(2, 0, 1))
        return pooled.sum() + output.square().sum() + c_n.sum()

    compiled = torch.compile(network, backend=counter, fullgraph=True, dynamic=True)
    for batch, length in ((4, 9), (3, 12), (7, 5), (2, 40)):
        input = normal(batch, 3, length)
        expected = results_and_gradients(network, (input,), layer.parameters())
        assert_equal(results_and_gradients(compiled, (input,), layer.parameters()), expected)
    assert counter.frame_count == 1


class TextNetwork(nn.Module):
    """Words to classes, by convolution over time or by an LSTM's last state."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.bank = self.lstm = None
        if kind == "convolution":
            self.bank = seqkernels.nn.Conv1dMaxPoolBank(
                8, 6, (3, 4), padding=3, activation="relu", channels_last=True
            )
        else:
            self.lstm = seqkernels.nn.LSTM(8, 12, batch_first=True)
        self.classify = nn.Linear(12, 2)

    def forward(self, words: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        embedded = self.embedding(words)
        if self.bank is not None:
            return self.classify(self.bank(embedded, lengths))
        return self.classify(self.lstm(embedded, lengths=lengths)[1][0][0])


@pytest.mark.parametrize("kind", ["convolution", "lstm"])
def test_a_text_classifier_can_be_exported(kind, tmp_path):
    torch.manual_seed(0)
    network = TextNetwork(kind).eval()

    def batch(size: int, length: int):
        words = torch.arange(size * length).remainder(50).reshape(size, length)
        return words, torch.arange(size).remainder(length + 1)

    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=2)}
    program = torch.export.export(
        network, batch(4, 9), dynamic_shapes=(free, {0: free[0]}), strict=True
    )
    operation = "conv1d_max_pool" if kind == "convolution" else "recurrence"
    code = "".join(str(getattr(part, "code", "")) for part in program.graph_module.modules())
    assert f"torch.ops.seqkernels.{operation}.default" in code
    torch.export.save(program, tmp_path / "program.pt2")
    loaded = torch.export.load(tmp_path / "program.pt2").module()
    for size, length in ((4, 9), (2, 3), (11, 20)):
        arguments = batch(size, length)
        assert torch.equal(loaded(*arguments), network(*arguments))


@pytest.mark.parametrize("name", LAYERS)
def test_functional_call_and_grad(name):
    layer, input = layers()[name]

    def loss(parameters, input):
        results = flatten(torch.func.functional_call(layer, parameters, (input,)))
        return sum(result.square().sum() for result in results)

    parameters = dict(layer.named_parameters())
    expected = torch.autograd.grad(loss(parameters, input), parameters.values())
    detached = {name: value.detach() for name, value in parameters.items()}
    found = torch.func.grad(loss)(detached, input)
    torch.testing.assert_close(list(found.values()), list(expected))


def of_input(function):
    input, *rest = FUNCTIONS[function]
    return input, lambda input: flatten(function(input, *rest))[0]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_jacobians_are_right(function):
    input, of = of_input(function)
    expected = torch.autograd.functional.jacobian(of, input)
    torch.testing.assert_close(torch.func.jacrev(of)(input), expected)
    batched = torch.autograd.functional.jacobian(of, input, vectorize=True)
    torch.testing.assert_close(batched, expected)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_forward_mode_derivatives_are_right_or_refused(function):
    input, of = of_input(function)
    tangent = normal(*input.shape, seed=9)
    expected = torch.einsum(
        "...tnc,tnc->...", torch.autograd.functional.jacobian(of, input), tangent
    )
    try:
        _, found = torch.func.jvp(of, (input,), (tangent,))
    except NotImplementedError:
        return
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_keeps_the_layers_dtype(name):
    """The kernels compute in float32; what autocast has made bfloat16 is converted to it."""
    layer, input = layers()[name]
    parameters = list(layer.parameters())
    rounded = input.bfloat16()
    expected = results_and_gradients(layer, (rounded.float(),), parameters)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results_and_gradients(layer, (rounded,), parameters)
    place = len(found) - len(parameters) - 1  # of input's gradient, in input's dtype
    assert found[place].dtype == torch.bfloat16
    torch.testing.assert_close(found.pop(place).float(), expected.pop(place), rtol=0.02, atol=0.02)
    assert_equal(found, expected)


def test_autocast_under_compilation():
    layer, input = layers()["LSTM"]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = flatten(layer(input.bfloat16()))
        assert_equal(flatten(compiled(input.bfloat16())), expected)


@pytest.mark.parametrize("function", [over_time, lstm], ids=lambda function: function.__name__)
def test_double_backward_under_autocast_is_not_rounded(function):
    """Gradients with a graph, made of torch's operations, have the precision of those without."""
    leaves = [argument.clone().requires_grad_() for argument in FUNCTIONS[function]]

    def gradients():
        loss = sum(result.square().sum() for result in flatten(function(*leaves)))
        return torch.autograd.grad(loss, leaves, create_graph=True)

    def penalty(gradients):
        return torch.autograd.grad(sum(each.square().sum() for each in gradients), leaves)

    expected = gradients()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(penalty(found), penalty(expected))


def test_no_gradient_is_computed_for_inference():
    layer, input = layers()["LSTM"]
    with torch.inference_mode():
        output, _ = layer(input)
    assert not output.requires_grad
    assert torch.equal(output, layer(input)[0])
