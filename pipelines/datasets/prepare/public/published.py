"""Sets as published: listed once, read strictly, written row by row."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

from clippo_core.errors import ConfigError, SampleError
from pipelines.datasets.manifest import ImageReference, Manifest, RawSample
from pipelines.datasets.prepare.rows import RejectedRow, Row, write_splits
from pipelines.runtime.storage import Location

#: An error message names so many of the files that are there.
_NAMES_SHOWN = 12


class Caption(NamedTuple):
    """A caption as it is in a file; `key` names it among the rejects if it is no text."""

    key: str
    text: object
    language: str = "en"


def wrong_layout(source: Location, *looked_for: str) -> SampleError:
    """Return an error that says what was looked for in a folder, and what is there."""
    names = source.names()
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    there = f"it holds {', '.join(names[:_NAMES_SHOWN])}{more}" if names else "it holds nothing"
    return SampleError(f"{source.uri} has no {' and no '.join(looked_for)}; {there}")


def list_files(source: Location, *folders: str) -> frozenset[str]:
    """Return the paths of all files in some of a source's folders, relative to the source.

    Each folder is listed once, whatever the number of files: asking a bucket for each takes days.

    Args:
        source: as published.
        folders: names relative to it; "" for all of it.

    Raises:
        SampleError: if there is no file in one of them.
    """
    found: set[str] = set()
    for folder in folders:
        names = (source / folder if folder else source).files()
        if not names:
            raise wrong_layout(source, f"files in {folder}/" if folder else "files")
        found.update(f"{folder}/{name}" if folder else name for name in names)
    return frozenset(found)


def read_records(
    place: Location, *tables: str, object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> list[list[dict[str, Any]]]:
    """Return lists of records out of a JSON file.

    Args:
        place: of the file, which holds an object of lists.
        tables: names of the lists.
        object_hook: takes the place of each object, see `json.loads`.

    Raises:
        SampleError: if there is no such file, it is no JSON, or it holds no such lists.
    """
    content = _read(place)
    try:
        found = json.loads(content, object_hook=object_hook)
    except ValueError as error:
        raise SampleError(f"{place.uri} is not valid JSON: {error}") from None
    lists: list[list[dict[str, Any]]] = []
    for table in tables:
        records = found.get(table) if isinstance(found, dict) else None
        if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
            there = sorted(found) if isinstance(found, dict) else type(found).__name__
            raise SampleError(f"{place.uri} has no list of {table!r}; it has {there}")
        lists.append(records)
    return lists


def read_lines(place: Location) -> list[str]:
    """Return the lines of a UTF-8 file, cut at line feeds alone: texts hold other line ends.

    Raises:
        SampleError: if there is no such file, or it is not UTF-8.
    """
    try:
        text = _read(place).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SampleError(f"{place.uri} is not UTF-8: {error}") from None
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _read(place: Location) -> bytes:
    try:
        return place.read_bytes()
    except FileNotFoundError:
        raise wrong_layout(place.parent, place.name) from None


def write(
    out: Location,
    about: Manifest,
    splits: Mapping[str, Iterable[Row]],
    files: Set[str],
    *,
    shuffle: bool = False,
) -> list[Location]:
    """Write splits, less rows whose picture is missing; see `write_splits` and `list_files`."""
    rows = {split: usable(of_split, files) for split, of_split in splits.items()}
    return write_splits(out, about, rows, shuffle=shuffle)


def usable(rows: Iterable[Row], files: Set[str]) -> Iterator[Row]:
    """Yield rows; those whose picture is missing, or whose key was there before, as rejects."""
    seen: set[str] = set()
    for row in rows:
        if isinstance(row, RejectedRow):
            yield row
        elif row.image_at is not None and row.image_at.path not in files:
            yield RejectedRow(row.key, "missing_image", row.image_at.path)
        elif row.key in seen:
            yield RejectedRow(row.key, "duplicate_key")
        else:
            seen.add(row.key)
            yield row


def caption_rows(key: str, path: str, captions: Iterable[Caption]) -> Iterator[Row]:
    """Yield a picture with captions as a row, after a row for each caption that is no text."""
    good: list[tuple[str, str]] = []
    for caption in captions:
        if text := clean(caption.text):
            good.append((text, caption.language))
        else:
            yield RejectedRow(caption.key, "blank_caption", path)
    if good:
        texts, languages = zip(*good, strict=True)
        yield RawSample(key, None, texts, languages=languages, image_at=ImageReference(path))
    else:
        yield RejectedRow(key, "missing_caption", path)


def clean(text: object) -> str:
    """Return a text without white space around it; "" for what is no text."""
    return text.strip() if isinstance(text, str) else ""


def choose_splits(splits: Sequence[str] | None, published: Collection[str]) -> list[str]:
    """Return the splits that were asked for, or all, in the order that they were published in.

    Raises:
        ConfigError: if one of them is not there.
    """
    unknown = [split for split in splits or () if split not in published]
    if unknown:
        raise ConfigError(f"there is no split {unknown[0]!r}; expected some of {list(published)}")
    return [split for split in published if splits is None or split in splits]
