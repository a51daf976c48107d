"""Prepared data sets, opened for reading any rows of them."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clippo_core.errors import SampleError
from pipelines.ingest.manifest import SCHEMA, Manifest, RawSample, read_manifest
from pipelines.storage import Location, storage_errors

DATA_VARIABLE = "CLIPPO_DATA"


def data_cache() -> Location:
    """Where `prepare` puts data sets: $CLIPPO_DATA, else ~/.cache/clippo."""
    return Location.of(os.environ.get(DATA_VARIABLE) or Path.home() / ".cache" / "clippo")


def locate_source(name: str) -> Location:
    """The folder of a data set: a URI, a path that exists, or a name in the data cache."""
    if "://" in name or name.startswith(("/", ".", "~")) or Path(name).is_dir():
        return Location.of(name)
    return data_cache() / name


@dataclass(frozen=True)
class Source:
    """An open data set."""

    folder: Location
    manifest: Manifest

    @property
    def name(self) -> str:
        """What the manifest calls it."""
        return self.manifest.name

    @property
    def num_rows(self) -> int:
        """Rows of all shards."""
        return self.manifest.num_rows

    def read(self, rows: Sequence[int] | np.ndarray[Any, Any]) -> list[RawSample]:
        """The samples in the given rows, in that order; each row group is read once.

        Raises:
            SampleError: if a shard is missing or not what the manifest says.
        """
        wanted = np.asarray(rows, np.int64)
        shard_ends = np.cumsum([shard.num_rows for shard in self.manifest.shards])
        shard_of_row = np.searchsorted(shard_ends, wanted, side="right")
        samples: list[RawSample | None] = [None] * len(wanted)
        for number in np.unique(shard_of_row):
            chosen = np.flatnonzero(shard_of_row == number)
            start = shard_ends[number] - self.manifest.shards[number].num_rows
            for position, sample in self._read_shard(int(number), wanted[chosen] - start):
                samples[chosen[position]] = sample
        return [sample for sample in samples if sample is not None]

    def __iter__(self) -> Iterator[RawSample]:
        """All samples, shard by shard."""
        for number, shard in enumerate(self.manifest.shards):
            file = self._open(number)
            for group in range(file.metadata.num_row_groups):
                yield from _to_samples(file.read_row_group(group, columns=SCHEMA.names))
            if file.metadata.num_rows != shard.num_rows:
                raise self._wrong_shard(number, f"it has {file.metadata.num_rows} rows")

    def _read_shard(
        self, number: int, rows: np.ndarray[Any, Any]
    ) -> Iterator[tuple[int, RawSample]]:
        """Pairs of the position in `rows` and the sample, in the order of the file."""
        group_rows = self.manifest.shards[number].row_group_rows
        group_of_row = rows // group_rows
        file = self._open(number)
        for group in np.unique(group_of_row):
            if group >= file.metadata.num_row_groups:
                raise self._wrong_shard(number, f"it has no row group {group}")
            with storage_errors(self.folder):
                table = file.read_row_group(int(group), columns=SCHEMA.names)
            positions = np.flatnonzero(group_of_row == group)
            within = rows[positions] - group * group_rows
            yield from zip(positions.tolist(), _to_samples(table.take(within)), strict=True)

    def _open(self, number: int) -> pq.ParquetFile:
        shard = self.manifest.shards[number]
        try:
            return _open_parquet(f"{self.folder.uri}/{shard.path}", shard.sha256)
        except (OSError, pa.ArrowException) as error:
            raise self._wrong_shard(number, str(error)) from None

    def _wrong_shard(self, number: int, problem: str) -> SampleError:
        shard = self.manifest.shards[number]
        return SampleError(
            f"{self.folder.uri}/{shard.path} is not what the manifest says ({shard.num_rows} "
            f"rows): {problem}; prepare the data set again"
        )


def open_source(uri: str) -> Source:
    """Open a data set by its folder.

    Raises:
        SampleError: if it is no prepared data set.
    """
    folder = Location.of(uri)
    return Source(folder, read_manifest(folder))


@functools.lru_cache(maxsize=128)
def _open_parquet(uri: str, _sha256: str) -> pq.ParquetFile:
    """Open a shard once per process; the digest tells it from a successor of the same name."""
    location = Location.of(uri)
    fs, path = location.open_fs()
    file = pq.ParquetFile(path if location.is_local else fs.open(path, "rb"), memory_map=True)
    missing = [name for name in SCHEMA.names if name not in file.schema_arrow.names]
    if missing:
        raise SampleError(
            f"{uri} has the columns {file.schema_arrow.names}; expected {SCHEMA.names}"
        )
    return file


def _to_samples(table: pa.Table) -> list[RawSample]:
    columns = (table.column(name).to_pylist() for name in SCHEMA.names)
    return [RawSample(*row) for row in zip(*columns, strict=True)]
