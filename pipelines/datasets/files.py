"""Parts of files on disks and in buckets: row groups of Parquet files, pictures, tar members."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from clippo_core.errors import SampleError
from pipelines.datasets.manifest import Columns, ImageReference
from pipelines.runtime.storage import Location, storage_errors

#: Parallel requests to a bucket, per process.
CONCURRENT_REQUESTS = 16
#: Largest gap between parts of a file that are fetched by one request.
_MAX_GAP_BYTES = 64 * 1024
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ParquetShard:
    """An open Parquet file.

    Attributes:
        file: Parquet file itself.
        columns: columns that are read.
        ends: number of rows up to and including each row group.
    """

    file: pq.ParquetFile
    columns: list[str]
    ends: Int64[np.ndarray, " group"]
    _reading: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def group_rows(self, group: int) -> range:
        """Return the rows that a row group holds."""
        return range(int(self.ends[group - 1]) if group else 0, int(self.ends[group]))

    def read(self, group: int, only: str | None = None) -> pa.Table:
        """Return a row group, or one column of it, which is left out where it is empty.

        Threads take turns: two reads at a time corrupt pyarrow's memory.
        """
        columns = [name for name in self.columns if only in (None, name)]
        with self._reading:
            # Row groups are small: handing them to threads costs more than reading them.
            return self.file.read_row_group(group, columns=columns, use_threads=False)


@functools.lru_cache(maxsize=128)
def open_shard(uri: str, _version: str, columns: Columns) -> ParquetShard:
    """Return a Parquet file, opened once per process; `_version` tells it from its successors.

    Raises:
        SampleError: if the file lacks a column, has two of its name, or one of another type.
        ArrowException: if it is damaged.
    """
    location = Location.of(uri)
    with storage_errors(location):
        fs, path = location.open_fs()
        if location.is_local:
            # A buffer, since Arrow reads files, mapped ones too, by a thread that has to be woken.
            file = pq.ParquetFile(pa.BufferReader(pa.memory_map(path).read_buffer()))
        else:
            # Arrow asks for just what it needs; a cache would read 50 MB ahead each time.
            file = pq.ParquetFile(fs.open(path, "rb", cache_type="none"), pre_buffer=True)
    found = file.schema_arrow.names
    missing = [name for name in columns.names if name not in found]
    if missing and columns == Columns():
        # Older sets may lack columns that no sample fills; the key and the texts are required.
        missing = [name for name in missing if name in ("key", "captions")]
    if missing:
        raise SampleError(f"{uri} has the columns {found}; expected {columns.names}")
    if problem := problem_of_types(file.schema_arrow, columns):
        raise SampleError(f"{uri} {problem}")
    metadata = file.metadata
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    present = [name for name in columns.names if name in found]
    empty = _empty_columns(metadata, present) - set(columns.captions)
    chosen = [name for name in present if name not in empty]
    return ParquetShard(file, chosen, np.cumsum(sizes, dtype=np.int64))


def problem_of_types(schema: pa.Schema, columns: Columns) -> str:
    """Return which column is there twice, or holds something else than is needed; "" if none."""
    texts = dict.fromkeys(columns.captions, ("texts or lists of texts", holds_captions))
    wanted: dict[str | None, tuple[str, Callable[[pa.DataType], bool]]] = {
        columns.image: ("encoded pictures", holds_bytes),
        columns.image_path: ("paths", _is_text),
        columns.image_offset: ("offsets", pa.types.is_integer),
        columns.image_size: ("sizes", pa.types.is_integer),
        columns.languages: ("lists of languages", holds_captions),
        columns.question: ("texts", _is_text),
        columns.class_id: ("numbers or names", lambda t: pa.types.is_integer(t) or _is_text(t)),
        columns.score: ("numbers", lambda t: pa.types.is_integer(t) or pa.types.is_floating(t)),
        **texts,
    }
    for name in columns.names:
        fields = [field for field in schema if field.name == name]
        if len(fields) > 1:
            return f"has {len(fields)} columns called {name!r}; rename all but one"
        what, fits = wanted.get(name, ("", None))
        if fields and fits and not (fits(fields[0].type) or pa.types.is_null(fields[0].type)):
            return f"has the column {name!r} of type {fields[0].type}; expected {what}"
    return ""


def holds_bytes(kind: pa.DataType) -> bool:
    """Return True if a column of this type can hold pictures, as they are or in a struct."""
    if pa.types.is_struct(kind):
        return any(
            kind.field(number).name == "bytes" and holds_bytes(kind.field(number).type)
            for number in range(kind.num_fields)
        )
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def holds_captions(kind: pa.DataType) -> bool:
    """Return True if a column of this type can hold texts or lists of texts."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return _is_text(kind.value_type if is_list else kind)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def python_values(column: pa.ChunkedArray) -> list[Any]:
    """Return a column's values. Bytes that are not UTF-8 stay in a text as lone surrogates."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_decoded(value) for value in column.cast(_with_bytes(column.type)).to_pylist()]


def _with_bytes(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_with_bytes(kind.value_type))
    return pa.binary() if _is_text(kind) else kind


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(part) for part in value]
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _empty_columns(metadata: pq.FileMetaData, names: Sequence[str]) -> set[str]:
    """Return the columns that have no value by the file's statistics, and need no reading."""
    paths = [metadata.schema.column(number).path for number in range(metadata.num_columns)]

    def is_empty(number: int) -> bool:
        for group in range(metadata.num_row_groups):
            column = metadata.row_group(group).column(number)
            if column.statistics is None or column.statistics.null_count != column.num_values:
                return False
        return True

    filled = {
        name
        for name in names
        for number, path in enumerate(paths)
        if path.partition(".")[0] == name and not is_empty(number)
    }
    return set(names) - filled


def fetch_files(base: Location, references: Sequence[ImageReference]) -> list[bytes | None]:
    """Return the bytes behind references, in their order; None for a file that is missing.

    Args:
        base: folder that the references' paths are relative to.
        references: files, or parts of files; parts that lie close together are fetched by one
            request.

    Raises:
        SampleError: if a path leads out of `base`.
        StorageError: if the storage does not answer.
    """
    places = [base.inside(reference.path) for reference in references]
    if base.is_local:
        return [_read_local(place, ref) for place, ref in zip(places, references, strict=True)]
    fs, _ = base.open_fs()
    found: list[bytes | None] = [None] * len(references)
    spans = _spans([fs._strip_protocol(place.uri) for place in places], references)
    if spans:
        with storage_errors(base):
            # `cat` would take file names for patterns.
            contents = fs.cat_ranges(
                [span.path for span in spans],
                [span.start for span in spans],
                [span.stop for span in spans],
                on_error="return",
            )
            for span, content in zip(spans, map(_or_none, contents), strict=True):
                for slot in span.slots:
                    found[slot] = content and span.part(content, references[slot])
    return found


def for_each(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int = 1
) -> list[Result]:
    """Return a function's result for each item, in order; threads hide latency."""
    if threads == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


def _read_local(place: Location, reference: ImageReference) -> bytes | None:
    if not place.is_regular_file():
        return None
    with storage_errors(place), Path(place.uri).open("rb") as file:
        if reference.offset is not None:
            file.seek(reference.offset)
        return file.read(-1 if reference.size is None else reference.size)


@dataclass
class _Span:
    """A range of a file, or all of it, that one request fetches for several references."""

    path: str
    start: int | None
    stop: int | None
    slots: list[int]

    def part(self, content: bytes, reference: ImageReference) -> bytes:
        """Return the part of the span's content that a reference names."""
        if reference.offset is None or self.start is None:
            return content
        first = reference.offset - self.start
        return content[first : first + (reference.size or 0)]


def _spans(paths: Sequence[str], references: Sequence[ImageReference]) -> list[_Span]:
    spans: list[_Span] = []
    order = sorted(range(len(paths)), key=lambda slot: (paths[slot], references[slot].offset or 0))
    for slot in order:
        path, (_, start, size) = paths[slot], references[slot]
        stop = None if start is None else start + (size or 0)
        last = spans[-1] if spans and spans[-1].path == path else None
        if last is None or not _is_near(last, start):
            spans.append(_Span(path, start, stop, [slot]))
            continue
        last.slots.append(slot)
        if last.stop is not None and stop is not None:
            last.stop = max(last.stop, stop)
    return spans


def _is_near(last: _Span, start: int | None) -> bool:
    """Return True if a part from `start` on is fetched with the span before it in the same file."""
    if start is None or last.stop is None:
        return start is None and last.stop is None
    return start - last.stop <= _MAX_GAP_BYTES


def _or_none(content: Any) -> bytes | None:
    """Return the content of a request, None if there is no such file; raise other errors."""
    if isinstance(content, FileNotFoundError):
        return None
    if isinstance(content, BaseException):
        raise content
    return content
