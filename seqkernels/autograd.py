"""The native operations with their gradients, for arguments that ``functional`` has checked.

First-order gradients come from the native backward kernels. Where gradients of gradients are
wanted (``create_graph=True``) the backward runs through ``reference`` instead, which is made of
torch's own operations and differentiable any number of times. So do forward-mode derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import cuda, ops, reference
from .checks import ConvolutionGeometry


class _Refused(Exception):
    """An argument of a short way is not as the kernels take it, and nothing has been computed.

    The checks of the long way say what is wrong.
    """


def _or_refuse(function, *arguments):
    try:
        return function(*arguments)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise _Refused from error


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: tuple[int | str | None, ...],
    activation: str,
    channels_last: bool,
) -> Tensor | None:
    """The pooled convolution of a batch, unchecked, in as few steps of Python as can be.

    ``geometry`` are stride, padding, dilation, pool_size and pool_stride, in a layer's form too.

    None where anything is not as the kernel takes it: a shape, a dtype, a layout, a kind of tensor,
    a mode. Nothing has been computed then, and nothing said of what is wrong.
    """
    is_wanted = ops.want_gradient((input, weight, bias))
    if is_wanted is None or type(activation) is not str:
        return None
    try:
        known = _or_refuse(ops.known_geometry, weight, *geometry)
        how = (input, weight, bias, known, activation, channels_last)
        if is_wanted:
            return _apply_plain(_PlainConv1dMaxPool, *how)
        return _or_refuse(ops.convolution, *how, False)[0]
    except _Refused:
        return None


def convolution_bank(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    geometry: tuple[int | str | None, ...],
    activation: str,
    channels_last: bool,
) -> Tensor | None:
    """The output of a bank, (N, F), unchecked, in as few steps of Python as can be.

    ``geometry`` is stride, padding and dilation of all its weights; biases are one for each, or
    none. None as ``convolution``.
    """
    is_wanted = ops.want_gradient((input, *weights, *biases))
    if is_wanted is None or type(activation) is not str:
        return None
    try:
        known = _or_refuse(_known_geometries, input, weights, geometry)
        if is_wanted:
            how = (None, known, activation, channels_last)
            return _apply_plain(_Conv1dMaxPoolBank, *how, input, *weights, *biases)
        sequences = _as_sequences(input, channels_last)
        how = (None, known, activation, False)
        return _or_refuse(ops.conv1d_max_pool_bank, sequences, weights, biases, *how)[0]
    except _Refused:
        return None


def _known_geometries(input, weights, geometry) -> list[ConvolutionGeometry]:
    if input.dim() != 3 or not input.is_cpu or cuda.is_on_device(input):
        raise ValueError("input: expected a batch on the CPU")
    return [ops.known_geometry(weight, *geometry, None, None) for weight in weights]


def recurrence_step(
    cell: str,
    input: Tensor,
    states: tuple[Tensor, ...],
    *weights: Tensor | None,
) -> tuple[Tensor, ...] | None:
    """The next states of (N, I) input where a gradient of them is wanted; as ``convolution``.

    ``weights`` are weight_ih, weight_hh, bias_ih and bias_hh. Where no gradient is wanted, None:
    there ``ops.recurrence_step`` needs fewer steps still.
    """
    if not ops.want_gradient((input, *states, *weights)):
        return None
    if len(states) != (2 if cell == "lstm" else 1) or input is None:
        return None
    if not input.is_cpu or cuda.is_on_device(input):
        return None
    try:
        after = _apply_plain(_RecurrenceStep, cell, input, *(*states, None)[:2], *weights)
    except _Refused:
        return None
    return after if cell == "lstm" else (after,)


def conv1d_max_pool(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    geometry: ConvolutionGeometry,
    activation: str,
    channels_last: bool,
) -> Tensor:
    """Convolution, activation and max pooling of a batch, (N, L, C) or (N, C, L), of any strides.

    Returns (N, F), or with ``geometry.pool_size`` (N, F, P), with ``channels_last`` (N, P, F).
    """
    how = (lengths, geometry, activation, channels_last)
    if in_forward_mode():
        return _reference_convolution(*how)(input, weight, bias)[0]
    if _wants_gradient(input, weight, bias):
        return _apply(_Conv1dMaxPool, input, weight, bias, *how)[0]
    return ops.conv1d_max_pool(_as_sequences(input, channels_last), weight, bias, *how)[0]


def conv1d_max_pool_bank(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    lengths: Tensor | None,
    geometries: list[ConvolutionGeometry],
    activation: str,
    channels_last: bool,
) -> Tensor:
    """Several convolutions of a batch, each pooled over all time, side by side: (N, F).

    For plain tensors on the CPU (``ops.are_plain``), outside of forward mode; biases are one for
    each weight, or none.
    """
    if _wants_gradient(input, *weights, *biases):
        how = (lengths, geometries, activation, channels_last)
        try:
            return _apply_plain(_Conv1dMaxPoolBank, *how, input, *weights, *biases)
        except _Refused as refused:
            raise refused.__cause__ from None
    how = (lengths, geometries, activation, False)
    return ops.conv1d_max_pool_bank(_as_sequences(input, channels_last), weights, biases, *how)[0]


def _as_sequences(input: Tensor, channels_last: bool) -> Tensor:
    """The input of a convolution, or its gradient, in the other layout if it is (N, C, L)."""
    return input if channels_last else input.transpose(1, 2)


def lstm(
    input: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    lengths: Tensor | None,
    batch_sizes: list[int] | None,
    reverse: bool,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """An LSTM over (T, N, I); returns output (T, N, H), h_n and c_n (N, H).

    Without h0 and c0 the states begin as zeros. With batch_sizes, sequences are packed, (rows, I).
    """
    tensors = (input, h0, c0, w_ih, w_hh, b_ih, b_hh, lengths)
    return _recurrence("lstm", reverse, recompute, batch_sizes, *tensors)


def rnn(
    input: Tensor,
    h0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    lengths: Tensor | None,
    batch_sizes: list[int] | None,
    reverse: bool,
    nonlinearity: str,
) -> tuple[Tensor, Tensor]:
    """An RNN over (T, N, I); returns output (T, N, H) and h_n (N, H); otherwise as ``lstm``."""
    tensors = (input, h0, None, w_ih, w_hh, b_ih, b_hh, lengths)
    return _recurrence(f"rnn_{nonlinearity}", reverse, False, batch_sizes, *tensors)[:2]


def lstm_cell(
    input: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM on (N, I): a sequence of length 1."""
    return lstm(input.unsqueeze(0), h, c, w_ih, w_hh, b_ih, b_hh, None, None, False)[1:]


def rnn_cell(
    input: Tensor,
    h: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    nonlinearity: str,
) -> Tensor:
    """One step of an RNN on (N, I): a sequence of length 1."""
    return rnn(input.unsqueeze(0), h, w_ih, w_hh, b_ih, b_hh, None, None, False, nonlinearity)[1]


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )


def in_forward_mode() -> bool:
    """Whether tangents may be travelling with the tensors, which the kernels would drop."""
    return torch.autograd.forward_ad._current_level >= 0


def _recurrence(
    cell: str,
    reverse: bool,
    recompute: bool,
    batch_sizes: list[int] | None,
    *tensors: Tensor | None,
) -> tuple[Tensor, ...]:
    if in_forward_mode():
        *inputs, lengths = tensors
        return _reference_recurrence(cell, reverse, lengths, batch_sizes)(*inputs)
    if _wants_gradient(*tensors[:-1]):
        if torch.compiler.is_compiling():
            tensors = _distinct(tensors)
        return _apply(_Recurrence, cell, reverse, recompute, batch_sizes, *tensors)[:3]
    return ops.recurrence(cell, reverse, *tensors, batch_sizes, False)[:3]


def _apply(function: type[torch.autograd.Function], *arguments) -> tuple[Tensor, ...]:
    """``function.apply``, past what torch does in Python for transforms where there are none.

    Most of that is to match the arguments with forward's signature: 20 us.
    """
    if torch.compiler.is_compiling() or not ops.are_plain(arguments):
        return function.apply(*arguments)
    return _apply_plain(function, *arguments)


def _apply_plain(function: type[torch.autograd.Function], *arguments):
    """The same where it is known that there are none."""
    return super(torch.autograd.Function, function).apply(*arguments)


def _distinct(tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """The tensors, one that comes again as a view of itself: Dynamo takes no tensor twice."""
    return [
        tensor.view_as(tensor)
        if tensor is not None and any(tensor is earlier for earlier in tensors[:place])
        else tensor
        for place, tensor in enumerate(tensors)
    ]


def _reference_convolution(lengths, geometry, activation: str, channels_last: bool):
    """``(input, weight, bias) -> (output,)`` in torch's operations."""
    geometry = ConvolutionGeometry(*geometry)
    # Only "same" pads the two sides differently.
    is_even = geometry.padding_left == geometry.padding_right

    def function(input, weight, bias):
        output = reference.conv1d_max_pool(
            input,
            weight,
            bias,
            geometry.stride,
            geometry.padding_left if is_even else "same",
            geometry.dilation,
            activation=activation,
            pool_size=geometry.pool_size or None,
            pool_stride=geometry.pool_stride or None,
            lengths=lengths,
            channels_last=channels_last,
        )
        return (output,)

    return function


def _reference_bank(
    lengths, geometries: list[ConvolutionGeometry], activation: str, channels_last: bool
):
    """``(input, *weights, *biases) -> (output,)`` in torch's operations."""
    of_each = [
        _reference_convolution(lengths, how, activation, channels_last) for how in geometries
    ]

    def function(input, *parameters):
        weights, biases = parameters[: len(of_each)], parameters[len(of_each) :]
        outputs = [
            convolution(input, weight, bias)[0]
            for convolution, weight, bias in zip(
                of_each, weights, biases or [None] * len(weights), strict=True
            )
        ]
        return (torch.cat(outputs, dim=-1),)

    return function


def _reference_recurrence(cell: str, reverse: bool, lengths, batch_sizes: list[int] | None):
    """``(input, hidden, cell_state, *weights) -> (output, h_n[, c_n])`` in torch's operations."""
    how = {"lengths": lengths, "reverse": reverse}
    if batch_sizes is not None:
        how["batch_sizes"] = torch.tensor(batch_sizes, device="cpu")

    def lstm(input, hidden, cell_state, *weights):
        states = None if hidden is None else (hidden, cell_state)
        output, (h_n, c_n) = reference.lstm(input, states, *weights, **how)
        return output, h_n, c_n

    def rnn(input, hidden, cell_state, *weights):
        nonlinearity = cell.removeprefix("rnn_")
        return reference.rnn(input, hidden, *weights, nonlinearity=nonlinearity, **how)

    return lstm if cell == "lstm" else rnn


def _reference_step(cell: str):
    """``(input, hidden, cell_state, *weights) -> (h[, c])`` in torch's operations."""

    def lstm(input, hidden, cell_state, *weights):
        return reference.lstm_cell(input, (hidden, cell_state), *weights)

    def rnn(input, hidden, cell_state, *weights):
        nonlinearity = cell.removeprefix("rnn_")
        return (reference.rnn_cell(input, hidden, *weights, nonlinearity=nonlinearity),)

    return lstm if cell == "lstm" else rnn


def _through_reference(function, inputs, needs, grads) -> list[Tensor | None]:
    """Gradients of ``function(*inputs)`` that can themselves be differentiated.

    ``grads`` has one gradient, or None, for each output; ``needs`` says which inputs want one.
    """
    wanted = [tensor for tensor, need in zip(inputs, needs, strict=True) if need]

    def of_wanted(*given):
        given = iter(given)
        outputs = function(
            *(next(given) if need else tensor for tensor, need in zip(inputs, needs, strict=True))
        )
        return tuple(
            output for output, grad in zip(outputs, grads, strict=True) if grad is not None
        )

    # The kernels compute in the dtype of their arguments, under autocast too: so must this.
    with torch.enable_grad(), torch.autocast(inputs[0].device.type, enabled=False):
        _, pull_back = torch.func.vjp(of_wanted, *wanted)
        found = iter(pull_back(tuple(grad for grad in grads if grad is not None)))
    return [next(found) if need else None for need in needs]


def _of_either_bias(grad_bias: Tensor | None, needs) -> tuple[Tensor | None, Tensor | None]:
    """Two tensors: who scales one in place must not scale the other."""
    of_first = grad_bias if needs[0] else None
    if not needs[1]:
        return of_first, None
    return of_first, grad_bias.clone() if needs[0] else grad_bias


def _if_needed(gradients, needs) -> list[Tensor | None]:
    return [gradient if need else None for gradient, need in zip(gradients, needs, strict=True)]


class _Conv1dMaxPool(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input, weight, bias, lengths, geometry, activation, channels_last):
        sequences = _as_sequences(input, channels_last)
        how = (lengths, geometry, activation, channels_last)
        return ops.conv1d_max_pool(sequences, weight, bias, *how)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, weight, bias, lengths, *ctx.how = inputs
        pooled, argmax = output
        ctx.mark_non_differentiable(argmax)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, weight, bias, lengths, pooled, argmax)

    @staticmethod
    def backward(ctx, grad_output, _):
        return *_convolution_backward(ctx, grad_output), None, None, None, None


class _PlainConv1dMaxPool(torch.autograd.Function):
    """The same without lengths, of what nothing but the kernel must see."""

    @staticmethod
    def forward(ctx, input, weight, bias, geometry, activation, channels_last):
        ctx.how = (geometry, activation, channels_last)
        ctx.set_materialize_grads(False)
        pooled, argmax = _or_refuse(ops.convolution, input, weight, bias, *ctx.how, True)
        ctx.save_for_backward(input, weight, bias, None, pooled, argmax)
        return pooled

    @staticmethod
    def backward(ctx, grad_output):
        return *_convolution_backward(ctx, grad_output), None, None, None


def _convolution_backward(ctx, grad_output: Tensor | None) -> Sequence[Tensor | None]:
    """Gradients of input, weight and bias."""
    if grad_output is None:
        return None, None, None
    input, weight, bias, lengths, output, argmax = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    if torch.is_grad_enabled():
        function = _reference_convolution(lengths, *ctx.how)
        return _through_reference(function, (input, weight, bias), needs, (grad_output,))
    _, _, channels_last = ctx.how
    grad_input, grad_weight, grad_bias = ops.conv1d_max_pool_backward(
        grad_output,
        output,
        argmax,
        _as_sequences(input, channels_last),
        weight,
        lengths,
        *ctx.how,
        list(needs),
    )
    return (
        _as_sequences(grad_input, channels_last) if needs[0] else None,
        grad_weight if needs[1] else None,
        grad_bias if needs[2] else None,
    )


class _Conv1dMaxPoolBank(torch.autograd.Function):
    @staticmethod
    def forward(ctx, lengths, geometries, activation, channels_last, input, *parameters):
        count = len(geometries)
        ctx.how = (geometries, activation, channels_last)
        ctx.set_materialize_grads(False)
        pooled, argmax = _or_refuse(
            ops.conv1d_max_pool_bank,
            _as_sequences(input, channels_last),
            parameters[:count],
            parameters[count:],
            lengths,
            geometries,
            activation,
            True,
        )
        # A copy, since what stands side by side may be changed in place, as concatenated tensors.
        ctx.save_for_backward(lengths, pooled.clone(), argmax, input, *parameters)
        return pooled

    @staticmethod
    def backward(ctx, grad_output):
        if grad_output is None:
            return (None,) * len(ctx.needs_input_grad)
        lengths, output, argmax, *tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad[4:]
        geometries, activation, channels_last = ctx.how
        if torch.is_grad_enabled():
            function = _reference_bank(lengths, *ctx.how)
            gradients = _through_reference(function, tensors, needs, (grad_output,))
            return None, None, None, None, *gradients
        count = len(geometries)
        grad_input, *gradients = ops.conv1d_max_pool_bank_backward(
            grad_output,
            output,
            argmax,
            _as_sequences(tensors[0], channels_last),
            tensors[1 : 1 + count],
            lengths,
            geometries,
            activation,
            # Without biases there is no gradient of them to make.
            [*needs, *(False,) * (1 + 2 * count - len(needs))],
        )
        if grad_input is not None:
            grad_input = _as_sequences(grad_input, channels_last)
        return None, None, None, None, grad_input, *gradients[: len(needs) - 1]


class _RecurrenceStep(torch.autograd.Function):
    """A step of what nothing but the kernel must see, on the CPU.

    It saves other tensors than ``_Recurrence``: of a checkpoint that runs forwards under a
    profiler, and without it once more, torch says that they do not match.
    """

    @staticmethod
    def forward(ctx, cell, input, *tensors):
        ctx.cell = cell
        ctx.set_materialize_grads(False)
        after, gates, cells = _or_refuse(ops.recurrence_step_forward, cell, input, *tensors)
        # An LSTM's states are not read again: as torch's they may be changed in place.
        next_hidden = None if cell == "lstm" else after[0]
        ctx.save_for_backward(input, *tensors, next_hidden, gates, cells)
        return after if cell == "lstm" else next_hidden

    @staticmethod
    def backward(ctx, grad_hidden, grad_cell_state=None):
        needs = ctx.needs_input_grad[1:]
        if grad_hidden is None and grad_cell_state is None:
            return (None,) * (1 + len(needs))
        *inputs, next_hidden, gates, cells = ctx.saved_tensors
        grads = (grad_hidden, grad_cell_state)
        if torch.is_grad_enabled():
            function = _reference_step(ctx.cell)
            grads = grads if ctx.cell == "lstm" else grads[:1]
            return None, *_through_reference(function, inputs, needs, grads)
        *gradients, grad_bias = ops.recurrence_step_backward(
            ctx.cell,
            *inputs[:6],
            next_hidden,
            gates,
            cells,
            *grads,
            [*needs[:5], needs[5] or needs[6]],
        )
        return None, *gradients, *_of_either_bias(grad_bias, needs[5:])


class _Recurrence(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(cell, reverse, recompute, batch_sizes, *tensors):
        return ops.recurrence(cell, reverse, *tensors, batch_sizes, not recompute)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.cell, ctx.reverse, _, ctx.batch_sizes, *tensors = inputs
        hidden_states, _, final_cell, gates, cells = output
        not_differentiable = (gates, cells) if ctx.cell == "lstm" else (final_cell, gates, cells)
        ctx.mark_non_differentiable(*not_differentiable)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, hidden_states, gates, cells)

    @staticmethod
    def backward(ctx, grad_output, grad_hidden, grad_cell_state, *_):
        *inputs, lengths, output, gates, cells = ctx.saved_tensors
        needs = ctx.needs_input_grad[4:11]
        is_lstm = ctx.cell == "lstm"
        grads = (grad_output, grad_hidden, grad_cell_state if is_lstm else None)
        if all(grad is None for grad in grads):
            return (None,) * 12
        if torch.is_grad_enabled():
            gradients = _through_reference(
                _reference_recurrence(ctx.cell, ctx.reverse, lengths, ctx.batch_sizes),
                inputs,
                needs,
                grads if is_lstm else grads[:2],
            )
        else:
            *gradients, grad_bias = ops.recurrence_backward(
                ctx.cell,
                ctx.reverse,
                *inputs,
                lengths,
                ctx.batch_sizes,
                output,
                gates,
                cells,
                *grads,
                [*needs[:5], needs[5] or needs[6]],
            )
            gradients += _of_either_bias(grad_bias, needs[5:])
        return None, None, None, None, *_if_needed(gradients, needs), None
