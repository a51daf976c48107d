"""Emoji: three vendors' pictures of the same characters, with captions in 160 locales.

Noto, Fluent and Twemoji pictures come from npm packages; names and keywords from CLDR. Splits are
by emoji, not by picture: all vendors share the captions, and skin tones are near-duplicates.
Twemoji is never trained on: there a model meets known emoji in an unknown style.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.datasets.manifest import Manifest
from pipelines.datasets.prepare.pictures import picture_row
from pipelines.datasets.prepare.registry.packages import RegistrySet, reading, unpack_npm_package
from pipelines.datasets.prepare.rows import RejectedRow, Row, is_held_out, tidy, write_divided
from pipelines.runtime.storage import Location

TEST_SHARE = 0.1
_CAPTIONS_VERSION = "48.2.0"
#: Package of the names of single characters: name and exact version.
CLDR_ANNOTATIONS = ("cldr-annotations-full", _CAPTIONS_VERSION)
#: Packages of captions, by the folder and key that hold their annotations.
_CAPTION_PACKAGES = {
    "annotations": CLDR_ANNOTATIONS,
    "annotationsDerived": ("cldr-annotations-derived-full", _CAPTIONS_VERSION),
}
_CODE_POINTS = re.compile(r"[0-9a-f]{2,5}(-[0-9a-f]{2,5})*")
_VARIATION = "fe0f"
_CANCEL_TAG = "e007f"
_SKIN_TONES = frozenset({"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"})
#: Code points that make people run or walk to the right instead of to the left.
_FACING_RIGHT = "-200d-27a1"


@dataclass(frozen=True, kw_only=True)
class Vendor:
    """A vendor of pictures.

    Attributes:
        name: name in keys and folders.
        package: name and exact version of the npm package.
        pictures: pattern of the files in the package.
        licence: licence of the pictures.
        splits: names of the sets of known emoji and of held-out ones.
    """

    name: str
    package: tuple[str, str]
    pictures: str
    licence: str
    splits: tuple[str, str] = ("train", "test")


VENDORS = (
    Vendor(
        name="google",
        package=("emoji-datasource-google", "16.0.0"),
        pictures="img/google/64/*.png",
        licence="Apache-2.0 (Noto Emoji)",
    ),
    Vendor(
        name="fluent",
        package=("@lobehub/fluent-emoji-3d", "1.1.0"),
        pictures="assets/*.webp",
        licence="MIT (Fluent Emoji)",
    ),
    Vendor(
        name="twitter",
        package=("emoji-datasource-twitter", "16.0.0"),
        pictures="img/twitter/64/*.png",
        licence="CC-BY-4.0 (Twemoji)",
        splits=("heldout_vendor", "test"),
    ),
)


@dataclass(frozen=True)
class Captions:
    """Names and keywords of emoji, by character (without U+FE0F) and locale."""

    names: dict[str, dict[str, str]] = field(default_factory=dict)
    keywords: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, character: str, locale: str, annotation: Mapping[str, Sequence[str]]) -> None:
        """Add CLDR's name of a character, and its keywords as one text without the name."""
        # CLDR cuts a name at its commas, as it does the list of keywords.
        name = tidy(", ".join(annotation.get("tts", ())))
        words = filter(None, map(tidy, annotation.get("default", ())))
        keywords = ", ".join(word for word in words if word != name)
        for texts, text in ((self.names, name), (self.keywords, keywords)):
            if text:
                texts.setdefault(character, {})[locale] = text

    def of(self, character: str) -> list[tuple[str, str]]:
        """Return pairs of locale and caption of an emoji, names before keywords."""
        both = (self.names.get(character, {}), self.keywords.get(character, {}))
        return [caption for found in both for caption in found.items()]


@dataclass(frozen=True)
class Emoji:
    """The content of all emoji packages.

    Attributes:
        pictures: files by vendor and name; names are code points.
        captions: captions, which hold for all vendors.
        bases: base of each variant, see `read_bases`.
    """

    pictures: Mapping[str, Mapping[str, bytes]]
    captions: Captions
    bases: Mapping[str, str]


def read_emoji(packages: Mapping[str, Path], annotations: Mapping[str, Path]) -> Emoji:
    """Return the content of unpacked packages: vendors' by name, CLDR's by annotation key."""
    pictures = {
        vendor.name: {
            file.stem: file.read_bytes()
            for file in sorted(packages[vendor.name].glob(vendor.pictures))
        }
        for vendor in VENDORS
    }
    # This vendor's package also says which emoji are variants of which.
    return Emoji(pictures, read_captions(annotations), read_bases(packages["google"]))


def read_captions(packages: Mapping[str, Path]) -> Captions:
    """Return the names and keywords in CLDR's unpacked packages, given by annotation key."""
    captions = Captions()
    for top, package in packages.items():
        for file in sorted((package / top).glob("*/annotations.json")):
            locale = file.parent.name
            with reading(f"{top}/{locale}/{file.name} of CLDR"):
                content = json.loads(file.read_text(encoding="utf-8"))[top]
                for text, annotation in content.get("annotations", {}).items():
                    captions.add(text.replace("\ufe0f", ""), locale, annotation)
    return captions


def code_points_of(name: str) -> str:
    """Return the code points of a picture's name, as most vendors write them: `1f44d-1f3fd`.

    Fluent has some names with underscores, without leading zeros, or without the character that
    ends the flags of England, Scotland and Wales.
    """
    parts = [part.zfill(4) for part in re.split("[-_]", name.lower())]
    is_cut = parts[-1].startswith("e00") and parts[-1] != _CANCEL_TAG
    return "-".join([*parts, _CANCEL_TAG] if is_cut else parts)


def read_bases(package: Path) -> dict[str, str]:
    """Return the emoji that each variant belongs to, both without skin tones and U+FE0F.

    Most variants are their base and a skin tone. Some couples and handshakes are made of two people
    instead, so that only this table knows their base.
    """
    with reading("emoji.json"):
        rows = json.loads((package / "emoji.json").read_text(encoding="utf-8"))
        return {
            _plain(variant["unified"]): _plain(row["unified"])
            for row in rows
            for variant in row.get("skin_variations", {}).values()
        }


def base_of(code_points: str, bases: Mapping[str, str]) -> str:
    """Return the emoji that decides on the split: without skin tones, U+FE0F and direction."""
    plain = _plain(code_points)
    return bases.get(plain, plain).removesuffix(_FACING_RIGHT)


def character_of(code_points: str) -> str:
    """Return the characters of `1f44d-1f3fd`, without U+FE0F as in CLDR; "" for other texts."""
    if not _CODE_POINTS.fullmatch(code_points):
        return ""
    return "".join(chr(int(part, 16)) for part in code_points.split("-") if part != _VARIATION)


def write_emoji(emoji: Emoji, out: Location) -> list[Location]:
    """Write two sets for each vendor, `out/VENDOR/SPLIT`; return their folders."""
    folders: list[Location] = []
    for vendor in VENDORS:
        about = Manifest(
            name=f"emoji-{vendor.name}",
            licence=f"{vendor.licence}; captions Unicode-3.0 (CLDR)",
            origin=f"npm {' '.join(vendor.package)}; CLDR {_CAPTIONS_VERSION}",
        )
        place, rows = out / vendor.name, _rows(vendor.name, emoji)
        folders += write_divided(place, about, rows, splits=vendor.splits, shuffle=True)
    return folders


def _rows(vendor: str, emoji: Emoji) -> Iterator[tuple[bool, Row]]:
    """Yield the rows of a vendor, each after True if its emoji is held out.

    Flags and families that look the same are different emoji to Unicode. A held-out one that has
    the very picture of a known one is therefore rejected, as is an emoji's second picture.
    """
    files = emoji.pictures[vendor]
    codes = {name: code_points_of(name) for name in files}
    is_test = {c: is_held_out(base_of(c, emoji.bases), TEST_SHARE) for c in codes.values()}
    known = {files[name] for name, code in codes.items() if not is_test[code]}
    done: set[str] = set()
    for name, code in codes.items():
        key = f"{vendor}/{code}"
        if code in done:
            row = RejectedRow(f"{vendor}/{name}", "duplicate_key", code)
        elif is_test[code] and files[name] in known:
            row = RejectedRow(key, "same_as_known_emoji")
        else:
            captions = emoji.captions.of(character_of(code))
            row = picture_row(key, files[name], captions, "CLDR has no such emoji")
        done.add(code)
        yield is_test[code], row


def _plain(code_points: str) -> str:
    parts = code_points.lower().split("-")
    return "-".join(part for part in parts if part not in {_VARIATION, *_SKIN_TONES})


def _count(emoji: Emoji) -> dict[str, int]:
    codes = map(code_points_of, emoji.pictures["google"])
    names = [emoji.captions.names.get(character_of(code), {}) for code in codes]
    return {
        **{f"{vendor} pictures": len(files) for vendor, files in emoji.pictures.items()},
        "locales": len(set().union(*names)),
        "names of Google's emoji": sum(map(len, names)),
    }


EMOJI = RegistrySet(
    name="emoji",
    what="3 vendors' emoji with names and keywords in 160 locales",
    folders=tuple(f"{vendor.name}/{split}" for vendor in VENDORS for split in vendor.splits),
    read=lambda scratch: read_emoji(
        {vendor.name: unpack_npm_package(*vendor.package, scratch) for vendor in VENDORS},
        {top: unpack_npm_package(*package, scratch) for top, package in _CAPTION_PACKAGES.items()},
    ),
    count=_count,
    expected={
        "google pictures": 3_786,
        "fluent pictures": 3_391,
        "twitter pictures": 3_786,
        "locales": 160,
        "names of Google's emoji": 460_543,
    },
    write=write_emoji,
)
