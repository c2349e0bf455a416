"""torch.nn's LSTM and RNN, computed by this package."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .. import checks, functional
from .stack import RecurrentLayers


class LSTM(RecurrentLayers):
    """``torch.nn.LSTM``: layers of LSTMs over a sequence.

    Constructor, parameters (weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0, ..._reverse, the
    gates in the order i, f, g, o), initialisation, state_dict and errors are torch's; the equations
    are those of ``functional.lstm``.

    Args:
        input_size: features of an element of the input.
        hidden_size: features of the state, H.
        num_layers: layers, each reading the output of the one before.
        bias: whether there are biases.
        batch_first: input and output are (N, T, ...) and not (T, N, ...); hx is not concerned.
        dropout: probability with which an output of a layer, except the last, is zeroed in
            training.
        bidirectional: each layer reads in both directions; the outputs are concatenated.
        proj_size: size of a projection of h; if it is not 0, torch's own operation computes, and a
            warning says so once.
        device, dtype: of the parameters. On the CPU float32, float64, bfloat16 and float16, the
            last two with sums, gates and states in float32; on a GPU float32, bfloat16 and float16
            where this package's kernels are ahead of cuDNN's, and else by cuDNN; other dtypes and
            devices are computed by torch's own operation, and a warning says so once.
        recompute: keep no gates and cell states for the backward pass, which computes them once
            more: 5 T N H numbers less for each layer and direction, for a third more time; see
            ``functional.lstm``. Not with proj_size, nor for what torch's own operation computes.

    Raises:
        TypeError: a size that is no int, bias or batch_first that is no bool.
        ValueError: a size below 1, proj_size below 0 or not below hidden_size, dropout outside 0
            to 1.
    """

    mode = "LSTM"
    recompute = False  # of objects pickled before there was the setting
    gates = 4

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        recompute: bool = False,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )
        if recompute and proj_size:
            raise ValueError(f"recompute: expected False with proj_size, got {recompute!r}")
        self.recompute = recompute

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        """Read a batch of sequences.

        Args:
            input: (T, N, input_size), with batch_first (N, T, input_size), without a batch
                (T, input_size); or a PackedSequence.
            hx: the initial state (h, c), each (num_layers * directions, N, H), without N for input
                without a batch; None means zeros. With proj_size, h has that many features.
            lengths: (N,) integers from 0 to T (0 dimensions without a batch): each sequence as if
                run alone, cut to its length; see ``functional.lstm``. None with a PackedSequence.

        Returns:
            ``(output, (h_n, c_n))``: the outputs of the last layer at every step, (T, N,
            directions * H) in the form of input; the states after the last step, shaped as hx.

        Raises:
            TypeError: an argument that is no tensor.
            ValueError: input with a number of dimensions other than 2 or 3, or of another dtype
                than the weights; wrong lengths.
            RuntimeError: shapes or devices that do not fit together; no step at all (T = 0).
        """
        return self.run(input, checks.state_pair(hx), lengths)

    def _layer(self, input, states, weights, lengths, batch_sizes, reverse):
        return functional.lstm(
            input,
            states,
            *weights,
            lengths=lengths,
            batch_sizes=batch_sizes,
            reverse=reverse,
            recompute=self.recompute,
        )

    def state_sizes(self):
        return self.proj_size or self.hidden_size, self.hidden_size

    def extra_repr(self) -> str:
        return super().extra_repr() + (", recompute=True" if self.recompute else "")


class RNN(RecurrentLayers):
    """``torch.nn.RNN``: layers of tanh (or relu) RNNs over a sequence.

    The arguments are those of ``LSTM``, without proj_size, and ``nonlinearity`` in fourth place,
    "tanh" or "relu" (ValueError otherwise). The equations are those of ``functional.rnn``.
    """

    gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        proj_size: None = None,
    ) -> None:
        if proj_size is not None:
            raise ValueError(f"proj_size: expected only for LSTM, got {proj_size!r} for RNN")
        checks.one_of("nonlinearity", nonlinearity, checks.NONLINEARITIES)
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            0,
            device,
            dtype,
        )
        self.nonlinearity = nonlinearity
        self.mode = f"RNN_{nonlinearity.upper()}"

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Read a batch of sequences: ``(output, h_n)``; see ``LSTM.forward``, hx is one tensor."""
        output, (h_n,) = self.run(input, None if hx is None else (hx,), lengths)
        return output, h_n

    def _layer(self, input, states, weights, lengths, batch_sizes, reverse):
        h = None if states is None else states[0]
        output, h_n = functional.rnn(
            input,
            h,
            *weights,
            nonlinearity=self.nonlinearity,
            lengths=lengths,
            batch_sizes=batch_sizes,
            reverse=reverse,
        )
        return output, (h_n,)

    def state_sizes(self):
        return (self.hidden_size,)
