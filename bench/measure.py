"""One row after the other: prepare, verify, weigh, time."""

from __future__ import annotations

import contextlib
import math
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from . import memory, verify
from .cases import Case
from .operations import OPERATIONS, Data
from .providers import Provider, Refusal
from .providers.torch_convolution import TorchConvolution
from .providers.torch_recurrence import Cells, Layer
from .timing import Contestant, Method, race

Row = dict[str, Any]
SMALL = 5e9
#: Cases that are alike in these have one float64 result.
JUDGED_ALIKE = ("operation", "dtype", "device", "precision")


class Judge:
    """The float64 results of a case, and torch's own, kept while its passes are measured."""

    def __init__(self) -> None:
        self._key: tuple | None = None
        self._results: tuple[verify.Results, verify.Results, dict[str, float]] = ({}, {}, {})

    def prepare(self, case: Case, data: Data) -> None:
        """Compute what results are compared with; ``data`` has its ties hidden already."""
        operation = OPERATIONS[case.operation]
        described = case.describe()
        key = (*(described[name] for name in JUDGED_ALIKE), case.shape, case.has_gradient)
        if self._key == key:
            return
        self._key = None
        # On small tensors threads mostly wait for each other, the more so on a busy machine.
        torch.set_num_threads(case.threads if operation.flops(case) > SMALL else 1)
        exact = operation.exact(case, data, case.has_gradient)
        slack = operation.slack(case, data) if case.has_gradient else {}
        torch.set_num_threads(case.threads)
        self._results = exact, self._by_torch(case, data), slack
        self._key = key

    def verdict(self, case: Case, results: verify.Results, precision: str) -> verify.Verdict:
        """What is to be said of results of a precision, after ``prepare``."""
        operation = OPERATIONS[case.operation]
        exact, torchs, slack = self._results
        return verify.judge(
            results,
            torchs,
            exact,
            operation.outputs,
            terms=operation.terms(case),
            gradient_terms=operation.gradient_terms(case),
            dtype=getattr(torch, case.dtype),
            precision=precision,
            slack=slack,
        )

    @staticmethod
    def _by_torch(case: Case, data: Data) -> verify.Results:
        """What torch's plain layers compute; nothing where torch has no such operation."""
        if case.operation == "conv1d_max_pool":
            provider: Provider = TorchConvolution("conv1d", "max_pool1d")
        else:
            provider = Cells() if case.operation.endswith("_cell") else Layer()
        try:
            with surroundings(provider, case):
                return dict(provider.prepare(case, data.to(case.device))())
        except (Refusal, RuntimeError):
            return {}


@contextlib.contextmanager
def surroundings(provider: Provider, case: Case) -> Iterator[None]:
    """What holds while a provider prepares and runs."""
    gradient = torch.inference_mode() if case.pass_name == "inference" else torch.enable_grad()
    with gradient, provider.settings(case):
        yield


def measure(
    case: Case,
    providers: list[Provider],
    judge: Judge | None,
    method: Method,
    order: random.Random,
    step: Callable[[str], None] = lambda text: None,
) -> Row:
    """The row of a case: what each provider that serves the operation made of it.

    Without a judge nothing is verified. ``step`` is told what is being done.
    """
    torch.set_num_threads(case.threads)
    operation = OPERATIONS[case.operation]
    serving = [provider for provider in providers if case.operation in provider.operations]
    results: dict[str, dict[str, Any]] = {}
    contestants: dict[str, Contestant] = {}
    data = operation.data(case).to(case.device)
    gradients = {name: value.clone() for name, value in data.gradients.items()}
    if judge is not None:
        if case.has_gradient:
            operation.hide_ties(case, data)
        step("computing the float64 result")
        judge.prepare(case, data)
    untouched = data.copy() if judge is not None else None
    for provider in serving:
        step(f"{provider.name}: preparing")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result, contestant = _prepare(case, provider, data, untouched, judge, step)
        results[provider.name] = result
        if contestant is not None:
            contestants[provider.name] = contestant
    # The gradients of outputs where there is a tie come back: the tensors are the same.
    for name, value in gradients.items():
        data.gradients[name].copy_(value)
    step("timing")
    failed = race(contestants, method, order)
    for name, contestant in contestants.items():
        if name in failed:
            results[name] = _failure(failed[name])
        else:
            results[name] |= contestant.summary()
    return {
        **case.describe(),
        "flops": operation.flops(case),
        "bytes": operation.bytes(case),
        "command": case.command(),
        "results": results,
    }


def _prepare(
    case: Case,
    provider: Provider,
    data: Data,
    untouched: Data | None,
    judge: Judge | None,
    step: Callable[[str], None],
) -> tuple[dict[str, Any], Contestant | None]:
    """The provider's result so far, and if it is to be timed the contestant.

    ``untouched`` is a copy of ``data``, to see and mend what a provider writes over.
    """
    reason = provider.missing()
    if reason:
        return {"status": "unavailable", "reason": reason}, None
    try:
        provider.refuse(case)
        with surroundings(provider, case):
            run = provider.prepare(case, data.to(case.device))
            found = provider.converted(case, run())
    except Refusal as refusal:
        return {"status": "unavailable", "reason": str(refusal)}, None
    except Exception as error:  # a peer may fail in any way; the others are measured all the same
        return _failure(error), None
    result: dict[str, Any] = {"status": "measured"}
    if judge is not None:
        step(f"{provider.name}: verifying")
        verdict = judge.verdict(case, found, provider.precision_of(case))
        if not untouched.equals(data):
            verdict = replace(verdict, right=False, what="the input, which it changed")
            untouched.copy_to(data)
        result |= {
            "error": verdict.error if math.isfinite(verdict.error) else None,
            "allowed": verdict.allowed if math.isfinite(verdict.allowed) else None,
            "farthest": verdict.what,
        }
        if not verdict.right:
            return result | {"status": "WRONG"}, None
    del found
    try:
        with surroundings(provider, case):
            run()
            result["memory"] = memory.peak(run, case.device) if provider.frees_memory else None
    except Exception as error:
        return _failure(error), None
    contestant = Contestant(
        run, lambda: surroundings(provider, case), case.device, provider.settling
    )
    return result, contestant


def _failure(error: Exception) -> dict[str, Any]:
    text = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return {"status": "failed", "reason": text}
