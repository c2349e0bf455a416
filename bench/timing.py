"""How long a call takes: samples of providers in random order, until they are enough."""

from __future__ import annotations

import contextlib
import gc
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .statistics import deviation, median, noise

#: Fewer could not be told from others: of two sets of 5 the least p-value is 0.008.
LEAST_SAMPLES = 5
#: Samples a provider gets in ``min_time``; more calls to a sample where a call is short.
SAMPLES = 25
#: Samples are enough, with cold caches, when there are so many.
COLD_SAMPLES = 2 * SAMPLES
#: Threads of most libraries that spin after a call have gone to sleep by then.
SETTLING = 0.002
#: A call at least this long is not preceded by one that is not counted.
LONG_CALL = 0.05


@dataclass(frozen=True)
class Method:
    """How long to measure: ``min_time`` seconds of calls, and beyond it up to ``max_time`` until
    the standard error of the median is at most ``max_noise`` of it."""

    min_time: float = 0.1
    max_time: float = 0.3
    max_noise: float = 0.02
    cold: bool = False


@dataclass
class Contestant:
    """A provider's ``run`` with what must hold around it, and the samples taken: seconds a call."""

    run: Callable[[], object]
    settings: Callable[[], contextlib.AbstractContextManager]
    device: str = "cpu"
    settling: float = SETTLING
    calls: int = 0
    spent: float = 0.0
    samples: list[float] = field(default_factory=list)

    def start(self, method: Method) -> None:
        """Decide how many calls make a sample."""
        with self.settings():
            duration = min(self._timed(1) for _ in range(2))
        time.sleep(self.settling)
        self.calls = 1 if method.cold else self._calls_of(duration, method)
        self.is_long = duration > LONG_CALL

    def sample(self, method: Method, scrub: Callable[[], None]) -> None:
        with self.settings():
            if method.cold:
                scrub()
            elif not self.is_long:
                self.run()
            duration = self._timed(self.calls)
        time.sleep(self.settling)
        self.samples.append(duration / self.calls)
        self.spent += duration
        if not method.cold:  # the first calls may have been quicker or slower than most
            self.calls = self._calls_of(median(self.samples), method)

    @staticmethod
    def _calls_of(duration: float, method: Method) -> int:
        return max(1, math.ceil(method.min_time / SAMPLES / max(duration, 1e-7)))

    def is_done(self, method: Method) -> bool:
        """Whether there are samples enough, or time is up."""
        if len(self.samples) < LEAST_SAMPLES:
            return False
        # With cold caches a sample is one call, and scrubbing takes longer than most calls.
        if self.spent >= method.max_time or (method.cold and len(self.samples) >= COLD_SAMPLES):
            return True
        return self.spent >= method.min_time and noise(self.samples) <= method.max_noise

    def _timed(self, calls: int) -> float:
        run = self.run
        synchronize(self.device)
        start = time.perf_counter()
        for _ in range(calls):
            run()
        synchronize(self.device)
        return time.perf_counter() - start

    def summary(self) -> dict:
        return {
            "median": median(self.samples),
            "deviation": deviation(self.samples),
            "noise": noise(self.samples),
            "calls": self.calls,
            "samples": [float(f"{sample:.5g}") for sample in self.samples],
        }


def race(
    contestants: dict[str, Contestant], method: Method, order: random.Random
) -> dict[str, Exception]:
    """Sample the contestants in turns, in a new random order each turn, until all are done.

    Returns the errors of those that raised one, by name: they were taken out.
    """
    failed: dict[str, Exception] = {}

    def attempt(name: str, act: Callable[[Contestant], None]) -> None:
        try:
            act(contestants[name])
        except Exception as error:  # a peer may fail in any way; the others go on
            failed[name] = error

    scrub = Scrubber() if method.cold else lambda: None
    with _without_collection():
        for name in contestants:
            attempt(name, lambda contestant: contestant.start(method))
        running = [name for name in contestants if name not in failed]
        while running:
            order.shuffle(running)
            for name in running:
                attempt(name, lambda contestant: contestant.sample(method, scrub))
            running = [
                name
                for name in running
                if name not in failed and not contestants[name].is_done(method)
            ]
    return failed


class Scrubber:
    """Reads and writes more memory than the caches hold."""

    def __init__(self, size: int | None = None) -> None:
        size = size or max(64 << 20, 2 * cache_size())
        self.memory = torch.ones(size // 4)

    def __call__(self) -> None:
        self.memory.mul_(1.0001)


def cache_size() -> int:
    """Bytes in the largest cache of the first CPU, 32 MiB where that cannot be read."""
    return max(cache_sizes().values(), default=32 << 20)


def cache_sizes() -> dict[str, int]:
    """Bytes of each data cache that the first CPU sees: "L1", "L2", "L3"."""
    found = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        with contextlib.suppress(OSError, ValueError):
            if (index / "type").read_text().strip() == "Instruction":
                continue
            text = (index / "size").read_text().strip()
            scale = {"K": 1 << 10, "M": 1 << 20}[text[-1]]
            found["L" + (index / "level").read_text().strip()] = int(text[:-1]) * scale
    return dict(sorted(found.items()))


def synchronize(device: str) -> None:
    """Wait for what the device still computes."""
    if device == "cuda":
        torch.cuda.synchronize()


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
