"""Layers with torch.nn's constructors, parameter names, initialisation and results."""

from .cells import LSTMCell, RNNCell
from .convolution import Conv1dMaxPool, Conv1dMaxPoolBank
from .recurrence import LSTM, RNN

__all__ = ["LSTM", "RNN", "Conv1dMaxPool", "Conv1dMaxPoolBank", "LSTMCell", "RNNCell"]
