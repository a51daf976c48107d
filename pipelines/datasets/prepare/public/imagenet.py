"""ImageNet-1k (arXiv:1409.0575), and other pictures in one folder for each class.

    SOURCE/train/WNID/*.JPEG
    SOURCE/val/WNID/*.JPEG, or SOURCE/val/*.JPEG with LOC_val_solution.csv or a file that has the
        WNID of each picture, a line each, in the order of the pictures' names
    SOURCE/LOC_synset_mapping.txt ("n01440764 tench, Tinca tinca"), or SOURCE/classes.txt ("WNID
        NAME" a line, or names alone in the order of the WNIDs)

The tree of Kaggle's archive, ILSVRC/Data/CLS-LOC/{train,val}, is known too.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import PurePosixPath

from clippo_core.errors import SampleError
from pipelines.datasets.manifest import ImageReference, Manifest, RawSample, refuse_prepared
from pipelines.datasets.prepare.pictures import PICTURE_SUFFIXES, class_captions
from pipelines.datasets.prepare.public import published
from pipelines.datasets.prepare.rows import RejectedRow, Row
from pipelines.runtime.storage import Location

_LICENCE = "for non-commercial research and education only (image-net.org)"
_KAGGLE_TREE = "ILSVRC/Data/CLS-LOC"
_SPLITS = ("train", "val")
_ALL_SPLITS = ("train", "val", "valid", "validation", "test")
_SYNSETS, _CLASSES = "LOC_synset_mapping.txt", "classes.txt"
_SOLUTION = "LOC_val_solution.csv"
_GROUND_TRUTHS = (
    "imagenet_2012_validation_synset_labels.txt",
    "ILSVRC2012_validation_ground_truth.txt",
)
_WNID = re.compile(r"n\d{8}")


#: The class of each picture's path; None where it is not known.
Labels = dict[str, str | None]


def prepare_imagenet(source: Location, out: Location) -> list[Location]:
    """Write ImageNet: `out/train` and `out/val`, whichever is there; `val` is for evaluation only.

    A key is the picture's path. Classes are those that occur, numbered in the order of their WNIDs.
    Where folders are not called by WNIDs, this is `prepare_class_folders`.
    """
    folders = _split_folders(source)
    labels = {split: _class_of_each(source, folder) for split, folder in folders.items()}
    files = frozenset(itertools.chain(*labels.values()))
    if "val" in labels and not any(labels["val"].values()):
        labels["val"] = _ground_truth(source, folders["val"], list(labels["val"]))
    classes = _classes(labels)
    if not any(_WNID.fullmatch(name) for name in classes):
        return prepare_class_folders(source, out)
    origin = f"{source.uri}, ImageNet (arXiv:1409.0575)"
    about = Manifest(name="imagenet", licence=_LICENCE, origin=origin, files_at=source.uri)
    return _write(out, about, labels, _class_names(source, classes), files)


def prepare_class_folders(source: Location, out: Location) -> list[Location]:
    """Write pictures that lie in one folder for each class, which is called like the class.

    Where such folders lie in train/, val/, valid/, validation/ or test/, each of these becomes a
    set, and all but `train` are for evaluation only; else all is one set, `out/all`.
    """
    there = source.names()
    splits = {split: split for split in _ALL_SPLITS if split in there} or {"all": ""}
    labels = {split: _class_of_each(source, folder) for split, folder in splits.items()}
    names = {name: name.replace("_", " ") for name in _classes(labels)}
    if not names:
        raise published.wrong_layout(source, "folders with pictures, one for each class")
    about = Manifest(name=source.name, origin=source.uri, files_at=source.uri)
    return _write(out, about, labels, names, frozenset(itertools.chain(*labels.values())))


def _write(
    out: Location,
    about: Manifest,
    labels: Mapping[str, Labels],
    names: Mapping[str, str],
    files: Set[str],
) -> list[Location]:
    refuse_prepared(out / split for split in labels)
    about = replace(about, class_names=tuple(names.values()))
    rows = {split: _rows(of_split, names) for split, of_split in labels.items()}
    # Pictures are in the order of their classes, and a run of rows would be of one.
    return published.write(out, about, rows, files, shuffle=True)


def _rows(labels: Mapping[str, str | None], names: Mapping[str, str]) -> Iterator[Row]:
    class_ids = {name: number for number, name in enumerate(names)}
    captions = {name: class_captions(names[name]) for name in names}
    for path, name in labels.items():
        if name is None:
            yield RejectedRow(path, "missing_class")
        elif name not in names:
            yield RejectedRow(path, "unknown_class", name)
        else:
            at = ImageReference(path)
            yield RawSample(path, None, captions[name], class_ids[name], image_at=at)


def _split_folders(source: Location) -> dict[str, str]:
    """Return the paths of train/ and val/ that are there; none without ImageNet's names."""
    for tree in ("", f"{_KAGGLE_TREE}/"):
        there = (source / _KAGGLE_TREE if tree else source).names()
        if found := {split: f"{tree}{split}" for split in _SPLITS if split in there}:
            return found
        if any(_WNID.fullmatch(name) for name in there):
            raise published.wrong_layout(source, *(f"{split}/" for split in _SPLITS))
    return {}


def _classes(labels: Mapping[str, Labels]) -> list[str]:
    """Return the classes that occur in any of the sets, sorted."""
    return sorted({name for of_split in labels.values() for name in of_split.values() if name})


def _class_of_each(source: Location, folder: str) -> Labels:
    """Return a folder's pictures, sorted; the class is the first folder below it, if any."""
    paths = sorted(
        path
        for path in published.list_files(source, folder)
        if PurePosixPath(path).suffix.lower() in PICTURE_SUFFIXES
    )
    if not paths:
        raise published.wrong_layout(source / folder if folder else source, "pictures in it")
    depth = folder.count("/") + 1 if folder else 0
    parts = ((path, path.split("/")[depth:]) for path in paths)
    return {path: below[0] if len(below) > 1 else None for path, below in parts}


def _ground_truth(source: Location, folder: str, paths: list[str]) -> Labels:
    """Return the class of each picture of a flat folder, out of a file in the source."""
    names = source.names()
    if _SOLUTION in names:
        found = _solution(source / _SOLUTION)
        class_of = {path: found.pop(PurePosixPath(path).stem, None) for path in paths}
        # The remaining ones have no file, and will be rejected by name.
        return class_of | {f"{folder}/{stem}.JPEG": wnid for stem, wnid in found.items()}
    file = next((name for name in _GROUND_TRUTHS if name in names), None)
    if file is None:
        raise published.wrong_layout(source, "folders in val/", _SOLUTION, *_GROUND_TRUTHS)
    labels = [line.strip() for line in published.read_lines(source / file)]
    unknown = next((label for label in labels if not _WNID.fullmatch(label)), None)
    if unknown is not None:
        raise SampleError(
            f"{source.uri}/{file} has the line {unknown!r}; expected WNIDs like n01440764. The "
            f"numbers of the development kit mean nothing without its meta.mat: use {_SOLUTION}"
        )
    if len(labels) != len(paths):
        raise SampleError(
            f"{source.uri}/{file} has {len(labels)} lines, but val/ has {len(paths)} pictures"
        )
    return dict(zip(paths, labels, strict=True))


def _solution(place: Location) -> dict[str, str | None]:
    """Return WNIDs by picture, from lines like "ILSVRC2012_val_00048981,n03995372 85 1 499 272"."""
    rows = [line.split(",", 1) for line in published.read_lines(place)[1:]]
    return {row[0]: row[1].split()[0] for row in rows if len(row) == 2 and row[1].strip()}


def _class_names(source: Location, wnids: Sequence[str]) -> dict[str, str]:
    """Return the name of each WNID, in their order; WNIDs without one are left out."""
    there = source.names()
    if _SYNSETS in there:
        synsets = _names_by_wnid(published.read_lines(source / _SYNSETS))
        first = {wnid: synsets[wnid].split(",")[0].strip() for wnid in wnids if wnid in synsets}
        uses = Counter(first.values())
        # Two classes may share a first name, such as "maillot": these get all their names.
        return {w: name if uses[name] == 1 else synsets[w] for w, name in first.items()}
    if _CLASSES not in there:
        raise published.wrong_layout(source, f"{_SYNSETS} or {_CLASSES} with the classes' names")
    lines = [line.strip() for line in published.read_lines(source / _CLASSES) if line.strip()]
    if all(_WNID.match(line) for line in lines):
        named = _names_by_wnid(lines)
        return {wnid: named[wnid] for wnid in wnids if wnid in named}
    if len(lines) != len(wnids):
        raise SampleError(
            f"{source.uri}/{_CLASSES} has {len(lines)} names, but there are {len(wnids)} classes; "
            'expected one name for each, or lines like "n01440764 tench"'
        )
    return dict(zip(wnids, lines, strict=True))


def _names_by_wnid(lines: Sequence[str]) -> dict[str, str]:
    """Return the names in lines such as "n01440764 tench, Tinca tinca" by WNID."""
    parts = (re.split(r"[\s,:]+", line.strip(), maxsplit=1) for line in lines)
    return {part[0]: part[1] for part in parts if len(part) == 2 and part[1]}
