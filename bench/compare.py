"""Two saved runs, row by row: how much faster the second is, and whether by more than chance."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from . import report
from .cases import UsageError
from .documents import Document, by_key, load, run_of
from .statistics import difference_by_chance, geometric_mean, least_probability


def differences(before: Document, after: Document, provider: str) -> list[dict[str, Any]]:
    """The rows that both have: times, their ratio (above 1: the second is faster), p-value."""
    old_rows, found = by_key(before), []
    for key, new in by_key(after).items():
        old = old_rows.get(key)
        if old is None:
            continue
        results = [row["results"].get(provider, {}) for row in (old, new)]
        if not all("median" in result for result in results):
            continue
        first, second = results
        found.append(
            {
                "title": report.title(new),
                "before": first["median"],
                "after": second["median"],
                "ratio": first["median"] / second["median"],
                "p": difference_by_chance(first["samples"], second["samples"]),
                "least p": least_probability(len(first["samples"]), len(second["samples"])),
            }
        )
    return found


def significant(rows: list[dict[str, Any]], level: float) -> list[bool]:
    """Which rows differ by more than chance, the whole set taken together.

    Holm's procedure (Scand. J. Statist. 6(2), 1979): the probability that any row is called
    different although nothing changed is at most ``level``. That many rows it can tell apart only
    with samples enough; of a row with too few, all of one file's must be above all of the other's.
    """
    found = [row["p"] <= row["least p"] and row["least p"] > level / len(rows) for row in rows]
    order = sorted(range(len(rows)), key=lambda place: rows[place]["p"])
    for rank, place in enumerate(order):
        if rows[place]["p"] > level / (len(rows) - rank):
            break
        found[place] = True
    return found


def lost(before: Document, after: Document, provider: str) -> list[str]:
    """The rows of both for which the provider had a time and has none any more."""
    old_rows = by_key(before)
    return [
        report.title(new)
        for key, new in by_key(after).items()
        if key in old_rows
        and provider in report.measured(old_rows[key])
        and provider not in report.measured(new)
    ]


def _environments_differ(before: Document, after: Document) -> bool:
    """Whether a row of both was measured in one environment there, in another here."""
    old_rows = by_key(before)
    return any(
        run_of(old_rows[key], before)["environment"] != run_of(new, after)["environment"]
        for key, new in by_key(after).items()
        if key in old_rows
    )


def compare(arguments: argparse.Namespace) -> int:
    """Print the rows and the geometric mean; 1 if ``--fail-below`` says so, else 0."""
    before, after = load(arguments.before), load(arguments.after)
    provider = arguments.provider
    rows = differences(before, after, provider)
    if not rows:
        raise UsageError(f"the two files have no row of {provider} in common")
    for row, differs in zip(rows, significant(rows, arguments.significance), strict=True):
        row["verdict"] = "the same" if not differs else "faster" if row["ratio"] > 1 else "SLOWER"
    mean = geometric_mean(row["ratio"] for row in rows)
    write = sys.stdout.write
    for row in sorted(rows, key=lambda row: row["ratio"]):
        write(
            f"{row['ratio']:6.3f}x  {row['verdict']:8}  p={row['p']:.1e}  "
            f"{report.duration(row['before']):>8} -> {report.duration(row['after']):>8}  "
            f"{row['title']}\n"
        )
    write(f"{mean:6.3f}x  geometric mean of {len(rows)} rows of {provider}\n")
    missing = len(set(by_key(before)) ^ set(by_key(after)))
    if missing:
        write(f"{missing} rows are in one of the files only\n")
    if _environments_differ(before, after):
        write("the machines or libraries differ: see `environment` in the files\n")
    gone = lost(before, after, provider)
    for text in gone:
        write(f"no time any more: {text}\n")
    if arguments.fail_below is None:
        return 0
    least = min([mean, *(row["ratio"] for row in rows if row["verdict"] != "the same")])
    if gone or least < arguments.fail_below:
        write(f"below {arguments.fail_below}\n")
        return 1
    return 0
