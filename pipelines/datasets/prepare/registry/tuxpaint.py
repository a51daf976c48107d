"""Tux Paint's stamps: drawings and photographs with a sentence in up to 78 languages.

From Debian's package `tuxpaint-stamps-default`. All of it is for evaluation, as is Crossmodal-3600
of which it is a small likeness: the sentences are translations of each other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from clippo_core.errors import Rejected, SampleError
from pipelines.datasets.manifest import RawSample, ShardWriter, is_prepared
from pipelines.datasets.prepare.pictures import check_picture
from pipelines.datasets.prepare.registry.packages import check_counts, unpack_debian_package
from pipelines.datasets.prepare.texts import tidy
from pipelines.runtime.progress import progress
from pipelines.runtime.storage import Location

_PACKAGE = "tuxpaint-stamps-default"
_STAMPS = "usr/share/tuxpaint/stamps"
_EXPECTED = {"stamps with a picture": 951, "sentences": 61_797, "languages": 78}
_LINE_SUFFIX = ".utf8"
#: What POSIX calls a modifier, where a language tag says it otherwise.
_MODIFIERS = {"latin": "Latn", "cyrillic": "Cyrl"}


def prepare_tuxpaint(out: Location) -> list[Location]:
    """Write the set `out`; if it is there and whole it is kept.

    Returns:
        Its folder.

    Raises:
        SampleError: if the package cannot be fetched, or holds less than is known of it.
    """
    if is_prepared(out):
        return [out]
    with tempfile.TemporaryDirectory(prefix="clippo-") as scratch:
        stamps = unpack_debian_package(_PACKAGE, Path(scratch)) / _STAMPS
        found = count_stamps(stamps)
        check_counts("tuxpaint", found, _EXPECTED, or_more=True)
        return write_tuxpaint(stamps, out)


def count_stamps(stamps: Path) -> dict[str, int]:
    """How many stamps, sentences and languages there are in an unpacked folder of stamps."""
    described = [read_sentences(file) for file in _descriptions(stamps) if _picture_of(file)]
    return {
        "stamps with a picture": len(described),
        "sentences": sum(map(len, described)),
        "languages": len(set().union(*described)),
    }


def write_tuxpaint(stamps: Path, out: Location) -> list[Location]:
    """Write an unpacked folder of stamps as a set.

    Args:
        stamps: holds `NAME.png` and `NAME.txt` at any depth.
        out: where the set goes.

    Returns:
        Its folder.

    Raises:
        SampleError: if there is not one stamp.
    """
    writer = ShardWriter(
        out,
        name="tuxpaint",
        licence="GPL-2 (Tux Paint's contributors)",
        origin=f"Tux Paint stamps, Debian package {_PACKAGE}",
        evaluation_only=True,
    )
    files = list(_descriptions(stamps))
    for file in progress(writer.name, unit="stamp", total=len(files), iterable=files):
        _add_stamp(writer, file.relative_to(stamps).with_suffix("").as_posix(), file)
    writer.close()
    return [out]


def read_sentences(file: Path) -> dict[str, str]:
    """The sentences of a stamp's text, by language tag.

    The first line is English, the others are like `de.utf8=Ein Hund.`; blank ones are left out.

    Raises:
        SampleError: if a line is of another kind.
    """
    first, *lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    sentences = {"en": tidy(first)}
    for line in filter(str.strip, lines):
        locale, is_assigned, text = line.partition("=")
        if not is_assigned or not locale.endswith(_LINE_SUFFIX):
            raise SampleError(f"{file.name} has the line {line[:60]!r}; expected xx.utf8=text")
        sentences[language_tag(locale.removesuffix(_LINE_SUFFIX))] = tidy(text)
    return {language: text for language, text in sentences.items() if text}


def language_tag(locale: str) -> str:
    """The language tag of a POSIX locale: `pt_BR` gives pt-BR, `sr@latin` sr-Latn."""
    locale, _, modifier = locale.partition("@")
    tag = locale.replace("_", "-")
    return f"{tag}-{_MODIFIERS.get(modifier, modifier)}" if modifier else tag


def _descriptions(stamps: Path) -> Iterator[Path]:
    return (file for file in sorted(stamps.rglob("*.txt")) if file.is_file())


def _picture_of(file: Path) -> Path | None:
    picture = file.with_suffix(".png")
    return picture if picture.is_file() else None


def _add_stamp(writer: ShardWriter, key: str, file: Path) -> None:
    picture = _picture_of(file)
    if picture is None:
        is_vector = file.with_suffix(".svg").is_file()
        writer.reject(key, *(("unknown_image_format", "svg") if is_vector else ("missing_image",)))
        return
    content = picture.read_bytes()
    if isinstance(problem := check_picture(content), Rejected):
        writer.reject(key, problem.reason, problem.detail)
        return
    try:
        sentences = read_sentences(file)
    except SampleError as error:
        writer.reject(key, "invalid_text", str(error))
        return
    if not sentences:
        writer.reject(key, "missing_caption")
        return
    writer.add(RawSample(key, content, list(sentences.values()), languages=list(sentences)))
