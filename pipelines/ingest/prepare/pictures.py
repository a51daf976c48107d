"""A person's own pictures: a folder of them, or a table of paths and captions."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clippo_core.config import ImageConfig
from clippo_core.errors import ConfigError, SampleError
from clippo_core.images import decode_image
from clippo_core.rejected import Rejected
from pipelines.ingest.manifest import RawSample, ShardWriter, is_prepared
from pipelines.progress import progress
from pipelines.storage import Location

PICTURE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm"}
)
#: Captions of pictures that have only a class.
CLASS_TEMPLATES = ("{}", "a photo of a {}", "a picture of a {}")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
#: Pictures are decoded once, small, to find those that cannot be.
_PROBE = ImageConfig()
_PROBE_PX = 32


@dataclass
class Picture:
    """A picture file and what is known of it."""

    path: Path
    key: str
    captions: list[str] = field(default_factory=list)
    class_name: str | None = None


def prepare_folder(folder: Path, out: Location, *, test_share: float = 0.0) -> list[Location]:
    """Write a folder of pictures as a data set.

    Captions come from a text file beside each picture (`cat.jpg` and `cat.txt`, one caption a
    line); where there are no such files, from the name of the subfolder, which is its class.

    Args:
        folder: with the pictures, at any depth.
        out: where the data set goes.
        test_share: share of the pictures to set aside as `out/test`, chosen by their names.

    Raises:
        SampleError: if there is no picture, or neither captions nor classes.
    """
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in PICTURE_SUFFIXES)
    if not files:
        raise SampleError(
            f"{folder} holds no pictures; expected files like {', '.join(sorted(PICTURE_SUFFIXES))}"
        )
    pictures = [Picture(file, file.relative_to(folder).as_posix()) for file in files]
    with_text = [picture for picture in pictures if picture.path.with_suffix(".txt").is_file()]
    if with_text:
        for picture in with_text:
            lines = picture.path.with_suffix(".txt").read_text(encoding="utf-8", errors="replace")
            picture.captions = [line.strip() for line in lines.splitlines() if line.strip()]
    elif all(picture.path.parent != folder for picture in pictures):
        for picture in pictures:
            picture.class_name = picture.path.relative_to(folder).parts[0].replace("_", " ")
    else:
        raise SampleError(
            f"{folder} has pictures without captions, e.g. {files[0].name}; expected a text file "
            "beside each (cat.jpg and cat.txt), or one subfolder for each class"
        )
    return write_pictures(pictures, out, name=folder.resolve().name, test_share=test_share)


def prepare_csv(
    table: Path,
    out: Location,
    *,
    image_column: str = "image",
    caption_column: str = "caption",
    class_column: str | None = None,
    test_share: float = 0.0,
) -> list[Location]:
    """Write the pictures that a CSV or TSV file names as a data set.

    Rows of the same picture become its several captions.

    Args:
        table: with a header line; paths in it are relative to its folder.
        out: where the data set goes.
        image_column: holds the path of a picture.
        caption_column: holds a caption.
        class_column: holds the name of its class; None if there are no classes.
        test_share: share of the pictures to set aside as `out/test`, chosen by their paths.

    Raises:
        SampleError: if the file cannot be read, or lacks a column.
    """
    wanted = [image_column, caption_column, *([class_column] if class_column else [])]
    pictures: dict[str, Picture] = {}
    for row in _read_rows(table, wanted):
        path = row[image_column].strip()
        picture = pictures.setdefault(path, Picture(table.parent / path, path))
        if caption := row[caption_column].strip():
            picture.captions.append(caption)
        if class_column and (class_name := row[class_column].strip()):
            picture.class_name = class_name
    return write_pictures(list(pictures.values()), out, name=table.stem, test_share=test_share)


def write_pictures(
    pictures: Sequence[Picture], out: Location, *, name: str, test_share: float = 0.0
) -> list[Location]:
    """Write pictures as one data set, or as two: `out/train` and `out/test`.

    What cannot be used is listed in rejects.jsonl with its reason; the rest goes on.

    Raises:
        ConfigError: if `test_share` is no share, or a data set is there already.
        SampleError: if a set would be empty.
    """
    if not 0 <= test_share < 1:
        raise ConfigError(f"test_share={test_share}; expected a share of at least 0 and below 1")
    parts: dict[Location, tuple[str, list[Picture]]] = {out: (name, list(pictures))}
    if test_share:
        is_test = [_share_of(picture.key) < test_share for picture in pictures]
        parts = {
            out / split: (
                f"{name}-{split}",
                [p for p, t in zip(pictures, is_test, strict=True) if t is wanted],
            )
            for split, wanted in (("train", False), ("test", True))
        }
    for folder in parts:
        if is_prepared(folder):
            raise ConfigError(
                f"{folder.uri} is a data set already; remove it or name another --out"
            )
    class_names = sorted({p.class_name for p in pictures if p.class_name is not None})
    for folder, (title, chosen) in parts.items():
        writer = ShardWriter(folder, name=title, class_names=class_names, origin=name)
        for picture in progress(title, unit="image", total=len(chosen), iterable=chosen):
            _add(writer, picture)
        writer.close()
    return list(parts)


def _add(writer: ShardWriter, picture: Picture) -> None:
    captions, class_id = picture.captions, None
    if picture.class_name is not None:
        class_id = list(writer.class_names).index(picture.class_name)
        captions = captions or [t.replace("{}", picture.class_name) for t in CLASS_TEMPLATES]
    if not captions:
        writer.reject(picture.key, "missing_caption")
        return
    try:
        content = picture.path.read_bytes()
    except OSError as error:
        writer.reject(picture.key, "missing_image", str(error))
        return
    probed = decode_image(content, _PROBE, image_size_px=_PROBE_PX)
    if isinstance(probed, Rejected):
        writer.reject(picture.key, probed.reason, probed.detail)
        return
    writer.add(RawSample(picture.key, content, list(captions), class_id))


def _read_rows(table: Path, wanted: Sequence[str]) -> Iterator[dict[str, str]]:
    try:
        text = table.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SampleError(f"{table} cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise SampleError(f"{table} is not UTF-8 ({error}); save it as UTF-8 first") from None
    delimiter = _DELIMITERS.get(table.suffix.lower(), ",")
    reader = csv.DictReader(text.splitlines(keepends=True), delimiter=delimiter, restval="")
    missing = [column for column in wanted if column not in (reader.fieldnames or ())]
    if missing:
        raise SampleError(
            f"{table} has no column {missing[0]!r}; it has {list(reader.fieldnames or ())}. Name "
            "yours with --image-column and --caption-column"
        )
    yield from reader


def _share_of(key: str) -> float:
    """A number from 0 to 1 that depends on the key alone."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 2**32


def summarize(folders: Iterable[Location]) -> list[str]:
    """A line for each data set that was written: how much it holds, and what was rejected."""
    from pipelines.ingest.manifest import read_manifest

    lines = []
    for folder in folders:
        manifest = read_manifest(folder)
        classes = f", {len(manifest.class_names)} classes" if manifest.class_names else ""
        rejected = f", {manifest.num_rejected} rejected" if manifest.num_rejected else ""
        lines.append(f"{manifest.name}: {manifest.num_rows} samples{classes}{rejected}")
    return lines
