"""Right or wrong: the rule by which the package's tests judge results.

err(provider) <= 2 * err(torch's operation in the same dtype) + tiny, where both errors are the
largest absolute difference from the float64 result. ``tiny`` is what rounding alone may cost,
should torch have been lucky: u * sqrt(terms) * max|exact|, the probable error of a sum of that many
terms (Higham and Mary, "A New Approach to Probabilistic Rounding Error Analysis", SIAM J. Sci.
Comput. 41(5), 2019), where 2u is the distance of 1 from the next number of the dtype. The float64
result has that error itself, with float64's u, and it counts three times: once as the standard's,
and twice as torch's, which shows none where torch's float64 is the standard.

At a lower ``precision`` the factors of a product may be rounded first: to TensorFloat32 (10 bits
behind the point) for "high" and to bfloat16 (7 bits) for "medium", and u is theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

UNITS = {"highest": 0.0, "high": 2.0**-11, "medium": 2.0**-8}

Results = dict[str, Tensor]


@dataclass(frozen=True)
class Verdict:
    """The result farthest from what is allowed: its error, what is allowed, and its name."""

    right: bool
    error: float
    allowed: float
    what: str


def judge(
    results: Results,
    torchs: Results,
    exact: Results,
    required: tuple[str, ...],
    *,
    terms: int,
    gradient_terms: int,
    dtype: torch.dtype | None = None,
    precision: str = "highest",
    slack: Mapping[str, float] | None = None,
) -> Verdict:
    """Compare what a provider computed, and torch in the same dtype, with the float64 results.

    ``required`` names the outputs a provider cannot leave out; of the gradients it can leave out
    none. A result that ``exact`` does not have is not looked at. All must be of ``dtype``, if one
    is named. ``slack`` is allowed besides.
    """
    worst = Verdict(True, 0.0, 0.0, "")
    farthest = (False, -1.0)
    for name, right in exact.items():
        is_gradient = name.startswith("gradient of")
        if name not in results:
            if is_gradient or name in required:
                return Verdict(False, math.nan, math.nan, f"{name} missing")
            continue
        count = gradient_terms if is_gradient else terms
        if dtype is not None and results[name].dtype != dtype:
            what = f"{name} of dtype {results[name].dtype}, expected {dtype}"
            return Verdict(False, math.nan, math.nan, what)
        more = (slack or {}).get(name, 0.0)
        verdict = judge_one(
            name,
            results[name],
            torchs.get(name),
            right,
            terms=count,
            precision=precision,
            slack=more,
        )
        if not math.isfinite(verdict.error):
            return verdict
        ratio = verdict.error / verdict.allowed if verdict.allowed else float(verdict.error > 0)
        if (not verdict.right, ratio) > farthest:
            worst, farthest = verdict, (not verdict.right, ratio)
    return worst


def judge_one(
    name: str,
    result: Tensor,
    torchs: Tensor | None,
    exact: Tensor,
    *,
    terms: int,
    precision: str = "highest",
    slack: float = 0.0,
) -> Verdict:
    """The rule for one tensor; ``terms`` is the number of products summed into an element.

    NaN and infinities must stand where exact has them. Without torch's result, or where torch has
    such a number and exact has not, torch's error is 0.
    """
    result = result.detach().cpu()
    if result.shape != exact.shape:
        shapes = f"{name} of shape {tuple(result.shape)}, expected {tuple(exact.shape)}"
        return Verdict(False, math.nan, math.nan, shapes)
    finite = exact.isfinite()
    if not torch.equal(
        torch.where(finite, torch.nan, result.double()).nan_to_num(nan=0.5),
        torch.where(finite, torch.nan, exact).nan_to_num(nan=0.5),
    ):
        where = f"{name}: NaN or infinity in other places than expected"
        return Verdict(False, math.nan, math.nan, where)
    error = _largest((result.double() - exact)[finite])
    torch_error = 0.0
    if torchs is not None:
        torch_error = _largest((torchs.detach().cpu().double() - exact)[finite])
        torch_error = torch_error if math.isfinite(torch_error) else 0.0
    unit = max(torch.finfo(result.dtype).eps / 2, UNITS[precision])
    unit += 3 * torch.finfo(exact.dtype).eps / 2
    allowed = 2 * torch_error + unit * math.sqrt(terms) * _largest(exact[finite]) + slack
    return Verdict(error <= allowed, error, allowed, name)


def _largest(values: Tensor) -> float:
    """The largest magnitude, 0 of nothing; NaN if there is one."""
    return values.abs().max().item() if values.numel() else 0.0
