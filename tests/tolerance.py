"""The rule by which results are judged: no worse than twice torch's own error, and rounding.

err(ours) <= 2 * err(torch's operation in the same dtype) + tiny, where both errors are the largest
absolute difference from a result computed in float64. ``tiny`` is what rounding alone may cost,
should torch have been lucky: u * sqrt(terms) * max|exact|, the probable error of a sum of that many
terms (Higham and Mary, "A New Approach to Probabilistic Rounding Error Analysis", SIAM J. Sci.
Comput. 41(5), 2019), where 2u is the distance of 1 from the next number of the dtype.

The float64 result has that error itself, with float64's u. It counts three times: once as the
standard's, and twice as torch's, which shows none where torch's float64 is the standard.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def assert_no_worse(
    ours: Tensor | Sequence[Tensor],
    torchs: Tensor | Sequence[Tensor],
    exact: Tensor | Sequence[Tensor],
    *,
    terms: int = 1,
    what: str = "result",
) -> None:
    """Fail if ours is farther from exact than the rule above allows.

    ours and torchs are of one dtype and shape, exact is their float64 counterpart; or all three are
    sequences of such. NaN and infinities must stand where exact has them. ``terms`` is the number
    of products summed into an element.
    """
    if not isinstance(ours, Tensor):
        assert len(ours) == len(torchs) == len(exact), f"{what}: number of tensors differs"
        for index, triple in enumerate(zip(ours, torchs, exact, strict=True)):
            assert_no_worse(*triple, terms=terms, what=f"{what}[{index}]")
        return
    assert ours.dtype == torchs.dtype, f"{what}: dtype {ours.dtype}, torch's {torchs.dtype}"
    assert ours.shape == exact.shape, f"{what}: shape {ours.shape}, exact {exact.shape}"
    assert torchs.shape == exact.shape, f"{what}: torch's shape {torchs.shape}, {exact.shape}"
    assert exact.dtype == torch.float64, f"{what}: exact is {exact.dtype}"
    ours, torchs, exact = ours.detach(), torchs.detach(), exact.detach()
    finite = exact.isfinite()
    assert torch.equal(
        torch.where(finite, torch.nan, ours.double()).nan_to_num(nan=0.5),
        torch.where(finite, torch.nan, exact).nan_to_num(nan=0.5),
    ), f"{what}: NaN or infinity in other places than expected"
    ours_error = largest((ours.double() - exact)[finite])
    torch_error = largest((torchs.double() - exact)[finite])
    unit = torch.finfo(ours.dtype).eps / 2 + 3 * torch.finfo(exact.dtype).eps / 2
    tiny = unit * math.sqrt(terms) * largest(exact[finite])
    assert ours_error <= 2 * torch_error + tiny, (
        f"{what}: error {ours_error:.3e}, torch's {torch_error:.3e}, allowed beyond twice that "
        f"{tiny:.3e}"
    )


def largest(values: Tensor) -> float:
    """The largest magnitude, 0 of nothing; NaN if there is one."""
    return values.abs().max().item() if values.numel() else 0.0
