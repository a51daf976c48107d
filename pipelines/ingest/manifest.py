"""A prepared data set: Parquet shards and a manifest.json that says what is where.

Every set has the same columns, whatever it was made from: `key` (string, unique), `image` (an
encoded picture), `captions` (list of strings) and `class_id` (int32, null without classes).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from clippo_core.codec import from_json, to_json
from clippo_core.config import Config, require
from clippo_core.errors import ConfigError, SampleError
from pipelines.storage import Location

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("image", pa.binary()),
        pa.field("captions", pa.list_(pa.string())),
        pa.field("class_id", pa.int32()),
    ]
)


class RawSample(NamedTuple):
    """One row of a data set, nothing decoded yet."""

    key: str
    image: bytes | None
    captions: Sequence[str | None] | None
    class_id: int | None


@dataclass(frozen=True, kw_only=True)
class Shard(Config):
    """One Parquet file."""

    path: str
    """Relative to the manifest."""
    num_rows: int
    """Rows in it."""
    row_group_rows: int
    """Rows in each of its row groups but the last."""
    sha256: str
    """Digest of the file."""

    def __post_init__(self) -> None:
        require(self.num_rows >= 1, f"shard {self.path} has {self.num_rows} rows; expected >= 1")
        require(self.row_group_rows >= 1, f"shard {self.path}: row_group_rows must be >= 1")
        parts = self.path.split("/")
        require(
            ".." not in parts and not self.path.startswith("/") and "://" not in self.path,
            f"shard path {self.path!r} leads out of the data set's folder",
        )


@dataclass(frozen=True, kw_only=True)
class Manifest(Config):
    """What a prepared data set holds."""

    format_version: int = FORMAT_VERSION
    """Of this file."""
    name: str
    """What it is called in logs and results."""
    shards: tuple[Shard, ...]
    """In the order that rows are counted in."""
    class_names: tuple[str, ...] = ()
    """Name of each class_id; empty without classes."""
    licence: str = "unknown"
    """Of the content."""
    origin: str = ""
    """Where the content came from."""
    num_rejected: int = 0
    """Rows that prepare could not use; listed in rejects.jsonl beside this file."""

    @property
    def num_rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.num_rows for shard in self.shards)

    @property
    def digest(self) -> str:
        """Short digest of the content; the same rows in the same order give the same one."""
        content = "".join(f"{shard.num_rows}:{shard.sha256}\n" for shard in self.shards)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def read_manifest(folder: Location) -> Manifest:
    """Read the manifest of a data set.

    Raises:
        SampleError: if there is none, or it is damaged or of another version.
    """
    try:
        content = (folder / MANIFEST_FILE).read_bytes()
    except FileNotFoundError:
        raise SampleError(
            f"{folder.uri} is no prepared data set: it has no {MANIFEST_FILE}. Make one with one "
            "of\n  python -m pipelines prepare fashion_mnist\n"
            "  python -m pipelines prepare folder PATH\n  python -m pipelines prepare csv FILE"
        ) from None
    try:
        manifest = from_json(Manifest, content, where=f"{folder.uri}/{MANIFEST_FILE}")
    except ConfigError as error:
        raise SampleError(str(error)) from None
    if manifest.format_version != FORMAT_VERSION or not manifest.shards:
        raise SampleError(
            f"{folder.uri}: manifest of format {manifest.format_version} with "
            f"{len(manifest.shards)} shards; expected format {FORMAT_VERSION} and at least one"
        )
    return manifest


@dataclass
class ShardWriter:
    """Writes samples into shards, and the manifest last, so that a half-written set has none.

    Row groups are small on purpose: a run of consecutive rows is read without much around it.
    """

    folder: Location
    name: str
    class_names: Sequence[str] = ()
    licence: str = "unknown"
    origin: str = ""
    rows_per_shard: int = 8192
    row_group_rows: int = 64
    _pending: list[RawSample] = field(default_factory=list)
    _shards: list[Shard] = field(default_factory=list)
    _rejects: list[dict[str, str]] = field(default_factory=list)

    def add(self, sample: RawSample) -> None:
        """Take one sample."""
        self._pending.append(sample)
        if len(self._pending) == self.rows_per_shard:
            self._write_shard()

    def reject(self, key: str, reason: str, detail: str = "") -> None:
        """Note a row that cannot be used."""
        self._rejects.append({"key": key, "reason": reason, "detail": detail})

    def close(self) -> Manifest:
        """Write what is left, the rejects, and the manifest.

        Raises:
            SampleError: if there was no sample.
        """
        if self._pending:
            self._write_shard()
        if not self._shards:
            reasons = sorted({reject["reason"] for reject in self._rejects})
            raise SampleError(
                f"{self.name}: not one usable sample ({len(self._rejects)} rejected: "
                f"{', '.join(reasons) or 'none found'})"
            )
        if self._rejects:
            lines = [f"{json.dumps(reject, ensure_ascii=False)}\n" for reject in self._rejects]
            (self.folder / "rejects.jsonl").write_bytes("".join(lines).encode())
        manifest = Manifest(
            name=self.name,
            shards=tuple(self._shards),
            class_names=tuple(self.class_names),
            licence=self.licence,
            origin=self.origin,
            num_rejected=len(self._rejects),
        )
        (self.folder / MANIFEST_FILE).write_bytes(to_json(manifest).encode())
        return manifest

    def _write_shard(self) -> None:
        columns = dict(zip(SCHEMA.names, zip(*self._pending, strict=True), strict=True))
        table = pa.table({name: list(values) for name, values in columns.items()}, schema=SCHEMA)
        buffer = io.BytesIO()
        # Pictures are compressed already.
        compression = {name: "zstd" for name in SCHEMA.names if name != "image"}
        pq.write_table(
            table,
            buffer,
            row_group_size=self.row_group_rows,
            use_dictionary=["captions.list.element"],  # pyright: ignore[reportArgumentType]
            compression=compression | {"image": "none"},  # pyright: ignore[reportArgumentType]
        )
        path = f"shard-{len(self._shards):05d}.parquet"
        (self.folder / path).write_bytes(buffer.getvalue())
        self._shards.append(
            Shard(
                path=path,
                num_rows=len(self._pending),
                row_group_rows=self.row_group_rows,
                sha256=hashlib.sha256(buffer.getvalue()).hexdigest(),
            )
        )
        self._pending.clear()
