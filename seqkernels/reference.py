"""The same functions as ``functional``, in plain torch operations, close to the equations.

They are the oracle of the tests, the path for dtypes and devices without a kernel, and what
double backward runs through: differentiable any number of times, on any device and dtype.
Arguments, shapes and errors are those of the functions of the same name in ``functional``.

Sources: the convolution over words with max-over-time pooling is Kim, "Convolutional Neural
Networks for Sentence Classification", arXiv 1408.5882 (2014); the LSTM is Hochreiter and
Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8) (1997), with the forget gate of
Gers, Schmidhuber and Cummins, "Learning to Forget", Neural Computation 12(10) (2000).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks

_ACTIVATIONS = {
    "identity": lambda value: value,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def conv1d_max_pool(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int | str = 0,
    dilation: int = 1,
    *,
    activation: str = "identity",
    pool_size: int | None = None,
    pool_stride: int | None = None,
    lengths: Tensor | None = None,
    channels_last: bool = False,
) -> Tensor:
    """Convolution over time, activation, max pooling; see ``functional.conv1d_max_pool``.

    With three words to a window::

        o_i = tanh(W [w_{i-1}; w_i; w_{i+1}] + b)
        c   = max_i o_i

    Memory grows with the windows, N * L_out * C * k numbers.
    """
    geometry = checks.conv1d_max_pool(
        input,
        weight,
        bias,
        stride,
        padding,
        dilation,
        activation,
        pool_size,
        pool_stride,
        lengths,
        channels_last,
    )
    unbatched = input.dim() == 2
    if unbatched:
        input = input.unsqueeze(0)
    words = input if channels_last else input.transpose(1, 2)  # (N, L, C)
    batch, length, _ = words.shape
    kernel_size = weight.shape[2]
    if lengths is None:
        lengths = torch.full((batch,), length)
    lengths = lengths.to(words.device, torch.int64).expand(batch)

    convolution = _convolution(words, lengths, weight, bias, geometry)  # (N, F, L_out)
    windows = checks.output_length(lengths, kernel_size, geometry)  # (N,), each sample's own
    time = torch.arange(convolution.shape[2], device=words.device)
    is_own = time < windows[:, None]
    convolution = convolution.masked_fill(~is_own[:, None, :], float("-inf"))

    # max(dim) takes the first of equals, and NaN before all. The activations grow monotonically,
    # so that the activation of the maximum is the maximum of the activations.
    pool_size = geometry.pool_size or convolution.shape[2]
    convolution = F.pad(convolution, (0, max(0, pool_size - convolution.shape[2])))
    largest = convolution.unfold(2, pool_size, geometry.pool_stride or 1).max(dim=-1).values
    pooled = _ACTIVATIONS[activation](largest)

    position = torch.arange(pooled.shape[2], device=words.device)
    is_own = position < checks.pooled_length(windows, geometry)[:, None]
    pooled = torch.where(is_own[:, None, :], pooled, 0.0)

    if geometry.pool_size:
        longest = checks.output_length(length, kernel_size, geometry)
        pooled = pooled[:, :, : checks.pooled_length(longest, geometry)]
        pooled = pooled.transpose(1, 2) if channels_last else pooled
    else:
        pooled = pooled.squeeze(2)
    return (pooled.squeeze(0) if unbatched else pooled).contiguous()


def conv1d_max_pool_bank(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
    stride: int = 1,
    padding: int | str = 0,
    dilation: int = 1,
    *,
    activation: str = "identity",
    lengths: Tensor | None = None,
    channels_last: bool = False,
) -> Tensor:
    """Convolutions pooled over time, side by side; see ``functional.conv1d_max_pool_bank``."""
    weights, biases = checks.bank(weights, biases)
    options = {"activation": activation, "lengths": lengths, "channels_last": channels_last}
    outputs = [
        conv1d_max_pool(input, weight, bias, stride, padding, dilation, **options)
        for weight, bias in zip(weights, biases, strict=True)
    ]
    return torch.cat(outputs, dim=-1)


def _convolution(
    words: Tensor,
    lengths: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: checks.ConvolutionGeometry,
) -> Tensor:
    """W [w_i; w_{i+dilation}; ...] + b at every window of (N, L, C) words -> (N, F, L_out).

    The zero padding of a sample begins after its last word, ``lengths[n]``. Nothing that stands
    there is multiplied: 0 times NaN would be NaN, in the result as in the gradient of W.
    Where no window fits there is one all the same, for the maximum to have something to look at.
    """
    span = geometry.dilation * (weight.shape[2] - 1) + 1
    time = torch.arange(words.shape[1], device=words.device)
    is_word = (time < lengths[:, None]).unsqueeze(2)
    words = torch.where(is_word, words, 0.0)
    missing = max(0, span - geometry.padding_left - words.shape[1] - geometry.padding_right)
    words = F.pad(words, (0, 0, geometry.padding_left, geometry.padding_right + missing))
    windows = words.unfold(1, span, geometry.stride)[..., :: geometry.dilation]
    convolution = torch.einsum("nick,fck->nfi", windows, weight)
    return convolution if bias is None else convolution + bias[:, None]


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM; see ``functional.lstm_cell``.

    With the rows of W and b in the order i, f, g (the lecture's c tilde), o::

        i_t = sigma(W_xi x_t + W_hi h_{t-1} + b_i)
        f_t = sigma(W_xf x_t + W_hf h_{t-1} + b_f)
        g_t = tanh (W_xg x_t + W_hg h_{t-1} + b_g)
        o_t = sigma(W_xo x_t + W_ho h_{t-1} + b_o)
        c_t = f_t * c_{t-1} + i_t * g_t
        h_t = o_t * tanh(c_t)
    """
    hx = checks.state_pair(hx)
    checks.cell(input, hx, w_ih, w_hh, b_ih, b_hh, gates=4)
    if hx is None:
        zeros = input.new_zeros(*input.shape[:-1], w_hh.shape[1])
        hx = (zeros, zeros)
    return _lstm_step(input, *hx, w_ih, w_hh, b_ih, b_hh)


def _lstm_step(x, h, c, w_ih, w_hh, b_ih, b_hh) -> tuple[Tensor, Tensor]:
    gates = F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)
    i, f, g, o = gates.chunk(4, dim=-1)
    i, f, o = torch.sigmoid(i), torch.sigmoid(f), torch.sigmoid(o)
    g = torch.tanh(g)
    c = f * c + i * g
    h = o * torch.tanh(c)
    return h, c


def rnn_cell(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
) -> Tensor:
    """One step of an RNN, h_t = tanh(W_x x_t + W_h h_{t-1} + b); see ``functional.rnn_cell``."""
    checks.one_of("nonlinearity", nonlinearity, checks.NONLINEARITIES)
    checks.cell(input, None if hx is None else (hx,), w_ih, w_hh, b_ih, b_hh, gates=1)
    if hx is None:
        hx = input.new_zeros(*input.shape[:-1], w_hh.shape[1])
    return _rnn_step(input, hx, w_ih, w_hh, b_ih, b_hh, nonlinearity)


def _rnn_step(x, h, w_ih, w_hh, b_ih, b_hh, nonlinearity: str) -> Tensor:
    return _ACTIVATIONS[nonlinearity](F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh))


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    reverse: bool = False,
    recompute: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """``lstm_cell`` at every step of a sequence; see ``functional.lstm``.

    ``recompute`` has no effect here: torch's operations keep what their gradients need.
    """
    hx = checks.state_pair(hx)
    checks.recurrence(input, hx, w_ih, w_hh, b_ih, b_hh, lengths, batch_sizes, gates=4)
    if batch_sizes is not None:
        weights = (w_ih, w_hh, b_ih, b_hh)
        return over_padded(lstm, input, batch_sizes, hx, *weights, reverse=reverse)

    def step(x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return _lstm_step(x, *states, w_ih, w_hh, b_ih, b_hh)

    if hx is None:
        zeros = input.new_zeros(*input.shape[1:-1], w_hh.shape[1])
        hx = (zeros, zeros)
    output, (h, c) = _unfold_in_time(step, input, tuple(hx), lengths, reverse)
    return output, (h, c)


def rnn(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """``rnn_cell`` at every step of a sequence; see ``functional.rnn``."""
    checks.one_of("nonlinearity", nonlinearity, checks.NONLINEARITIES)
    states = None if hx is None else (hx,)
    checks.recurrence(input, states, w_ih, w_hh, b_ih, b_hh, lengths, batch_sizes, gates=1)
    if batch_sizes is not None:
        how = {"nonlinearity": nonlinearity, "reverse": reverse}
        return over_padded(rnn, input, batch_sizes, hx, w_ih, w_hh, b_ih, b_hh, **how)

    def step(x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_rnn_step(x, *states, w_ih, w_hh, b_ih, b_hh, nonlinearity),)

    if states is None:
        states = (input.new_zeros(*input.shape[1:-1], w_hh.shape[1]),)
    output, (h,) = _unfold_in_time(step, input, states, lengths, reverse)
    return output, h


def over_padded(function, data: Tensor, batch_sizes: Tensor, *arguments, **keywords):
    """``function``, ``lstm`` or ``rnn``, of packed sequences, which are padded for it.

    The output is packed too.
    """
    steps, batch = len(batch_sizes), int(batch_sizes[0])
    runs = torch.arange(batch, device=batch_sizes.device) < batch_sizes[:, None]
    rows = runs.nonzero(as_tuple=True)
    padded = data.new_zeros(steps, batch, data.shape[1]).index_put(rows, data)
    output, states = function(padded, *arguments, lengths=runs.sum(0), **keywords)
    return output[rows], states


def _unfold_in_time(
    step, input: Tensor, states: tuple[Tensor, ...], lengths: Tensor | None, reverse: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Apply ``step(x_t, states) -> states`` along time; the output is the first state of each step.

    A sequence that has ended (or, in reverse, not yet begun) keeps its states and puts out 0; what
    stands in its place in ``input`` is not computed with.
    """
    if len(input) == 0:
        return states[0].new_zeros(0, *states[0].shape), states
    if lengths is not None:
        lengths = lengths.to(input.device).unsqueeze(-1)  # against the features
    output = [None] * len(input)
    for t in reversed(range(len(input))) if reverse else range(len(input)):
        if lengths is None:
            states = step(input[t], states)
            output[t] = states[0]
        else:
            runs = t < lengths
            before = tuple(torch.where(runs, state, 0.0) for state in states)
            after = step(torch.where(runs, input[t], 0.0), before)
            output[t] = torch.where(runs, after[0], 0.0)
            states = tuple(
                torch.where(runs, new, old) for new, old in zip(after, states, strict=True)
            )
    return torch.stack(output), states
