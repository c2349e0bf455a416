"""What is measured: an operation on a shape in a dtype, one pass of it, on so many threads.

Suites are JSON files in ``suites/``::

    {"description": "...",
     "passes": ["inference", "training"],
     "cases": [{"operation": "lstm", "shapes": {"N": [1, 16], "T": "25..100..25", "H": 512}}]}

``passes`` may also stand in a single case, and so may ``dtypes``. A value of ``shapes`` is a
number, a word, a range, or a list of them; the cases are their product.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUITES = Path(__file__).parent / "suites"
PASSES = ("inference", "forward", "backward", "training")
DTYPES = ("float32", "float64", "bfloat16", "float16")
PRECISIONS = ("highest", "high", "medium")
DEVICES = ("cpu", "cuda")
#: As installed; in a checkout `python -m bench` is the same.
PROGRAM = "seqkernels-bench"

Value = int | str
_RANGE = re.compile(r"(\d+)\.\.(\d+)(?:\.\.(\*?)(\d+))?")


class UsageError(Exception):
    """A mistake in what was asked for; the message is one sentence for the user."""


@dataclass(frozen=True)
class Case:
    """One row: everything the providers have in common."""

    operation: str
    shape: tuple[tuple[str, Value], ...]
    pass_name: str = "inference"
    dtype: str = "float32"
    threads: int = 1
    device: str = "cpu"
    precision: str = "highest"
    cold: bool = False

    @property
    def sizes(self) -> dict[str, Any]:
        return dict(self.shape)

    @property
    def has_gradient(self) -> bool:
        return self.pass_name in ("backward", "training")

    def shape_text(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.shape)

    def describe(self) -> dict[str, Any]:
        """The row's key in a saved file."""
        return {
            "operation": self.operation,
            "shape": self.sizes,
            "pass": self.pass_name,
            "dtype": self.dtype,
            "threads": self.threads,
            "device": self.device,
            "precision": self.precision,
            "cold": self.cold,
        }

    def command(self) -> str:
        """What measures this row again, without the providers."""
        parts = [
            f"{PROGRAM} run",
            f"--op {self.operation} --shapes {self.shape_text()}",
            f"--pass {self.pass_name} --dtype {self.dtype} --threads {self.threads}",
        ]
        if self.device != "cpu":
            parts.append(f"--device {self.device}")
        if self.precision != "highest":
            parts.append(f"--precision {self.precision}")
        if self.cold:
            parts.append("--cold")
        return " ".join(parts)


def values(text: Any) -> list[Value]:
    """The values of "3", "tanh", "1,2,8", "3..5", "25..100..25" (steps), "16..128..*2" (factors).

    Lists give the values of their items; numbers are themselves.
    """
    if isinstance(text, (list, tuple)):
        return [value for item in text for value in values(item)]
    if isinstance(text, int):
        return [text]
    result: list[Value] = []
    for item in str(text).split(","):
        found = _RANGE.fullmatch(item)
        if found:
            result += _range(item, *found.groups())
        elif item:
            result.append(int(item) if re.fullmatch(r"-?\d+", item) else item)
    if not result:
        raise UsageError(f"expected a value, a list or a range such as 16..128..*2, got {text!r}")
    return result


def _range(text: str, first: str, last: str, star: str | None, step: str | None) -> list[Value]:
    value, end, by = int(first), int(last), int(step or 1)
    if by < (2 if star else 1) or (star and value < 1):
        raise UsageError(f"the range {text} does not advance")
    result: list[Value] = []
    while value <= end:
        result.append(value)
        value = value * by if star else value + by
    return result


def parse_shapes(words: Sequence[str]) -> dict[str, Any]:
    """Of ["N=1,16", "T=25..100..25"] the dictionary a suite file would have."""
    result = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise UsageError(f"--shapes: expected name=values such as N=1,16, got {word!r}")
        result[name] = text
    return result


def product(shapes: Mapping[str, Any]) -> Iterator[dict[str, Value]]:
    """Every shape in the product of the values of each name."""
    names = list(shapes)
    for combination in itertools.product(*(values(shapes[name]) for name in names)):
        yield dict(zip(names, combination, strict=True))


def suite_names() -> list[str]:
    return sorted(path.stem for path in SUITES.glob("*.json"))


def suites_named(text: str) -> list[str]:
    """The suites and files of a comma-separated option; "all" means every suite."""
    return suite_names() if text == "all" else [name for name in text.split(",") if name]


def load_suite(name_or_path: str) -> dict[str, Any]:
    """A suite of the package by name, or a file in the same format."""
    path = SUITES / f"{name_or_path}.json"
    if not path.exists():
        path = Path(name_or_path)
    try:
        suite = json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(
            f"no suite {name_or_path!r}: there are {', '.join(suite_names())}"
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not a suite: {error}") from error
    if not isinstance(suite, dict) or not isinstance(suite.get("cases"), list):
        raise UsageError(f'{path}: not a suite: expected an object with a list "cases"')
    for entry in suite["cases"]:
        if not isinstance(entry, dict) or not isinstance(entry.get("shapes"), dict):
            raise UsageError(
                f'{path}: not a suite: expected cases with "operation" and "shapes", got {entry!r}'
            )
    return suite


def unique(items: Iterable) -> list:
    return list(dict.fromkeys(items))
