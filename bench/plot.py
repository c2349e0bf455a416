"""Pictures of a saved run: speed-ups, time over size, and the roofline, as PNG and SVG."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from . import report
from .documents import Document
from .files import replacing
from .measure import Row

OURS_COLOUR = "#c1272d"
PEER_COLOURS = ("#0000a7", "#008176", "#e0a800", "#7a49a5", "#5d3a00", "#1f9ede", "#777777")
#: Ours with an instruction set forced, and peers beyond the colours, differ by their lines.
LINES = ("-", "--", ":", "-.")
SIZES = ("T", "L", "N", "H", "C", "F", "k")


def plot(document: Document, directory: Path, stem: str) -> list[Path]:
    """Draw every picture that the document has the rows for; returns the files written."""
    import matplotlib

    matplotlib.use("Agg")
    # The same document gives the same file: no date, no random identifiers.
    matplotlib.rcParams.update({"svg.hashsalt": stem, "svg.fonttype": "none", "font.size": 8})
    pictures = {
        "speed-up": _speed_up(document),
        "roofline": _roofline(document),
        **{f"time-over-{name}": _over_size(document, name) for name in SIZES},
    }
    written = []
    for name, figure in pictures.items():
        if figure is None:
            continue
        for ending in ("png", "svg"):
            path = directory / f"{stem}-{name}.{ending}"
            metadata = {"Date": None} if ending == "svg" else {"Software": None}
            with replacing(path) as temporary:
                figure.savefig(temporary, dpi=120, metadata=metadata, bbox_inches="tight")
            written.append(path)
        _close(figure)
    return written


def _figure(width: float, height: float, panels: int = 1):
    """A figure of so many panels of that size, three abreast; returns it and the panels."""
    import matplotlib.pyplot

    columns = min(panels, 3)
    rows = -(-panels // columns)
    figure, grid = matplotlib.pyplot.subplots(
        rows, columns, figsize=(width * columns, height * rows), squeeze=False
    )
    for spare in grid.flat[panels:]:
        spare.set_axis_off()
    return figure, list(grid.flat[:panels])


def _close(figure) -> None:
    import matplotlib.pyplot

    matplotlib.pyplot.close(figure)


def _speed_up(document: Document):
    """A bar for each row: the best peer's time over ours."""
    rows = [row for row in document["rows"] if report.ratio(row)]
    if not rows:
        return None
    figure, (axes,) = _figure(9, 0.8 + 0.22 * len(rows))
    ratios = [report.ratio(row) for row in rows]
    colours = [OURS_COLOUR if value >= 1 else "#888888" for value in ratios]
    places = range(len(rows), 0, -1)
    axes.barh(places, [value - 1 for value in ratios], left=1, color=colours)
    for place, value, row in zip(places, ratios, rows, strict=True):
        text = f" {value:.2f} {report.best_peer(row)} "
        axes.text(value, place, text, va="center", ha="left" if value >= 1 else "right", size=6)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(0.4, 0.5 * min(ratios)), max(2.5, 2.5 * max(ratios)))
    axes.set_yticks(places, [report.title(row) for row in rows], size=6)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("times faster than the best peer of the row (grey: slower)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _over_size(document: Document, size: str):
    """Time over one size, log-log: a panel for each set of rows that differ in that size only."""
    groups: dict[tuple, list[Row]] = {}
    for row in document["rows"]:
        if size in row["shape"]:
            rest = report.title(row | {"shape": row["shape"] | {size: "…"}})
            groups.setdefault(rest, []).append(row)
    series = {
        name: sorted(rows, key=lambda row: row["shape"][size])
        for name, rows in groups.items()
        if len({row["shape"][size] for row in rows}) >= 3
    }
    if not series:
        return None
    figure, panels = _figure(5.6, 3.4, len(series))
    for axes, (name, rows) in zip(panels, series.items(), strict=True):
        for provider, (colour, style) in _styles(rows).items():
            points = [
                (row["shape"][size], row["results"][provider])
                for row in rows
                if "median" in row["results"].get(provider, {})
            ]
            axes.errorbar(
                [x for x, _ in points],
                [result["median"] for _, result in points],
                yerr=[result["deviation"] for _, result in points],
                marker="o",
                markersize=3,
                linewidth=2 if report.is_ours(provider) else 1,
                linestyle=style,
                color=colour,
                label=provider,
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sorted({row["shape"][size] for row in rows}), minor=False)
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(size)
        axes.set_ylabel("seconds")
        title = "\n".join(re.split(r", (?=inference|forward|backward|training)", name))
        axes.set_title(title, fontsize=7)
        axes.legend(fontsize=5, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def _styles(rows: Iterable[Row]) -> dict[str, tuple[str, str]]:
    """Colour and line of each provider that has a time in one of the rows."""
    names = dict.fromkeys(name for row in rows for name in report.measured(row))
    ours = [name for name in names if report.is_ours(name)]
    peers = [name for name in names if not report.is_ours(name)]
    colours = [OURS_COLOUR] * len(ours)
    colours += [PEER_COLOURS[i % len(PEER_COLOURS)] for i in range(len(peers))]
    lines = [LINES[i % len(LINES)] for i in range(len(ours))]
    lines += [LINES[i // len(PEER_COLOURS) % len(LINES)] for i in range(len(peers))]
    return {name: style for name, *style in zip([*ours, *peers], colours, lines, strict=True)}


def _highest_rates(rows: Iterable[Row], document: Document) -> dict[str, dict[str, float]]:
    """Of each rate the highest that was measured in the runs of the rows."""
    found: dict[str, dict[str, float]] = {"product": {}, "peak": {}, "bandwidth": {}}
    for row in rows:
        rates = report.peaks_of(row, document)
        for kind, highest in found.items():
            for name, rate in rates[kind].items():
                highest[name] = max(rate, highest.get(name, 0.0))
    return found


def _roofline(document: Document):
    """FLOP/s over FLOPs per byte that a row must move, below the rates measured in the runs."""
    rows = [row for row in document["rows"] if report.ours_in(row)]
    kinds: dict[tuple, list[Row]] = {}
    for row in rows:
        rates = report.peaks_of(row, document)
        if row["dtype"] in rates["peak"] and rates["bandwidth"]:
            kinds.setdefault((row["dtype"], row["threads"], row["device"]), []).append(row)
    if not kinds:
        return None
    figure, panels = _figure(5, 3.8, len(kinds))
    for axes, ((dtype, threads, device), members) in zip(panels, kinds.items(), strict=True):
        rates = _highest_rates(members, document)
        peak, product = rates["peak"][dtype], rates["product"][dtype]
        intensities = [row["flops"] / row["bytes"] for row in members]
        ends = [min([0.25, *intensities]) / 2, max([256.0, *intensities]) * 2]
        for level, bandwidth in rates["bandwidth"].items():
            knee = peak / bandwidth
            axes.plot([ends[0], knee], [ends[0] * bandwidth, peak], color="#666666", linewidth=0.8)
            axes.text(1.1 * ends[0], 0.95 * ends[0] * bandwidth, level, size=6, va="top")
        for rate, style, name, side in (
            (peak, "-", "peak", "bottom"),
            (product, ":", "torch.mm", "top"),
        ):
            axes.axhline(rate, color="#666666", linewidth=0.8, linestyle=style)
            axes.text(ends[1], rate, name, size=6, va=side, ha="right")
        for label, colour, provider in (
            ("seqkernels", OURS_COLOUR, report.ours_in),
            ("best peer", PEER_COLOURS[0], report.best_peer),
        ):
            points = [
                (x, row["flops"] / report.measured(row)[provider(row)])
                for x, row in zip(intensities, members, strict=True)
                if provider(row)
            ]
            if points:
                axes.scatter(*zip(*points, strict=True), s=14, color=colour, label=label, alpha=0.8)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlim(*ends)
        axes.set_xlabel("FLOPs per byte that must be moved")
        axes.set_ylabel("FLOP/s")
        axes.set_title(f"{dtype}, threads: {threads}, {device}")
        axes.legend(fontsize=6, loc="lower right")
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure
