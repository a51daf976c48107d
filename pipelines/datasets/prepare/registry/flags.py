"""Flags, each with its country's name in some six hundred locales.

The pictures come from Debian's package `iso-flags-png-320x240`, the names from npm's
`cldr-localenames-full`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipelines.datasets.manifest import Manifest
from pipelines.datasets.prepare.pictures import picture_row
from pipelines.datasets.prepare.registry.packages import (
    RegistrySet,
    reading,
    unpack_debian_package,
    unpack_npm_package,
)
from pipelines.datasets.prepare.rows import Row, is_held_out, tidy, write_divided
from pipelines.runtime.storage import Location

TEST_SHARE = 0.1
_FLAGS_PACKAGE = "iso-flags-png-320x240"
_NAMES_PACKAGE = ("cldr-localenames-full", "48.2.0")

#: PNG files by their names: a country's code such as `de`, or another word, `_wales`.
Flags = Mapping[str, bytes]
#: Names by locale and code of a country.
Names = Mapping[str, Mapping[str, str]]


def read_names(package: Path) -> dict[str, dict[str, str]]:
    """Return the names of territories by locale; locales without any are left out."""
    names = {}
    for file in sorted((package / "main").glob("*/territories.json")):
        locale = file.parent.name
        with reading(f"main/{locale}/territories.json of {_NAMES_PACKAGE[0]}"):
            content = json.loads(file.read_text(encoding="utf-8"))
            names[locale] = content["main"][locale]["localeDisplayNames"]["territories"]
    return names


def names_of(code: str, names: Names) -> list[tuple[str, str]]:
    """Return pairs of locale and name of a country."""
    found = ((locale, tidy(known.get(code.upper(), ""))) for locale, known in names.items())
    return [(locale, name) for locale, name in found if name]


def write_flags(flags: Flags, names: Names, out: Location) -> list[Location]:
    """Write flags as two sets, split by their code; return their folders.

    Countries that share a flag, as France does with its territories, go by the first of their codes
    so that no flag of the test set is in the training set.
    """
    about = Manifest(
        name="flags",
        licence="public domain (flags), Unicode-3.0 (names)",
        origin=f"Debian package {_FLAGS_PACKAGE}; CLDR {_NAMES_PACKAGE[1]}",
    )
    return write_divided(out, about, _rows(flags, names), shuffle=True)


def _rows(flags: Flags, names: Names) -> Iterator[tuple[bool, Row]]:
    first_code: dict[bytes, str] = {}
    for code, flag in sorted(flags.items()):
        is_test = is_held_out(first_code.setdefault(flag, code), TEST_SHARE)
        yield is_test, picture_row(code, flag, names_of(code, names), "CLDR has no such territory")


def _read(scratch: Path) -> tuple[Flags, Names]:
    folder = unpack_debian_package(_FLAGS_PACKAGE, scratch) / "usr/share" / _FLAGS_PACKAGE
    flags = {file.stem: file.read_bytes() for file in folder.glob("*.png")}
    return flags, read_names(unpack_npm_package(*_NAMES_PACKAGE, scratch))


def _count(content: tuple[Flags, Names]) -> dict[str, int]:
    flags, names = content
    named = [len(names_of(code, names)) for code in flags]
    return {"flags": len(flags), "flags with a name": sum(map(bool, named)), "names": sum(named)}


FLAGS = RegistrySet(
    name="flags",
    what="flags with the countries' names in 602 locales",
    read=_read,
    count=_count,
    expected={"flags": 262, "flags with a name": 251, "names": 147_503},
    or_more=True,
    write=lambda content, out: write_flags(content[0], content[1], out),
)
