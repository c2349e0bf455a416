"""What every operation has."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..cases import Case, UsageError, Value

ACTIVATIONS = {
    "identity": lambda value: value,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
REVIEW_LENGTHS = Path(__file__).parent.parent / "review_lengths.json"


@dataclass
class Data:
    """One case's numbers, the same for every provider.

    ``parameters`` have the names and shapes of torch's layer. ``gradients`` are those of the
    outputs a loss would read, by output; ``states`` a cell's h and c.
    """

    input: Tensor
    parameters: dict[str, Tensor]
    lengths: Tensor | None = None
    gradients: dict[str, Tensor] = field(default_factory=dict)
    states: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: str, dtype: torch.dtype | None = None) -> Data:
        """The same numbers elsewhere; lengths stay on the CPU."""

        def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.detach().to(device, dtype) for name, value in tensors.items()}

        return Data(
            self.input.detach().to(device, dtype),
            moved(self.parameters),
            self.lengths,
            moved(self.gradients),
            moved(self.states),
        )

    def tensors(self) -> list[Tensor]:
        parts = (self.parameters, self.gradients, self.states)
        return [self.input, *(value for part in parts for value in part.values())]

    def copy(self) -> Data:
        """The same numbers in memory of their own."""

        def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.detach().clone() for name, value in tensors.items()}

        return Data(
            self.input.detach().clone(),
            copied(self.parameters),
            self.lengths,
            copied(self.gradients),
            copied(self.states),
        )

    def equals(self, other: Data) -> bool:
        """Whether all numbers are the same."""
        return all(map(torch.equal, self.tensors(), other.tensors()))

    def copy_to(self, other: Data) -> None:
        """Write these numbers over the other's."""
        with torch.no_grad():
            for source, target in zip(self.tensors(), other.tensors(), strict=True):
                target.copy_(source)


class Operation:
    """An operation: what its shapes are called, and what it computes.

    A result is a dictionary of tensors: the outputs by name, and for passes with a gradient
    "gradient of input" and "gradient of <parameter>".
    """

    name: str
    #: Names that a shape must give, with what they are.
    required: ClassVar[dict[str, str]]
    #: Names that it may give, with their defaults.
    defaults: dict[str, Value]
    #: The values that a name may have; other names have any positive integers.
    choices: dict[str, tuple[Value, ...]]
    #: Output elements that every provider must return.
    outputs: tuple[str, ...]

    def sizes(self, case: Case) -> dict[str, Any]:
        """The case's shape with the defaults filled in."""
        return self.defaults | case.sizes

    def shape(self, given: dict[str, Value]) -> tuple[tuple[str, Value], ...]:
        """A shape checked, put in order, and without what the defaults say anyway."""
        for name in self.required:
            if name not in given:
                raise UsageError(
                    f"{self.name}: the shape lacks {name}, {self.required[name]}; "
                    f"it has {', '.join(given) or 'nothing'}"
                )
        for name, value in given.items():
            if name not in self.required and name not in self.defaults:
                known = ", ".join([*self.required, *self.defaults])
                raise UsageError(f"{self.name}: no {name} in its shapes; there are {known}")
            if name in self.choices:
                if value not in self.choices[name]:
                    known = ", ".join(map(str, self.choices[name]))
                    raise UsageError(f"{self.name}: {name}: expected one of {known}, got {value}")
            elif not isinstance(value, int) or value < (0 if self.defaults.get(name) == 0 else 1):
                raise UsageError(f"{self.name}: {name}: expected a positive integer, got {value}")
        self._check_lengths(self.defaults | given)
        order = [*self.required, *self.defaults]
        return tuple(
            (name, given[name])
            for name in order
            if name in given and given[name] != self.defaults.get(name)
        )

    def _check_lengths(self, sizes: dict[str, Any]) -> None:
        """A batch of sentences is as long as the longest of them, and padded to no more."""
        name = "L" if "L" in self.required else "T"
        if sizes.get("lengths") == "reviews":
            longest = max(lengths_of("reviews", sizes["N"], sizes[name]))
            if longest < sizes[name]:
                raise UsageError(
                    f"{self.name}: {name}: expected at most {longest}, the longest of the lengths "
                    f"of {sizes['N']} sentences, got {sizes[name]}"
                )

    def data(self, case: Case) -> Data:
        """Random numbers from a fixed seed, none of them zero."""
        raise NotImplementedError

    def exact(self, case: Case, data: Data, gradient: bool) -> dict[str, Tensor]:
        """The results, in float64 on the CPU, by the package's reference, with gradients or not."""
        raise NotImplementedError

    def hide_ties(self, case: Case, data: Data) -> None:
        """Zero the gradients of outputs whose own gradient hangs on the rounding of a tie."""

    def slack(self, case: Case, data: Data) -> dict[str, float]:
        """What a gradient may be off beyond what the size of the largest of its elements says."""
        return {}

    def terms(self, case: Case) -> int:
        """Number of products summed into an element of the output."""
        raise NotImplementedError

    def gradient_terms(self, case: Case) -> int:
        """Number of products summed into an element of a gradient."""
        raise NotImplementedError

    def flops(self, case: Case) -> float:
        """Multiplications and additions that the pass needs."""
        raise NotImplementedError

    def bytes(self, case: Case) -> float:
        """Bytes that the pass must read or write if caches hold all that is used twice."""
        raise NotImplementedError


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def uniform(generator: torch.Generator, bound: float, *shape: int) -> Tensor:
    """From U(-bound, bound), as torch draws the weights of its layers."""
    return (2 * torch.rand(*shape, generator=generator) - 1) * bound


def review_lengths(count: int, longest: int) -> list[int]:
    """Numbers of tokens of ``count`` film-review sentences, the longer ones cut to ``longest``."""
    counts = json.loads(REVIEW_LENGTHS.read_text())["counts"]
    drawn = random.Random(0).choices(range(len(counts)), counts, k=count)
    return [min(length, longest) for length in drawn]


def lengths_of(kind: str, batch: int, longest: int) -> list[int]:
    """The length of each sequence of a batch: all the ``longest``, or those of sentences."""
    return review_lengths(batch, longest) if kind == "reviews" else [longest] * batch


def bytes_of(dtype: str) -> int:
    return torch.finfo(getattr(torch, dtype)).bits // 8
