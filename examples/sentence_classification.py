"""Trains sentence classifiers on real text, with torch's layers and with seqkernels'.

Two models, each trained twice from the same weights on the same batches: a CNN with filters of
lengths 3, 4 and 5 whose maxima over time are classified (Kim, "Convolutional neural networks for
sentence classification", 2014), and an LSTM that reads a sentence to its last word. The first run
downloads the sentences (32 MB). Ends with a table; writes demo.json and demo.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from review_data import READERS, DataError, Dataset, load
from sentence_models import MODELS
from sentence_report import NAMES, Settings, summary, table, write
from sentence_training import BATCH_SIZE, NUDGES, Comparison, Training, train_pair

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 4


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return number


def usable_device(text: str) -> torch.device:
    """A device this torch can compute on."""
    try:
        device = torch.device(text)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"cannot compute on {text!r}: {reason}") from None
    return device


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--task",
        choices=READERS,
        default="reviews",
        help="reviews: films, negative or positive; trec: questions, six kinds of answer "
        "(default: reviews)",
    )
    parser.add_argument("--model", choices=[*MODELS, "both"], default="both", help="default: both")
    parser.add_argument(
        "--device", type=usable_device, default="cpu", help="as torch names it (default: cpu)"
    )
    parser.add_argument("--epochs", type=positive, default=EPOCHS, help=f"default: {EPOCHS}")
    parser.add_argument("--threads", type=positive, help="default: as many as torch takes")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "results",
        metavar="DIRECTORY",
        help="for demo.json and demo.png (default: results/ in the repository)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=ROOT / "data",
        metavar="DIRECTORY",
        help="for the downloaded sentences (default: data/ in the repository)",
    )
    return parser.parse_args(arguments)


def train(
    model: str, dataset: Dataset, settings: Settings, progress: Progress, console: Console
) -> Comparison:
    """Trains one model's pair with a bar for each and a line for every epoch."""
    steps = -(-len(dataset.training) // BATCH_SIZE)
    totals = {
        "torch": ("torch", settings.epochs),
        "seqkernels": ("seqkernels", settings.epochs),
        "nudged": ("torch, last bits changed", NUDGES),
    }
    bars = {
        name: progress.add_task(f"{NAMES[model]}, {label}", total=epochs * steps)
        for name, (label, epochs) in totals.items()
    }

    def epoch_done(epoch: int, trainings: Sequence[Training]) -> None:
        columns = (
            f"{training.implementation}: loss {sum(training.losses[-steps:]) / steps:.3f}, "
            f"{training.accuracies[-1]:.1%}, {training.training_seconds[-1]:.2f} s"
            for training in trainings
        )
        line = f"{NAMES[model]} {epoch + 1}/{settings.epochs}  {'  '.join(columns)}"
        console.print(line, highlight=False, soft_wrap=True)

    return train_pair(
        model,
        dataset,
        settings.epochs,
        settings.seed,
        settings.device,
        lambda name: progress.advance(bars[name]),
        epoch_done,
    )


def run(dataset: Dataset, settings: Settings, output: Path, console: Console) -> None:
    """Trains every model asked for, prints the table and writes the files."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # Few refreshes: drawing takes time from the training that is measured.
    with Progress(*columns, console=console, refresh_per_second=2) as progress:
        comparisons = {
            model: train(model, dataset, settings, progress, console) for model in settings.models
        }
    figures = {model: comparison.figures() for model, comparison in comparisons.items()}
    report = summary(settings, dataset, figures)
    written = write(output, report)
    console.print(table(report))
    console.print(f"Written: {', '.join(map(str, written))}", soft_wrap=True, highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the example; returns the process's exit status."""
    options = parse(arguments)
    console = Console()
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        with console.status(f"Fetching and reading the sentences into {options.data}"):
            dataset = load(options.task, options.data, options.seed)
    except (DataError, OSError) as error:
        print(f"sentence_classification: {error}", file=sys.stderr)
        return 1
    settings = Settings(
        task=options.task,
        models=tuple(MODELS) if options.model == "both" else (options.model,),
        device=options.device,
        epochs=options.epochs,
        threads=torch.get_num_threads(),
        seed=options.seed,
    )
    run(dataset, settings, options.output, console)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
