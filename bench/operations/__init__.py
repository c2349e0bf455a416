"""The operations measured: their shapes, random data, exact results and cost formulas."""

from __future__ import annotations

from .base import Data, Operation
from .convolution import Convolution
from .recurrence import Cell, Recurrence

OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        Convolution(),
        Recurrence("lstm"),
        Recurrence("rnn"),
        Cell("lstm_cell"),
        Cell("rnn_cell"),
    )
}

__all__ = ["OPERATIONS", "Data", "Operation"]
