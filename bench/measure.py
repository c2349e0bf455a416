"""One row after the other: prepare, verify, weigh, time."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Iterator
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


class Judge:
    """The float64 results of a case, and torch's own, kept while its passes are measured."""

    def __init__(self) -> None:
        self._key: tuple | None = None
        self._results: tuple[verify.Results, verify.Results, dict[str, float]] = ({}, {}, {})

    def verdict(self, case: Case, data: Data, results: verify.Results) -> verify.Verdict:
        """``data`` has its ties hidden already."""
        operation = OPERATIONS[case.operation]
        key = (case.operation, case.shape, case.dtype, case.has_gradient, case.precision)
        if self._key != key:
            self._key = key
            # On small tensors threads mostly wait for each other, the more so on a busy machine.
            torch.set_num_threads(case.threads if operation.flops(case) > SMALL else 1)
            exact = operation.exact(case, data, case.has_gradient)
            slack = operation.slack(case, data) if case.has_gradient else {}
            torch.set_num_threads(case.threads)
            self._results = exact, self._by_torch(case, data), slack
        exact, torchs, slack = self._results
        return verify.judge(
            results,
            torchs,
            exact,
            operation.outputs,
            terms=operation.terms(case),
            gradient_terms=operation.gradient_terms(case),
            precision=case.precision,
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
    if case.has_gradient and judge is not None:
        operation.hide_ties(case, data)
    for provider in serving:
        step(f"{provider.name}: preparing")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result, contestant = _prepare(case, provider, data, judge, step)
        results[provider.name] = result
        if contestant is not None:
            contestants[provider.name] = contestant
    # The gradients of outputs where there is a tie come back: the tensors are the same.
    for name, value in gradients.items():
        data.gradients[name].copy_(value)
    step("timing")
    race(list(contestants.values()), method, order)
    for name, contestant in contestants.items():
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
    judge: Judge | None,
    step: Callable[[str], None],
) -> tuple[dict[str, Any], Contestant | None]:
    """The provider's result so far, and if it is to be timed the contestant."""
    reason = provider.missing()
    if reason:
        return {"status": "unavailable", "reason": reason}, None
    try:
        provider.refuse(case)
        own = Data(
            data.input.detach(),
            {name: value.detach() for name, value in data.parameters.items()},
            data.lengths,
            data.gradients,
            data.states,
        )
        with surroundings(provider, case):
            run = provider.prepare(case, own)
            found = provider.converted(case, run())
    except Refusal as refusal:
        return {"status": "unavailable", "reason": str(refusal)}, None
    except Exception as error:  # a peer may fail in any way; the others are measured all the same
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return {"status": "failed", "reason": reason}, None
    result: dict[str, Any] = {"status": "measured"}
    if judge is not None:
        step(f"{provider.name}: verifying")
        verdict = judge.verdict(case, data, found)
        result |= {"error": verdict.error, "allowed": verdict.allowed, "farthest": verdict.what}
        if not verdict.right:
            return result | {"status": "WRONG"}, None
    del found
    with surroundings(provider, case):
        run()
        result["memory"] = memory.peak(run, case.device) if provider.frees_memory else None
    return result, Contestant(run, lambda: surroundings(provider, case), case.device)
