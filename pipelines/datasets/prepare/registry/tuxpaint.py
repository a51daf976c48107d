"""Tux Paint's stamps: drawings and photographs with a sentence in up to 78 languages.

They come from Debian's package `tuxpaint-stamps-default`. All of it is for evaluation, as is
Crossmodal-3600 of which it is a small likeness: the sentences are translations of each other.
"""

from __future__ import annotations

from pathlib import Path

from clippo_core.errors import SampleError
from pipelines.datasets.manifest import Manifest
from pipelines.datasets.prepare.pictures import check_picture, picture_row
from pipelines.datasets.prepare.registry.packages import RegistrySet, unpack_debian_package
from pipelines.datasets.prepare.rows import RejectedRow, Row, tidy, write_rows
from pipelines.runtime.storage import Location

_PACKAGE = "tuxpaint-stamps-default"
_STAMPS = "usr/share/tuxpaint/stamps"
_LINE_SUFFIX = ".utf8"
#: POSIX' modifiers of a locale, by the subtag that says the same in a language tag.
_MODIFIERS = {"latin": "Latn", "cyrillic": "Cyrl"}


def count_stamps(stamps: Path) -> dict[str, int]:
    """Count the stamps with a picture in a folder, their sentences and languages."""
    files = (file for file in _descriptions(stamps) if file.with_suffix(".png").is_file())
    described = [read_sentences(file) for file in files]
    return {
        "stamps with a picture": len(described),
        "sentences": sum(map(len, described)),
        "languages": len(set().union(*described)),
    }


def write_tuxpaint(stamps: Path, out: Location) -> Location:
    """Write an unpacked folder with `NAME.png` and `NAME.txt` at any depth as a set."""
    about = Manifest(
        name="tuxpaint",
        licence="GPL-2 (Tux Paint's contributors)",
        origin=f"Tux Paint stamps, Debian package {_PACKAGE}",
        evaluation_only=True,
    )
    return write_rows(out, about, (_row(stamps, file) for file in _descriptions(stamps)))


def read_sentences(file: Path) -> dict[str, str]:
    """Return the sentences of a stamp's text, by language tag.

    The first line is English, the others are like `de.utf8=Ein Hund.`; blank ones are left out.

    Raises:
        SampleError: if a line has another form.
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
    """Return the language tag of a POSIX locale: pt-BR of `pt_BR`, sr-Latn of `sr@latin`."""
    locale, _, modifier = locale.partition("@")
    tag = locale.replace("_", "-")
    return f"{tag}-{_MODIFIERS.get(modifier, modifier)}" if modifier else tag


def _descriptions(stamps: Path) -> list[Path]:
    return [file for file in sorted(stamps.rglob("*.txt")) if file.is_file()]


def _row(stamps: Path, file: Path) -> Row:
    key = file.relative_to(stamps).with_suffix("").as_posix()
    if not file.with_suffix(".png").is_file():
        if file.with_suffix(".svg").is_file():
            return RejectedRow(key, "unknown_image_format", "svg")
        return RejectedRow(key, "missing_image")
    picture = file.with_suffix(".png").read_bytes()
    try:
        return picture_row(key, picture, list(read_sentences(file).items()))
    except SampleError as error:
        if check_picture(picture) is not None:
            return picture_row(key, picture, [])
        return RejectedRow(key, "invalid_text", str(error))


TUXPAINT = RegistrySet(
    name="tuxpaint",
    what="stamps with sentences in 78 locales; for evaluation only",
    folders=("",),
    read=lambda scratch: unpack_debian_package(_PACKAGE, scratch) / _STAMPS,
    count=count_stamps,
    expected={"stamps with a picture": 951, "sentences": 61_797, "languages": 78},
    or_more=True,
    write=write_tuxpaint,
)
