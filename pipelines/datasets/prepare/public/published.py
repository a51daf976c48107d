"""Reading and writing of sets as published: listed once, read strictly, row by row.

COCO and Flickr30k have Karpathy's splits (arXiv:1412.2306) in common: one JSON file with all
captions. The literature's retrieval numbers refer to its test splits: 5,000 pictures of COCO, 1,000
of Flickr30k.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any, NamedTuple

from clippo_core.errors import ConfigError, SampleError
from pipelines.datasets.manifest import ImageReference, Manifest, RawSample, refuse_prepared
from pipelines.datasets.prepare.rows import RejectedRow, Row, write_splits
from pipelines.runtime.storage import Location

#: Set that each split goes to. "restval" is the part of val2014 beyond val and test.
_SETS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
#: A function that returns key and path of a picture by its entry in the JSON file.
Locate = Callable[[dict[str, Any]], tuple[str, str]]
#: Number of present files that an error message names.
_NAMES_SHOWN = 12


class Caption(NamedTuple):
    """A caption in a file; `key` names it among the rejects if it is no text."""

    key: str
    text: object
    language: str = "en"


def wrong_layout(source: Location, *looked_for: str) -> SampleError:
    """Return an error with the names that were looked for in a folder, and those in it."""
    names = source.names()
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    there = f"it holds {', '.join(names[:_NAMES_SHOWN])}{more}" if names else "it holds nothing"
    return SampleError(f"{source.uri} has no {' and no '.join(looked_for)}; {there}")


def list_files(source: Location, *folders: str) -> frozenset[str]:
    """Return the paths of all files in some of a source's folders, relative to the source.

    Each folder is listed once, whatever the number of files: asking a bucket for each takes days.

    Args:
        source: folder as published.
        folders: names of folders relative to it; "" is all of it.

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
    """Return the lists of records that are called `tables` in the object of a JSON file.

    An `object_hook` replaces objects, see `json.loads`.

    Raises:
        SampleError: if there is no such file, it is no JSON, or it holds no such lists.
    """
    content = _read(place)
    try:
        found = json.loads(content, object_hook=object_hook)
    except ValueError as error:
        raise SampleError(f"{place.uri} is not valid JSON: {error}") from None
    is_object = isinstance(found, dict)
    lists: list[Any] = [found.get(table) if is_object else None for table in tables]
    for table, records in zip(tables, lists, strict=True):
        if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
            there = sorted(found) if is_object else type(found).__name__
            raise SampleError(f"{place.uri} has no list of {table!r}; it has {there}")
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
    """Write splits, without rows whose picture is missing; see `write_splits`, `list_files`."""
    rows = {split: usable(of_split, files) for split, of_split in splits.items()}
    return write_splits(out, about, rows, shuffle=shuffle)


def usable(rows: Iterable[Row], files: Set[str]) -> Iterator[Row]:
    """Yield rows; rejects take the place of missing pictures and of keys that came before."""
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
    """Return a text without white space around it; "" for a value that is no text."""
    return text.strip() if isinstance(text, str) else ""


def choose_splits(splits: Sequence[str] | None, published: Collection[str]) -> list[str]:
    """Return the requested splits, or all, in the order of their publication.

    Raises:
        ConfigError: if a requested split is not there.
    """
    unknown = [split for split in splits or () if split not in published]
    if unknown:
        raise ConfigError(f"there is no split {unknown[0]!r}; expected some of {list(published)}")
    return [split for split in published if splits is None or split in splits]


def write_karpathy(
    file: Location,
    out: Location,
    about: Manifest,
    locate: Locate,
    splits: Sequence[str] | None,
) -> list[Location]:
    """Write the sets `out/train` (with "restval"), `out/val` and `out/test`.

    Args:
        file: the JSON file, in the folder with the pictures' folders.
        out: folder of the sets.
        about: name and licence of the sets.
        locate: function that returns a picture's key and its path, relative to the file's folder.
        splits: splits to write; None writes all.
    """
    source = file.parent
    (images,) = read_records(file, "images")
    entries: dict[str, list[dict[str, Any]]] = {name: [] for name in _SETS.values()}
    for image in images:
        split = image.get("split")
        if split not in _SETS:
            raise SampleError(f"{file.uri} has the split {split!r}; expected {list(_SETS)}")
        entries[_SETS[split]].append(image)
    chosen = choose_splits(splits, [name for name, found in entries.items() if found])
    refuse_prepared(out / name for name in chosen)
    paths = (locate(image)[1] for name in chosen for image in entries[name])
    folders = {path.rpartition("/")[0] for path in paths}
    files = list_files(source, *sorted(filter(_is_inside, folders)))
    origin = f"{source.uri}, {file.name} (arXiv:1412.2306)"
    about = replace(about, origin=origin, files_at=source.uri)
    return write(out, about, {n: _karpathy_rows(entries[n], locate) for n in chosen}, files)


def _karpathy_rows(entries: Sequence[dict[str, Any]], locate: Locate) -> Iterator[Row]:
    for image in entries:
        key, path = locate(image)
        if not clean(image.get("filename")):
            yield RejectedRow(key, "missing_image", "no filename")
            continue
        sentences = [s for s in image.get("sentences") or () if isinstance(s, dict)]
        captions = (Caption(f"sentence {s.get('sentid')}", s.get("raw")) for s in sentences)
        yield from caption_rows(key, path, captions)


def _is_inside(folder: str) -> bool:
    """Return True for a subfolder of the source: an entry may be damaged, or made up."""
    return bool(folder) and not folder.startswith("/") and ".." not in folder.split("/")
