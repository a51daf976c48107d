"""Sets as published: listed once, read strictly, written row by row."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set
from typing import Any, NamedTuple

from clippo_core.errors import ConfigError, SampleError
from pipelines.datasets.manifest import ImageReference, RawSample, ShardWriter
from pipelines.runtime.progress import progress
from pipelines.runtime.storage import Location

#: An error message names so many of the files that are there.
_NAMES_SHOWN = 12


class RejectedRow(NamedTuple):
    """A row that cannot be used: what `ShardWriter.reject` takes."""

    key: str
    reason: str
    detail: str = ""


Row = RawSample | RejectedRow


class Caption(NamedTuple):
    """What a file says is a caption; `key` names it among the rejects if it is none."""

    key: str
    text: object
    language: str = "en"


def wrong_layout(source: Location, *looked_for: str) -> SampleError:
    """The error for a folder that is not as published: what was looked for, and what is there."""
    names = source.names()
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    there = f"it holds {', '.join(names[:_NAMES_SHOWN])}{more}" if names else "it holds nothing"
    return SampleError(f"{source.uri} has no {' and no '.join(looked_for)}; {there}")


def list_files(source: Location, *folders: str) -> frozenset[str]:
    """Paths of all files in some of a source's folders, relative to the source.

    Each folder is listed once, whatever the number of files: asking a bucket for each takes days.

    Args:
        source: as published.
        folders: names relative to it; "" for all of it.

    Raises:
        SampleError: if there is no file in one of them.
        StorageError: if the storage does not answer.
    """
    found: set[str] = set()
    for folder in folders:
        prefix = f"{folder}/" if folder else ""
        names = (source / folder if folder else source).files()
        if not names:
            raise wrong_layout(source, f"files in {folder}/" if folder else "files")
        found.update(f"{prefix}{name}" for name in names)
    return frozenset(found)


def read_records(
    place: Location, *tables: str, object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> list[list[dict[str, Any]]]:
    """Lists of records out of a JSON file.

    Args:
        place: of the file, which holds an object of lists.
        tables: names of the lists.
        object_hook: makes something else of an object, as `json.loads` has it.

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
    """Lines of a UTF-8 file, by line feeds alone: texts hold the other characters that end lines.

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


def write_rows(writer: ShardWriter, rows: Iterable[Row], files: Set[str] = frozenset()) -> Location:
    """Write a set, less the rows whose picture is missing and those whose key was there before.

    Args:
        writer: of the set.
        rows: samples, and what had to be rejected.
        files: the pictures that there are; see `list_files`.

    Returns:
        The set's folder.

    Raises:
        SampleError: if there was no sample.
    """
    seen: set[str] = set()
    for row in progress(writer.name, unit="row", iterable=rows):
        if isinstance(row, RejectedRow):
            writer.reject(*row)
        elif row.image_at is not None and row.image_at.path not in files:
            writer.reject(row.key, "missing_image", row.image_at.path)
        elif row.key in seen:
            writer.reject(row.key, "duplicate_key")
        else:
            seen.add(row.key)
            writer.add(row)
    writer.close()
    return writer.folder


def caption_rows(key: str, path: str, captions: Iterable[Caption]) -> Iterator[Row]:
    """A picture with captions as a row, after a row for each caption that is none."""
    good: list[tuple[str, str]] = []
    for caption in captions:
        text = clean(caption.text)
        if text:
            good.append((text, caption.language))
        else:
            yield RejectedRow(caption.key, "blank_caption", path)
    if not good:
        yield RejectedRow(key, "missing_caption", path)
        return
    texts, languages = zip(*good, strict=True)
    at = ImageReference(path)
    yield RawSample(key, None, list(texts), languages=list(languages), image_at=at)


def clean(text: object) -> str:
    """A text without white space around it; "" for what is no text."""
    return text.strip() if isinstance(text, str) else ""


def choose_splits(splits: Sequence[str] | None, published: Collection[str]) -> list[str]:
    """The splits that were asked for, or all, in the order that they were published in.

    Raises:
        ConfigError: if one of them is not there.
    """
    unknown = [split for split in splits or () if split not in published]
    if unknown:
        raise ConfigError(f"there is no split {unknown[0]!r}; expected some of {list(published)}")
    return [split for split in published if splits is None or split in splits]
