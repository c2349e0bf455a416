"""The benchmark's arithmetic, on canned numbers: cases, statistics, the rule, ratios."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import random

import pytest
import torch

from bench import compare, documents, memory, report, timing, verify
from bench.cases import Case, UsageError, load_suite, parse_shapes, product, suite_names, values
from bench.environment import machine_name
from bench.operations import OPERATIONS
from bench.providers import ours
from bench.statistics import deviation, difference_by_chance, geometric_mean, median, noise
from bench_rows import PEAKS, document, measured, row


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", [3]),
        (3, [3]),
        ("tanh", ["tanh"]),
        ("1,2,8", [1, 2, 8]),
        ("3..5", [3, 4, 5]),
        ("25..100..25", [25, 50, 75, 100]),
        ("16..128..*2", [16, 32, 64, 128]),
        ("16..100..*2,7", [16, 32, 64, 7]),
        ([1, "2..3", "relu"], [1, 2, 3, "relu"]),
    ],
)
def test_values(text, expected):
    assert values(text) == expected


@pytest.mark.parametrize("text", ["", ",", "1..8..*1", "1..8..0", "0..8..*2"])
def test_values_that_are_none(text):
    with pytest.raises(UsageError):
        values(text)


def test_shapes_are_a_product():
    shapes = list(product(parse_shapes(["N=1,2", "H=8..16..8"])))
    assert shapes == [{"N": n, "H": h} for n, h in itertools.product((1, 2), (8, 16))]
    with pytest.raises(UsageError, match="name=values"):
        parse_shapes(["N"])


@pytest.mark.parametrize("name", suite_names())
def test_every_suite_has_only_shapes_that_its_operations_take(name):
    suite = load_suite(name)
    assert suite["description"].endswith(".")
    for entry in suite["cases"]:
        operation = OPERATIONS[entry["operation"]]
        for shape in product(entry["shapes"]):
            case = Case(operation.name, operation.shape(shape), "training")
            assert operation.flops(case) > 0
            assert operation.bytes(case) > 0


@pytest.mark.parametrize(
    ("operation", "shape", "word"),
    [
        ("lstm", {"N": 1, "T": 2}, "lacks H"),
        ("lstm", {"N": 1, "T": 2, "H": 3, "Q": 1}, "no Q"),
        ("lstm", {"N": 0, "T": 2, "H": 3}, "N: expected a positive"),
        ("rnn", {"N": 1, "T": 2, "H": 3, "nonlinearity": "gelu"}, "nonlinearity: expected one of"),
        (
            "conv1d_max_pool",
            {"N": 1, "L": 9, "C": 2, "F": 3, "k": 2, "bank": 2, "pool": 2},
            "a bank's filters pool over all time",
        ),
    ],
)
def test_wrong_shapes_are_named(operation, shape, word):
    with pytest.raises(UsageError, match=word):
        OPERATIONS[operation].shape(shape)


def test_cost_of_a_convolution():
    """Counted one multiply-add at a time: 2 samples of 5 windows, 4 filters of 2*3 numbers."""
    operation = OPERATIONS["conv1d_max_pool"]
    shape = operation.shape({"N": 2, "L": 7, "C": 2, "F": 4, "k": 3})
    forward = sum(2 for _ in itertools.product(range(2), range(5), range(4), range(6)))
    sparse = sum(4 for _ in itertools.product(range(2), range(4), range(6)))
    costs = {
        name: operation.flops(Case(operation.name, shape, name))
        for name in ("inference", "backward", "training")
    }
    assert costs == {"inference": forward, "backward": sparse, "training": forward + sparse}
    elements = 2 * 7 * 2 + 4 * 6 + 4 + 2 * 4
    assert operation.bytes(Case(operation.name, shape, dtype="float64")) == 8 * elements


def test_cost_of_a_bank():
    """The sum of its convolutions', but for the input, which is read once."""
    operation = OPERATIONS["conv1d_max_pool"]
    sizes = {"N": 2, "L": 7, "C": 2, "F": 4, "k": 3}
    bank = Case(operation.name, operation.shape(sizes | {"bank": 2}), "training")
    alone = [Case(operation.name, operation.shape(sizes | {"k": k}), "training") for k in (3, 4)]
    assert operation.flops(bank) == sum(map(operation.flops, alone))
    of_input = 3 * 4 * 2 * 7 * 2
    assert operation.bytes(bank) == sum(map(operation.bytes, alone)) - of_input


def test_cost_of_layers_in_two_directions():
    operation = OPERATIONS["lstm"]
    shape = operation.shape({"N": 3, "T": 5, "H": 4, "I": 2, "layers": 2, "directions": 2})
    first = 2 * (2 * 15 * 16 * (2 + 4))
    second = 2 * (2 * 15 * 16 * (8 + 4))
    assert operation.flops(Case(operation.name, shape)) == first + second


def test_median_deviation_and_mean():
    assert median([3, 1, 2]) == 2
    assert deviation([1, 2, 3, 4, 100]) == 1
    assert noise([2.0, 2.0, 2.0]) == 0
    assert noise([2.0]) == math.inf
    assert noise([1, 2, 3, 4, 5]) == pytest.approx(1.4826 * 1.2533 / math.sqrt(5) / 3)
    assert geometric_mean([2, 8]) == pytest.approx(4)
    assert math.isnan(geometric_mean([]))


def test_small_samples_are_compared_exactly():
    """Against all 70 ways to choose which 4 of 8 ranks are the first sample's."""
    first, second = [1.0, 2.0, 4.0, 5.0], [3.0, 6.0, 7.0, 8.0]

    def statistic(ranks):
        return sum(ranks) - 4 * 5 / 2

    distance = abs(statistic([1, 2, 4, 5]) - 8)
    ways = list(itertools.combinations(range(1, 9), 4))
    extreme = sum(abs(statistic(way) - 8) >= distance for way in ways)
    assert difference_by_chance(first, second) == pytest.approx(extreme / len(ways))
    assert difference_by_chance(second, first) == pytest.approx(extreme / len(ways))


def test_large_samples_are_compared_like_small_ones():
    """The normal approximation, forced by making two neighbours equal, is near the exact one."""
    generator = random.Random(0)
    first = [generator.gauss(0, 1) for _ in range(20)]
    second = [generator.gauss(0.8, 1) for _ in range(20)]
    exact = difference_by_chance(first, second)
    nearest = min(second, key=lambda value: abs(value - first[0]))
    tied = difference_by_chance([nearest, *first[1:]], second)
    assert 0.001 < exact < 0.2
    assert tied == pytest.approx(exact, rel=0.2)
    assert difference_by_chance([1.0] * 30, [1.0] * 30) == 1.0
    assert difference_by_chance(list(range(50)), list(range(100, 150))) < 1e-10


EXACT = {"output": torch.tensor([1.0, -2.0], dtype=torch.float64)}


def judged(error: float, torch_error: float = 0.0, **options) -> verify.Verdict:
    results = {"output": (EXACT["output"] + error).float()}
    torchs = {"output": (EXACT["output"] + torch_error).float()}
    options = {"terms": 4, "gradient_terms": 4} | options
    return verify.judge(results, torchs, EXACT, ("output",), **options)


def test_the_rule():
    assert judged(0.0).right
    assert not judged(1e-4).right
    assert judged(1e-4, torch_error=0.6e-4).right
    assert not judged(1e-4, torch_error=0.4e-4).right
    assert judged(1e-4, slack={"output": 1e-4}).right
    # bfloat16 factors: an error of u * sqrt(4) * 2 = 2^-6 is rounding, more is not.
    assert judged(2.0**-7, precision="medium").right
    assert not judged(2.0**-7, precision="high").right


def test_what_is_missing_misshapen_or_nan_is_wrong():
    numbers = {"terms": 1, "gradient_terms": 1}
    exact = EXACT | {"gradient of input": EXACT["output"]}
    verdict = verify.judge(EXACT, EXACT, exact, ("output",), **numbers)
    assert (verdict.right, verdict.what) == (False, "gradient of input missing")
    verdict = verify.judge({"output": torch.zeros(3)}, {}, EXACT, ("output",), **numbers)
    assert not verdict.right
    assert "shape (3,)" in verdict.what
    verdict = verify.judge({"output": EXACT["output"] * torch.nan}, {}, EXACT, (), **numbers)
    assert not verdict.right


def test_ratios_are_to_the_best_peer_and_show_losses():
    win = row({"seqkernels": measured(1.0), "slow": measured(4.0), "best": measured(2.0)})
    loss = row({"seqkernels": measured(4.0), "torch": measured(2.0)}, hidden=16)
    alone = row({"seqkernels": measured(4.0)}, hidden=32)
    assert report.best_peer(win) == "best"
    assert [report.ratio(r) for r in (win, loss, alone)] == [2.0, 0.5, None]
    (mean,) = report.means([win, loss, alone])
    assert mean["mean"] == pytest.approx(1.0)
    assert (mean["rows"], mean["faster"], mean["least"], mean["greatest"]) == (2, 1, 0.5, 2.0)
    lines = report.lines(loss, document(loss))
    assert [line["provider"] for line in lines] == ["torch", "seqkernels"]
    assert lines[1]["against best peer"] == "2.00x slower"


def test_per_cent_of_the_peak_measured_on_as_many_threads():
    (line,) = report.lines(fast := row({"seqkernels": measured(1e-3)}), document(fast))
    assert line["GFLOP/s"] == "1"
    assert line["% of peak"] == "10"
    other = fast | {"threads": 2}
    assert report.lines(other, document(other))[0]["% of peak"] == ""


def test_per_cent_of_the_bandwidth_of_the_cache_that_holds_the_row():
    rows = [row({"seqkernels": measured(1e-3)}) | {"bytes": size} for size in (4000.0, 4e5)]
    assert [report.lines(r, document(r))[0]["% of bandwidth"] for r in rows] == ["0", "40"]
    (small, _) = rows
    assert report.limits(small, document(small)) == (1e10, 4e9)


def test_rows_under_unlike_conditions_have_means_of_their_own():
    one = row({"seqkernels": measured(1.0), "torch": measured(2.0)})
    found = report.means([one, one | {"threads": 2}, one | {"cold": True}])
    assert [(mean["threads"], mean["cold"]) for mean in found] == [
        (1, False),
        (2, False),
        (1, True),
    ]


def test_of_forced_instruction_sets_the_fastest_counts():
    results = {"seqkernels:avx2": measured(1.0), "seqkernels:scalar": measured(4.0)}
    assert report.ours_in(row(results)) == "seqkernels:avx2"
    assert report.ours_in(row(results | {"seqkernels": measured(2.0)})) == "seqkernels"


def test_ours_at_a_lower_precision_has_means_of_its_own():
    results = {"seqkernels:high": measured(1.0), "seqkernels": measured(2.0), "p": measured(4.0)}
    both, highest = row(results), row({name: results[name] for name in ("seqkernels", "p")})
    assert report.ours_in(both) == "seqkernels"
    assert report.best_peer(both) == "p"
    assert [report.ratio(r, "seqkernels:high") for r in (both, highest)] == [4.0, None]
    found = [(m["precision"], m["rows"], m["mean"]) for m in report.means([both, highest])]
    assert found == [("highest", 2, 2.0), ("high, peers' highest", 1, 4.0)]
    del results["seqkernels"]
    assert report.ours_in(row(results)) is None


def test_of_many_rows_one_may_differ_by_chance():
    rows = [{"p": p, "least p": 1e-6} for p in (0.04, 0.5, 0.008, 0.9, 0.7)]
    assert compare.significant(rows, 0.05) == [False, False, True, False, False]
    assert compare.significant(rows, 0.005) == [False] * 5


def test_of_few_samples_all_must_be_apart():
    """Of 5 and 5 no p-value is below 2 in 252, which is not rare among 20 rows."""
    least = compare.least_probability(5, 5)
    assert least == pytest.approx(difference_by_chance(range(5), range(5, 10)))
    few = [{"p": p, "least p": least} for p in (least, 2 * least)]
    many = [{"p": 0.5, "least p": 1e-6}] * 18
    assert compare.significant(few + many, 0.05) == [True] + [False] * 19


def contestant(*samples: float, spent: float) -> timing.Contestant:
    return timing.Contestant(lambda: None, contextlib.nullcontext, spent=spent, samples=[*samples])


def test_how_long_is_measured():
    method = timing.Method(min_time=1.0, max_time=3.0, max_noise=0.02)
    steady, wild = [1.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]
    assert not contestant(*steady[:4], spent=9.0).is_done(method)
    assert not contestant(*steady, spent=0.5).is_done(method)
    assert contestant(*steady, spent=1.0).is_done(method)
    assert not contestant(*wild, spent=1.0).is_done(method)
    assert contestant(*wild, spent=3.0).is_done(method)
    cold = dataclasses.replace(method, cold=True)
    assert contestant(*wild * 10, spent=0.001).is_done(cold)
    assert not contestant(*wild, spent=0.001).is_done(cold)


def test_peak_memory_of_a_call():
    def run():
        return torch.ones(16 << 18) + 1  # two tensors of 16 MiB

    found = memory.peak(run, "cpu")
    if found is None:
        pytest.skip("the system does not tell a process's peak memory")
    assert 30 << 20 < found < 40 << 20


def test_a_result_of_torchs_that_is_not_finite_excuses_nothing():
    assert not judged(1e-4, torch_error=math.inf).right
    assert not judged(1e-4, torch_error=math.nan).right
    assert not judged(0.0, dtype=torch.float64).right


def test_a_later_run_replaces_the_rows_that_it_has():
    small, large = row({"seqkernels": measured(1.0)}), row({"seqkernels": measured(2.0)}, hidden=16)
    other = row({"seqkernels": measured(3.0)}, pass_name="training")
    first = document(small, large, measured="2026-01-01")
    again = small | {"results": {"seqkernels": measured(4.0)}}
    second = documents.merged(first, document(again, other, measured="2026-01-02"))
    assert [r["results"]["seqkernels"]["median"] for r in second["rows"]] == [4.0, 2.0, 3.0]
    assert [documents.run_of(r, second)["measured"][-1] for r in second["rows"]] == ["2", "1", "2"]
    third = documents.merged(second, document(large, measured="2026-01-03"))
    assert [run["measured"][-1] for run in third["runs"]] == ["2", "3"]
    assert [row["run"] for row in third["rows"]] == [0, 1, 0]
    assert first == document(small, large, measured="2026-01-01")


def test_rates_and_noise_are_those_of_a_rows_own_run():
    noisy = row({"seqkernels": measured(1e-3, noise=0.03)})
    both = documents.merged(document(noisy), document(noisy | {"threads": 2}))
    both["runs"][1] |= {
        "peaks": [PEAKS | {"threads": 2, "peak": {"float32": 4e9}}],
        "method": {"max_noise": 0.05, "verified": True},
    }
    first, second = (report.lines(r, both)[0] for r in both["rows"])
    assert [line["% of peak"] for line in (first, second)] == ["10", "25"]
    assert ["noisy" in line["±"] for line in (first, second)] == [True, False]


def test_a_record_is_named_by_what_was_measured():
    described = {
        "cpu": "Some CPU (R) 9",
        "cores": 2,
        "isa": "avx2",
        "seqkernels": "0.1.0",
        "cuda": {"device": "NVIDIA H100 80GB HBM3"},
    }
    assert machine_name(described, "cpu") == "some-cpu-r-9-2-cores-avx2-0.1.0"
    assert machine_name(described, "cuda") == "nvidia-h100-80gb-hbm3-0.1.0"


def test_float32_on_a_gpu_is_measured_at_the_precision_asked_for():
    """torch's own default there is TF32."""
    for precision, expected in (("highest", "ieee"), ("high", "tf32"), ("medium", "tf32")):
        case = Case("conv1d_max_pool", {}, "inference", device="cuda", precision=precision)
        with ours.Ours().settings(case):
            assert torch.backends.cudnn.conv.fp32_precision == expected
