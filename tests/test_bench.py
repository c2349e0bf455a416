"""The benchmark's command line, end to end on tiny shapes."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest
import torch

from bench import calls, environment, measure, providers
from bench.cli import main
from bench.documents import load, merged
from bench.files import replacing, write_text
from bench.providers.torch_recurrence import Layer
from bench_rows import ENVIRONMENT, PEAKS, document, measured, row
from seqkernels import functional

pytest.importorskip("rich", reason="the command line needs rich")

TINY = ["--op", "lstm", "--shapes", "N=2", "T=3", "H=8", "--threads", "1"]
LSTM = ["--op", "lstm", "--shapes", "N=2", "T=50"]
QUICK = ["--min-time", "0.001", "--max-time", "0.002"]
OURS = ["--provider", "seqkernels,torch:layer"]


@pytest.fixture(autouse=True)
def canned_rates(monkeypatch):
    """The machine's rates are not measured here."""
    monkeypatch.setattr(environment, "measure_peaks", lambda *arguments: PEAKS)


class Altered(Layer):
    """torch's LSTM with something done to its output."""

    def __init__(self, alter):
        self.alter = alter

    def prepare(self, case, data):
        run = super().prepare(case, data)

        def altered():
            results = run()
            return results | {"output": self.alter(results["output"])}

        return altered


@pytest.fixture
def planted(monkeypatch):
    """Adds a provider by name."""

    def plant(name, alter):
        provider = Altered(alter)
        provider.name = name
        monkeypatch.setitem(providers.PROVIDERS, name, provider)

    return plant


def test_a_table_with_commands_and_means(capsys):
    assert main(["run", *TINY, *QUICK, *OURS, "--pass", "inference,training"]) == 0
    out = capsys.readouterr().out
    assert "lstm, N=2 T=3 H=8, inference, float32, 1 thread" in out
    assert "again: seqkernels-bench run --op lstm --shapes N=2 T=3 H=8 --pass training" in out
    assert "Geometric mean" in out
    assert "WRONG" not in out


def test_every_format(capsys):
    def printed(output):
        assert main(["run", *TINY, *QUICK, *OURS, "-o", output]) == 0
        return capsys.readouterr().out

    assert "| provider | time |" in printed("md")
    records = list(csv.DictReader(io.StringIO(printed("csv"))))
    assert [record["provider"] for record in records] == ["seqkernels", "torch:layer"]
    assert all(float(record["median"]) > 0 for record in records)
    saved = json.loads(printed("json"))
    assert saved["rows"][0]["shape"] == {"N": 2, "T": 3, "H": 8}
    assert saved["runs"][0]["peaks"] == [PEAKS]
    lines = [json.loads(line) for line in printed("jsonl").splitlines()]
    assert {line["status"] for line in lines} == {"measured"}


def test_a_wrong_provider_is_caught_and_not_timed(capsys, planted, tmp_path):
    planted("planted:wrong", lambda output: output + 1e-3)
    saved = tmp_path / "run.json"
    arguments = [*TINY, *QUICK, "--provider", "torch:layer,planted:*", "--save", str(saved)]
    assert main(["run", *arguments]) == 1
    assert "WRONG: planted:wrong in lstm" in capsys.readouterr().out
    result = json.loads(saved.read_text())["rows"][0]["results"]["planted:wrong"]
    assert result["status"] == "WRONG"
    assert "median" not in result
    assert result["error"] == pytest.approx(1e-3, rel=0.01)
    assert main(["run", *arguments, "--no-verify"]) == 0


def test_a_slow_provider_is_not_wrong(capsys, planted):
    def slowly(output):
        for _ in range(1000):
            output = output.clone()
        return output

    planted("planted:slow", slowly)
    arguments = [*TINY, *QUICK, "--provider", "torch:layer,planted:slow", "-o", "json"]
    assert main(["run", *arguments]) == 0
    results = json.loads(capsys.readouterr().out)["rows"][0]["results"]
    assert results["planted:slow"]["status"] == "measured"


def test_a_provider_that_changes_its_input_is_wrong_and_the_others_are_not(capsys, planted):
    class Careless(Layer):
        name = "planted:careless"

        def prepare(self, case, data):
            run = super().prepare(case, data)
            return lambda: (run(), data.input.add_(1))[0]

    provider = Careless()
    planted(provider.name, lambda output: output)
    providers.PROVIDERS[provider.name] = provider
    arguments = [*TINY, *QUICK, "--provider", "planted:careless,torch:layer", "-o", "json"]
    assert main(["run", *arguments]) == 1
    results = json.loads(capsys.readouterr().out)["rows"][0]["results"]
    assert results["planted:careless"]["farthest"] == "the input, which it changed"
    assert results["torch:layer"]["status"] == "measured"


@pytest.mark.parametrize("alter", [lambda output: output.double(), lambda output: output[:1]])
def test_another_dtype_or_shape_is_wrong(capsys, planted, alter):
    planted("planted:odd", alter)
    arguments = [*TINY, *QUICK, "--provider", "torch:layer,planted:odd", "-o", "json,md"]
    assert main(["run", *arguments]) == 1
    assert '"error": null' in capsys.readouterr().out


def test_a_failing_provider_does_not_stop_the_others(capsys, planted):
    def fail(output):
        raise RuntimeError("out of order")

    planted("planted:failing", fail)
    arguments = [*TINY, *QUICK, "--provider", "torch:layer,planted:failing"]
    assert main(["run", *arguments]) == 0
    assert "planted:failing failed: RuntimeError: out of order" in capsys.readouterr().out


def test_an_error_while_timing_takes_out_only_its_provider(capsys, planted):
    calls = []

    def fail_later(output):
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("worn out")
        return output

    planted("planted:failing", fail_later)
    arguments = [*TINY, *QUICK, "--provider", "torch:layer,planted:failing", "-o", "json"]
    assert main(["run", *arguments]) == 0
    results = json.loads(capsys.readouterr().out)["rows"][0]["results"]
    assert results["planted:failing"]["status"] == "failed"
    assert "worn out" in results["planted:failing"]["reason"]
    assert len(results["torch:layer"]["samples"]) >= 5


def test_our_own_failure_is_an_error(capsys, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("out of order")

    monkeypatch.setattr(providers.PROVIDERS["seqkernels"], "_layers", fail)
    assert main(["run", *TINY, *QUICK, *OURS]) == 1
    assert "seqkernels failed: RuntimeError: out of order" in capsys.readouterr().out


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "run.json"
    write_text(path, "first")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


SHAPES = {
    "conv1d_max_pool": [
        "N=2 L=9 C=3 F=5 k=3 layout=NLC,NCL activation=relu,tanh",
        "N=2 L=9 C=3 F=5 k=2 padding=1 pool=2 stride=2 layout=NLC,NCL",
        "N=3 L=12 C=3 F=5 k=3 lengths=reviews pool=0,2 padding=0,2",
        "N=3 L=12 C=3 F=5 k=2 bank=3 lengths=full,reviews layout=NLC,NCL padding=0,1",
    ],
    "lstm": ["N=2 T=4 H=8 I=3 layers=1,2 directions=1,2 lengths=full,reviews"],
    "rnn": ["N=2 T=4 H=8 nonlinearity=tanh,relu lengths=full,reviews"],
    "lstm_cell": ["N=2 H=8 I=3"],
    "rnn_cell": ["N=2 H=8 nonlinearity=tanh,relu"],
}


@pytest.mark.parametrize(
    ("operation", "shapes"), [(name, text) for name, texts in SHAPES.items() for text in texts]
)
def test_every_provider_of_this_machine_is_right(capsys, monkeypatch, operation, shapes):
    """All passes but for torch.compile, which takes long to start; nothing is timed."""
    monkeypatch.setattr(measure, "race", lambda *arguments: {})
    monkeypatch.setattr(measure.Contestant, "summary", lambda self: {})
    monkeypatch.setattr(measure.memory, "peak", lambda *arguments: None)
    arguments = ["--op", operation, "--shapes", *shapes.split(), "--threads", "1"]
    passes = ["--pass", "inference,forward,backward,training", "--dtype", "float32,float64"]
    code = main(["run", *arguments, *passes, "-o", "json"])
    found = json.loads(capsys.readouterr().out)["rows"]
    for line in found:
        for name, result in line["results"].items():
            assert result["status"] in ("measured", "unavailable"), (name, result, line["command"])
        assert line["results"]["seqkernels"]["status"] == "measured"
    assert code == 0


def test_what_has_no_kernel_is_unavailable(capsys, monkeypatch):
    monkeypatch.setattr(functional, "NATIVE_DTYPES", (torch.float32,))
    options = ["--dtype", "bfloat16,float32", "--precision", "highest,medium", *OURS, "-o", "json"]
    assert main(["run", *TINY, *QUICK, *options]) == 0
    found = json.loads(capsys.readouterr().out)["rows"]
    states = {(r["dtype"], r["precision"]): r["results"]["seqkernels"]["status"] for r in found}
    assert states == {
        ("bfloat16", "highest"): "unavailable",
        ("float32", "highest"): "measured",
        ("float32", "medium"): "measured",
    }


def test_where_the_time_of_a_call_goes(capsys):
    assert main(["calls", "--threads", "1"]) == 0
    head, _, *lines = capsys.readouterr().out.strip().splitlines()
    assert "| boundary | kernel |" in head
    assert [line.split(" | ")[0].strip("| ") for line in lines] == list(calls.CALLS)
    times = {"layer": 9.0, "function": 7.0, "allocation": 1.0, "native": 4.0, "boundary": 1.5}
    assert calls.budget(times) == {
        "whole": 9.0,
        "layer": 2.0,
        "function": 2.0,
        "allocation": 1.0,
        "boundary": 1.5,
        "kernel": 2.5,
    }
    assert main(["calls", "--threads", "0"]) == 2


def test_instruction_sets_side_by_side(capsys):
    options = ["--isa", "scalar", "--provider", "seqkernels,torch:layer", "-o", "json"]
    assert main(["run", *TINY, *QUICK, *options]) == 0
    (found,) = json.loads(capsys.readouterr().out)["rows"]
    assert list(found["results"]) == ["seqkernels:scalar", "torch:layer"]


def test_cold_caches_and_a_file_of_shapes(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.timing.cache_size", lambda: 1 << 16)
    file = tmp_path / "shapes.json"
    cases = [{"operation": "rnn", "shapes": {"N": "1..2", "T": 2, "H": 4}}]
    file.write_text(json.dumps({"description": "Mine.", "cases": cases}))
    options = ["--shapes", str(file), "--cold", *OURS, "--threads", "1", "-o", "json"]
    assert main(["run", *options, *QUICK, "--filter", "N=2"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["rows"]
    assert found["shape"] == {"N": 2, "T": 2, "H": 4}
    assert found["cold"]
    assert found["results"]["seqkernels"]["calls"] == 1


def test_a_record_has_the_name_of_its_machine_and_version(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "describe", lambda: ENVIRONMENT)
    assert main(["run", *TINY, *QUICK, *OURS, "--record", "--records", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["imaginary-9000-2-cores-avx2-1.2.3.json"]


def test_a_record_takes_in_the_rows_of_later_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "describe", lambda: ENVIRONMENT)
    target = ["--record", "--records", str(tmp_path)]
    both = ["--op", "lstm", "--shapes", "N=1,2", "T=3", "H=8", "--threads", "1"]
    assert main(["run", *both, *QUICK, *OURS, *target]) == 0
    (path,) = tmp_path.iterdir()
    earlier = json.loads(path.read_text())
    assert main(["run", *TINY, *QUICK, *OURS, *target]) == 0
    found = json.loads(path.read_text())
    assert [row["shape"]["N"] for row in found["rows"]] == [1, 2]
    assert [row["run"] for row in found["rows"]] == [0, 1]
    assert found["rows"][0] == earlier["rows"][0]
    assert found["rows"][1]["results"] != earlier["rows"][1]["results"]
    assert ["N=1,2" in run["command"] for run in found["runs"]] == [True, False]


def test_a_record_does_not_lose_its_peers(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "describe", lambda: ENVIRONMENT)
    target = ["--record", "--records", str(tmp_path)]
    assert main(["run", *TINY, *QUICK, *OURS, *target]) == 0
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    assert main(["run", *TINY, *QUICK, "--provider", "seqkernels", *target]) == 2
    message = f"--record: expected --provider with torch:layer, which {path} has for lstm, N=2"
    assert message in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "text", ['{"format": 1}', '{"format": 4, "runs": [], "rows": [{"run": 0}]}']
)
def test_a_record_that_cannot_be_read_is_named_before_anything_is_measured(
    capsys, monkeypatch, tmp_path, text
):
    monkeypatch.setattr(environment, "describe", lambda: ENVIRONMENT)
    record = tmp_path / "imaginary-9000-2-cores-avx2-1.2.3.json"
    record.write_text(text)
    monkeypatch.setattr("bench.run.measure", None)
    assert main(["run", *TINY, *QUICK, *OURS, "--record", "--records", str(tmp_path)]) == 2
    assert f"{record}: not a saved run" in capsys.readouterr().err
    assert record.read_text() == text


def test_an_interrupt_keeps_what_was_measured(capsys, monkeypatch, tmp_path):
    real, rows = measure.measure, []

    def interrupted(*arguments):
        if rows:
            raise KeyboardInterrupt
        rows.append(real(*arguments))
        return rows[0]

    monkeypatch.setattr("bench.run.measure", interrupted)
    saved = tmp_path / "run.json"
    shapes = ["--op", "lstm", "--shapes", "N=1,2", "T=3", "H=8", "--threads", "1"]
    assert main(["run", *shapes, *QUICK, *OURS, "--save", str(saved)]) == 130
    assert "interrupted after 1 of 2 rows" in capsys.readouterr().err
    assert len(json.loads(saved.read_text())["rows"]) == 1


def test_an_error_keeps_what_was_measured(monkeypatch, tmp_path):
    real, rows = measure.measure, []

    def broken(*arguments):
        if rows:
            raise ZeroDivisionError
        rows.append(real(*arguments))
        return rows[0]

    monkeypatch.setattr("bench.run.measure", broken)
    saved, records = tmp_path / "run.json", tmp_path / "records"
    shapes = ["--op", "lstm", "--shapes", "N=1,2", "T=3", "H=8", "--threads", "1"]
    record = ["--record", "--records", str(records)]
    with pytest.raises(ZeroDivisionError):
        main(["run", *shapes, *QUICK, *OURS, "--save", str(saved), *record])
    assert len(json.loads(saved.read_text())["rows"]) == 1
    assert list(records.iterdir()) == []


def test_a_record_is_not_half_written(monkeypatch, tmp_path):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.run.measure", interrupted)
    assert main(["run", *TINY, *QUICK, *OURS, "--record", "--records", str(tmp_path)]) == 130
    assert list(tmp_path.iterdir()) == []


def test_list_and_env(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for word in ("quick", "deepbench-train", "conv1d_max_pool", "torch:conv2d+amax", "openvino"):
        assert word in out
    if not torch.cuda.is_available():
        assert "no CUDA device" in out
    assert main(["list", "--suite", "kim"]) == 0
    assert "kim: conv1d_max_pool N=50 L=20 C=300 F=100 k=3" in capsys.readouterr().out
    assert main(["env", "--threads", "1"]) == 0
    assert "measured (cpu, threads 1): float32 peak 10.0, torch.mm 8.0 GFLOP/s" in (
        capsys.readouterr().out
    )
    assert main(["env", "-o", "json", "--threads", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ([{"operation": "lstm"}], 'expected cases with "operation" and "shapes"'),
        ([{"operation": "gru", "shapes": {}}], "no operation 'gru'"),
        ([{"operation": "rnn", "shapes": {"N": 1}, "passes": ["train"]}], '"passes" of rnn'),
        ([{"operation": "rnn", "shapes": {"N": 1}, "dtypes": ["int8"]}], '"dtypes" of rnn'),
    ],
)
def test_mistakes_in_a_file_of_shapes_are_named(capsys, tmp_path, cases, message):
    file = tmp_path / "shapes.json"
    file.write_text(json.dumps({"cases": cases}))
    assert main(["run", "--shapes", str(file)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--suite", "nothing"], "no suite 'nothing'"),
        (["run", "--op", "gru"], "--op: expected some of"),
        (["run", *TINY, "--dtype", "int8"], "--dtype: expected some of"),
        (["run", *TINY, "--provider", "nobody"], "no provider 'nobody'"),
        (["run", *TINY, "--threads", "0"], "--threads: expected positive integers"),
        (["run", "--shapes", "N=1"], "say with --op"),
        (["run", *TINY, "--filter", "("], "not a regular expression"),
        (["run", *TINY, "--filter", "never"], "no case left"),
        (["run", *TINY, "-o", "xml"], "--output: expected some of"),
        (["run", *TINY, "-o", ","], "--output: expected some of"),
        (
            ["run", *TINY[:2], "--shapes", "N=2", "T=3", "H=8", "directions=3"],
            "directions: expected one of 1, 2, got 3",
        ),
        (
            ["run", *TINY[:2], "--shapes", "N=2", "T=50", "H=8", "lengths=reviews"],
            "T: expected at most 32",
        ),
        (["run", *TINY, "--isa", "sse9"], "--isa: expected some of scalar"),
        (["run", *TINY, "--provider", "torch:conv1d+amax"], "none of them has lstm"),
        (["run", *TINY, "--save", "/proc/nowhere/run.json"], "run.json: cannot be written"),
        (["run", *TINY, "--save", "."], "cannot be written: Is a directory"),
        (["run", *TINY, "--record", "--no-verify"], "--record: expected verified rows"),
        (["compare", "missing.json", "missing.json"], "not a saved run"),
        (["page", "--records", "missing"], "no records"),
    ],
)
def test_mistakes_are_named(capsys, arguments, message):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def saved(path, *rows):
    path.write_text(json.dumps(document(*rows)))
    return str(path)


FAST, SLOW = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], [2.0, 2.1, 2.2, 2.3, 2.4, 2.5]


def test_compare(capsys, tmp_path):
    before = saved(
        tmp_path / "a.json",
        row({"seqkernels": measured(*SLOW)}),
        row({"seqkernels": measured(*FAST)}, hidden=16),
        row({"seqkernels": measured(*FAST)}, hidden=32),
    )
    after = saved(
        tmp_path / "b.json",
        row({"seqkernels": measured(*FAST)}),
        row({"seqkernels": measured(*SLOW)}, hidden=16),
    )
    assert main(["compare", before, after]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "SLOWER" in lines[0]
    assert "H=16" in lines[0]
    assert "faster" in lines[1]
    assert lines[2].startswith(" 1.000x  geometric mean of 2 rows")
    assert "1 rows are in one of the files only" in lines[3]
    assert main(["compare", before, after, "--fail-below", "0.5"]) == 0
    assert main(["compare", before, after, "--fail-below", "0.9"]) == 1
    assert main(["compare", after, after, "--fail-below", "1"]) == 0
    assert "the machines or libraries differ" not in capsys.readouterr().out


def test_compare_says_where_rows_of_both_were_measured_otherwise(capsys, tmp_path):
    fast, slow = (row({"seqkernels": measured(*samples)}) for samples in (FAST, SLOW))
    other = document(slow | {"pass": "training"})
    other["runs"][0]["environment"] = ENVIRONMENT | {"torch": "2.12.0"}
    mixed = tmp_path / "mixed.json"
    mixed.write_text(json.dumps(merged(document(fast), other)))
    for name in (saved(tmp_path / "plain.json", fast), str(mixed)):
        assert main(["compare", str(mixed), name]) == 0
        assert "the machines or libraries differ" not in capsys.readouterr().out
    after = saved(tmp_path / "after.json", slow | {"pass": "training"})
    assert main(["compare", str(mixed), after]) == 0
    assert "the machines or libraries differ" in capsys.readouterr().out


def test_compare_does_not_fail_a_row_that_differs_by_chance(tmp_path):
    before = saved(
        tmp_path / "a.json",
        row({"seqkernels": measured(1.0, 1.3, 1.2, 1.1, 1.4)}),
        row({"seqkernels": measured(*SLOW)}, hidden=16),
    )
    after = saved(
        tmp_path / "b.json",
        row({"seqkernels": measured(1.05, 1.35, 1.25, 1.15, 1.45)}),
        row({"seqkernels": measured(*FAST)}, hidden=16),
    )
    assert main(["compare", before, after, "--fail-below", "1"]) == 0


def test_compare_fails_a_result_that_became_wrong(tmp_path):
    good = row({"seqkernels": measured(*FAST)}, hidden=16)
    before = saved(tmp_path / "a.json", good, row({"seqkernels": measured(*FAST)}))
    after = saved(tmp_path / "b.json", good, row({"seqkernels": {"status": "WRONG"}}))
    assert main(["compare", before, after, "--fail-below", "0.5"]) == 1


def test_pictures_and_page(capsys, tmp_path):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    rows = [
        row({"seqkernels": measured(1e-3 * h), "torch:layer": measured(2e-3 * h)}, hidden=h)
        for h in (8, 16, 32)
    ]
    wrong = {"status": "WRONG", "error": 1.0, "allowed": 0.1, "farthest": "output"}
    rows.append(row({"seqkernels": wrong, "torch:layer": measured(1.0)}, pass_name="training"))
    records = tmp_path / "records"
    records.mkdir()
    file = saved(records / "machine.json", *rows)
    assert main(["plot", file, "--directory", str(tmp_path)]) == 0
    names = {path.name for path in tmp_path.glob("machine-*")}
    assert names == {
        f"machine-{picture}.{ending}"
        for picture in ("speed-up", "roofline", "time-over-H")
        for ending in ("png", "svg")
    }
    target = tmp_path / "docs" / "performance.md"
    assert main(["page", "--records", str(records), "--target", str(target)]) == 0
    text = target.read_text()
    assert (
        "| N=1 T=2 H=8, inference, float32, 1 thread | 8 ms | 0 ns | torch:layer | 16 ms |" in text
    )
    assert "WRONG: seqkernels in lstm" in text
    for line in text.splitlines():
        if line.startswith("!["):
            assert (target.parent / line.partition("(")[2].rstrip(")")).exists()
    assert "Run 1" not in text
    before = {path: path.read_bytes() for path in sorted((tmp_path / "docs").rglob("*.*"))}
    assert main(["page", "--records", str(records), "--target", str(target)]) == 0
    assert before == {path: path.read_bytes() for path in before}
    again = document(rows[0], measured="2026-01-03")
    Path(file).write_text(json.dumps(merged(load(file), again)))
    assert main(["page", "--records", str(records), "--target", str(target)]) == 0
    text = target.read_text()
    assert "Run 2: seqkernels 1.2.3 (avx2, commit 0123456789ab)" in text
    assert [line[-4:] for line in text.splitlines() if line.startswith("| N=1 T=2 H=")] == [
        " 2 |",
        *[" 1 |"] * 3,
    ]
