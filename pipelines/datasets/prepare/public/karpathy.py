"""Karpathy's splits of COCO and Flickr30k (arXiv:1412.2306): one JSON file with all captions.

The literature's retrieval numbers are of its test splits: 5,000 pictures of COCO, 1,000 of
Flickr30k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from clippo_core.errors import SampleError
from pipelines.datasets.manifest import Manifest, refuse_prepared
from pipelines.datasets.prepare.public.published import (
    Caption,
    caption_rows,
    choose_splits,
    clean,
    list_files,
    read_records,
    usable,
)
from pipelines.datasets.prepare.rows import RejectedRow, Row, write_splits
from pipelines.runtime.storage import Location

#: The set that each split goes to. "restval" is what val2014 has beyond val and test.
_SETS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
Entry = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class KarpathySet:
    """One of his files, and how its pictures are called.

    Attributes:
        file: name of the JSON file.
        name: of the sets, before the split.
        licence: of the content.
        key_of: returns a picture's key.
        path_of: returns a picture's path, relative to the source.
    """

    file: str
    name: str
    licence: str
    key_of: Callable[[Entry], str]
    path_of: Callable[[Entry], str]


def write_karpathy(
    source: Location, out: Location, kind: KarpathySet, splits: Sequence[str] | None
) -> list[Location]:
    """Write the sets `out/train` (with "restval"), `out/val` and `out/test`.

    Args:
        source: the folder with the JSON file and the pictures' folders.
        out: where the sets go.
        kind: which of the files.
        splits: those to write; None: all.

    Raises:
        ConfigError: if there is no such split, or a set is there already.
        SampleError: if the file or the pictures are not there, or not as published.
    """
    (images,) = read_records(source / kind.file, "images")
    entries: dict[str, list[Entry]] = {name: [] for name in _SETS.values()}
    for image in images:
        split = image.get("split")
        if split not in _SETS:
            raise SampleError(
                f"{source.uri}/{kind.file} has the split {split!r}; expected {list(_SETS)}"
            )
        entries[_SETS[split]].append(image)
    chosen = choose_splits(splits, [name for name, found in entries.items() if found])
    refuse_prepared(out / name for name in chosen)
    paths = (kind.path_of(image) for name in chosen for image in entries[name])
    files = list_files(source, *sorted(set(filter(_is_inside, map(_folder_of, paths)))))
    about = Manifest(
        name=kind.name,
        licence=kind.licence,
        origin=f"{source.uri}, {kind.file} (arXiv:1412.2306)",
        files_at=source.uri,
    )
    rows = {name: usable(_rows(entries[name], kind), files) for name in chosen}
    return write_splits(out, about, rows)


def _rows(entries: Sequence[Entry], kind: KarpathySet) -> Iterator[Row]:
    for image in entries:
        key, path = kind.key_of(image), kind.path_of(image)
        if not clean(image.get("filename")):
            yield RejectedRow(key, "missing_image", "no filename")
            continue
        sentences = [s for s in image.get("sentences") or () if isinstance(s, dict)]
        captions = (Caption(f"sentence {s.get('sentid')}", s.get("raw")) for s in sentences)
        yield from caption_rows(key, path, captions)


def _folder_of(path: str) -> str:
    return path.rpartition("/")[0]


def _is_inside(folder: str) -> bool:
    """Return whether it is a subfolder of the source: an entry may be damaged, or made up."""
    return bool(folder) and not folder.startswith("/") and ".." not in folder.split("/")
