"""Karpathy's splits of COCO and Flickr30k (arXiv:1412.2306): one JSON file with all captions.

The literature's retrieval numbers are of its test splits: 5,000 pictures of COCO, 1,000 of
Flickr30k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from clippo_core.errors import SampleError
from pipelines.datasets.manifest import Manifest, refuse_prepared
from pipelines.datasets.prepare.public import published
from pipelines.datasets.prepare.rows import RejectedRow, Row
from pipelines.runtime.storage import Location

#: The set that each split goes to. "restval" is what val2014 has beyond val and test.
_SETS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
#: Returns key and path of a picture by its entry in the JSON file.
Locate = Callable[[dict[str, Any]], tuple[str, str]]


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
        out: where the sets go.
        about: name and licence of the sets.
        locate: says what a picture's key is and where it lies, relative to the file's folder.
        splits: those to write; None: all.
    """
    source = file.parent
    (images,) = published.read_records(file, "images")
    entries: dict[str, list[dict[str, Any]]] = {name: [] for name in _SETS.values()}
    for image in images:
        split = image.get("split")
        if split not in _SETS:
            raise SampleError(f"{file.uri} has the split {split!r}; expected {list(_SETS)}")
        entries[_SETS[split]].append(image)
    chosen = published.choose_splits(splits, [name for name, found in entries.items() if found])
    refuse_prepared(out / name for name in chosen)
    paths = (locate(image)[1] for name in chosen for image in entries[name])
    folders = {path.rpartition("/")[0] for path in paths}
    files = published.list_files(source, *sorted(filter(_is_inside, folders)))
    origin = f"{source.uri}, {file.name} (arXiv:1412.2306)"
    about = replace(about, origin=origin, files_at=source.uri)
    return published.write(out, about, {n: _rows(entries[n], locate) for n in chosen}, files)


def _rows(entries: Sequence[dict[str, Any]], locate: Locate) -> Iterator[Row]:
    for image in entries:
        key, path = locate(image)
        if not published.clean(image.get("filename")):
            yield RejectedRow(key, "missing_image", "no filename")
            continue
        sentences = [s for s in image.get("sentences") or () if isinstance(s, dict)]
        captions = (
            published.Caption(f"sentence {s.get('sentid')}", s.get("raw")) for s in sentences
        )
        yield from published.caption_rows(key, path, captions)


def _is_inside(folder: str) -> bool:
    """Return whether it is a subfolder of the source: an entry may be damaged, or made up."""
    return bool(folder) and not folder.startswith("/") and ".." not in folder.split("/")
