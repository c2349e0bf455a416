"""Rows as a table, Markdown, CSV or JSON; ratios to the best peer; geometric means."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable
from typing import Any

from .documents import Document, run_of
from .measure import Row
from .statistics import geometric_mean

FORMATS = ("table", "md", "csv", "json", "jsonl")
OURS = "seqkernels"
#: Ours at a lower precision than the peers.
LOWER_PRECISIONS = {"seqkernels:high": "high"}
COLUMNS = (
    "provider",
    "time",
    "±",
    "against best peer",
    "GFLOP/s",
    "% of peak",
    "% of bandwidth",
    "memory",
    "error",
)


def is_ours(provider: str) -> bool:
    return provider == OURS or provider.startswith(OURS + ":")


def measured(row: Row) -> dict[str, float]:
    """The median of each provider that has one."""
    return {name: r["median"] for name, r in row["results"].items() if "median" in r}


def ours_in(row: Row) -> str | None:
    """Which of this package's results counts: that of no forced instruction set, or the fastest."""
    ours = {
        name: time
        for name, time in measured(row).items()
        if is_ours(name) and name not in LOWER_PRECISIONS
    }
    return OURS if OURS in ours else min(ours, key=ours.__getitem__, default=None)


def best_peer(row: Row) -> str | None:
    peers = {name: time for name, time in measured(row).items() if not is_ours(name)}
    return min(peers, key=peers.__getitem__) if peers else None


def ratio(row: Row, ours: str | None = None) -> float | None:
    """The best peer's time over ours, or that of one of ours: above 1 where ours is faster."""
    ours, peer = ours or ours_in(row), best_peer(row)
    times = measured(row)
    return None if ours not in times or peer is None else times[peer] / times[ours]


def title(row: Row) -> str:
    """What the row's providers have in common, in one line."""
    shape = " ".join(f"{name}={value}" for name, value in row["shape"].items())
    return ", ".join([row["operation"], shape, row["pass"], row["dtype"], *conditions(row)])


def conditions(row: dict[str, Any]) -> list[str]:
    """Threads, and what else is not as usual."""
    parts = [f"{row['threads']} thread" + ("s" if row["threads"] > 1 else "")]
    if row["device"] != "cpu":
        parts.append(row["device"])
    if row["precision"] != "highest":
        parts.append(f"precision {row['precision']}")
    if row["cold"]:
        parts.append("cold caches")
    return parts


def peaks_of(row: Row, document: Document) -> dict[str, Any]:
    """The rates measured in the same run on as many threads of the same device."""
    for peaks in run_of(row, document)["peaks"]:
        if (peaks["threads"], peaks["device"]) == (row["threads"], row["device"]):
            return peaks
    return {"product": {}, "peak": {}, "bandwidth": {}}


def limits(row: Row, document: Document) -> tuple[float | None, float | None]:
    """FLOP/s and bytes per second that the row cannot exceed, None for what was not measured.

    The bandwidth is that of the nearest cache which holds all that the row must move. At a lower
    precision the units may be others than those whose peak was measured.
    """
    rates = peaks_of(row, document)
    peak = rates["peak"].get(row["dtype"]) if row["precision"] == "highest" else None
    sizes = run_of(row, document)["environment"]["caches"]
    for level, bandwidth in rates["bandwidth"].items():
        # A level-2 cache belongs to a core, and each thread has its own.
        room = sizes.get(level, 0) * (row["threads"] if level == "L2" else 1)
        if level == "memory" or row["bytes"] <= room:
            return peak, bandwidth
    return peak, None


def lines(row: Row, document: Document) -> list[dict[str, str]]:
    """What the table says of a row: a line for each provider that ran, the quickest first."""
    times = measured(row)
    peer = best_peer(row)
    ran = [name for name in row["results"] if name in times or _is_wrong(row, name)]
    order = sorted(ran, key=lambda name: times.get(name, math.inf))
    return [_line(row, name, peer, times, document) for name in order]


def absent(row: Row) -> list[str]:
    """Who has no time for a row and is not wrong, by reason."""
    reasons: dict[str, list[str]] = {}
    for name, result in row["results"].items():
        if "reason" in result:
            reasons.setdefault(f"{result['status']}: {result['reason']}", []).append(name)
    return [f"{', '.join(names)} {reason}" for reason, names in reasons.items()]


def _is_wrong(row: Row, name: str) -> bool:
    return row["results"][name]["status"] == "WRONG"


def _line(
    row: Row, name: str, peer: str | None, times: dict[str, float], document: Document
) -> dict[str, str]:
    result = row["results"][name]
    line = dict.fromkeys(COLUMNS, "")
    line["provider"] = name
    if _is_wrong(row, name):
        line["time"] = "WRONG"
        line["error"] = result["farthest"]
        if result["error"] is not None:
            line["error"] += f": {result['error']:.1e}, allowed {result['allowed']:.1e}"
        return line
    line["time"] = duration(times[name])
    is_noisy = result.get("noise", 0) > run_of(row, document)["method"].get("max_noise", math.inf)
    line["±"] = duration(result["deviation"]) + (" (noisy)" if is_noisy else "")
    if peer is not None and name != peer:
        line["against best peer"] = _comparison(times[peer] / times[name])
    elif name == peer:
        line["against best peer"] = "best peer"
    rate = row["flops"] / times[name]
    line["GFLOP/s"] = f"{rate / 1e9:.3g}"
    peak, bandwidth = limits(row, document)
    if peak and name not in LOWER_PRECISIONS:
        line["% of peak"] = f"{100 * rate / peak:.0f}"
    if bandwidth:
        line["% of bandwidth"] = f"{100 * row['bytes'] / times[name] / bandwidth:.0f}"
    if result.get("memory") is not None:
        line["memory"] = size(result["memory"])
    if "error" in result:
        line["error"] = f"{result['error']:.1e}"
    return line


def _comparison(times_faster: float) -> str:
    if times_faster >= 1:
        return f"{times_faster:.2f}x faster"
    return f"{1 / times_faster:.2f}x slower"


def duration(seconds: float) -> str:
    for unit, scale in (("s", 1), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def size(count: int) -> str:
    if count < 1 << 20:
        return f"{count / 1024:.0f} KiB"
    return f"{count / (1 << 20):.3g} MiB"


#: Rows that are alike in these share a mean.
MEANS_OF = ("operation", "dtype", "pass", "threads", "device", "precision", "cold")


def means(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The geometric means of the ratios, of rows alike in all but their shapes.

    Ours at a lower precision than the peers' have means of their own.
    """
    groups: dict[tuple, list[float | None]] = {}
    for row in rows:
        for ours, lower in {None: None, **LOWER_PRECISIONS}.items():
            described = row | {"precision": f"{lower}, peers' {row['precision']}"} if lower else row
            key = tuple(described[name] for name in MEANS_OF)
            groups.setdefault(key, []).append(ratio(row, ours))
    result = []
    for key, members in groups.items():
        ratios = [r for r in members if r is not None]
        if ratios:
            result.append(
                {
                    **dict(zip(MEANS_OF, key, strict=True)),
                    "rows": len(ratios),
                    "faster": sum(r > 1 for r in ratios),
                    "mean": geometric_mean(ratios),
                    "least": min(ratios),
                    "greatest": max(ratios),
                }
            )
    return result


def wrong(rows: Iterable[Row]) -> list[str]:
    """The wrong results, one line each."""
    return [
        f"WRONG: {name} in {title(row)}"
        for row in rows
        for name in row["results"]
        if _is_wrong(row, name)
    ]


def ours_failed(rows: Iterable[Row]) -> bool:
    """Whether this package raised an error anywhere."""
    return any(
        is_ours(name) and result["status"] == "failed"
        for row in rows
        for name, result in row["results"].items()
    )


def _mean_line(mean: dict[str, Any]) -> str:
    what = ", ".join([mean["operation"], mean["dtype"], mean["pass"], *conditions(mean)])
    return (
        f"{what}: {_comparison(mean['mean'])} than the best peer of each row "
        f"({mean['least']:.2f} to {mean['greatest']:.2f}; "
        f"faster in {mean['faster']} of {mean['rows']})"
    )


def _table(document: Document) -> str:
    from rich.console import Console
    from rich.table import Table

    console = Console(file=io.StringIO(), width=150, force_terminal=False)
    for row in document["rows"]:
        table = Table(title=title(row), title_justify="left", box=None, padding=(0, 1))
        for column in COLUMNS:
            table.add_column(column, justify="left" if column == "provider" else "right")
        for line in lines(row, document):
            table.add_row(*line.values())
        console.print(table)
        for text in absent(row):
            console.print(text, soft_wrap=True, highlight=False, style="dim")
        console.print(f"again: {row['command']}", soft_wrap=True, highlight=False)
        console.print()
    console.print("Geometric mean of the best peer's time over ours")
    for mean in means(document["rows"]):
        console.print("  " + _mean_line(mean), soft_wrap=True, highlight=False)
    for text in wrong(document["rows"]):
        console.print(text, soft_wrap=True, highlight=False)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def _markdown(document: Document) -> str:
    parts = []
    for row in document["rows"]:
        parts += [f"**{title(row)}**", "", markdown_table(COLUMNS, lines(row, document)), ""]
        parts += [f"- {text}" for text in [*absent(row), f"again: `{row['command']}`"]]
        parts.append("")
    parts += ["Geometric mean of the best peer's time over ours:", ""]
    parts += [f"- {_mean_line(mean)}" for mean in means(document["rows"])]
    parts += [f"- {text}" for text in wrong(document["rows"])]
    return "\n".join(parts) + "\n"


def markdown_table(columns: Iterable[str], rows: Iterable[dict[str, str]]) -> str:
    columns = list(columns)
    text = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    text += ["| " + " | ".join(row[column] for column in columns) + " |" for row in rows]
    return "\n".join(text)


def flat(document: Document) -> list[dict[str, Any]]:
    """A record for each provider of each row, the shape in one word."""
    records = []
    for row in document["rows"]:
        key = {name: row[name] for name in row if name not in ("results", "run", "shape")}
        key["shape"] = " ".join(f"{name}={value}" for name, value in row["shape"].items())
        records += [key | {"provider": name} | result for name, result in row["results"].items()]
    return records


def _csv(document: Document) -> str:
    records = flat(document)
    for record in records:
        record.pop("samples", None)
    columns = list(dict.fromkeys(name for record in records for name in record))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def _json(document: Document) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _jsonl(document: Document) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in flat(document))


_WRITERS: dict[str, Callable[[Document], str]] = {
    "table": _table,
    "md": _markdown,
    "csv": _csv,
    "json": _json,
    "jsonl": _jsonl,
}


def text(document: Document, format: str) -> str:
    """The document in one of FORMATS."""
    return _WRITERS[format](document)
