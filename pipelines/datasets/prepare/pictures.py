"""A person's own pictures: a folder of them, or a table of paths and captions."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from clippo_core.config import ImageConfig
from clippo_core.errors import Rejected, SampleError
from clippo_core.images import decode_image
from pipelines.datasets.files import fetch_files
from pipelines.datasets.manifest import (
    ImageReference,
    RawSample,
    ShardWriter,
    read_manifest,
    shuffled_place,
)
from pipelines.datasets.prepare.splits import is_held_out, split_folders
from pipelines.runtime.progress import progress
from pipelines.runtime.storage import Location

PICTURE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm"}
)
TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl"})
#: Captions of pictures that have only a class.
CLASS_TEMPLATES = ("{}", "a photo of a {}", "a picture of a {}")
#: Pictures are decoded once, small, to find those that cannot be.
_PROBE = ImageConfig()
_PROBE_PX = 32
_FILES_AT_A_TIME = 256


@dataclass
class Picture:
    """A picture file, its path in the folder being its key, and what is known of it."""

    key: str
    captions: list[str] = field(default_factory=list)
    class_name: str | None = None


def prepare_folder(
    folder: Location, out: Location, *, test_share: float = 0.0, copy: bool = True
) -> list[Location]:
    """Write a folder of pictures as a data set.

    Captions come from a text file beside each picture (`cat.jpg` and `cat.txt`, one caption a
    line); where there are no such files, from the name of the subfolder, which is its class.

    Args:
        folder: with the pictures, at any depth; on a disk or in a bucket.
        out: where the data set goes.
        test_share: share of the pictures to set aside as `out/test`, chosen by their names.
        copy: the pictures into shards, after trying to decode each; else their places are noted.

    Raises:
        SampleError: if there is no picture, or neither captions nor classes.
    """
    files = set(folder.files())
    paths = sorted(f for f in files if PurePosixPath(f).suffix.lower() in PICTURE_SUFFIXES)
    if not paths:
        raise SampleError(
            f"{folder.uri} holds no pictures; expected files like "
            f"{', '.join(sorted(PICTURE_SUFFIXES))}"
        )
    pictures = [Picture(path) for path in paths]
    texts = {path: str(PurePosixPath(path).with_suffix(".txt")) for path in paths}
    with_text = [picture for picture in pictures if texts[picture.key] in files]
    if with_text:
        contents = fetch_files(folder, [ImageReference(texts[p.key]) for p in with_text])
        for picture, content in zip(with_text, contents, strict=True):
            lines = (content or b"").decode("utf-8", errors="replace").splitlines()
            picture.captions = [line.strip() for line in lines if line.strip()]
    elif all("/" in path for path in paths):
        for picture in pictures:
            picture.class_name = PurePosixPath(picture.key).parts[0].replace("_", " ")
    else:
        raise SampleError(
            f"{folder.uri} has pictures without captions, e.g. {paths[0]}; expected a text file "
            "beside each (cat.jpg and cat.txt), or one subfolder for each class"
        )
    return write_pictures(
        pictures, out, base=folder, name=folder.name, test_share=test_share, copy=copy
    )


def prepare_csv(
    table: Location,
    out: Location,
    *,
    image_column: str = "image",
    caption_columns: Sequence[str] = ("caption",),
    class_column: str | None = None,
    test_share: float = 0.0,
    copy: bool = True,
) -> list[Location]:
    """Write the pictures that a CSV, TSV or JSONL file names as a data set.

    Rows of the same picture become its several captions.

    Args:
        table: with a header line, or an object in each line; paths are relative to its folder.
        out: where the data set goes.
        image_column: holds the path of a picture.
        caption_columns: each holds a caption, or in JSONL a list of them.
        class_column: holds the name of its class; None if there are no classes.
        test_share: share of the pictures to set aside as `out/test`, chosen by their paths.
        copy: the pictures into shards, after trying to decode each; else their places are noted.

    Raises:
        SampleError: if the file cannot be read, or lacks a column.
    """
    wanted = [image_column, *caption_columns, *([class_column] if class_column else [])]
    pictures: dict[str, Picture] = {}
    unreadable: list[UnreadableLine] = []
    for row in read_table(table, wanted):
        if isinstance(row, UnreadableLine):
            unreadable.append(row)
            continue
        path = str(row[image_column] or "").strip()
        picture = pictures.setdefault(path, Picture(path))
        values = [row[column] for column in caption_columns]
        texts = itertools.chain(*(v if isinstance(v, list) else [v] for v in values))
        picture.captions += [str(text).strip() for text in texts if text and str(text).strip()]
        if class_column and (class_name := str(row[class_column] or "").strip()):
            picture.class_name = class_name
    name = PurePosixPath(table.name).stem
    return write_pictures(
        list(pictures.values()),
        out,
        base=table.parent,
        name=name,
        test_share=test_share,
        copy=copy,
        unreadable=unreadable,
    )


def write_pictures(
    pictures: Sequence[Picture],
    out: Location,
    *,
    base: Location,
    name: str,
    test_share: float = 0.0,
    copy: bool = True,
    unreadable: Sequence[UnreadableLine] = (),
) -> list[Location]:
    """Write pictures as one data set, or as two: `out/train` and `out/test`.

    What cannot be used is listed in rejects.jsonl with its reason; the rest goes on.

    Raises:
        ConfigError: if `test_share` is no share, or a data set is there already.
        SampleError: if a set would be empty.
    """
    folders = split_folders(out, test_share)
    parts: dict[Location, tuple[str, list[Picture]]] = {out: (name, list(pictures))}
    if test_share:
        is_test = [is_held_out(picture.key, test_share) for picture in pictures]
        parts = {
            folder: (
                f"{name}-{folder.name}",
                [p for p, t in zip(pictures, is_test, strict=True) if t is wanted],
            )
            for folder, wanted in zip(folders, (False, True), strict=True)
        }
    class_names = sorted({p.class_name for p in pictures if p.class_name is not None})
    for folder, (title, chosen) in parts.items():
        # Training draws runs of rows; a folder's neighbours are often of one class.
        chosen.sort(key=lambda picture: shuffled_place(picture.key))
        writer = ShardWriter(
            folder,
            name=title,
            class_names=class_names,
            origin=base.uri,
            evaluation_only=bool(test_share) and folder.name == "test",
            files_at=None if copy else base.uri,
        )
        if folder == next(iter(parts)):
            for line in unreadable:
                writer.reject(line.key, "invalid_json", line.problem)
        bar = iter(progress(title, unit="image", total=len(chosen), iterable=chosen))
        while some := list(itertools.islice(bar, _FILES_AT_A_TIME)):
            _add_some(writer, base, some, copy=copy)
        writer.close()
    return list(parts)


def _add_some(
    writer: ShardWriter, base: Location, pictures: Sequence[Picture], *, copy: bool
) -> None:
    contents: Sequence[bytes | None] = [None] * len(pictures)
    if copy:
        contents = fetch_files(base, [ImageReference(picture.key) for picture in pictures])
    for picture, content in zip(pictures, contents, strict=True):
        captions, class_id = picture.captions, None
        if picture.class_name is not None:
            class_id = list(writer.class_names).index(picture.class_name)
            captions = captions or class_captions(picture.class_name)
        if not captions:
            writer.reject(picture.key, "missing_caption")
            continue
        if not copy:
            place = ImageReference(picture.key)
            writer.add(RawSample(picture.key, None, captions, class_id, image_at=place))
            continue
        if (problem := check_picture(content)) is not None:
            detail = "the file does not exist" if content is None else problem.detail
            writer.reject(picture.key, problem.reason, detail)
            continue
        writer.add(RawSample(picture.key, content, captions, class_id))


def class_captions(name: str) -> list[str]:
    """Captions of a picture of which only the class is known."""
    return [template.replace("{}", name) for template in CLASS_TEMPLATES]


def check_picture(content: bytes | None) -> Rejected | None:
    """Why a picture cannot be used, if it cannot; it is decoded once for that."""
    probed = decode_image(content, _PROBE, image_size_px=_PROBE_PX)
    return probed if isinstance(probed, Rejected) else None


class UnreadableLine(NamedTuple):
    """A line of a table that is none."""

    key: str
    problem: str


def read_table(table: Location, wanted: Sequence[str]) -> Iterator[dict[str, Any] | UnreadableLine]:
    """Rows of a CSV, TSV or JSONL file, by column; what a line of JSON lacks is None.

    Raises:
        SampleError: if it cannot be read, is not UTF-8, or lacks a column.
    """
    try:
        text = table.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise SampleError(f"{table.uri} does not exist") from None
    except UnicodeDecodeError as error:
        raise SampleError(f"{table.uri} is not UTF-8 ({error}); save it as UTF-8 first") from None
    if table.suffix == ".jsonl":
        yield from _json_rows(table, text, wanted)
        return
    delimiter = "\t" if table.suffix == ".tsv" else ","
    reader = csv.DictReader(text.splitlines(keepends=True), delimiter=delimiter, restval="")
    _require_columns(table, wanted, reader.fieldnames or ())
    yield from reader


def _json_rows(
    table: Location, text: str, wanted: Sequence[str]
) -> Iterator[dict[str, Any] | UnreadableLine]:
    is_first = True
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            yield UnreadableLine(f"line {number}", str(error))
            continue
        if not isinstance(row, dict):
            yield UnreadableLine(f"line {number}", f"{type(row).__name__}, expected an object")
            continue
        if is_first:
            _require_columns(table, wanted, row)
            is_first = False
        yield dict.fromkeys(wanted) | row


def _require_columns(table: Location, wanted: Sequence[str], found: Iterable[str]) -> None:
    missing = [column for column in wanted if column not in found]
    if missing:
        raise SampleError(
            f"{table.uri} has no column {missing[0]!r}; it has {list(found)}. Name yours with "
            "--image-column and --caption-columns"
        )


def summarize(folders: Iterable[Location]) -> list[str]:
    """A line for each data set that was written: how much it holds, and what was rejected."""
    lines = []
    for folder in folders:
        manifest = read_manifest(folder)
        classes = f", {len(manifest.class_names)} classes" if manifest.class_names else ""
        rejected = f", {manifest.num_rejected} rejected" if manifest.num_rejected else ""
        lines.append(f"{manifest.name}: {manifest.num_rows} samples{classes}{rejected}")
    return lines
