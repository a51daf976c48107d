"""WebDataset tars, as img2dataset writes them: where in them the pictures lie, and the captions."""

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
from pipelines.runtime.progress import progress
from pipelines.runtime.storage import Location, storage_errors

#: Fields of a sample's JSON that are taken as its captions where there is no .txt.
CAPTION_FIELDS = ("caption", "captions", "text")
#: Rows of an index are short, so that more of them are read at a time than of pictures.
_ROWS_PER_SHARD, _ROW_GROUP_ROWS = 65_536, 512
_READ_AHEAD_BYTES = 8 * 2**20


@dataclass
class Member:
    """The files of a tar that belong to one sample: `a/b.jpg`, `a/b.txt`, `a/b.json`."""

    key: str
    image: ImageReference | None = None
    texts: dict[str, bytes] = field(default_factory=dict)


@dataclass
class ScannedTar:
    """What was found in a tar, and what could not be used, as (key, reason, detail)."""

    samples: list[RawSample] = field(default_factory=list)
    rejects: list[tuple[str, str, str]] = field(default_factory=list)


def index_webdataset(
    base: Location, paths: Sequence[str], out: Location, *, caption_fields: Sequence[str] = ()
) -> list[Location]:
    """Write an index of tars: captions, and offset and length of each picture. The tars stay.

    Args:
        base: folder that holds them.
        paths: of the tars, relative to it.
        out: where the data set goes.
        caption_fields: fields of the .json that are captions; empty: the .txt, else a usual field.

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
    # As many at a time as can be under way, so that memory does not grow with their number.
    tars = iter(progress(base.name, unit="tar", total=len(paths), iterable=paths))
    while some := list(itertools.islice(tars, CONCURRENT_REQUESTS)):
        threads = 1 if base.is_local else len(some)
        for scanned in for_each(lambda p: scan_tar(base, p, caption_fields), some, threads=threads):
            for sample in scanned.samples:
                writer.add(sample)
                largest_class = max(
                    largest_class, -1 if sample.class_id is None else sample.class_id
                )
            for reject in scanned.rejects:
                writer.reject(*reject)
    writer.class_names = [str(number) for number in range(largest_class + 1)]
    writer.close()
    return [out]


def scan_tar(base: Location, path: str, caption_fields: Sequence[str]) -> ScannedTar:
    """Find the samples of a tar.

    A tar that is compressed, or with a member whose name leads out of it, is refused as a whole; of
    a truncated one, what comes before the damage is used.
    """
    place, found = base.inside(path), ScannedTar()
    fs, file = place.open_fs()
    options = {} if place.is_local else {"block_size": _READ_AHEAD_BYTES}
    with storage_errors(place), fs.open(file, "rb", **options) as stream:
        size = fs.info(file)["size"]
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in _group(tar, path, size, found):
                    _add(found, member, caption_fields)
        except UnsafeNameError as error:
            return ScannedTar(rejects=[(path, "unsafe_member_name", str(error))])
        except (tarfile.TarError, EOFError) as error:
            found.rejects.append((path, "truncated_tar", str(error)))
    return found


class UnsafeNameError(Exception):
    """A member's name is absolute or leads upwards."""


def _group(tar: tarfile.TarFile, path: str, size: int, found: ScannedTar) -> Iterator[Member]:
    """Consecutive members that share a name up to the first dot of its last part."""
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
            found.rejects.append((key, "truncated_tar", f"{info.name} is cut short"))
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


def _add(found: ScannedTar, member: Member, caption_fields: Sequence[str]) -> None:
    """Make a sample of the members, or note why not."""
    if member.image is None:
        found.rejects.append((member.key, "missing_image", f"only {sorted(member.texts)}"))
        return
    try:
        captions = _captions(member.texts, caption_fields)
    except ValueError as error:
        found.rejects.append((member.key, "invalid_json", str(error)))
        return
    if not captions:
        found.rejects.append((member.key, "missing_caption", f"only {sorted(member.texts)}"))
        return
    label = member.texts.get("cls", b"").strip()
    class_id = int(label) if re.fullmatch(rb"\d{1,9}", label) else None
    found.samples.append(RawSample(member.key, None, captions, class_id, image_at=member.image))


def _captions(texts: dict[str, bytes], caption_fields: Sequence[str]) -> list[str]:
    """Raises ValueError if the JSON that is asked for is none."""
    if not caption_fields and "txt" in texts:
        found: list[Any] = [texts["txt"].decode("utf-8", errors="replace")]
    else:
        values = json.loads(texts.get("json", b"{}"))
        values = values if isinstance(values, dict) else {}
        wanted = caption_fields or [name for name in CAPTION_FIELDS if name in values][:1]
        parts = [values.get(name) for name in wanted]
        found = [text for part in parts for text in (part if isinstance(part, list) else [part])]
    return [text.strip() for text in found if isinstance(text, str) and text.strip()]
