"""Open data sets, whose rows can be read in any order and from any storage format."""

from __future__ import annotations

import dataclasses
import functools
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from clippo_core.errors import SampleError
from pipelines.datasets.files import (
    CONCURRENT_REQUESTS,
    ParquetShard,
    fetch_files,
    for_each,
    open_shard,
    python_values,
)
from pipelines.datasets.manifest import (
    MANIFEST_FILE,
    SHARDS_FILE,
    ImageReference,
    Manifest,
    RawSample,
    Shard,
    digest_of,
    read_manifest,
)
from pipelines.runtime.storage import Location, storage_errors

DATA_VARIABLE = "CLIPPO_DATA"
#: Number of pictures that are fetched at a time when a whole set is read.
_IMAGES_AT_A_TIME = 512


def data_cache() -> Location:
    """Return the folder where `prepare` puts data sets: $CLIPPO_DATA, else ~/.cache/clippo."""
    return Location.of(os.environ.get(DATA_VARIABLE) or Path.home() / ".cache" / "clippo")


def locate_source(name: str) -> Location:
    """Return the folder of a data set: a URI, a path that exists, or a name in the data cache."""
    if "://" in name or name.startswith(("/", ".", "~")) or Path(name).is_dir():
        return Location.of(name)
    return data_cache() / name


@dataclass(frozen=True)
class ShardTable:
    """The shards of a data set in columns: a million of them take a few dozen megabytes.

    Attributes:
        paths: paths of the files.
        versions: versions of the files.
        ends: number of rows up to and including each shard.
    """

    paths: pa.StringArray
    versions: pa.StringArray
    ends: Int64[np.ndarray, " shard"]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> Shard:
        rows = int(self.ends[number]) - self.start(number)
        return Shard(self.paths[number].as_py(), rows, self.versions[number].as_py())

    def start(self, number: int) -> int:
        """Return the first row of a shard."""
        return int(self.ends[number - 1]) if number else 0


@dataclass(frozen=True)
class Source:
    """An open data set."""

    folder: Location
    manifest: Manifest

    @property
    def name(self) -> str:
        """Name in the manifest."""
        return self.manifest.name

    @property
    def num_rows(self) -> int:
        """Number of rows of all shards."""
        return self.manifest.num_rows

    @property
    def shards(self) -> ShardTable:
        """Files of the set, whose list is read when first asked for."""
        return _read_shards(self.folder.uri, self.manifest.digest, self._captions_json)

    @functools.cached_property
    def _captions_json(self) -> str:
        return self.manifest.captions_json

    @functools.cached_property
    def captions_of_class(self) -> list[tuple[list[str], list[str | None]]]:
        """Languages and captions of each class, for rows that have none of their own."""
        found: list[tuple[list[str], list[str | None]]] = []
        for number in range(len(self.manifest.class_names)):
            named = [(c, names[number]) for c, names in self.manifest.class_captions.items()]
            named = [(language, name) for language, name in named if name]
            found.append(([language for language, _ in named], [name for _, name in named]))
        return found

    def read(self, rows: Sequence[int] | np.ndarray[Any, Any]) -> list[RawSample]:
        """Return the samples in the given rows, in that order; each row group is read once.

        Pictures come as bytes, or as None where a file is missing.

        Raises:
            SampleError: if a shard is missing or not what the manifest says.
            StorageError: if the storage does not answer.
        """
        wanted = np.asarray(rows, np.int64)
        shard_of_row = np.searchsorted(self.shards.ends, wanted, side="right")
        samples: list[RawSample | None] = [None] * len(wanted)

        def read_shard(number: int) -> None:
            chosen = np.flatnonzero(shard_of_row == number)
            within = wanted[chosen] - self.shards.start(number)
            for position, sample in self._read_shard(number, within):
                samples[chosen[position]] = sample

        threads = 1 if self._shards_at.is_local else CONCURRENT_REQUESTS
        for_each(read_shard, np.unique(shard_of_row).tolist(), threads=threads)
        found = [sample for sample in samples if sample is not None]
        assert len(found) == len(wanted)
        return self._with_images(found)

    def __iter__(self) -> Iterator[RawSample]:
        """Yield all samples, shard by shard."""
        for samples in self._groups():
            for start in range(0, len(samples), _IMAGES_AT_A_TIME):
                yield from self._with_images(samples[start : start + _IMAGES_AT_A_TIME])

    def rows(self) -> Iterator[RawSample]:
        """Yield all samples; pictures that lie outside the rows are not fetched."""
        for samples in self._groups():
            yield from samples

    def _groups(self) -> Iterator[list[RawSample]]:
        for number in range(len(self.shards)):
            shard, file = self.shards[number], self._open(number)
            if file.num_rows != shard.num_rows:
                raise self._wrong_shard(shard, f"it has {file.num_rows} rows")
            for group in range(len(file.ends)):
                table = self._read_group(shard, file, group)
                yield self._to_samples(shard, table, file.group_rows(group))

    def read_texts(self, rows: Sequence[int] | np.ndarray[Any, Any]) -> list[RawSample]:
        """Return the samples of `read` without pictures, which are not fetched."""
        columns = self.manifest.columns
        others = {field.name for field in dataclasses.fields(columns)} - {"key", "captions"}
        texts = dataclasses.replace(columns, **dict.fromkeys(others))
        manifest = dataclasses.replace(self.manifest, columns=texts)
        return dataclasses.replace(self, manifest=manifest).read(rows)

    def class_ids(self) -> list[int | None]:
        """Return the class of every row; pictures and texts are not read.

        Raises:
            SampleError: if a shard is missing or not what the manifest says.
            StorageError: if the storage does not answer.
        """
        column, found = self.manifest.columns.class_id, list[int | None]()
        if column is None:
            return [None] * self.num_rows
        for number in range(len(self.shards)):
            file = self._open(number)
            for group in range(len(file.ends)):
                table = self._read_group(self.shards[number], file, group, only=column)
                if column in table.column_names:
                    found += map(self._class_id, python_values(table.column(column)))
                else:
                    found += [None] * len(file.group_rows(group))
        return found

    @property
    def _shards_at(self) -> Location:
        return Location.of(self.manifest.shards_at or self.folder.uri)

    def _read_shard(
        self, number: int, rows: np.ndarray[Any, Any]
    ) -> Iterator[tuple[int, RawSample]]:
        """Yield the position in `rows` of each sample, and the sample, in the order of the file."""
        shard, file = self.shards[number], self._open(number)
        group_of_row = np.searchsorted(file.ends, rows, side="right")
        for group in np.unique(group_of_row).tolist():
            if group >= len(file.ends):
                raise self._wrong_shard(shard, f"it has {file.num_rows} rows")
            positions = np.flatnonzero(group_of_row == group)
            table = self._read_group(shard, file, group)
            numbers = rows[positions]
            within = numbers - file.group_rows(group).start
            samples = self._to_samples(shard, table.take(within), numbers)
            yield from zip(positions.tolist(), samples, strict=True)

    def _open(self, number: int) -> ParquetShard:
        shard = self.shards[number]
        place = self._shards_at.inside(shard.path)
        try:
            return open_shard(place.uri, shard.version, self.manifest.columns)
        except FileNotFoundError:
            raise self._wrong_shard(shard, "the file does not exist") from None
        except pa.ArrowException as error:
            raise self._wrong_shard(shard, str(error)) from None

    def _read_group(
        self, shard: Shard, file: ParquetShard, group: int, *, only: str | None = None
    ) -> pa.Table:
        try:
            with storage_errors(self.folder):
                return file.read(group, only=only)
        except pa.ArrowException as error:
            raise self._wrong_shard(shard, str(error)) from None

    def _wrong_shard(self, shard: Shard, problem: str) -> SampleError:
        return SampleError(
            f"{self._shards_at.inside(shard.path).uri} is not what the manifest says "
            f"({shard.num_rows} rows): {problem}; prepare the data set again"
        )

    def _to_samples(
        self, shard: Shard, table: pa.Table, rows: Sequence[int] | np.ndarray[Any, Any]
    ) -> list[RawSample]:
        """Return rows of a shard as samples; pictures outside the rows as references."""
        names, count = self.manifest.columns, table.num_rows

        def values(name: str | None) -> list[Any]:
            is_there = name is not None and name in table.column_names
            return python_values(table.column(name)) if is_there else [None] * count

        keys = values(names.key) if names.key else [f"{shard.path}:{row}" for row in rows]
        places = map(values, (names.image_path, names.image_offset, names.image_size))
        class_ids = list(map(self._class_id, values(names.class_id)))
        captions = _captions([values(name) for name in names.captions], count)
        languages = values(names.languages)
        if self.manifest.class_captions:
            of_class = dict(enumerate(self.captions_of_class))
            for row, number in enumerate(class_ids):
                if not captions[row] and number in of_class:
                    languages[row], captions[row] = of_class[number]
        return list(
            map(
                RawSample,
                map(str, keys),
                map(_image, values(names.image)),
                captions,
                class_ids,
                languages,
                *map(values, (names.question, names.score)),
                [
                    ImageReference(*place) if place[0] else None
                    for place in zip(*places, strict=True)
                ],
            )
        )

    def _class_id(self, value: Any) -> int | None:
        """Return the number of a class, which is given as such or by its name."""
        if isinstance(value, str):
            return class_numbers(self.manifest.class_names).get(value)
        return value

    def _with_images(self, samples: list[RawSample]) -> list[RawSample]:
        """Return the samples with the pictures outside the rows fetched."""
        wanted = [(slot, s.image_at) for slot, s in enumerate(samples) if s.image_at is not None]
        if wanted:
            base = Location.of(self.manifest.files_at or self.folder.uri)
            images = fetch_files(base, [reference for _, reference in wanted])
            for (slot, _), image in zip(wanted, images, strict=True):
                samples[slot] = samples[slot]._replace(image=image)
        return samples


def open_source(uri: str) -> Source:
    """Return a data set by its folder.

    Raises:
        SampleError: if there is no prepared data set.
    """
    folder = Location.of(uri)
    return Source(folder, read_manifest(folder))


@functools.lru_cache(maxsize=16)
def _read_shards(folder: str, digest: str, captions: str) -> ShardTable:
    """Return the shards of a data set, which are read once per process.

    Raises:
        SampleError: if the list of shards is missing, damaged, or not the manifest's.
    """
    place = Location.of(folder) / SHARDS_FILE
    try:
        table = pq.read_table(io.BytesIO(place.read_bytes())).combine_chunks()
        paths, rows, versions = (table.column(n).chunk(0) for n in ("path", "num_rows", "version"))
    except (FileNotFoundError, KeyError, OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise SampleError(
            f"{place.uri} cannot be read ({error}); prepare the data set again"
        ) from None
    shards = ShardTable(paths, versions, np.cumsum(rows.to_numpy(), dtype=np.int64))
    listed = zip(*(column.to_pylist() for column in (paths, rows, versions)), strict=True)
    if digest_of(listed, captions=captions) != digest:
        raise SampleError(
            f"{place.uri} is not the one that {MANIFEST_FILE} was written with; prepare the data "
            "set again"
        )
    return shards


@functools.lru_cache(maxsize=16)
def class_numbers(names: tuple[str, ...]) -> dict[str, int]:
    """Return the number of each name, its place among all names."""
    return {name: number for number, name in enumerate(names)}


def _image(content: Any) -> bytes | None:
    """Return the bytes of a picture, also out of a struct as in data sets of Hugging Face."""
    return content.get("bytes") if isinstance(content, dict) else content


def _captions(columns: Sequence[list[Any]], count: int) -> list[list[str | None] | None]:
    """Return the texts of each row in all its columns, which are strings or lists of strings."""
    if len(columns) == 1 and not any(isinstance(value, str) for value in columns[0]):
        return columns[0]
    joined: list[list[str | None] | None] = []
    for row in range(count):
        values = [column[row] for column in columns if column[row] is not None]
        parts = [value if isinstance(value, list) else [value] for value in values]
        joined.append([text for part in parts for text in part] if parts else None)
    return joined
