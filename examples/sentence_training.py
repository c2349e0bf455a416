"""Training two implementations of one model side by side, timed, for the example.

Both see the same batches in the same order and draw the same dropout masks: the random generator
is set anew before every epoch. They take turns epoch by epoch, and the first turn alternates, so
that whatever else the machine does falls on both alike.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import nn

from review_data import Batch, Dataset, batches
from sentence_models import FILTER_LENGTHS, SentenceClassifier, build_pair, nudge

BATCH_SIZE = 50
LEARNING_RATE = {"cnn": 5e-4, "lstm": 1e-3}
INFERENCE_REPETITIONS = 7
# How often torch's layers are trained for an epoch from weights that differ in their last bits.
NUDGES = 3


@dataclass
class Training:
    """One implementation under training, with all that is recorded about it."""

    implementation: str
    module: SentenceClassifier
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    training_seconds: list[float] = field(default_factory=list)
    inference_seconds: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, object]:
        """What goes into the report; seconds are medians, for one pass over a part of the data."""
        return {
            "held_out_accuracy": self.accuracies[-1],
            "training_seconds_per_epoch": median(self.training_seconds),
            "inference_seconds_per_epoch": median(self.inference_seconds),
            "held_out_accuracy_by_epoch": self.accuracies,
            "training_seconds_by_epoch": self.training_seconds,
            "inference_seconds_by_repetition": self.inference_seconds,
            "loss_by_step": self.losses,
        }


@contextmanager
def stopwatch(seconds: list[float], device: torch.device) -> Iterator[None]:
    """Appends the seconds spent inside, including what was queued on the device."""
    synchronise(device)
    start = time.perf_counter()
    yield
    synchronise(device)
    seconds.append(time.perf_counter() - start)


def synchronise(device: torch.device) -> None:
    """Waits until the device has done all its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def train_epoch(
    training: Training, epoch_batches: list[Batch], step_done: Callable[[str], None]
) -> list[torch.Tensor]:
    """One pass over the training part; returns the loss of every step."""
    module, optimizer = training.module, training.optimizer
    module.train()
    losses = []
    for batch in epoch_batches:
        logits = module(batch.tokens, batch.lengths)
        loss = nn.functional.cross_entropy(logits, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        step_done(training.implementation)
    return losses


@torch.inference_mode()
def count_correct(module: nn.Module, held_out: list[Batch]) -> torch.Tensor:
    """The number of held-out sentences answered correctly, a 0-dimensional tensor."""
    module.eval()
    answers = ((module(b.tokens, b.lengths).argmax(dim=1) == b.labels).sum() for b in held_out)
    return torch.stack(list(answers)).sum()


def warm_up(training: Training, batch: Batch) -> None:
    """Runs one batch forward and backward without learning from it: first calls are slow."""
    nn.functional.cross_entropy(
        training.module(batch.tokens, batch.lengths), batch.labels
    ).backward()
    training.optimizer.zero_grad()


@dataclass
class Comparison:
    """One model's two trainings, and what tells which difference between them rounding explains.

    nudged_losses: first-epoch losses of torch's layers from weights that differ in last bits.
    """

    stock: Training
    fused: Training
    nudged_losses: list[list[float]]

    @property
    def trainings(self) -> tuple[Training, Training]:
        """Both, torch's layers first."""
        return self.stock, self.fused

    def figures(self) -> dict[str, object]:
        """Both implementations' figures and what sets them apart."""
        stock, fused = self.stock, self.fused
        first_epoch = len(self.nudged_losses[0])
        return {
            **{training.implementation: training.figures() for training in self.trainings},
            "training_speed_up": median(stock.training_seconds) / median(fused.training_seconds),
            "inference_speed_up": median(stock.inference_seconds) / median(fused.inference_seconds),
            "largest_loss_difference_first_epoch": largest_difference(
                stock.losses[:first_epoch], fused.losses[:first_epoch]
            ),
            "largest_loss_difference": largest_difference(stock.losses, fused.losses),
            "loss_differences_first_epoch_by_rounding": [
                largest_difference(stock.losses[:first_epoch], losses)
                for losses in self.nudged_losses
            ],
        }


def largest_difference(losses: Sequence[float], others: Sequence[float]) -> float:
    """The largest difference between the losses of the same step."""
    return max(abs(loss - other) for loss, other in zip(losses, others, strict=True))


def train_pair(
    model: str,
    dataset: Dataset,
    epochs: int,
    seed: int,
    device: torch.device,
    step_done: Callable[[str], None] = lambda implementation: None,
    epoch_done: Callable[[int, Sequence[Training]], None] = lambda epoch, trainings: None,
) -> Comparison:
    """Trains `model` ("cnn" or "lstm") in both implementations, then times inference.

    Trainings of one epoch follow, of torch's layers from the same weights with last bits changed:
    what their losses differ by is what rounding does by itself. Where it decides which of two
    nearly equal windows is a filter's maximum, that can be much more than the last bit.

    `step_done` hears of every training step, with "torch", "seqkernels" or "nudged"; `epoch_done`
    of every epoch that both implementations have ended.
    """
    vocabulary_size = max(dataset.vocabulary.values()) + 1
    pair = build_pair(model, vocabulary_size, len(dataset.classes), seed)
    nudged = [copy.deepcopy(pair["torch"]) for _ in range(NUDGES)]
    for number, module in enumerate(nudged):
        nudge(module, seed + number)

    def prepare(implementation: str, module: SentenceClassifier) -> Training:
        module.to(device)
        # fused: torch's fastest Adam, as what is not the layers should take little time.
        # eps: a gradient of the size of rounding shall not move its weight by a whole step.
        rate = LEARNING_RATE[model]
        optimizer = torch.optim.Adam(module.parameters(), lr=rate, eps=1e-6, fused=True)
        return Training(implementation, module, optimizer)

    def run_epoch(training: Training, epoch: int, epoch_batches: list[Batch]) -> None:
        torch.manual_seed(seed + epoch)
        with stopwatch(training.training_seconds, device):
            losses = train_epoch(training, epoch_batches, step_done)
        training.losses += torch.stack(losses).tolist()

    def batches_of(epoch: int) -> list[Batch]:
        shuffled = batches(dataset.training, BATCH_SIZE, shortest, seed + epoch)
        return [batch.to(device) for batch in shuffled]

    shortest = max(FILTER_LENGTHS)
    held_out = [batch.to(device) for batch in batches(dataset.held_out, BATCH_SIZE, shortest)]
    trainings = [prepare(implementation, module) for implementation, module in pair.items()]
    for training in trainings:
        warm_up(training, held_out[-1])
    for epoch in range(epochs):
        epoch_batches = batches_of(epoch)
        for training in trainings if epoch % 2 == 0 else reversed(trainings):
            run_epoch(training, epoch, epoch_batches)
        for training in trainings:
            correct = count_correct(training.module, held_out).item()
            training.accuracies.append(correct / len(dataset.held_out))
        epoch_done(epoch, trainings)
    for _ in range(INFERENCE_REPETITIONS):
        for training in trainings:
            with stopwatch(training.inference_seconds, device):
                count_correct(training.module, held_out)

    yardsticks = [prepare("nudged", module) for module in nudged]
    epoch_batches = batches_of(0)
    for training in yardsticks:
        run_epoch(training, 0, epoch_batches)
    return Comparison(*trainings, [training.losses for training in yardsticks])
