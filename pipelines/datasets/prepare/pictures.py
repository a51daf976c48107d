"""A person's own pictures: a folder of them, or a table of paths and captions."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from clippo_core.config import ImageConfig
from clippo_core.errors import ConfigError, Rejected, SampleError
from clippo_core.images import decode_image, decode_thumbnail, picture_size
from clippo_core.unicode import is_unicode, readable
from pipelines.datasets.files import fetch_files
from pipelines.datasets.manifest import (
    ImageReference,
    Manifest,
    RawSample,
    shuffled_place,
)
from pipelines.datasets.prepare.rows import (
    RejectedRow,
    Row,
    is_held_out,
    new_splits,
    write_divided,
)
from pipelines.datasets.prepare.tables import DamagedRow, csv_rows, json_objects
from pipelines.runtime.storage import Location

PICTURE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm"}
)
TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl"})
#: Captions of pictures of which only the class is known.
CLASS_TEMPLATES = ("{}", "a photo of a {}", "a picture of a {}")
#: Settings by which a picture is decoded once, small, to find out if that is possible.
_PROBE = ImageConfig()
_PROBE_PX = 32
#: Quality of pictures that are stored smaller: high, since they are compressed twice.
_JPEG_QUALITY = 95
_FILES_AT_A_TIME = 256
_ADVICE = "name yours with --image-column and --caption-columns"


@dataclass(frozen=True)
class IndexColumns:
    """Names of columns or fields, where they are not the usual ones."""

    image: str | None = None
    captions: tuple[str, ...] = ()
    key: str | None = None
    class_name: str | None = None


@dataclass
class Picture:
    """A picture file, whose key is its path in the folder, with its captions and class."""

    key: str
    captions: list[str] = field(default_factory=list)
    class_name: str | None = None


def prepare_folder(
    folder: Location,
    out: Location,
    *,
    test_share: float = 0.0,
    copy: bool = True,
    max_side_px: int | None = None,
) -> list[Location]:
    """Write a folder of pictures as a data set.

    Captions come from a text file beside each picture (`cat.jpg` and `cat.txt`, one caption a
    line); where there are no such files, from the name of the subfolder, which is its class.

    Args:
        folder: folder of the pictures, at any depth; on a disk or in a bucket.
        out: folder of the data set.
        test_share: share of the pictures to set aside as `out/test`, chosen by their names.
        copy: copy the pictures into shards, after trying to decode each; else note their places.
        max_side_px: longest side of the copies; larger pictures are stored again, as JPEG.
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
            name = PurePosixPath(picture.key).parts[0].replace("_", " ")
            picture.class_name = readable(name)
    else:
        raise SampleError(
            f"{folder.uri} has pictures without captions, e.g. {paths[0]}; expected a text file "
            "beside each (cat.jpg and cat.txt), or one subfolder for each class"
        )
    about = _about(folder, folder.name, copy=copy)
    return _write(pictures, out, about, test_share=test_share, max_side_px=max_side_px)


def prepare_csv(
    table: Location,
    out: Location,
    *,
    columns: IndexColumns | None = None,
    test_share: float = 0.0,
    copy: bool = True,
    max_side_px: int | None = None,
) -> list[Location]:
    """Write the pictures that a CSV, TSV or JSONL file names as a data set.

    Rows of the same picture become its several captions.

    Args:
        table: table with a header line, or an object in each line; paths are relative to its
            folder.
        out: folder of the data set.
        columns: columns of the picture's path (`image`), of captions, which in JSONL may be lists
            (`caption`), and of its class (none).
        test_share: share of the pictures to set aside as `out/test`, chosen by their paths.
        copy: copy the pictures into shards, after trying to decode each; else note their places.
        max_side_px: longest side of the copies; larger pictures are stored again, as JPEG.
    """
    columns = columns or IndexColumns()
    image, captions = columns.image or "image", columns.captions or ("caption",)
    class_column = [columns.class_name] if columns.class_name else []
    pictures: dict[str, Picture] = {}
    rejects: list[RejectedRow] = []
    for row in read_table(table, [image, *captions, *class_column]):
        if isinstance(row, RejectedRow):
            rejects.append(row)
            continue
        path = str(row[image] or "").strip()
        picture = pictures.setdefault(path, Picture(path))
        values = [row[column] for column in captions]
        texts = itertools.chain(*(v if isinstance(v, list) else [v] for v in values))
        picture.captions += [str(text).strip() for text in texts if text and str(text).strip()]
        for column in class_column:
            name = readable(str(row[column] or "").strip())
            picture.class_name = name or picture.class_name
    about = _about(table.parent, PurePosixPath(table.name).stem, copy=copy)
    return _write(
        list(pictures.values()),
        out,
        about,
        test_share=test_share,
        max_side_px=max_side_px,
        rejects=rejects,
    )


def _about(base: Location, name: str, *, copy: bool) -> Manifest:
    return Manifest(name=name, origin=base.uri, files_at=None if copy else base.uri)


def _write(
    pictures: Sequence[Picture],
    out: Location,
    about: Manifest,
    *,
    test_share: float,
    max_side_px: int | None,
    rejects: Sequence[RejectedRow] = (),
) -> list[Location]:
    """Write pictures as one data set, or as two: `out/train` and `out/test`.

    Their paths are relative to the origin; they are copied unless the manifest says `files_at`.
    Pictures that cannot be used are listed with their reasons.
    """
    if max_side_px is not None and max_side_px < _PROBE_PX:
        raise ConfigError(f"max_side_px={max_side_px}; expected {_PROBE_PX} or more")
    splits = new_splits(out, test_share)
    names = {picture.class_name for picture in pictures}
    about = replace(about, class_names=tuple(sorted(name for name in names if name is not None)))
    # Unreadable lines of a table go first, and not to the test set.
    rows = itertools.chain(
        ((False, row) for row in rejects),
        ((is_held_out(row.key, test_share), row) for row in _rows(pictures, about, max_side_px)),
    )
    return write_divided(out, about, rows, splits=splits, total=len(pictures))


def _rows(pictures: Sequence[Picture], about: Manifest, max_side_px: int | None) -> Iterator[Row]:
    base, is_copied = Location.of(about.origin), about.files_at is None
    class_ids = {name: number for number, name in enumerate(about.class_names)}
    # Training draws runs of rows; a folder's neighbours are often of one class.
    in_order = iter(sorted(pictures, key=lambda picture: shuffled_place(picture.key)))
    while some := list(itertools.islice(in_order, _FILES_AT_A_TIME)):
        places = [ImageReference(picture.key) for picture in some]
        contents = fetch_files(base, places) if is_copied else [None] * len(some)
        for picture, place, content in zip(some, places, contents, strict=True):
            captions, class_id = picture.captions, None
            if picture.class_name is not None:
                class_id = class_ids[picture.class_name]
                captions = captions or class_captions(picture.class_name)
            if not captions:
                yield RejectedRow(picture.key, "missing_caption")
            elif not is_copied:
                yield RawSample(picture.key, None, captions, class_id, image_at=place)
            elif (problem := check_picture(content)) is not None:
                detail = "the file does not exist" if content is None else problem.detail
                yield RejectedRow(picture.key, problem.reason, detail)
            else:
                assert content is not None, "it was decoded"
                kept = content if max_side_px is None else _shrunk(content, max_side_px)
                yield RawSample(picture.key, kept, captions, class_id)


def _shrunk(content: bytes, max_side_px: int) -> bytes:
    """Return a picture with sides of so many pixels at most; smaller ones as they are."""
    size = picture_size(content)
    if size is None or max(size) <= max_side_px:
        return content
    pixels = decode_thumbnail(content, _PROBE, max_side_px=max_side_px)
    if isinstance(pixels, Rejected):
        return content
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def class_captions(name: str) -> list[str]:
    """Return the captions of a picture of which only the class is known."""
    return [template.replace("{}", name) for template in CLASS_TEMPLATES]


def check_picture(content: bytes | None) -> Rejected | None:
    """Decode a picture once, small; return why it cannot be used, or None if it can."""
    probed = decode_image(content, _PROBE, image_size_px=_PROBE_PX)
    return probed if isinstance(probed, Rejected) else None


def picture_row(
    key: str, picture: bytes, captions: Sequence[tuple[str, str]], missing: str = ""
) -> Row:
    """Return a picture with captions as a row, or as a reject if it cannot be used.

    Args:
        key: key of the row.
        picture: encoded picture.
        captions: pairs of a language and a caption.
        missing: details for a person where there are no captions.
    """
    if (problem := check_picture(picture)) is not None:
        return RejectedRow(key, problem.reason, problem.detail)
    if not captions:
        return RejectedRow(key, "missing_caption", missing)
    languages, texts = zip(*captions, strict=True)
    return RawSample(key, picture, texts, languages=languages)


def read_table(table: Location, wanted: Sequence[str]) -> Iterator[dict[str, Any] | RejectedRow]:
    """Yield the rows of a CSV, TSV or JSONL file by column; None for what a JSON line lacks.

    Raises:
        SampleError: if the file cannot be read, is not UTF-8 from its first line on, or lacks a
            column.
    """
    try:
        text = table.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except FileNotFoundError:
        raise SampleError(f"{table.uri} does not exist") from None
    if not is_unicode(text.partition("\n")[0]):
        raise SampleError(f"{table.uri} is not UTF-8; save it as UTF-8 first")
    if table.suffix == ".jsonl":
        rows = json_objects(text.split("\n"), table, wanted, _ADVICE)
    else:
        delimiter = "\t" if table.suffix == ".tsv" else ","
        lines = io.StringIO(text, newline="")
        rows = csv_rows(lines, table, wanted, advice=_ADVICE, delimiter=delimiter)
    for number, row in rows:
        if isinstance(row, DamagedRow):
            yield RejectedRow(f"line {number}", *row)
        elif not all(is_unicode(value) for value in row.values() if isinstance(value, str)):
            detail = "bytes that are not UTF-8; save the table as UTF-8"
            yield RejectedRow(f"line {number}", "invalid_unicode", detail)
        else:
            yield dict.fromkeys(wanted) | row
