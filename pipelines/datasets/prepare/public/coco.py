"""COCO captions (arXiv:1405.0312, arXiv:1504.00325): about five captions a picture, in English.

    SOURCE/annotations/captions_{train,val}2014.json, or 2017
    SOURCE/{train,val}2014/, or 2017
    SOURCE/dataset_coco.json, for Karpathy's split

Karpathy's split is of the pictures of 2014.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from clippo_core.errors import SampleError
from pipelines.datasets.manifest import ShardWriter, refuse_prepared
from pipelines.datasets.prepare.public.karpathy import KarpathySet, write_karpathy
from pipelines.datasets.prepare.public.published import (
    Caption,
    RejectedRow,
    Row,
    caption_rows,
    choose_splits,
    clean,
    list_files,
    read_records,
    write_rows,
    wrong_layout,
)
from pipelines.runtime.storage import Location

_LICENCE = "captions CC-BY-4.0; pictures: terms of Flickr, each its own licence"
_KARPATHY = KarpathySet(
    file="dataset_coco.json",
    name="coco_karpathy",
    licence=_LICENCE,
    key_of=lambda image: str(image.get("cocoid")),
    path_of=lambda image: f"{clean(image.get('filepath'))}/{clean(image.get('filename'))}",
)
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
        out: where the sets go.
        year: which split of the authors'; None: Karpathy's where its file is there, else the one
            whose annotations are there.
        splits: those to write; None: all whose annotations are there.

    Returns:
        The sets' folders.

    Raises:
        ConfigError: if there is no such split, or a set is there already.
        SampleError: if the files are not there, or not as published.
    """
    if year is None and _KARPATHY.file in source.names():
        return write_karpathy(source, out, _KARPATHY, splits)
    annotated = _annotated(source, year)
    chosen = choose_splits(splits, annotated)
    refuse_prepared(out / split for split in chosen)
    folders = {split: annotated[split].name[len("captions_") : -len(".json")] for split in chosen}
    rows = {split: _read(annotated[split], folders[split]) for split in chosen}
    files = list_files(source, *folders.values())
    return [
        write_rows(_writer(source, out / split, split, folders[split]), rows[split], files)
        for split in chosen
    ]


def _annotated(source: Location, year: Year | None) -> dict[str, Location]:
    """The annotation file of each split, of one year."""
    folder = source / "annotations"
    names = folder.names()
    found: dict[Year, dict[str, Location]] = {}
    for candidate in _YEARS if year is None else (year,):
        files = {split: f"captions_{split}{candidate}.json" for split in _SPLITS}
        there = {split: folder / file for split, file in files.items() if file in names}
        if there:
            found[candidate] = there
    if not found:
        suffix = year or "{" + ",".join(map(str, _YEARS)) + "}"
        wanted = f"captions_{{train,val}}{suffix}.json"
        raise (
            wrong_layout(folder, wanted)
            if names
            else wrong_layout(
                source, f"annotations/{wanted}", *([_KARPATHY.file] if year is None else [])
            )
        )
    if len(found) > 1:
        raise SampleError(f"{folder.uri} holds captions of 2014 and of 2017; name one by `year`")
    return next(iter(found.values()))


def _writer(source: Location, folder: Location, split: str, pictures: str) -> ShardWriter:
    return ShardWriter(
        folder,
        name=f"coco_{pictures.removeprefix(split)}-{split}",
        licence=_LICENCE,
        origin=f"{source.uri}, COCO captions (arXiv:1504.00325)",
        evaluation_only=split != "train",
        files_at=source.uri,
    )


def _read(place: Location, folder: str) -> Iterator[Row]:
    images, annotations = read_records(place, "images", "annotations")
    return _rows(images, annotations, folder)


def _rows(
    images: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]], folder: str
) -> Iterator[Row]:
    captions: dict[str, list[Caption]] = {str(image.get("id")): [] for image in images}
    for note in annotations:
        key, image_id = f"annotation {note.get('id')}", str(note.get("image_id"))
        if image_id in captions:
            captions[image_id].append(Caption(key, note.get("caption")))
        else:
            yield RejectedRow(key, "missing_image_entry", f"image_id {image_id}")
    for image in images:
        key, name = str(image.get("id")), clean(image.get("file_name"))
        if name:
            yield from caption_rows(key, f"{folder}/{name}", captions[key])
        else:
            yield RejectedRow(key, "missing_image", "no file_name")
