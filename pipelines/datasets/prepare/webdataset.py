"""Indexes of WebDataset tars, as img2dataset writes them: captions and places of pictures."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from pipelines.datasets.files import CONCURRENT_REQUESTS, for_each
from pipelines.datasets.manifest import MAX_CLASSES, ImageReference, RawSample, ShardWriter
from pipelines.datasets.prepare.pictures import PICTURE_SUFFIXES
from pipelines.datasets.prepare.rows import RejectedRow, Row
from pipelines.datasets.prepare.tars import Damage, tar_members
from pipelines.runtime.progress import progress
from pipelines.runtime.storage import Location, storage_errors

#: Fields of a sample's JSON that are taken as its captions where there is no .txt.
CAPTION_FIELDS = ("caption", "captions", "text")
#: Rows of an index are short, so more of them are read at a time than rows with pictures.
_ROWS_PER_SHARD, _ROW_GROUP_ROWS = 65_536, 512
_READ_AHEAD_BYTES = 8 * 2**20
#: Most bytes of a member with text or JSON.
_MAX_TEXT_BYTES = 16 * 2**20
#: First bytes of gzip, bzip2, xz and Zstandard.
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
_LONGEST_MAGIC = max(map(len, _COMPRESSED))


@dataclass
class Member:
    """The files of a tar that belong to one sample: `a/b.jpg`, `a/b.txt`, `a/b.json`."""

    key: str
    image: ImageReference | None = None
    texts: dict[str, bytes] = field(default_factory=dict)


def index_webdataset(
    base: Location, paths: Sequence[str], out: Location, *, caption_fields: Sequence[str] = ()
) -> list[Location]:
    """Write an index of tars: captions, and offset and length of each picture. The tars stay.

    Args:
        base: folder that holds the tars.
        paths: paths of the tars, relative to it.
        out: folder of the data set.
        caption_fields: fields of the .json that are captions; empty takes the .txt, else a usual
            field.

    Raises:
        SampleError: if no tar holds a sample that can be used.
    """
    writer = ShardWriter(
        out,
        name=base.name,
        origin=base.uri,
        files_at=base.uri,
        rows_per_shard=_ROWS_PER_SHARD,
        row_group_rows=_ROW_GROUP_ROWS,
    )
    largest_class = -1
    # In groups, so that memory does not grow with the number of tars.
    tars = iter(progress(base.name, unit="tar", total=len(paths), iterable=paths))
    while some := list(itertools.islice(tars, CONCURRENT_REQUESTS)):
        threads = 1 if base.is_local else len(some)
        scanned = for_each(lambda p: scan_tar(base, p, caption_fields), some, threads=threads)
        for row in itertools.chain(*scanned):
            if isinstance(row, RejectedRow):
                writer.reject(*row)
                continue
            writer.add(row)
            if row.class_id is not None:
                largest_class = max(largest_class, row.class_id)
    writer.class_names = [str(number) for number in range(largest_class + 1)]
    writer.close()
    return [out]


def scan_tar(base: Location, path: str, caption_fields: Sequence[str]) -> list[Row]:
    """Return the samples of a tar, and a reject for each part that cannot be used.

    A tar that is compressed is refused as a whole. Of a damaged one, all that lies before and
    behind the damage is used.
    """
    place = base.inside(path)
    fs, file = place.open_fs()
    options = {} if place.is_local else {"block_size": _READ_AHEAD_BYTES}
    with storage_errors(place), fs.open(file, "rb", **options) as stream:
        size = fs.info(file)["size"]
        start = stream.read(_LONGEST_MAGIC)
        if start.startswith(_COMPRESSED):
            detail = "it is compressed, so that no member can be read by itself; unpack it first"
            return [RejectedRow(path, "compressed_tar", detail)]
        return [
            _row(group, caption_fields) if isinstance(group, Member) else group
            for group in _group(stream, path, size)
        ]


def _group(stream: BinaryIO, path: str, size: int) -> Iterator[Member | RejectedRow]:
    """Yield consecutive members that share a name up to the first dot of its last part."""
    sample: Member | None = None
    for found in tar_members(stream, size):
        if isinstance(found, Damage):
            detail = f"bytes {found.start} to {found.stop}: {found.why}"
            yield RejectedRow(f"{path}@{found.start}", "damaged_tar", detail)
            continue
        folder, _, name = found.name.rpartition("/")
        stem, _, extension = name.partition(".")
        key = f"{path}/{folder}/{stem}" if folder else f"{path}/{stem}"
        if found.name.startswith("/") or ".." in found.name.split("/"):
            yield RejectedRow(key, "unsafe_member_name", found.name)
            continue
        if sample is not None and sample.key != key:
            yield sample
        if sample is None or sample.key != key:
            sample = Member(key)
        if f".{extension.lower().rpartition('.')[2]}" in PICTURE_SUFFIXES:
            sample.image = ImageReference(path, found.offset, found.size)
        elif extension in ("txt", "json", "cls"):
            stream.seek(found.offset)
            sample.texts[extension] = stream.read(min(found.size, _MAX_TEXT_BYTES))
    if sample is not None:
        yield sample


def _row(member: Member, caption_fields: Sequence[str]) -> Row:
    """Return the sample that the files make, or a reject with the reason."""
    if member.image is None:
        return RejectedRow(member.key, "missing_image", f"only {sorted(member.texts)}")
    try:
        captions = _captions(member.texts, caption_fields)
    except (ValueError, RecursionError) as error:
        return RejectedRow(member.key, "invalid_json", str(error))
    if not captions:
        return RejectedRow(member.key, "missing_caption", f"only {sorted(member.texts)}")
    label = member.texts.get("cls", b"").strip()
    class_id = int(label) if re.fullmatch(rb"\d{1,9}", label) else None
    if class_id is not None and class_id >= MAX_CLASSES:
        return RejectedRow(member.key, "invalid_class", f"{class_id}; expected below {MAX_CLASSES}")
    return RawSample(member.key, None, captions, class_id, image_at=member.image)


def _captions(texts: dict[str, bytes], caption_fields: Sequence[str]) -> list[str]:
    """Return the texts that are captions; raise ValueError if the JSON is damaged."""
    if not caption_fields and "txt" in texts:
        found: list[Any] = [texts["txt"].decode("utf-8", errors="replace")]
    else:
        values = json.loads(texts.get("json", b"{}"))
        values = values if isinstance(values, dict) else {}
        wanted = caption_fields or [name for name in CAPTION_FIELDS if name in values][:1]
        parts = [values.get(name) for name in wanted]
        found = [text for part in parts for text in (part if isinstance(part, list) else [part])]
    return [text.strip() for text in found if isinstance(text, str) and text.strip()]
