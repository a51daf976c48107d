"""Indexes of data that stays where it is, neither moved nor copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from clippo_core.errors import SampleError
from pipelines.datasets.files import (
    CONCURRENT_REQUESTS,
    for_each,
    holds_bytes,
    holds_captions,
    problem_of_types,
    python_values,
)
from pipelines.datasets.manifest import (
    MAX_CLASSES,
    Columns,
    Manifest,
    Shard,
    refuse_prepared,
    write_manifest,
)
from pipelines.datasets.prepare.pictures import (
    PICTURE_SUFFIXES,
    TABLE_SUFFIXES,
    IndexColumns,
    prepare_csv,
    prepare_folder,
)
from pipelines.datasets.prepare.webdataset import index_webdataset
from pipelines.runtime.storage import Location, storage_errors

_IMAGE_NAMES = ("image", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
_PATH_NAMES = ("image_path", "path", "file", "file_name", "filename", "image_file", "image")
_CAPTION_NAMES = ("captions", "caption", "text", "TEXT", "title", "alt_text")
_KEY_NAMES = ("key", "id", "image_id", "uid", "sample_id", "SAMPLE_ID")


def prepare_index(place: Location, out: Location, *, columns: IndexColumns) -> list[Location]:
    """Write the manifest of data whose format its files tell; return the set's folder.

    The formats are WebDataset tars, Parquet files with pictures or paths of pictures, a table (CSV,
    TSV, JSONL) of paths and captions, and a folder of pictures with captions beside them or in
    class folders.

    Args:
        place: a folder or a file, on a disk or in a bucket.
        out: folder of the data set.
        columns: names of columns (Parquet, tables) or JSON fields (WebDataset).
    """
    refuse_prepared([out])
    base, paths = place, place.files()
    if not paths:
        if not place.exists():
            raise SampleError(f"{place.uri} does not exist, or is empty")
        base, paths = place.parent, [place.name]
    tars = [path for path in paths if path.endswith(".tar")]
    parquets = [path for path in paths if path.endswith(".parquet")]
    if tars:
        return index_webdataset(base, tars, out, caption_fields=columns.captions)
    if parquets:
        return index_parquet(base, parquets, out, columns=columns)
    if len(paths) == 1 and place.suffix in TABLE_SUFFIXES:
        return prepare_csv(place, out, columns=columns, copy=False)
    if any(f".{path.rpartition('.')[2].lower()}" in PICTURE_SUFFIXES for path in paths):
        return prepare_folder(place, out, copy=False)
    raise SampleError(
        f"{place.uri} holds {len(paths)} files, none of them a .tar, a .parquet, a .csv, .tsv or "
        ".jsonl table, or a picture; for texts: python -m pipelines prepare texts"
    )


def index_parquet(
    base: Location, paths: Sequence[str], out: Location, *, columns: IndexColumns
) -> list[Location]:
    """Write the manifest of Parquet files as they are; only their footers are read.

    Args:
        base: folder of the files, and of the pictures if they hold paths.
        paths: paths of the files, relative to it.
        out: folder of the data set.
        columns: names of columns that cannot be told by their usual names.
    """
    threads = 1 if base.is_local else CONCURRENT_REQUESTS
    footers = for_each(lambda path: _footer(base, path), paths, threads=threads)
    schema = footers[0][1]
    found = _columns(schema, columns, where=base.inside(paths[0]).uri)
    for (_, other), path in zip(footers, paths, strict=True):
        if missing := [name for name in found.names if name not in other.names]:
            raise SampleError(
                f"{base.inside(path).uri} has no column {missing[0]!r}, which {paths[0]} has"
            )
    shards = [shard for shard, _ in footers if shard.num_rows]
    if not shards:
        raise SampleError(f"{base.uri} holds {len(paths)} Parquet files, all without rows")
    names: tuple[str, ...] = ()
    if (column := found.class_id) is not None:
        labels = for_each(lambda path: _labels(base, path, column), paths, threads=threads)
        names = _class_names(set().union(*labels))
    write_manifest(
        out,
        shards,
        Manifest(
            name=base.name,
            columns=found,
            shards_at=base.uri,
            files_at=base.uri,
            class_names=names,
            origin=base.uri,
        ),
    )
    return [out]


@contextmanager
def _open_parquet(place: Location) -> Iterator[pq.ParquetFile]:
    fs, file = place.open_fs()
    try:
        with storage_errors(place), fs.open(file, "rb", cache_type="none") as stream:
            yield pq.ParquetFile(stream)
    except pa.ArrowException as error:
        raise SampleError(f"{place.uri} is no Parquet file, or a damaged one: {error}") from None


def _footer(base: Location, path: str) -> tuple[Shard, pa.Schema]:
    place = base.inside(path)
    fs, file = place.open_fs()
    with storage_errors(place):
        info = fs.info(file)
    version = f"{info['size']}-{info.get('ETag') or info.get('mtime', '')}"
    with _open_parquet(place) as parquet:
        return Shard(path, parquet.metadata.num_rows, version), parquet.schema_arrow


def _columns(schema: pa.Schema, given: IndexColumns, *, where: str) -> Columns:
    """Return the columns by content: as given, else by the usual names and their types."""
    kinds = {field.name: field.type for field in schema}
    asked = [given.image, given.key, given.class_name, *given.captions]
    if absent := [name for name in asked if name is not None and name not in kinds]:
        raise SampleError(f"{where} has no column {absent[0]!r}; it has {schema.names}")

    def first(names: Sequence[str], fits: Callable[[pa.DataType], bool]) -> str | None:
        return next((name for name in names if name in kinds and fits(kinds[name])), None)

    image = first([given.image] if given.image else _IMAGE_NAMES, holds_bytes)
    path = None if image else first([given.image] if given.image else _PATH_NAMES, holds_captions)
    caption = first(_CAPTION_NAMES, holds_captions)
    captions = given.captions or ((caption,) if caption else ())
    if not captions or not (image or path):
        raise SampleError(
            f"{where} has the columns {schema.names}; which of them are the picture and the "
            "captions? Name them with --image-column and --caption-columns"
        )
    columns = Columns(
        key=given.key or first(_KEY_NAMES, lambda _: True),
        image=image,
        image_path=path,
        image_offset=None,
        image_size=None,
        captions=captions,
        languages=None,
        question=None,
        class_id=given.class_name,
        score=None,
    )
    if problem := problem_of_types(schema, columns):
        raise SampleError(f"{where} {problem}")
    return columns


def _labels(base: Location, path: str, column: str) -> set[int | str]:
    with _open_parquet(base.inside(path)) as parquet:
        labels = python_values(parquet.read(columns=[column]).column(0).unique())
    return {label for label in labels if label is not None}


def _class_names(labels: set[int | str]) -> tuple[str, ...]:
    """Return the sorted names of classes; for numbers, digits up to the largest."""
    numbers = [label for label in labels if isinstance(label, int)]
    if numbers and max(numbers) >= MAX_CLASSES:
        raise SampleError(
            f"the column of classes goes up to {max(numbers)}; expected numbers from 0 on, below "
            f"{MAX_CLASSES}: is it an identifier?"
        )
    if numbers:
        return tuple(str(number) for number in range(max(numbers) + 1))
    return tuple(sorted(str(label) for label in labels))
