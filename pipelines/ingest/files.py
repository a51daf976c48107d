"""Parts of files on disks and in buckets: row groups of Parquet files, pictures, tar members."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from clippo_core.errors import SampleError
from pipelines.ingest.manifest import Columns, ImageReference
from pipelines.storage import Location, storage_errors

#: Requests to a bucket that are under way at a time, per process.
CONCURRENT_REQUESTS = 16
#: Parts of a file that lie so close together are fetched by one request.
_MAX_GAP_BYTES = 64 * 1024
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ParquetShard:
    """An open Parquet file.

    Attributes:
        file: itself.
        columns: those that are read.
        ends: number of rows up to and including each row group.
    """

    file: pq.ParquetFile
    columns: list[str]
    ends: Int64[np.ndarray, " group"]

    @property
    def num_rows(self) -> int:
        """Rows in it."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def group_rows(self, group: int) -> range:
        """The rows that a row group holds."""
        return range(int(self.ends[group - 1]) if group else 0, int(self.ends[group]))

    def read(self, group: int) -> pa.Table:
        """A row group."""
        return self.file.read_row_group(group, columns=self.columns)


@functools.lru_cache(maxsize=128)
def open_shard(uri: str, _version: str, columns: Columns) -> ParquetShard:
    """Open a Parquet file once per process; the version tells it from a successor of that name.

    Raises:
        SampleError: if it lacks a column.
    """
    location = Location.of(uri)
    with storage_errors(location):
        fs, path = location.open_fs()
        if location.is_local:
            file = pq.ParquetFile(path, memory_map=True)
        else:
            # Arrow asks for just what it needs; a cache would read 50 MB ahead each time.
            file = pq.ParquetFile(fs.open(path, "rb", cache_type="none"), pre_buffer=True)
    found = file.schema_arrow.names
    missing = [name for name in columns.names if name not in found]
    if missing and columns == Columns():
        # Sets of an earlier day may lack what no sample has; the key and the texts are a must.
        missing = [name for name in missing if name in ("key", "captions")]
    if missing:
        raise SampleError(f"{uri} has the columns {found}; expected {columns.names}")
    metadata = file.metadata
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    chosen = [name for name in columns.names if name in found]
    return ParquetShard(file, chosen, np.cumsum(sizes, dtype=np.int64))


def fetch_images(base: Location, references: Sequence[ImageReference]) -> list[bytes | None]:
    """The bytes behind references, in their order; None for a file that is missing.

    Args:
        base: that the references' paths are relative to.
        references: files, or parts of files; parts that lie close together come by one request.

    Raises:
        SampleError: if a path leads out of `base`.
        StorageError: if the storage does not answer.
    """
    places = [base.inside(reference.path) for reference in references]
    if base.is_local:
        return [_read_local(place, ref) for place, ref in zip(places, references, strict=True)]
    fs, _ = base.open_fs()
    paths = [fs._strip_protocol(place.uri) for place in places]
    found: list[bytes | None] = [None] * len(references)
    whole = [slot for slot, reference in enumerate(references) if reference.offset is None]
    with storage_errors(base):
        if whole:
            contents = fs.cat(list({paths[slot] for slot in whole}), on_error="return")
            contents = contents if isinstance(contents, dict) else {paths[whole[0]]: contents}
            for slot in whole:
                found[slot] = _or_none(contents[paths[slot]])
        spans = _spans(paths, references)
        if spans:
            ranges = zip(*[(path, start, stop) for path, start, stop, _ in spans], strict=True)
            contents = fs.cat_ranges(*map(list, ranges), on_error="return")
            for (_, start, _, slots), content in zip(spans, contents, strict=True):
                content = _or_none(content)
                for slot in slots:
                    at = (references[slot].offset or 0) - start
                    end = at + (references[slot].size or 0)
                    found[slot] = None if content is None else content[at:end]
    return found


def for_each(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int = 1
) -> list[Result]:
    """What the function makes of each item, in order; with threads where that hides latency."""
    if threads == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


def _read_local(place: Location, reference: ImageReference) -> bytes | None:
    try:
        with storage_errors(place), Path(place.uri).open("rb") as file:
            if reference.offset is not None:
                file.seek(reference.offset)
            return file.read(-1 if reference.size is None else reference.size)
    except FileNotFoundError:
        return None


def _spans(
    paths: Sequence[str], references: Sequence[ImageReference]
) -> list[tuple[str, int, int, list[int]]]:
    """Path, start and end of the requests for parts of files, and which references each serves."""
    parts = sorted(
        (paths[slot], reference.offset, reference.offset + (reference.size or 0), slot)
        for slot, reference in enumerate(references)
        if reference.offset is not None
    )
    spans: list[tuple[str, int, int, list[int]]] = []
    for path, start, stop, slot in parts:
        if spans and spans[-1][0] == path and start - spans[-1][2] <= _MAX_GAP_BYTES:
            _, first, last, slots = spans[-1]
            spans[-1] = (path, first, max(last, stop), [*slots, slot])
        else:
            spans.append((path, start, stop, [slot]))
    return spans


def _or_none(content: Any) -> bytes | None:
    """What a request brought: None if there is no such file; other errors are raised."""
    if isinstance(content, FileNotFoundError):
        return None
    if isinstance(content, BaseException):
        raise content
    return content
