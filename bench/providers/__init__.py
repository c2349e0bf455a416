"""Who computes: this package and its peers, one small file each behind one ``run()``."""

from __future__ import annotations

import fnmatch

from ..cases import UsageError
from . import (
    cudnn,
    flashrnn,
    haste,
    onnx_runtime,
    openvino,
    ours,
    torch_compile,
    torch_convolution,
    torch_recurrence,
)
from .base import Provider, Refusal

PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for module in (
        ours,
        torch_convolution,
        torch_recurrence,
        torch_compile,
        onnx_runtime,
        openvino,
        cudnn,
        flashrnn,
        haste,
    )
    for provider in module.providers()
}
#: Those that are asked when none are named: torch.compile takes longer to start than to measure.
DEFAULT = ("seqkernels", "torch", "onnxruntime", "openvino", "cudnn", "flashrnn", "haste")


def select(names: list[str]) -> list[Provider]:
    """Providers by name, by family (what stands before the colon), or by a pattern with ``*``.

    "all" means every one, "default" every one that is quick to start.
    """
    chosen: dict[str, Provider] = {}
    for name in names:
        wanted = {"all": ["*"], "default": DEFAULT}.get(name, [name])
        found = {
            key: provider
            for key, provider in PROVIDERS.items()
            if any(fnmatch.fnmatch(key, w) or provider.family == w for w in wanted)
        }
        if not found:
            families = ", ".join(dict.fromkeys(p.family for p in PROVIDERS.values()))
            raise UsageError(f"no provider {name!r}: there are {families}; `list` names each")
        chosen |= found
    return list(chosen.values())


__all__ = ["DEFAULT", "PROVIDERS", "Provider", "Refusal", "select"]
