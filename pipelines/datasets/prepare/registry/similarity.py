"""Pairs of words and of texts with the similarity that people gave them; for evaluation only.

SimLex-999 (Hill et al. 2015), WordSim-353 (Finkelstein et al. 2002), and the fifty news texts of
Lee, Pincombe and Welsh (2005), all from the test data of the PyPI package `gensim`. They are
stand-ins for STS-B.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.datasets.manifest import Manifest, RawSample
from pipelines.datasets.prepare.registry.packages import RegistrySet, reading, unpack_pypi_package
from pipelines.datasets.prepare.rows import tidy, write_rows
from pipelines.runtime.storage import Location

_PACKAGE = ("gensim", "4.4.0")
_FOLDER = "gensim/test/test_data"
_ORIGINS = {
    "simlex999": "SimLex-999 (Hill, Reichart and Korhonen 2015); scores 0 to 10",
    "wordsim353": "WordSimilarity-353 (Finkelstein et al. 2002); scores 0 to 10",
    "lee": "50 news texts (Lee, Pincombe and Welsh 2005); scores 0 to 1",
}


def read_similarity(package: Path) -> dict[str, list[RawSample]]:
    """Return the scored pairs in an unpacked package, by the name of their set."""
    folder = package / _FOLDER
    with reading(f"the package {_PACKAGE[0]}"):
        return {
            "simlex999": _read_words(folder / "simlex999.txt"),
            "wordsim353": _read_words(folder / "wordsim353.tsv"),
            "lee": _read_lee(folder),
        }


def write_similarity(pairs: Mapping[str, Sequence[RawSample]], out: Location) -> list[Location]:
    """Write the sets; return their folders."""
    about = {
        name: Manifest(
            name=name,
            kind="labelled-text",
            licence="the data: for research, none stated in the package; the package: LGPL-2.1",
            origin=_ORIGINS[name],
            evaluation_only=True,
        )
        for name in pairs
    }
    return [write_rows(out / name, about[name], found) for name, found in pairs.items()]


def _read_words(file: Path) -> list[RawSample]:
    lines = file.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line.strip() and not line.startswith("#")]
    return [
        _pair(f"{number:03d}", first, second, float(score))
        for number, (first, second, score) in enumerate(rows)
    ]


def _read_lee(folder: Path) -> list[RawSample]:
    """Return all pairs of the texts; scores are the upper triangle of a matrix in their order."""
    # One pound sign shows that the texts are Latin-1.
    lines = (folder / "lee.cor").read_text(encoding="latin-1").split("\n")
    texts = [tidy(line) for line in lines if line.strip()]
    rows = (folder / "similarities0-1.txt").read_text(encoding="ascii").splitlines()
    scores = [[float(score) for score in row.split()] for row in rows]
    if [len(row) for row in scores] != [len(texts)] * len(texts):
        raise ValueError(f"expected a matrix of {len(texts)} x {len(texts)} scores")
    return [
        _pair(f"{a:02d}-{b:02d}", texts[a], texts[b], scores[a][b])
        for a, b in itertools.combinations(range(len(texts)), 2)
    ]


def _pair(key: str, first: str, second: str, score: float) -> RawSample:
    return RawSample(key, None, [first, second], languages=["en", "en"], score=score)


SIMILARITY = RegistrySet(
    name="similarity",
    what="words and texts with human similarity; for evaluation only",
    folders=tuple(_ORIGINS),
    read=lambda scratch: read_similarity(unpack_pypi_package(*_PACKAGE, scratch)),
    expected={"simlex999": 999, "wordsim353": 353, "lee": 1_225},
    write=write_similarity,
)
