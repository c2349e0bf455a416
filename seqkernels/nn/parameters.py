"""The parameters of a layer, by name, as they are at this moment."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def named(layer: nn.Module, names: Sequence[str]) -> list[Tensor | None]:
    """What ``getattr(layer, name)`` gives for each of the names.

    ``nn.Module`` looks everywhere else first, which takes half a microsecond a name. A parameter
    that is registered cannot be anywhere else; what stands in the place of one that is not
    (parametrized, or dropped by hand) is found there.
    """
    registered = layer._parameters
    return [registered[name] if name in registered else getattr(layer, name) for name in names]
