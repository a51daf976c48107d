"""GLUE (arXiv:1804.07461): eight tasks of one or two English sentences, as TSV files.

    SOURCE/{CoLA,SST-2,MRPC,QQP,STS-B,MNLI,QNLI,RTE}/{train,dev,dev_matched,dev_mismatched}.tsv
    SOURCE/MRPC/msr_paraphrase_{train,test}.txt, as Microsoft publishes it

The test files have no labels, but for MRPC's own, and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from clippo_core.errors import SampleError
from pipelines.datasets.manifest import RawSample, ShardWriter, refuse_prepared
from pipelines.datasets.prepare.public.published import (
    RejectedRow,
    Row,
    read_lines,
    write_rows,
    wrong_layout,
)
from pipelines.runtime.storage import Location

_TRAIN_AND_DEV = {"train": ("train.tsv",), "dev": ("dev.tsv",)}


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """Which columns of a file are what.

    Attributes:
        texts: the sentences.
        label: the class or the score.
        header: names of the columns of a file that does not tell them itself.
    """

    texts: tuple[str, ...]
    label: str
    header: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class _Task:
    """A task.

    Attributes:
        folder: as published.
        columns: of its TSV files.
        class_names: in the order of the class ids; empty where the label is a score.
        codes: what stands for the classes in the files, if not their names.
        files: of each set; the first that is there is read.
    """

    folder: str
    columns: _Columns
    class_names: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    files: dict[str, tuple[str, ...]] = field(default_factory=lambda: _TRAIN_AND_DEV)


_SENTENCES = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_TASKS = (
    _Task(
        folder="CoLA",
        columns=_Columns(
            texts=("sentence",), label="label", header=("source", "label", "mark", "sentence")
        ),
        class_names=("unacceptable", "acceptable"),
        codes=("0", "1"),
    ),
    _Task(
        folder="SST-2",
        columns=_Columns(texts=("sentence",), label="label"),
        class_names=("negative", "positive"),
        codes=("0", "1"),
    ),
    _Task(
        folder="MRPC",
        columns=_Columns(texts=("#1 String", "#2 String"), label="Quality"),
        class_names=("not_equivalent", "equivalent"),
        codes=("0", "1"),
        files={
            "train": ("train.tsv", "msr_paraphrase_train.txt"),
            "dev": ("dev.tsv",),
            "test": ("msr_paraphrase_test.txt",),
        },
    ),
    _Task(
        folder="QQP",
        columns=_Columns(texts=("question1", "question2"), label="is_duplicate"),
        class_names=("not_duplicate", "duplicate"),
        codes=("0", "1"),
    ),
    _Task(folder="STS-B", columns=_Columns(texts=_SENTENCES, label="score")),
    _Task(
        folder="MNLI",
        columns=_Columns(texts=_SENTENCES, label="gold_label"),
        class_names=("entailment", "neutral", "contradiction"),
        files={
            "train": ("train.tsv",),
            "dev_matched": ("dev_matched.tsv",),
            "dev_mismatched": ("dev_mismatched.tsv",),
        },
    ),
    _Task(
        folder="QNLI",
        columns=_Columns(texts=("question", "sentence"), label="label"),
        class_names=_ENTAILMENT,
    ),
    _Task(
        folder="RTE",
        columns=_Columns(texts=_SENTENCES, label="label"),
        class_names=_ENTAILMENT,
    ),
)


def prepare_glue(source: Location, out: Location) -> list[Location]:
    """Write the tasks of GLUE that are there, such as `out/sst-2/train` and `out/sst-2/dev`.

    A key is the file and the line. All but `train` is for evaluation only.

    Args:
        source: the folder with a folder for each task.
        out: where the sets go.

    Returns:
        The sets' folders.

    Raises:
        ConfigError: if a set is there already.
        SampleError: if there is no task, or a file is not as published.
    """
    there = source.names()
    tasks = [task for task in _TASKS if task.folder in there]
    if not tasks:
        raise wrong_layout(source, "task of GLUE: " + ", ".join(f"{t.folder}/" for t in _TASKS))
    sets = [(task, split, file) for task in tasks for split, file in _files(source, task).items()]
    refuse_prepared(_folder(out, task, split) for task, split, _ in sets)
    return [
        _write(source, _folder(out, task, split), task, split, file) for task, split, file in sets
    ]


def _folder(out: Location, task: _Task, split: str) -> Location:
    return out / task.folder.lower() / split


def _files(source: Location, task: _Task) -> dict[str, str]:
    """The file of each set that is there."""
    names = (source / task.folder).names()
    found = {
        split: next((file for file in files if file in names), None)
        for split, files in task.files.items()
    }
    there = {split: file for split, file in found.items() if file is not None}
    if not there:
        raise wrong_layout(
            source / task.folder, *(f for files in task.files.values() for f in files)
        )
    return there


def _write(source: Location, folder: Location, task: _Task, split: str, file: str) -> Location:
    writer = ShardWriter(
        folder,
        name=f"glue_{task.folder.lower()}-{split}",
        kind="labelled-text",
        class_names=task.class_names,
        licence="each task its own; see gluebenchmark.com",
        origin=f"{source.uri}, GLUE (arXiv:1804.07461)",
        evaluation_only=split != "train",
    )
    return write_rows(writer, _rows(source / task.folder / file, task))


def _rows(place: Location, task: _Task) -> Iterator[Row]:
    # No CSV reader: nothing is quoted here, whatever quotation marks are in a sentence.
    lines = [line.split("\t") for line in read_lines(place)]
    columns, first = task.columns, 1
    header: Sequence[str] = columns.header or lines[0]
    if columns.header is None:
        lines, first = lines[1:], 2
    wanted = [*columns.texts, columns.label]
    if missing := [name for name in wanted if name not in header]:
        raise SampleError(f"{place.uri} has no column {missing[0]!r}; it has {list(header)}")
    places = [header.index(name) for name in wanted]
    for number, fields in enumerate(lines, start=first):
        key = f"{place.name}:{number}"
        if len(fields) == len(header):
            yield _row(key, [fields[at].strip() for at in places], task)
        elif fields != [""]:
            detail = f"{len(fields)} fields; expected {len(header)}"
            yield RejectedRow(key, "malformed_row", detail)


def _row(key: str, values: Sequence[str], task: _Task) -> Row:
    *texts, label = values
    if not all(texts):
        return RejectedRow(key, "missing_text")
    if not task.class_names:
        score = _number(label)
        if score is None:
            return RejectedRow(key, "unknown_score", label)
        return RawSample(key, None, texts, score=score)
    codes = task.codes or task.class_names
    if label not in codes:
        return RejectedRow(key, "unknown_class", label)
    return RawSample(key, None, texts, codes.index(label))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
