"""Indexes of WebDataset tars, as img2dataset writes them: captions and places of pictures."""

from __future__ import annotations

import itertools
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.datasets.files import CONCURRENT_REQUESTS, for_each
from pipelines.datasets.manifest import ImageReference, RawSample, ShardWriter
from pipelines.datasets.prepare.pictures import PICTURE_SUFFIXES
from pipelines.datasets.prepare.rows import RejectedRow, Row
from pipelines.runtime.progress import progress
from pipelines.runtime.storage import Location, storage_errors

#: Fields of a sample's JSON that are taken as its captions where there is no .txt.
CAPTION_FIELDS = ("caption", "captions", "text")
#: Rows of an index are short, so more of them are read at a time than rows with pictures.
_ROWS_PER_SHARD, _ROW_GROUP_ROWS = 65_536, 512
_READ_AHEAD_BYTES = 8 * 2**20


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

    A tar that is compressed, or has a member whose name leads out of it, is refused as a whole; of
    a truncated one, the part before the damage is used.
    """
    place, found = base.inside(path), list[Row]()
    fs, file = place.open_fs()
    options = {} if place.is_local else {"block_size": _READ_AHEAD_BYTES}
    with storage_errors(place), fs.open(file, "rb", **options) as stream:
        size = fs.info(file)["size"]
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for group in _group(tar, path, size):
                    is_whole = isinstance(group, Member)
                    found.append(_row(group, caption_fields) if is_whole else group)
        except UnsafeNameError as error:
            return [RejectedRow(path, "unsafe_member_name", str(error))]
        except (tarfile.TarError, EOFError) as error:
            found.append(RejectedRow(path, "truncated_tar", str(error)))
    return found


class UnsafeNameError(Exception):
    """Raised when a member's name is absolute or leads upwards."""


def _group(tar: tarfile.TarFile, path: str, size: int) -> Iterator[Member | RejectedRow]:
    """Yield consecutive members that share a name up to the first dot of its last part."""
    sample: Member | None = None
    for info in tar:
        if info.name.startswith("/") or ".." in info.name.split("/"):
            raise UnsafeNameError(info.name)
        if not info.isfile():
            continue
        folder, _, name = info.name.rpartition("/")
        stem, _, extension = name.partition(".")
        key = f"{path}/{folder}/{stem}" if folder else f"{path}/{stem}"
        if info.offset_data + info.size > size:
            yield RejectedRow(key, "truncated_tar", f"{info.name} is cut short")
            break
        if sample is not None and sample.key != key:
            yield sample
        if sample is None or sample.key != key:
            sample = Member(key)
        if f".{extension.lower().rpartition('.')[2]}" in PICTURE_SUFFIXES:
            sample.image = ImageReference(path, info.offset_data, info.size)
        elif extension in ("txt", "json", "cls"):
            file = tar.extractfile(info)
            assert file is not None, "a regular file has content"
            sample.texts[extension] = file.read()
    if sample is not None:
        yield sample


def _row(member: Member, caption_fields: Sequence[str]) -> Row:
    """Return the sample that the files make, or a reject with the reason."""
    if member.image is None:
        return RejectedRow(member.key, "missing_image", f"only {sorted(member.texts)}")
    try:
        captions = _captions(member.texts, caption_fields)
    except ValueError as error:
        return RejectedRow(member.key, "invalid_json", str(error))
    if not captions:
        return RejectedRow(member.key, "missing_caption", f"only {sorted(member.texts)}")
    label = member.texts.get("cls", b"").strip()
    class_id = int(label) if re.fullmatch(rb"\d{1,9}", label) else None
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
