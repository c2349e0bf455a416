"""One step of a recurrence: torch.nn's cells, computed by this package."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, functional
from .parameters import named

NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class LSTMCell(torch.nn.LSTMCell):
    """``torch.nn.LSTMCell(input_size, hidden_size, bias=True, device=None, dtype=None)``.

    Constructor, parameters (weight_ih, weight_hh, bias_ih, bias_hh), initialisation, state_dict and
    errors are torch's; the equations are those of ``functional.lstm_cell``.
    """

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step from the state hx = (h, c), None for zeros, to the new (h, c).

        input is (N, input_size) or (input_size,), h and c (N, hidden_size) or (hidden_size,).
        """
        return functional.lstm_cell(input, hx, *named(self, NAMES))


class RNNCell(torch.nn.RNNCell):
    """``torch.nn.RNNCell(input_size, hidden_size, bias=True, nonlinearity="tanh", ...)``.

    Constructor, parameters (weight_ih, weight_hh, bias_ih, bias_hh), initialisation, state_dict and
    errors are torch's; the equations are those of ``functional.rnn_cell``.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """One step from the state hx, None for zeros, to the new one.

        input is (N, input_size) or (input_size,), hx (N, hidden_size) or (hidden_size,).
        """
        # torch.nn.RNNCell takes any nonlinearity and raises this class at the first call.
        if self.nonlinearity not in checks.NONLINEARITIES:
            raise RuntimeError(
                f"nonlinearity: expected one of {', '.join(checks.NONLINEARITIES)}, "
                f"got {self.nonlinearity!r}"
            )
        weights = named(self, NAMES)
        return functional.rnn_cell(input, hx, *weights, nonlinearity=self.nonlinearity)
