"""COCO captions (arXiv:1405.0312, arXiv:1504.00325): about five captions a picture, in English.

    SOURCE/annotations/captions_{train,val}2014.json, or 2017
    SOURCE/{train,val}2014/, or 2017
    SOURCE/dataset_coco.json, for Karpathy's split

Karpathy's split divides the pictures of 2014.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from clippo_core.errors import SampleError
from pipelines.datasets.manifest import Manifest, refuse_prepared
from pipelines.datasets.prepare.public import published
from pipelines.datasets.prepare.rows import RejectedRow, Row
from pipelines.runtime.storage import Location

_LICENCE = "captions CC-BY-4.0; pictures: terms of Flickr, each its own licence"
_KARPATHY_FILE = "dataset_coco.json"
Year = Literal[2014, 2017]
_YEARS: tuple[Year, ...] = (2014, 2017)
_SPLITS = ("train", "val")


def prepare_coco(
    source: Location,
    out: Location,
    *,
    year: Year | None = None,
    splits: Sequence[str] | None = None,
) -> list[Location]:
    """Write COCO captions: `out/train` and `out/val`, with Karpathy's split also `out/test`.

    A key is the picture's COCO id. All but `train` is for evaluation only.

    Args:
        source: the folder with annotations/ and the pictures' folders.
        out: folder of the sets.
        year: year of the authors' split; None is Karpathy's split where its file is there, else the
            year whose annotations are there.
        splits: splits to write; None writes all whose annotations are there.
    """
    if year is None and _KARPATHY_FILE in source.names():
        about = Manifest(name="coco_karpathy", licence=_LICENCE)
        return published.write_karpathy(source / _KARPATHY_FILE, out, about, _locate, splits)
    year, there = _annotated(source, year)
    chosen = published.choose_splits(splits, there)
    refuse_prepared(out / split for split in chosen)
    records = {
        split: published.read_records(source / _annotations(split, year), "images", "annotations")
        for split in chosen
    }
    files = published.list_files(source, *(f"{split}{year}" for split in chosen))
    about = Manifest(
        name=f"coco_{year}",
        licence=_LICENCE,
        origin=f"{source.uri}, COCO captions (arXiv:1504.00325)",
        files_at=source.uri,
    )
    rows = {split: _rows(*records[split], folder=f"{split}{year}") for split in chosen}
    return published.write(out, about, rows, files)


def _locate(image: dict[str, Any]) -> tuple[str, str]:
    folder, name = (published.clean(image.get(part)) for part in ("filepath", "filename"))
    return str(image.get("cocoid")), f"{folder}/{name}"


def _annotations(split: str, year: Year | str) -> str:
    return f"annotations/captions_{split}{year}.json"


def _annotated(source: Location, wanted: Year | None) -> tuple[Year, list[str]]:
    """Return the year whose annotations are there, and the splits."""
    names = {f"annotations/{name}" for name in (source / "annotations").names()}
    years: tuple[Year, ...] = _YEARS if wanted is None else (wanted,)
    found: dict[Year, list[str]] = {
        year: splits
        for year in years
        if (splits := [split for split in _SPLITS if _annotations(split, year) in names])
    }
    if not found:
        pattern = _annotations("{train,val}", str(wanted or "{2014,2017}"))
        if names:
            raise published.wrong_layout(source / "annotations", pattern.partition("/")[2])
        raise published.wrong_layout(source, pattern, *([_KARPATHY_FILE] if wanted is None else []))
    if len(found) > 1:
        raise SampleError(
            f"{source.uri}/annotations holds captions of 2014 and of 2017; name one by `year`"
        )
    return next(iter(found.items()))


def _rows(
    images: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]], *, folder: str
) -> Iterator[Row]:
    captions: dict[str, list[published.Caption]] = {str(image.get("id")): [] for image in images}
    for note in annotations:
        key, image_id = f"annotation {note.get('id')}", str(note.get("image_id"))
        if image_id in captions:
            captions[image_id].append(published.Caption(key, note.get("caption")))
        else:
            yield RejectedRow(key, "missing_image_entry", f"image_id {image_id}")
    for image in images:
        key, name = str(image.get("id")), published.clean(image.get("file_name"))
        if name:
            yield from published.caption_rows(key, f"{folder}/{name}", captions[key])
        else:
            yield RejectedRow(key, "missing_image", "no file_name")
