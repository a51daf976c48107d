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
from pipelines.datasets.manifest import Manifest, RawSample, refuse_prepared
from pipelines.datasets.prepare.public.published import read_lines, wrong_layout
from pipelines.datasets.prepare.rows import RejectedRow, Row, write_splits
from pipelines.runtime.storage import Location

_TRAIN_AND_DEV = {"train": ("train.tsv",), "dev": ("dev.tsv",)}


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One of the tasks with the layout of its files.

    Attributes:
        folder: published name of its folder.
        texts: columns of sentences in its TSV files.
        label: column of the class or the score.
        header: names of all columns, where the files do not state them.
        class_names: names in the order of the class ids; empty where the label is a score.
        codes: codes of the classes in the files, if not their names.
        files: files of each set; the first that exists is read.
    """

    folder: str
    texts: tuple[str, ...] = ("sentence1", "sentence2")
    label: str = "label"
    header: tuple[str, ...] | None = None
    class_names: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    files: dict[str, tuple[str, ...]] = field(default_factory=lambda: _TRAIN_AND_DEV)


_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_TASKS = (
    _Task(
        folder="CoLA",
        texts=("sentence",),
        header=("source", "label", "mark", "sentence"),
        class_names=("unacceptable", "acceptable"),
        codes=_BINARY,
    ),
    _Task(
        folder="SST-2",
        texts=("sentence",),
        class_names=("negative", "positive"),
        codes=_BINARY,
    ),
    _Task(
        folder="MRPC",
        texts=("#1 String", "#2 String"),
        label="Quality",
        class_names=("not_equivalent", "equivalent"),
        codes=_BINARY,
        files={
            "train": ("train.tsv", "msr_paraphrase_train.txt"),
            "dev": ("dev.tsv",),
            "test": ("msr_paraphrase_test.txt",),
        },
    ),
    _Task(
        folder="QQP",
        texts=("question1", "question2"),
        label="is_duplicate",
        class_names=("not_duplicate", "duplicate"),
        codes=_BINARY,
    ),
    _Task(folder="STS-B", label="score"),
    _Task(
        folder="MNLI",
        label="gold_label",
        class_names=("entailment", "neutral", "contradiction"),
        files={split: (f"{split}.tsv",) for split in ("train", "dev_matched", "dev_mismatched")},
    ),
    _Task(folder="QNLI", texts=("question", "sentence"), class_names=_ENTAILMENT),
    _Task(folder="RTE", class_names=_ENTAILMENT),
)


def prepare_glue(source: Location, out: Location) -> list[Location]:
    """Write the tasks of GLUE that are there, such as `out/sst-2/train` and `out/sst-2/dev`.

    A key is the file and the line. All but `train` is for evaluation only.
    """
    there = source.names()
    tasks = [task for task in _TASKS if task.folder in there]
    if not tasks:
        raise wrong_layout(source, "task of GLUE: " + ", ".join(f"{t.folder}/" for t in _TASKS))
    files = [_files(source / task.folder, task) for task in tasks]
    places = [out / task.folder.lower() for task in tasks]
    sets = list(zip(tasks, places, files, strict=True))
    refuse_prepared(place / split for _, place, of_task in sets for split in of_task)
    folders: list[Location] = []
    for task, place, of_task in sets:
        about = Manifest(
            name=f"glue_{place.name}",
            kind="labelled-text",
            class_names=task.class_names,
            licence="each task its own; see gluebenchmark.com",
            origin=f"{source.uri}, GLUE (arXiv:1804.07461)",
        )
        rows = {split: _rows(file, task) for split, file in of_task.items()}
        folders += write_splits(place, about, rows)
    return folders


def _files(folder: Location, task: _Task) -> dict[str, Location]:
    """Return the file of each set that is there."""
    names = folder.names()
    found = {
        split: [folder / file for file in files if file in names]
        for split, files in task.files.items()
    }
    if not any(found.values()):
        raise wrong_layout(folder, *(file for files in task.files.values() for file in files))
    return {split: files[0] for split, files in found.items() if files}


def _rows(place: Location, task: _Task) -> Iterator[Row]:
    # A CSV reader would not do: nothing is quoted here, whatever marks are in a sentence.
    lines = [line.split("\t") for line in read_lines(place)]
    header, first = (lines.pop(0), 2) if task.header is None else (list(task.header), 1)
    wanted = [*task.texts, task.label]
    if missing := [name for name in wanted if name not in header]:
        raise SampleError(f"{place.uri} has no column {missing[0]!r}; it has {header}")
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
