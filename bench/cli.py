"""The command line: ``list``, ``run``, ``compare``, ``plot``, ``env``, ``calls``, ``page``."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path

import torch

from .cases import (
    DEVICES,
    DTYPES,
    PASSES,
    PRECISIONS,
    PROGRAM,
    UsageError,
    load_suite,
    product,
    suite_names,
    suites_named,
)
from .timing import Method


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog=PROGRAM,
        description="This package's layers beside every peer: verified, then timed.",
    )
    commands = top.add_subparsers(dest="subcommand", metavar="COMMAND")
    _add_run(commands)
    listing = commands.add_parser("list", help="suites, operations, shapes and providers")
    listing.add_argument("--suite", help="the cases of these suites, separated by commas")
    compare = commands.add_parser("compare", help="two saved runs, row by row")
    compare.add_argument("before", metavar="A.json")
    compare.add_argument("after", metavar="B.json")
    compare.add_argument("--provider", default="seqkernels", help="whose times; default ours")
    compare.add_argument(
        "--fail-below",
        type=float,
        metavar="R",
        help="exit with 1 if B's geometric mean, or a row that differs significantly, is not "
        "at least R times as fast as A's",
    )
    compare.add_argument(
        "--significance",
        type=float,
        default=0.05,
        metavar="P",
        help="how probable it may be that any row is called different by chance; runs of one "
        "program differ by some per cent from process to process besides: leave R room for it",
    )
    plot = commands.add_parser("plot", help="pictures of a saved run, PNG and SVG")
    plot.add_argument("file", metavar="FILE")
    plot.add_argument("--directory", default=".", help="where the pictures go")
    env = commands.add_parser("env", help="the machine, its measured rates, the libraries")
    env.add_argument("--threads", default=str(torch.get_num_threads()))
    env.add_argument("-o", "--output", choices=("table", "json"), default="table")
    calls = commands.add_parser("calls", help="where the time of a short call of ours goes")
    calls.add_argument("--threads", type=int, default=torch.get_num_threads())
    page = commands.add_parser("page", help="the performance page, from bench/records")
    _add_records(page)
    page.add_argument("--target", default="docs/performance.md")
    return top


def _add_records(command) -> None:
    command.add_argument(
        "--records", default="bench/records", metavar="FOLDER", help="default bench/records"
    )


def _add_run(commands) -> None:
    run = commands.add_parser("run", help="measure")
    add = run.add_argument
    add("--suite", help=f"some of {', '.join(suite_names())}, or a file, or all; default quick")
    add("--op", help="operations, separated by commas")
    add("--provider", default="default", help="names, families, patterns with *, all, default")
    add("--isa", help="this package's kernels for these instruction sets, side by side")
    add("--dtype", help=f"some of {', '.join(DTYPES)}; default what the suite says, or float32")
    add("--precision", default="highest", help=f"of float32 products: some of {PRECISIONS}")
    add("--pass", dest="passes", help=f"some of {', '.join(PASSES)}; default what the suite says")
    add("--threads", default=str(torch.get_num_threads()), help="a list or range, as 1,2 or 1..4")
    add(
        "--shapes",
        nargs="+",
        metavar="NAME=VALUES",
        help="lists and ranges, as N=1,16 T=25..100..25 H=128..1024..*2; or a suite's FILE",
    )
    add("--filter", metavar="REGEX", help="only rows whose title, as printed, matches")
    add("--device", default="cpu", help=f"some of {', '.join(DEVICES)}")
    add("--cold", action="store_true", help="scrub the caches before each call")
    shortest, longest, noise = Method.min_time, Method.max_time, 100 * Method.max_noise
    add("--min-time", type=float, default=shortest, metavar="SECONDS", help="of calls, a provider")
    add(
        "--max-time",
        type=float,
        default=longest,
        metavar="SECONDS",
        help="where it is noisy; three times the least at least",
    )
    add("--max-noise", type=float, default=noise, metavar="PERCENT", help="of the median's error")
    add("--no-verify", action="store_true", help="time even what may be wrong")
    add("--seed", type=int, default=0, help="of the random order of the providers")
    add("-o", "--output", default="table", help="some of table, md, csv, json, jsonl")
    add("--save", metavar="FILE", help="everything measured, for compare and plot")
    add("--record", action="store_true", help="put the rows into this machine's record")
    _add_records(run)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help")):
        given = ["run", *given]
    parsed = parser().parse_args(given, argparse.Namespace(given=given))
    try:
        return _COMMANDS[parsed.subcommand](parsed)
    except BrokenPipeError:  # who read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UsageError as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return 2


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UsageError(
            f"the package {package} is not installed: pip install 'seqkernels[bench]' brings it"
        )


def _run(arguments: argparse.Namespace) -> int:
    from .run import run

    _require("rich")
    return run(arguments)


def _list(arguments: argparse.Namespace) -> int:
    from .operations import OPERATIONS
    from .providers import PROVIDERS

    write = sys.stdout.write
    if arguments.suite:
        for name in suites_named(arguments.suite):
            for entry in load_suite(name)["cases"]:
                for shape in product(entry["shapes"]):
                    text = " ".join(f"{key}={value}" for key, value in shape.items())
                    write(f"{name}: {entry['operation']} {text}\n")
        return 0
    write("suites\n")
    for name in suite_names():
        suite = load_suite(name)
        count = sum(len(list(product(entry["shapes"]))) for entry in suite["cases"])
        write(f"  {name:20} {count:3} shapes: {suite['description']}\n")
    write("operations\n")
    for operation in OPERATIONS.values():
        names = [f"{name} ({what})" for name, what in operation.required.items()]
        names += [
            f"{name}={'H' if name == 'I' else default}"
            for name, default in operation.defaults.items()
        ]
        write(f"  {operation.name:20} {', '.join(names)}\n")
    write("providers\n")
    for provider in PROVIDERS.values():
        state = provider.missing() or "available"
        write(f"  {provider.name:28} {state}; {', '.join(provider.operations)}\n")
    return 0


def _env(arguments: argparse.Namespace) -> int:
    from . import environment
    from .run import numbers

    document = environment.describe()
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    document["peaks"] = [
        environment.measure_peaks(threads, device, DTYPES)
        for device in devices
        for threads in numbers(arguments.threads, "--threads")
    ]
    if arguments.output == "json":
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
        return 0
    peaks = document.pop("peaks")
    for name, value in document.items():
        sys.stdout.write(f"{name:18} {_readable(value)}\n")
    for rates in peaks:
        where = f"{rates['device']}, threads {rates['threads']}"
        for dtype, rate in rates["product"].items():
            sys.stdout.write(f"measured ({where}): {dtype} peak {rates['peak'][dtype] / 1e9:.1f}, ")
            sys.stdout.write(f"torch.mm {rate / 1e9:.1f} GFLOP/s\n")
        for level, rate in rates["bandwidth"].items():
            sys.stdout.write(f"measured ({where}): {level} {rate / 1e9:.1f} GB/s\n")
    return 0


def _readable(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _compare(arguments: argparse.Namespace) -> int:
    from .compare import compare

    return compare(arguments)


def _plot(arguments: argparse.Namespace) -> int:
    from .documents import load
    from .plot import plot

    _require("matplotlib")
    written = plot(load(arguments.file), Path(arguments.directory), Path(arguments.file).stem)
    if not written:
        raise UsageError(f"{arguments.file}: no row with a time of ours: nothing to draw")
    for path in written:
        sys.stdout.write(f"{path}\n")
    return 0


def _calls(arguments: argparse.Namespace) -> int:
    from .calls import table

    if arguments.threads < 1:
        raise UsageError(f"--threads: expected at least 1, got {arguments.threads}")
    torch.set_num_threads(arguments.threads)
    sys.stdout.write(table() + "\n")
    return 0


def _page(arguments: argparse.Namespace) -> int:
    from .page import write_page

    _require("matplotlib")
    sys.stdout.write(f"{write_page(Path(arguments.records), Path(arguments.target))}\n")
    return 0


_COMMANDS = {
    "run": _run,
    "list": _list,
    "compare": _compare,
    "plot": _plot,
    "env": _env,
    "calls": _calls,
    "page": _page,
}
