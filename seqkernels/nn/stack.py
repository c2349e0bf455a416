"""What LSTM and RNN share: a stack of recurrent layers in one or two directions.

Parameters are read by name at every call. There is no flattened copy of them, so whatever puts
other tensors in their place (``torch.func.functional_call``, ``torch.nn.utils.parametrize``, a
weight dropped by hand) is obeyed. ``torch.compile`` breaks the graph at instances of torch's own
classes, so these are not subclasses of them.
"""

from __future__ import annotations

import functools
import math
import numbers
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .. import checks, cuda, functional, ops
from . import fallback
from .parameters import named

States = tuple[Tensor, ...]


def _drop_packed_rows(padded: Tensor, p: float, lengths: Tensor) -> Tensor:
    """Dropout of the rows that torch would have packed.

    So the random numbers fall on the same elements as torch's from the same generator state; on a
    GPU they are not those that cuDNN would draw.
    """
    data, *rest = pack_padded_sequence(padded, lengths)
    return pad_packed_sequence(PackedSequence(F.dropout(data, p), *rest))[0]


class RecurrentLayers(nn.Module):
    """Parameters, layers, directions, dropout, and the forms of input of a recurrence.

    A subclass says how many rows of a weight belong to a hidden unit (``gates``), how wide its
    states are, and computes one layer in one direction (``_layer``). ``mode`` is torch's name.
    """

    mode: str
    gates: int

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self._check_arguments(dropout)
        self._names = self._parameter_names()

        rows, directions = self.gates * hidden_size, 2 if bidirectional else 1
        output_size = proj_size or hidden_size
        for index, names in enumerate(self._names):
            features = input_size if index < directions else output_size * directions
            shapes = {
                "weight_ih": (rows, features),
                "weight_hh": (rows, output_size),
                "bias_ih": (rows,),
                "bias_hh": (rows,),
                "weight_hr": (proj_size, hidden_size),
            }
            for name in names:
                shape = shapes[name[: name.index("_l")]]
                setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    def _check_arguments(self, dropout: object) -> None:
        for name in ("bias", "batch_first"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: expected a bool, got {getattr(self, name)!r}")
        for name, lowest in (
            ("input_size", 1),
            ("hidden_size", 1),
            ("num_layers", 1),
            ("proj_size", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int):
                raise TypeError(f"{name}: expected an int, got {value!r}")
            if value < lowest:
                raise ValueError(f"{name}: expected at least {lowest}, got {value}")
        if self.proj_size >= self.hidden_size:
            raise ValueError(
                f"proj_size: expected less than hidden_size {self.hidden_size}, "
                f"got {self.proj_size}"
            )
        is_number = isinstance(dropout, numbers.Number) and not isinstance(dropout, bool)
        if not is_number or not 0 <= dropout <= 1:
            raise ValueError(f"dropout: expected a probability from 0 to 1, got {dropout!r}")
        if dropout > 0 and self.num_layers == 1:
            warnings.warn(
                f"dropout: {dropout} has no effect with num_layers=1, it is applied between layers",
                stacklevel=4,
            )

    def _parameter_names(self) -> list[list[str]]:
        """The names of the parameters of each layer and direction, as torch orders them."""
        kinds = ["weight_ih", "weight_hh"]
        kinds += ["bias_ih", "bias_hh"] if self.bias else []
        kinds += ["weight_hr"] if self.proj_size else []
        return [
            [f"{kind}_l{layer}{suffix}" for kind in kinds]
            for layer in range(self.num_layers)
            for suffix in (("", "_reverse") if self.bidirectional else ("",))
        ]

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of each layer and direction, as they are now."""
        return [named(self, names) for names in self._names]

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(hidden_size), 1/sqrt(hidden_size)), as torch does."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """Do nothing: there is no flattened copy. Here for programs that call it on torch's."""

    def _layer(
        self,
        input: Tensor,
        states: States | None,
        weights: list[Tensor],
        lengths: Tensor | None,
        batch_sizes: Tensor | None,
        reverse: bool,
    ) -> tuple[Tensor, States]:
        raise NotImplementedError

    def state_sizes(self) -> tuple[int, ...]:
        raise NotImplementedError

    def run(
        self, input: Tensor | PackedSequence, hx: States | None, lengths: Tensor | None
    ) -> tuple[Tensor | PackedSequence, States]:
        weights = self.all_weights
        if not torch.compiler.is_compiling():
            found = self._run_kernel(input, hx, weights, lengths)
            if found is not None:
                return found
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError("lengths: expected None for a PackedSequence, which has its own")
            return self._run_packed(input, hx, weights)
        checks.tensor("input", input)
        if input.dim() not in (2, 3):
            raise ValueError(f"input: expected 2 or 3 dimensions, got shape {tuple(input.shape)}")
        batched = input.dim() == 3
        time_major = input.transpose(0, 1) if batched and self.batch_first else input
        self._check_input(input, hx, weights, time_major.shape[1:-1])
        if len(time_major) == 0:
            raise RuntimeError(f"input: expected at least 1 step, got shape {tuple(input.shape)}")
        if lengths is not None:
            batch = time_major.shape[1] if batched else None
            checks.check_lengths(lengths, batch, len(time_major), input)
            lengths = lengths.reshape(-1)
        if not batched:
            time_major = time_major.unsqueeze(1)
            hx = None if hx is None else tuple(state.unsqueeze(1) for state in hx)

        steps, batch = time_major.shape[:2]
        if self._has_kernel(input, steps, batch, lengths is not None):
            output, states = self._run_layers(time_major, hx, weights, lengths)
        else:
            output, states = fallback.run_padded(self, time_major, hx, weights, lengths)
        if not batched:
            return output.squeeze(1), tuple(state.squeeze(1) for state in states)
        return output.transpose(0, 1) if self.batch_first else output, states

    def _run_kernel(
        self,
        input: Tensor | PackedSequence,
        hx: States | None,
        weights: list[list[Tensor]],
        lengths: Tensor | None,
    ) -> tuple[Tensor, States] | None:
        """All layers over a batch, without gradients, in as few steps as can be.

        None where anything is out of the ordinary, or wrong: see ``ops.recurrence_stack``.
        """
        if not isinstance(input, Tensor) or input.dim() != 3:
            return None
        time_major = input.transpose(0, 1) if self.batch_first else input
        if len(time_major) == 0:
            return None
        found = self._run_at_once(time_major, hx, weights, lengths, None)
        if found is None:
            return None
        output, states = found
        return output.transpose(0, 1) if self.batch_first else output, states

    def _run_at_once(
        self,
        input: Tensor,
        hx: States | None,
        weights: list[list[Tensor]],
        lengths: Tensor | None,
        batch_sizes: Tensor | None,
    ) -> tuple[Tensor, States] | None:
        """``_run_layers`` in one call of the kernels, if they are all that is needed."""
        drops = self.dropout > 0 and self.training and self.num_layers > 1
        if self.proj_size or drops:
            return None
        directions = 2 if self.bidirectional else 1
        found = ops.recurrence_stack(
            self.mode.lower(), directions, input, hx, lengths, batch_sizes, weights
        )
        return None if found is None else (found[0], found[1:])

    def _run_packed(
        self, input: PackedSequence, hx: States | None, weights: list[list[Tensor]]
    ) -> tuple[PackedSequence, States]:
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if data.dim() != 2:
            raise RuntimeError(f"input: expected packed data (rows, I), got {tuple(data.shape)}")
        self._check_input(data, hx, weights, (int(batch_sizes[0]),))
        if hx is not None and sorted_indices is not None:
            hx = tuple(state.index_select(1, sorted_indices) for state in hx)
        if not self._has_kernel(data, len(batch_sizes), int(batch_sizes[0]), True):
            output, states = fallback.run_packed(self, data, batch_sizes, hx, weights)
        elif functional.takes_packed(data):
            how = (data, hx, weights, None, batch_sizes)
            output, states = self._run_at_once(*how) or self._run_layers(*how)
        else:  # padded once for all layers
            padded, lengths = pad_packed_sequence(PackedSequence(data, batch_sizes))
            drop = functools.partial(_drop_packed_rows, lengths=lengths)
            output, states = self._run_layers(padded, hx, weights, lengths, drop=drop)
            output = pack_padded_sequence(output, lengths).data
        if unsorted_indices is not None:
            states = tuple(state.index_select(1, unsorted_indices) for state in states)
        return PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices), states

    def _run_layers(
        self,
        input: Tensor,
        hx: States | None,
        weights: list[list[Tensor]],
        lengths: Tensor | None,
        batch_sizes: Tensor | None = None,
        drop: Callable[..., Tensor] = F.dropout,
    ) -> tuple[Tensor, States]:
        """All layers over (T, N, I) input; hx and the final states (layers * directions, N, H).

        With batch_sizes the input is (rows, I), packed. ``drop`` is what dropout does.
        """
        directions = 2 if self.bidirectional else 1
        final_states = []
        for layer in range(self.num_layers):
            if layer > 0 and self.dropout > 0 and self.training:
                input = drop(input, p=self.dropout)
            outputs = []
            for direction in range(directions):
                index = layer * directions + direction
                states = hx and tuple(state[index] for state in hx)
                output, final = self._layer(
                    input, states, weights[index], lengths, batch_sizes, reverse=direction == 1
                )
                outputs.append(output)
                final_states.append(final)
            input = outputs[0] if directions == 1 else torch.cat(outputs, dim=-1)
        if len(final_states) == 1:
            return input, tuple(state.unsqueeze(0) for state in final_states[0])
        return input, tuple(torch.stack(states) for states in zip(*final_states, strict=True))

    def _has_kernel(self, input: Tensor, steps: int, batch: int, is_ragged: bool) -> bool:
        if self.proj_size:
            functional.say_once(f"nn.{type(self).__name__} with proj_size", input)
            return False
        # Under autocast the functions bring input and weights to one dtype themselves.
        name = type(self).__name__.lower()
        if input.is_cpu and (functional.is_autocast(input) or functional.has_kernel(name, input)):
            return True
        # On a GPU cuDNN is no fallback to be warned of, but the faster of two.
        if input.is_cuda and functional.has_kernel(name, input) and input.dtype != torch.float64:
            return not functional.is_autocast(input) and cuda.is_ahead_of_cudnn(
                self.mode.lower(), input, steps, batch, self.hidden_size, is_ragged
            )
        functional.say_once(f"nn.{type(self).__name__}", input)
        return False

    def _check_input(self, input: Tensor, hx: States | None, weights, batch) -> None:
        """Check what torch's layers check themselves; ``batch`` is (N,), or () without a batch."""
        dtype, device = weights[0][0].dtype, weights[0][0].device
        if input.device != device:
            raise RuntimeError(
                f"input: expected device {device}, that of the weights, got {input.device}"
            )
        if input.dtype != dtype and not functional.is_autocast(input):
            raise ValueError(
                f"input: expected {dtype}, the dtype of the weights, got {input.dtype}"
            )
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input: expected {self.input_size} features in its last dimension, "
                f"got shape {tuple(input.shape)}"
            )
        if hx is None:
            return
        sizes = self.state_sizes()
        for index, (state, size) in enumerate(zip(hx, sizes, strict=True)):
            name = "hx" if len(sizes) == 1 else f"hx[{index}]"
            checks.tensor(name, state)
            expected = (self.num_layers * (2 if self.bidirectional else 1), *batch, size)
            if state.shape != expected:
                raise RuntimeError(f"{name}: expected shape {expected}, got {tuple(state.shape)}")

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        for name, default in (
            ("proj_size", 0),
            ("num_layers", 1),
            ("bias", True),
            ("batch_first", False),
            ("dropout", 0.0),
            ("bidirectional", False),
        ):
            value = getattr(self, name)
            text += "" if value == default else f", {name}={value}"
        return text
