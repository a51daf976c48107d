"""Pairs of words and of texts with the similarity that people gave them; for evaluation only.

SimLex-999 (Hill et al. 2015), WordSim-353 (Finkelstein et al. 2002), and the fifty news texts of
Lee, Pincombe and Welsh (2005), all from the test data of the PyPI package `gensim`. They are
stand-ins for STS-B.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clippo_core.errors import SampleError
from pipelines.datasets.manifest import RawSample, ShardWriter, is_prepared
from pipelines.datasets.prepare.registry.packages import check_counts, unpack_pypi_package
from pipelines.datasets.prepare.texts import tidy
from pipelines.runtime.storage import Location

_PACKAGE = ("gensim", "4.4.0")
_FOLDER = "gensim/test/test_data"
_EXPECTED = {"simlex999": 999, "wordsim353": 353, "lee": 1_225}
#: Names of the files of word pairs.
_WORD_FILES = {"simlex999": "simlex999.txt", "wordsim353": "wordsim353.tsv"}
_ORIGINS = {
    "simlex999": "SimLex-999 (Hill, Reichart and Korhonen 2015); scores 0 to 10",
    "wordsim353": "WordSimilarity-353 (Finkelstein et al. 2002); scores 0 to 10",
    "lee": "50 news texts (Lee, Pincombe and Welsh 2005); scores 0 to 1",
}


class Pair(NamedTuple):
    """Two texts, and how alike people find them."""

    key: str
    first: str
    second: str
    score: float


def prepare_similarity(out: Location) -> list[Location]:
    """Write `out/simlex999`, `out/wordsim353` and `out/lee`; what is there and whole is kept.

    Returns:
        The folders of the three.

    Raises:
        SampleError: if the package cannot be fetched, or is not the known one.
    """
    folders = [out / name for name in _EXPECTED]
    if all(is_prepared(folder) for folder in folders):
        return folders
    with tempfile.TemporaryDirectory(prefix="clippo-") as scratch:
        pairs = read_similarity(unpack_pypi_package(*_PACKAGE, Path(scratch)))
    check_counts("similarity", {name: len(found) for name, found in pairs.items()}, _EXPECTED)
    return write_similarity(pairs, out)


def read_similarity(package: Path) -> dict[str, list[Pair]]:
    """The pairs in an unpacked package, by the name of their set.

    Raises:
        SampleError: if a file is missing or laid out otherwise.
    """
    folder = package / _FOLDER
    try:
        words = {name: _read_words(folder / file) for name, file in _WORD_FILES.items()}
        return {**words, "lee": _read_lee(folder)}
    except (OSError, ValueError) as error:
        raise SampleError(f"the package {_PACKAGE[0]} cannot be read: {error}") from None


def write_similarity(pairs: Mapping[str, Sequence[Pair]], out: Location) -> list[Location]:
    """Write the sets; returns their folders."""
    for name, found in pairs.items():
        writer = ShardWriter(
            out / name,
            name=name,
            kind="labelled-text",
            licence="the data: for research, none stated in the package; the package: LGPL-2.1",
            origin=_ORIGINS[name],
            evaluation_only=True,
        )
        for key, first, second, score in found:
            writer.add(RawSample(key, None, [first, second], languages=["en", "en"], score=score))
        writer.close()
    return [out / name for name in pairs]


def _read_words(file: Path) -> list[Pair]:
    lines = file.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line.strip() and not line.startswith("#")]
    return [
        Pair(f"{number:03d}", first, second, float(score))
        for number, (first, second, score) in enumerate(rows)
    ]


def _read_lee(folder: Path) -> list[Pair]:
    """All pairs of the texts; the scores are the upper triangle of a matrix in their order."""
    # One pound sign shows that the texts are Latin-1.
    lines = (folder / "lee.cor").read_text(encoding="latin-1").split("\n")
    texts = [tidy(line) for line in lines if line.strip()]
    rows = (folder / "similarities0-1.txt").read_text(encoding="ascii").splitlines()
    scores = [[float(score) for score in row.split()] for row in rows]
    if [len(row) for row in scores] != [len(texts)] * len(texts):
        raise ValueError(f"expected a matrix of {len(texts)} x {len(texts)} scores")
    return [
        Pair(f"{a:02d}-{b:02d}", texts[a], texts[b], scores[a][b])
        for a, b in itertools.combinations(range(len(texts)), 2)
    ]
