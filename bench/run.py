"""``run``: the cases that were asked for, measured one after the other."""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import seqkernels

from . import environment, report
from .cases import (
    DEVICES,
    DTYPES,
    PASSES,
    PRECISIONS,
    PROGRAM,
    Case,
    UsageError,
    load_suite,
    parse_shapes,
    product,
    suites_named,
    unique,
    values,
)
from .documents import FORMAT, Document, by_key, key, load, merged
from .files import check_writable, write_text
from .measure import Judge, measure
from .operations import OPERATIONS
from .providers import Provider, select
from .timing import Method

INTERRUPTED = 130


def words(text: str, known: tuple[str, ...], option: str) -> list[str]:
    """The words of a comma-separated option, each of them known."""
    found = unique(word for word in text.split(",") if word)
    for word in found or [text]:
        if word not in known:
            raise UsageError(f"{option}: expected some of {', '.join(known)}, got {word!r}")
    return found


def numbers(text: str, option: str) -> list[int]:
    """The positive integers of an option that takes lists and ranges."""
    found = unique(values(text))
    if not all(isinstance(value, int) and value > 0 for value in found):
        raise UsageError(f"{option}: expected positive integers, got {text!r}")
    return found


def cases(arguments: argparse.Namespace) -> list[Case]:
    """The cases of the suites and shapes named, times the other options."""
    operations = words(arguments.op, tuple(OPERATIONS), "--op") if arguments.op else []
    wanted_passes = words(arguments.passes, PASSES, "--pass") if arguments.passes else None
    wanted_dtypes = words(arguments.dtype, DTYPES, "--dtype") if arguments.dtype else None
    threads = numbers(arguments.threads, "--threads")
    devices = words(arguments.device, DEVICES, "--device")
    precisions = words(arguments.precision, PRECISIONS, "--precision")
    if "cuda" in devices and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device")
    found: list[Case] = []
    for entry, passes in _entries(arguments, operations):
        operation = OPERATIONS.get(entry.get("operation"))
        if operation is None:
            raise UsageError(
                f"no operation {entry.get('operation')!r}: there are {', '.join(OPERATIONS)}"
            )
        if operations and operation.name not in operations:
            continue
        for name, known in (("passes", PASSES), ("dtypes", DTYPES)):
            words(",".join(entry.get(name, known)), known, f'"{name}" of {operation.name}')
        for shape, dtype, count, device, precision, name in itertools.product(
            product(entry["shapes"]),
            wanted_dtypes or entry.get("dtypes", ["float32"]),
            threads,
            devices,
            precisions,
            wanted_passes or entry.get("passes", passes),
        ):
            if precision != "highest" and dtype != "float32":
                continue  # the switch concerns float32 only
            checked = operation.shape(shape)
            found.append(
                Case(operation.name, checked, name, dtype, count, device, precision, arguments.cold)
            )
    if arguments.filter:
        try:
            pattern = re.compile(arguments.filter)
        except re.error as error:
            raise UsageError(f"--filter: not a regular expression: {error}") from error
        found = [case for case in found if pattern.search(report.title(case.describe()))]
    return unique(found)


def _entries(
    arguments: argparse.Namespace, operations: list[str]
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """The entries of suites, each with the passes that the suite says."""
    shapes = arguments.shapes or []
    files = [word for word in shapes if "=" not in word]
    given = [word for word in shapes if "=" in word]
    if given:
        if not operations:
            raise UsageError("--shapes: say with --op what they are the shapes of")
        for operation in operations:
            yield {"operation": operation, "shapes": parse_shapes(given)}, ["inference"]
    suites = suites_named(arguments.suite) if arguments.suite else []
    if not shapes and not suites:
        suites = ["quick"]
    for name in suites + files:
        suite = load_suite(name)
        for entry in suite["cases"]:
            yield entry, suite.get("passes", ["inference"])


def chosen_providers(arguments: argparse.Namespace) -> list[Provider]:
    """The providers named, this package's by instruction set if some are named."""
    found = select(arguments.provider.split(","))
    explicit = any(word.startswith("seqkernels:") for word in arguments.provider.split(","))
    if arguments.isa:
        isas = words(arguments.isa, tuple(seqkernels.cpu.available_isas()), "--isa")
        peers = [provider for provider in found if not provider.is_ours]
        return select([f"seqkernels:{isa}" for isa in isas]) + peers
    if explicit or "all" in arguments.provider.split(","):
        return found
    # Without --isa the family means the instruction set in use.
    return [p for p in found if not p.is_ours or p.name == "seqkernels"]


def run(arguments: argparse.Namespace) -> int:
    """Measure, save, print; 0, or 1 if a result was wrong or ours failed, 130 if interrupted."""
    formats = words(arguments.output, report.FORMATS, "--output")
    todo = cases(arguments)
    if not todo:
        raise UsageError("no case left: nothing has that operation, shape or name")
    providers = chosen_providers(arguments)
    served = {name for provider in providers for name in provider.operations}
    for operation in dict.fromkeys(case.operation for case in todo):
        if operation not in served:
            raise UsageError(f"--provider {arguments.provider}: none of them has {operation}")
    if arguments.record and (arguments.no_verify or arguments.filter):
        raise UsageError("--record: expected verified rows of whole suites, without --filter")
    # Where it is noisy there must be time to measure longer.
    maximum = max(3 * arguments.min_time, arguments.max_time)
    method = Method(arguments.min_time, maximum, arguments.max_noise / 100, arguments.cold)
    threads_before = torch.get_num_threads()
    described = {
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": f"{PROGRAM} {shlex.join(arguments.given)}",
        "environment": environment.describe(),
        "method": vars(method) | {"verified": not arguments.no_verify},
        "peaks": [],
    }
    document: Document = {"format": FORMAT, "runs": [described], "rows": []}
    saved = Path(arguments.save) if arguments.save else None
    record = _record(described["environment"], arguments, todo)
    for path in filter(None, (saved, record)):
        check_writable(path)
    if record and record.exists():
        _refuse_to_lose_peers(load(record), todo, providers, record)
    interrupted = False
    try:
        _measure_all(todo, providers, method, arguments, document)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        torch.set_num_threads(threads_before)
        if saved:
            _write(saved, document)
        if record and len(document["rows"]) == len(todo):  # half a suite is no record
            _write(record, merged(load(record), document) if record.exists() else document)
    for format in formats:
        sys.stdout.write(report.text(document, format))
    if interrupted:
        sys.stderr.write(f"interrupted after {len(document['rows'])} of {len(todo)} rows\n")
        return INTERRUPTED
    rows = document["rows"]
    return 1 if report.wrong(rows) or report.ours_failed(rows) else 0


def _record(
    described: dict[str, Any], arguments: argparse.Namespace, todo: list[Case]
) -> Path | None:
    """The file of the record that the rows are to go into."""
    if not arguments.record:
        return None
    on_gpu = any(case.device == "cuda" for case in todo)
    name = environment.machine_name(described, "cuda" if on_gpu else "cpu")
    return Path(arguments.records) / f"{name}.json"


def _refuse_to_lose_peers(
    earlier: Document, todo: list[Case], providers: list[Provider], record: Path
) -> None:
    """Raise ``UsageError`` where rows of a record would be replaced by ones without its peers."""
    names = {provider.name for provider in providers}
    old_rows = by_key(earlier)
    for case in todo:
        row = old_rows.get(key(case.describe()))
        for name in report.measured(row) if row else ():
            if name not in names:
                raise UsageError(
                    f"--record: expected --provider with {name}, which {record} has for "
                    f"{report.title(row)}"
                )


def _write(path: Path, document: Document) -> None:
    write_text(path, json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n")


def _measure_all(
    todo: list[Case],
    providers: list[Provider],
    method: Method,
    arguments: argparse.Namespace,
    document: Document,
) -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    judge = None if arguments.no_verify else Judge()
    order = random.Random(arguments.seed)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring the machine's rates", total=len(todo))
        dtypes = {(c.threads, c.device): set() for c in todo}
        for case in todo:
            dtypes[case.threads, case.device].add(case.dtype)
        for (threads, device), names in dtypes.items():
            rates = environment.measure_peaks(threads, device, tuple(sorted(names)))
            document["runs"][0]["peaks"].append(rates)
        for case in todo:
            what = f"{case.operation} {case.shape_text()} {case.pass_name}"

            def step(text: str, what: str = what) -> None:
                progress.update(task, description=f"{what}: {text}")

            row = measure(case, providers, judge, method, order, step)
            row["command"] += _options(arguments)
            row["run"] = 0
            document["rows"].append(row)
            progress.advance(task)


def _options(arguments: argparse.Namespace) -> str:
    """Who took part and how long it was measured, as it was asked for."""
    text = ""
    for name, usual in (
        ("provider", "default"),
        ("isa", None),
        ("min_time", Method.min_time),
        ("max_time", Method.max_time),
        ("max_noise", 100 * Method.max_noise),
        ("seed", 0),
    ):
        value = getattr(arguments, name)
        if value != usual:
            text += f" --{name.replace('_', '-')} {shlex.quote(str(value))}"
    return text + (" --no-verify" if arguments.no_verify else "")
