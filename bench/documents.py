"""Saved runs: what is in such a file, reading one, and putting a later run's rows in place.

A document is ``{"format", "runs", "rows"}``. Every row names by its place, "run", the run it was
measured in: when, by which command and method, on what, and the rates measured there. What ``run``
saves has one run; a machine's record has as many as its rows come from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .cases import UsageError
from .measure import Row

FORMAT = 4
Document = dict[str, Any]
Run = dict[str, Any]
KEY = ("operation", "pass", "dtype", "threads", "device", "precision", "cold")


def load(path: str | Path) -> Document:
    """A document that ``run`` saved."""
    try:
        document = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not a saved run: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UsageError(f"{path}: not a saved run of format {FORMAT}")
    try:
        are_whole = all(0 <= row["run"] < len(document["runs"]) for row in document["rows"])
    except (KeyError, TypeError):
        are_whole = False
    if not are_whole:
        raise UsageError(f"{path}: not a saved run: expected rows that name one of its runs")
    return document


def run_of(row: Row, document: Document) -> Run:
    """The run that the row was measured in."""
    return document["runs"][row["run"]]


def key(described: dict[str, Any]) -> tuple:
    """What a row, or a case as it describes itself, measures."""
    return (*(described[name] for name in KEY), tuple(sorted(described["shape"].items())))


def by_key(document: Document) -> dict[tuple, Row]:
    """The rows of a document by what they measure; of several of one, the last."""
    return {key(row): row for row in document["rows"]}


def merged(earlier: Document, later: Document) -> Document:
    """Both documents' rows: where both have one, the later's, in the place of the earlier's.

    Runs that no row is left of are left out.
    """
    shift = len(earlier["runs"])
    moved = {**later, "rows": [row | {"run": row["run"] + shift} for row in later["rows"]]}
    rows = [*(by_key(earlier) | by_key(moved)).values()]
    kept = sorted({row["run"] for row in rows})
    runs = [*earlier["runs"], *later["runs"]]
    return {
        "format": FORMAT,
        "runs": [runs[place] for place in kept],
        "rows": [row | {"run": kept.index(row["run"])} for row in rows],
    }
