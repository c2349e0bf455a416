"""The rule by which results are judged, as an assertion; the rule itself is ``bench.verify``'s."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.verify import judge_one


def assert_no_worse(
    ours: Tensor | Sequence[Tensor],
    torchs: Tensor | Sequence[Tensor],
    exact: Tensor | Sequence[Tensor],
    *,
    terms: int = 1,
    what: str = "result",
) -> None:
    """Fail if ours is farther from exact than the rule allows.

    ours and torchs are of one dtype and shape, exact is their float64 counterpart; or all three are
    sequences of such. ``terms`` is the number of products summed into an element.
    """
    if not isinstance(ours, Tensor):
        assert len(ours) == len(torchs) == len(exact), f"{what}: number of tensors differs"
        for index, triple in enumerate(zip(ours, torchs, exact, strict=True)):
            assert_no_worse(*triple, terms=terms, what=f"{what}[{index}]")
        return
    assert ours.dtype == torchs.dtype, f"{what}: dtype {ours.dtype}, torch's {torchs.dtype}"
    assert torchs.shape == exact.shape, f"{what}: torch's shape {torchs.shape}, {exact.shape}"
    assert exact.dtype == torch.float64, f"{what}: exact is {exact.dtype}"
    verdict = judge_one(what, ours, torchs, exact.detach(), terms=terms)
    assert verdict.right, (
        f"{verdict.what}: error {verdict.error:.3e}, allowed {verdict.allowed:.3e}"
    )
