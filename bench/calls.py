"""What a short call of ours spends: in the layer, Python, allocation, boundary, kernel.

Each part is the difference of two medians, of calls made in turns: of the layer and the function
that it calls; of the function and what it does last; of the native call and one of an empty batch
on one thread, which is checked like any other and then has nothing to do. What it takes to wake
the other threads is counted as the kernel's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

import seqkernels
from seqkernels import _cpu, functional, ops

from .report import duration, markdown_table
from .statistics import median

COLUMNS = ("call", "whole", "layer", "function", "allocation", "boundary", "kernel")
Parts = dict[str, Callable[[], object]]


def measure(parts: Parts, rounds: int = 60, least: float = 2e-4) -> dict[str, float]:
    """Median seconds of a call of each part."""
    samples: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, call in parts.items():
            # The first call is made however late it is: others may be given the processor first.
            count, spent, start = 0, 0.0, time.perf_counter()
            while count == 0 or spent < least:
                call()
                count += 1
                spent = time.perf_counter() - start
            samples[name].append(spent / count)
    return {name: median(values) for name, values in samples.items()}


def convolution(batch: int, length: int, channels: int, filters: int, kernel_size: int) -> Parts:
    layer = seqkernels.nn.Conv1dMaxPool(
        channels, filters, kernel_size, activation="relu", channels_last=True
    )
    input, weight, bias = torch.randn(batch, length, channels), layer.weight, layer.bias
    where = (torch.get_num_threads(), "highest")

    def outputs(samples=batch):
        return input.new_empty(samples, filters)

    def native(input, output, where=where):
        geometry = (1, 0, 0, 1, 0, 0)
        _cpu.conv1d_max_pool_forward(
            input, weight, bias, None, output, None, geometry, "relu", where
        )

    output, nothing, empty = outputs(), input[:0], outputs(0)
    return {
        "layer": lambda: layer(input),
        "function": lambda: functional.conv1d_max_pool(
            input, weight, bias, activation="relu", channels_last=True
        ),
        "allocation": outputs,
        "native": lambda: native(input, output),
        "boundary": lambda: native(nothing, empty, (1, "highest")),
    }


def cell(batch: int, hidden: int) -> Parts:
    layer = seqkernels.nn.LSTMCell(hidden, hidden)
    weights = (layer.weight_ih, layer.weight_hh, layer.bias_ih, layer.bias_hh)
    input, *states = torch.randn(3, batch, hidden).unbind()
    where = (torch.get_num_threads(), "highest")

    def outputs():
        return tuple(map(torch.empty_like, states))

    def native(input, states, output, next_cell, where=where):
        _cpu.recurrence_forward(
            "lstm",
            False,
            input,
            *states,
            *weights,
            None,
            None,
            output,
            None,
            next_cell,
            None,
            None,
            where,
        )

    next_hidden, next_cell = outputs()
    sequences, nothing = (input[None], next_hidden[None]), [state[:0] for state in states]
    empty = (sequences[0][:, :0], nothing, sequences[1][:, :0], next_cell[:0], (1, "highest"))
    return {
        "layer": lambda: layer(input, states),
        "function": lambda: functional.lstm_cell(input, states, *weights),
        "allocation": outputs,
        "native": lambda: native(sequences[0], states, sequences[1], next_cell),
        "boundary": lambda: native(*empty),
    }


def sequence(steps: int, batch: int, hidden: int) -> Parts:
    layer = seqkernels.nn.LSTM(hidden, hidden)
    weights = layer.all_weights[0]
    input = torch.randn(steps, batch, hidden)
    where = (torch.get_num_threads(), "highest")

    def outputs(samples=batch):
        states = (input.new_empty(samples, hidden) for _ in range(2))
        return input.new_empty(steps, samples, hidden), *states

    def native(input, results, where=where):
        _cpu.recurrence_forward(
            "lstm", False, input, None, None, *weights, None, None, *results, None, None, where
        )

    results, nothing, empty = outputs(), input[:, :0], outputs(0)
    return {
        "layer": lambda: layer(input),
        "function": lambda: ops.recurrence_stack("lstm", 1, input, None, None, None, [weights]),
        "allocation": outputs,
        "native": lambda: native(input, results),
        "boundary": lambda: native(nothing, empty, (1, "highest")),
    }


CALLS: dict[str, Callable[[], Parts]] = {
    "Conv1dMaxPool N 1, L 20, C 64, F 32, k 3": lambda: convolution(1, 20, 64, 32, 3),
    "Conv1dMaxPool N 1, L 56, C 300, F 100, k 3": lambda: convolution(1, 56, 300, 100, 3),
    "LSTMCell N 1, H 128": lambda: cell(1, 128),
    "LSTM N 1, T 25, H 128": lambda: sequence(25, 1, 128),
}


def budget(times: dict[str, float]) -> dict[str, float]:
    """The seconds that each part of a call takes; of a difference within the noise, 0."""
    parts = {
        "whole": times["layer"],
        "layer": times["layer"] - times["function"],
        "function": times["function"] - times["allocation"] - times["native"],
        "allocation": times["allocation"],
        "boundary": times["boundary"],
        "kernel": times["native"] - times["boundary"],
    }
    return {name: max(seconds, 0.0) for name, seconds in parts.items()}


def table() -> str:
    """The budget of every call, without gradients, as a Markdown table."""
    rows = []
    with torch.no_grad():
        for name, build in CALLS.items():
            parts = budget(measure(build()))
            rows.append({"call": name} | {part: duration(parts[part]) for part in COLUMNS[1:]})
    return markdown_table(COLUMNS, rows)
