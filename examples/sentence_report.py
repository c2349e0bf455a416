"""What the example reports at its end: a table, a JSON file and a figure."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from rich.table import Table

import seqkernels
from review_data import WHEEL_SHA256, Dataset
from sentence_models import IMPLEMENTATIONS
from sentence_training import BATCH_SIZE, LEARNING_RATE

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

COLOURS = {"torch": "#9aa5b1", "seqkernels": "#c2410c"}
NAMES = {"cnn": "CNN", "lstm": "LSTM"}
# The loss of one step is noisy; the figure shows the mean of this many.
SMOOTHED_STEPS = 20


@dataclass
class Settings:
    """How a run was asked for."""

    task: str
    models: tuple[str, ...]
    device: torch.device
    epochs: int
    threads: int
    seed: int


def processor_name() -> str:
    """The processor's model name, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine_line(machine: Mapping[str, Any]) -> str:
    """Processor, threads and instruction set in a few words."""
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    return f"{machine['processor']}, {threads}, {machine['isa']}"


def summary(
    settings: Settings, dataset: Dataset, models: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """Everything the JSON file holds; `models` are the figures of each model's comparison."""
    return {
        "task": settings.task,
        "data": {
            "wheel_sha256": WHEEL_SHA256,
            "training_sentences": len(dataset.training),
            "held_out_sentences": len(dataset.held_out),
            "vocabulary": len(dataset.vocabulary),
            "classes": dataset.classes,
            "majority_accuracy": dataset.majority_accuracy(),
        },
        "settings": {
            "epochs": settings.epochs,
            "seed": settings.seed,
            "batch_size": BATCH_SIZE,
            "learning_rate": {model: LEARNING_RATE[model] for model in models},
        },
        "machine": {
            "processor": processor_name(),
            "logical_processors": os.cpu_count(),
            "system": platform.platform(),
            "device": str(settings.device),
            "threads": settings.threads,
            "isa": seqkernels.cpu.active_isa(),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "seqkernels": seqkernels.__version__,
        },
        "seqkernels_config": seqkernels.show_config().splitlines(),
        "models": dict(models),
    }


def table(report: Mapping[str, Any]) -> Table:
    """The report's figures, three rows to a model."""
    data = report["data"]
    result = Table(
        title=f"{report['task']}: {data['training_sentences']} sentences trained on, "
        f"{data['held_out_sentences']} held out (majority class {data['majority_accuracy']:.1%})\n"
        + machine_line(report["machine"]),
        caption_justify="left",
    )
    result.add_column("model")
    result.add_column("layers")
    for heading in (
        "held-out\naccuracy",
        "training\ns/epoch",
        "inference\ns/epoch",
        "largest\nloss gap\nepoch 1",
        "largest\nloss gap\noverall",
    ):
        result.add_column(heading, justify="right")
    yardsticks = []
    for model, figures in report["models"].items():
        for implementation in IMPLEMENTATIONS:
            row = figures[implementation]
            result.add_row(
                NAMES[model],
                implementation,
                f"{row['held_out_accuracy']:.1%}",
                f"{row['training_seconds_per_epoch']:.3f}",
                f"{row['inference_seconds_per_epoch']:.3f}",
            )
        result.add_row(
            NAMES[model],
            "speed-up",
            "",
            f"{figures['training_speed_up']:.2f}x",
            f"{figures['inference_speed_up']:.2f}x",
            f"{figures['largest_loss_difference_first_epoch']:.1e}",
            f"{figures['largest_loss_difference']:.1e}",
            style="bold",
            end_section=True,
        )
        gaps = figures["loss_differences_first_epoch_by_rounding"]
        yardsticks.append(f"{NAMES[model]} {', '.join(f'{gap:.1e}' for gap in gaps)}")
    result.caption = (
        "Seconds are medians; a loss gap is the difference at one step. Rounding alone (torch's "
        "layers against themselves, last bits of the initial weights changed) makes gaps of, in "
        f"epoch 1: {'; '.join(yardsticks)}."
    )
    return result


def replace_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Has `write` fill a temporary file beside `path`, which then takes its name."""
    temporary = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def smoothed(losses: list[float]) -> tuple[list[float], list[float]]:
    """Steps and the mean losses of SMOOTHED_STEPS steps each (fewer where there are few)."""
    size = min(SMOOTHED_STEPS, len(losses))
    starts = range(0, len(losses) - size + 1, size)
    return [start + size / 2 for start in starts], [
        sum(losses[start : start + size]) / size for start in starts
    ]


def draw_losses(axes: Axes, model: str, figures: Mapping[str, Any]) -> None:
    """Both loss curves, the second dashed over the first."""
    styles = {"torch": {"linewidth": 5}, "seqkernels": {"linewidth": 1.8, "linestyle": (0, (3, 2))}}
    for implementation in IMPLEMENTATIONS:
        steps, losses = smoothed(figures[implementation]["loss_by_step"])
        axes.plot(
            steps,
            losses,
            color=COLOURS[implementation],
            label=implementation,
            **styles[implementation],
        )
    difference = figures["largest_loss_difference_first_epoch"]
    axes.set_title(f"{NAMES[model]}: training loss (first epoch agrees to {difference:.0e})")
    axes.set_xlabel(f"step (means of {SMOOTHED_STEPS})")
    axes.set_ylabel("cross-entropy")
    axes.set_ylim(0, 1.08 * axes.dataLim.ymax)
    axes.legend(frameon=False)


def draw_times(axes: Axes, model: str, figures: Mapping[str, Any], phase: str) -> None:
    """Two bars side by side with their seconds, and the speed-up as title."""
    seconds = [figures[name][f"{phase}_seconds_per_epoch"] for name in IMPLEMENTATIONS]
    bars = axes.bar(IMPLEMENTATIONS, seconds, color=[COLOURS[name] for name in IMPLEMENTATIONS])
    axes.bar_label(bars, [f"{value:.3g} s" for value in seconds], padding=2)
    axes.set_title(f"{NAMES[model]} {phase}: {figures[f'{phase}_speed_up']:.2f}x")
    axes.set_ylabel("seconds per epoch")
    axes.margins(y=0.15)


def draw(path: Path, report: Mapping[str, Any]) -> None:
    """Writes the figure: a row to a model, loss curves overlaid, times side by side."""
    models = report["models"]
    figure, rows = pyplot.subplots(
        len(models),
        3,
        figsize=(12, 3.6 * len(models) + 0.4),
        width_ratios=(2.2, 1, 1),
        squeeze=False,
        layout="constrained",
    )
    for (model, figures), row in zip(models.items(), rows, strict=True):
        draw_losses(row[0], model, figures)
        draw_times(row[1], model, figures, "training")
        draw_times(row[2], model, figures, "inference")
        for axes in row:
            axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"Sentence classification ({report['task']}), {machine_line(report['machine'])}, "
        f"torch {report['versions']['torch']}",
        fontsize=11,
    )
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def write(directory: Path, report: Mapping[str, Any]) -> tuple[Path, Path]:
    """Writes demo.json and demo.png into an existing directory; returns their paths."""
    json_path, png_path = directory / "demo.json", directory / "demo.png"
    text = json.dumps(report, indent=1)
    replace_atomically(json_path, lambda path: path.write_text(text + "\n"))
    replace_atomically(png_path, lambda path: draw(path, report))
    return json_path, png_path
