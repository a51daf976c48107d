"""Emoji: three vendors' pictures of the same characters, with captions in 160 locales.

Noto, Fluent and Twemoji pictures from npm packages; names and keywords from CLDR. Splits are by
emoji, not by picture: all vendors share the captions, and skin tones are near-duplicates. Twemoji
is never trained on: there a model meets known emoji in an unknown style.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from clippo_core.errors import Rejected, SampleError
from pipelines.datasets.manifest import RawSample, ShardWriter, is_prepared
from pipelines.datasets.prepare.pictures import check_picture
from pipelines.datasets.prepare.registry.packages import check_counts, unpack_npm_package
from pipelines.datasets.prepare.splits import is_held_out
from pipelines.datasets.prepare.texts import tidy
from pipelines.runtime.progress import progress
from pipelines.runtime.storage import Location

TEST_SHARE = 0.1
_CAPTIONS_VERSION = "48.2.0"
#: Package, and the folder and key that it keeps its annotations under.
_CAPTION_PACKAGES = (
    ("cldr-annotations-full", "annotations"),
    ("cldr-annotations-derived-full", "annotationsDerived"),
)
_EXPECTED_CAPTIONS = {"locales": 160, "names of Google's emoji": 460_543}
_CODE_POINTS = re.compile(r"[0-9a-f]{2,5}(-[0-9a-f]{2,5})*")
_VARIATION = "fe0f"
_CANCEL_TAG = "e007f"
_SKIN_TONES = frozenset({"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"})
#: What is appended to people who run or walk to the right instead of to the left.
_FACING_RIGHT = "-200d-27a1"


class Vendor(NamedTuple):
    """Whose pictures they are.

    Attributes:
        name: in keys and folders.
        package: of npm.
        version: of the package.
        pictures: pattern of the files in the package.
        num_pictures: in the package.
        is_trained_on: whether there is a training split.
        licence: of the pictures.
    """

    name: str
    package: str
    version: str
    pictures: str
    num_pictures: int
    is_trained_on: bool
    licence: str

    @property
    def splits(self) -> tuple[str, str]:
        """Known emoji and held-out ones."""
        return ("train" if self.is_trained_on else "heldout_vendor", "test")


VENDORS = (
    Vendor(
        "google",
        "emoji-datasource-google",
        "16.0.0",
        "img/google/64/*.png",
        3_786,
        True,
        "Apache-2.0 (Noto Emoji)",
    ),
    Vendor(
        "fluent",
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "assets/*.webp",
        3_391,
        True,
        "MIT (Fluent Emoji)",
    ),
    Vendor(
        "twitter",
        "emoji-datasource-twitter",
        "16.0.0",
        "img/twitter/64/*.png",
        3_786,
        False,
        "CC-BY-4.0 (Twemoji)",
    ),
)
#: Its package also says which emoji are variants of which.
_BASES_FROM = "google"


@dataclass(frozen=True)
class Captions:
    """What emoji are called, by character and locale.

    Attributes:
        names: one for each.
        keywords: all of a locale in one text, without the name.
    """

    names: dict[str, dict[str, str]] = field(default_factory=dict)
    keywords: dict[str, dict[str, str]] = field(default_factory=dict)

    def of(self, character: str) -> tuple[list[str], list[str]]:
        """Captions of an emoji, names before keywords, and their locales."""
        found = (self.names.get(character, {}), self.keywords.get(character, {}))
        return [text for by in found for text in by.values()], [loc for by in found for loc in by]


def prepare_emoji(out: Location) -> list[Location]:
    """Write `out/VENDOR/train` and `/test`, for Twitter `/heldout_vendor` and `/test`.

    What is there and whole is kept.

    Returns:
        The folders of the six sets.

    Raises:
        SampleError: if a package cannot be fetched, or is not the known one.
    """
    folders = _folders(out)
    if all(is_prepared(folder) for folder in folders):
        return folders
    with tempfile.TemporaryDirectory(prefix="clippo-") as scratch:
        packages = {
            vendor.name: unpack_npm_package(vendor.package, vendor.version, Path(scratch))
            for vendor in VENDORS
        }
        captions = read_captions(
            {
                top: unpack_npm_package(package, _CAPTIONS_VERSION, Path(scratch))
                for package, top in _CAPTION_PACKAGES
            }
        )
        pictures = {v.name: read_pictures(v, packages[v.name]) for v in VENDORS}
        bases = read_bases(packages[_BASES_FROM])
    codes = map(code_points_of, pictures["google"])
    names = [captions.names.get(character_of(code), {}) for code in codes]
    found = {f"{name} pictures": len(files) for name, files in pictures.items()}
    found["locales"] = len(set().union(*names))
    found["names of Google's emoji"] = sum(map(len, names))
    expected = {f"{vendor.name} pictures": vendor.num_pictures for vendor in VENDORS}
    check_counts("emoji", found, expected | _EXPECTED_CAPTIONS)
    return write_emoji(pictures, captions, bases, out)


def read_captions(packages: Mapping[str, Path]) -> Captions:
    """The names and keywords of CLDR, for characters without U+FE0F.

    Args:
        packages: unpacked folders by the key of their annotations.

    Raises:
        SampleError: if a file is laid out otherwise.
    """
    captions = Captions()
    for top, package in packages.items():
        for file in sorted((package / top).glob("*/annotations.json")):
            try:
                content = json.loads(file.read_text(encoding="utf-8"))[top]
                _add_captions(captions, file.parent.name, content.get("annotations", {}))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise SampleError(
                    f"{top}/{file.parent.name}/{file.name} of CLDR is laid out otherwise than "
                    f"expected ({type(error).__name__}: {error})"
                ) from None
    return captions


def read_pictures(vendor: Vendor, package: Path) -> dict[str, bytes]:
    """A vendor's picture files by their names, which are code points."""
    return {file.stem: file.read_bytes() for file in sorted(package.glob(vendor.pictures))}


def code_points_of(name: str) -> str:
    """The code points of a picture's name, as most vendors write them: `1f44d-1f3fd`.

    Fluent has some names with underscores, without leading zeros, or without the character that
    ends the flags of England, Scotland and Wales.
    """
    parts = [part.zfill(4) for part in re.split("[-_]", name.lower())]
    is_cut = parts[-1].startswith("e00") and parts[-1] != _CANCEL_TAG
    return "-".join([*parts, _CANCEL_TAG] if is_cut else parts)


def read_bases(package: Path) -> dict[str, str]:
    """The emoji that each variant belongs to, both without skin tones and U+FE0F.

    Most variants are their base and a skin tone. Of couples and handshakes some are made of two
    people instead, so that only this table knows.

    Raises:
        SampleError: if the file is missing or laid out otherwise.
    """
    try:
        rows = json.loads((package / "emoji.json").read_text(encoding="utf-8"))
        return {
            _plain(variant["unified"]): _plain(row["unified"])
            for row in rows
            for variant in row.get("skin_variations", {}).values()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SampleError(f"emoji.json cannot be read ({type(error).__name__}: {error})") from None


def base_of(code_points: str, bases: Mapping[str, str]) -> str:
    """The emoji that decides on the split: without skin tones, U+FE0F and direction."""
    plain = _plain(code_points)
    return bases.get(plain, plain).removesuffix(_FACING_RIGHT)


def character_of(code_points: str) -> str:
    """The characters of `1f44d-1f3fd`, without U+FE0F as in CLDR; "" if it is no code points."""
    if not _CODE_POINTS.fullmatch(code_points):
        return ""
    return "".join(chr(int(part, 16)) for part in code_points.split("-") if part != _VARIATION)


def write_emoji(
    pictures: Mapping[str, Mapping[str, bytes]],
    captions: Captions,
    bases: Mapping[str, str],
    out: Location,
) -> list[Location]:
    """Write the vendors' pictures as two sets each.

    Args:
        pictures: by vendor and name.
        captions: of all emoji.
        bases: see `read_bases`.
        out: where the sets go.

    Returns:
        Their folders.

    Raises:
        SampleError: if a set would be empty.
    """
    for vendor in VENDORS:
        _write_vendor(vendor, pictures[vendor.name], captions, bases, out)
    return _folders(out)


def _write_vendor(
    vendor: Vendor,
    files: Mapping[str, bytes],
    captions: Captions,
    bases: Mapping[str, str],
    out: Location,
) -> None:
    """Flags and families that look the same are different emoji to Unicode.

    So a held-out one that has the very picture of a known one is rejected; and so is an emoji's
    second picture.
    """
    writers = [_writer(vendor, split, out) for split in vendor.splits]
    codes = {name: code_points_of(name) for name in files}
    is_test = {code: is_held_out(base_of(code, bases), TEST_SHARE) for code in codes.values()}
    known = {_digest(files[name]) for name, code in codes.items() if not is_test[code]}
    done: set[str] = set()
    bar = progress(f"emoji-{vendor.name}", unit="image", total=len(files), iterable=files)
    for name in bar:
        code, content = codes[name], files[name]
        writer = writers[int(is_test[code])]
        if code in done:
            writer.reject(f"{vendor.name}/{name}", "duplicate_key", code)
        elif is_test[code] and _digest(content) in known:
            writer.reject(f"{vendor.name}/{code}", "same_as_known_emoji")
        else:
            _add_emoji(writer, f"{vendor.name}/{code}", content, captions)
        done.add(code)
    for writer in writers:
        writer.close()


def _folders(out: Location) -> list[Location]:
    return [out / vendor.name / split for vendor in VENDORS for split in vendor.splits]


def _writer(vendor: Vendor, split: str, out: Location) -> ShardWriter:
    return ShardWriter(
        out / vendor.name / split,
        shuffle=True,
        name=f"emoji-{vendor.name}-{split}",
        licence=f"{vendor.licence}; captions Unicode-3.0 (CLDR)",
        origin=f"npm {vendor.package} {vendor.version}; CLDR {_CAPTIONS_VERSION}",
        evaluation_only=split != "train",
    )


def _add_emoji(writer: ShardWriter, key: str, content: bytes, captions: Captions) -> None:
    if isinstance(problem := check_picture(content), Rejected):
        writer.reject(key, problem.reason, problem.detail)
        return
    texts, languages = captions.of(character_of(key.rpartition("/")[2]))
    if texts:
        writer.add(RawSample(key, content, texts, languages=languages))
    else:
        writer.reject(key, "missing_caption", "CLDR has no such emoji")


def _add_captions(captions: Captions, locale: str, annotations: Mapping[str, Any]) -> None:
    """Raises TypeError or AttributeError where the annotations are laid out otherwise."""
    for text, annotation in annotations.items():
        character = text.replace("\ufe0f", "")
        # CLDR cuts a name at its commas, as it does the list of keywords.
        name = tidy(", ".join(annotation.get("tts", ())))
        words = filter(None, map(tidy, annotation.get("default", ())))
        keywords = ", ".join(word for word in words if word != name)
        if name:
            captions.names.setdefault(character, {})[locale] = name
        if keywords:
            captions.keywords.setdefault(character, {})[locale] = keywords


def _plain(code_points: str) -> str:
    parts = code_points.lower().split("-")
    return "-".join(part for part in parts if part not in {_VARIATION, *_SKIN_TONES})


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
