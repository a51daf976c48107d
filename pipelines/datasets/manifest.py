"""The two files that make a data set: manifest.json describes it, shards.parquet lists files.

The samples themselves are rows of Parquet files, our own (`ShardWriter`) or anybody's: `Columns`
names the columns. A picture is either in its row, or the row names its place: a file, or a part of
one such as a member of a tar. So one reader (`sources`) serves every format, and any sample can be
named by its row without scanning.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from clippo_core.config import Config, from_json, require, to_json
from clippo_core.errors import ConfigError, SampleError, did_you_mean
from clippo_core.unicode import is_unicode, readable
from pipelines.runtime.storage import Location

MANIFEST_FILE = "manifest.json"
SHARDS_FILE = "shards.parquet"
REJECTS_FILE = "rejects.jsonl"
FORMAT_VERSION = 2

#: The kinds of samples, each with the way in which a pair is made of one.
SampleKind = Literal[
    "image-text",  # a picture and its captions, one of which is drawn
    "next-sentence",  # a text cut into sentences (`captions`); two in succession are drawn
    "parallel-texts",  # texts that say the same (`captions`), of which two are drawn
    "labelled-text",  # one text or several, with a class or a score: for evaluation
    "image-question",  # a picture, a question, and its answers (`captions`): for evaluation
]
TRAINABLE_KINDS: tuple[SampleKind, ...] = ("image-text", "next-sentence", "parallel-texts")

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("image", pa.binary()),
        pa.field("image_path", pa.string()),
        pa.field("image_offset", pa.int64()),
        pa.field("image_size", pa.int64()),
        pa.field("captions", pa.list_(pa.string())),
        pa.field("languages", pa.list_(pa.string())),
        pa.field("question", pa.string()),
        pa.field("class_id", pa.int32()),
        pa.field("score", pa.float32()),
    ]
)
_SHARDS_SCHEMA = pa.schema(
    [("path", pa.string()), ("num_rows", pa.int64()), ("version", pa.string())]
)
#: Most classes of a set: their names are held in memory.
MAX_CLASSES = 1_000_000
#: Size of a shard at which it is written, however few rows it has.
_MAX_SHARD_BYTES = 256 * 2**20


class ImageReference(NamedTuple):
    """The place of an encoded picture: a file, or `size` bytes from `offset` on in one."""

    path: str
    offset: int | None = None
    size: int | None = None


class RawSample(NamedTuple):
    """One row of a data set, nothing decoded yet; `SampleKind` says how a pair is made of it.

    Attributes:
        key: name that is unique in the set.
        image: encoded picture.
        captions: texts of the sample.
        class_id: index into the manifest's class names.
        languages: language of each caption (BCP 47); None where it is not known.
        question: question about the picture.
        score: score, such as the similarity that people gave to two texts.
        image_at: place of a picture that is not in the row; `Source` fetches the bytes.
    """

    key: str
    image: bytes | None
    captions: Sequence[str | None] | None
    class_id: int | None = None
    languages: Sequence[str] | None = None
    question: str | None = None
    score: float | None = None
    image_at: ImageReference | None = None


@dataclass(frozen=True, kw_only=True)
class Columns(Config):
    """The columns of the shards by content; the defaults are the names in our own shards."""

    key: str | None = "key"
    """Unique name of the sample; None numbers the rows of each file."""
    image: str | None = "image"
    """Encoded picture, or a struct with a field `bytes`."""
    image_path: str | None = "image_path"
    """Path of a picture outside the row, relative to the manifest's `files_at`."""
    image_offset: str | None = "image_offset"
    """Offset of the picture in that file; needs image_size."""
    image_size: str | None = "image_size"
    """Length of the picture in bytes."""
    captions: tuple[str, ...] = ("captions",)
    """Columns of strings or of lists of strings; all of them together are the captions."""
    languages: str | None = "languages"
    """List of the captions' languages."""
    question: str | None = "question"
    """Question about the picture."""
    class_id: str | None = "class_id"
    """Index into class_names, or one of these names."""
    score: str | None = "score"
    """Number, such as a similarity."""

    @property
    def names(self) -> list[str]:
        """Names of all columns that are there."""
        single = (
            *(self.key, self.image, self.image_path, self.image_offset, self.image_size),
            *(self.languages, self.question, self.class_id, self.score),
        )
        return [name for name in single if name is not None] + list(self.captions)


@dataclass(frozen=True, kw_only=True)
class Manifest(Config):
    """The description of a data set."""

    format_version: int = FORMAT_VERSION
    """Version of the manifest's format."""
    name: str
    """Name of the set in logs and results."""
    kind: SampleKind = "image-text"
    """Kind of the samples."""
    num_rows: int = 0
    """Number of samples in all shards; filled in as the manifest is written."""
    digest: str = ""
    """Short digest of the content: the same shards in the same order, with the same class captions,
    give the same one."""
    evaluation_only: bool = False
    """True if the set must not be trained on."""
    columns: Columns = field(default_factory=Columns)
    """Columns of the shards."""
    shards_at: str | None = None
    """Folder or URI that the shards' paths are relative to; None is the manifest's own."""
    files_at: str | None = None
    """Folder or URI that the pictures' paths are relative to; None is the manifest's own."""
    class_names: tuple[str, ...] = ()
    """Name of each class_id; empty without classes."""
    class_captions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of each class in some languages (BCP 47), "" where a language has none. They are the
    captions of all rows that have none of their own."""
    held_out_languages: tuple[str, ...] = ()
    """Languages of class_captions in which no set of this name is trained on."""
    licence: str = "unknown"
    """Licence of the content."""
    origin: str = ""
    """Source of the content."""
    num_rejected: int = 0
    """Number of rows that prepare could not use; listed in rejects.jsonl beside this file."""

    def __post_init__(self) -> None:
        count = len(self.class_names)
        for language, names in self.class_captions.items():
            require(
                len(names) == count,
                f"class_captions has {len(names)} names in {language!r} for {count} classes; "
                "expected one for each",
            )

    @property
    def captions_json(self) -> str:
        """Class captions as JSON, which is the same for equal ones; "" where there are none."""
        return json.dumps(self.class_captions, sort_keys=True) if self.class_captions else ""


class Shard(NamedTuple):
    """A Parquet file of a data set.

    Attributes:
        path: path relative to the manifest's `shards_at`.
        num_rows: number of its rows.
        version: tells it from another file of that name: a digest, or size and modification time.
    """

    path: str
    num_rows: int
    version: str


def read_manifest(folder: Location) -> Manifest:
    """Return the manifest of a data set.

    Raises:
        SampleError: if there is none, or it is damaged or of another version.
    """
    try:
        content = (folder / MANIFEST_FILE).read_bytes()
    except FileNotFoundError:
        raise SampleError(
            f"{folder.uri} is no prepared data set: it has no {MANIFEST_FILE}{_way_on(folder)}"
        ) from None
    where = f"{folder.uri}/{MANIFEST_FILE}"
    if (version := _format_version(content)) not in (None, FORMAT_VERSION):
        raise SampleError(
            f"{where} is of format {version}; this version reads {FORMAT_VERSION}: remove the "
            "folder and prepare the data set again"
        )
    try:
        manifest = from_json(Manifest, content, where=where)
    except ConfigError as error:
        raise SampleError(str(error)) from None
    if manifest.num_rows < 1:
        raise SampleError(f"{where} says num_rows={manifest.num_rows}; expected 1 or more")
    return manifest


def _way_on(folder: Location) -> str:
    """Return the end of an error about a folder without a manifest."""
    inside = [name for name in folder.names() if (folder / name / MANIFEST_FILE).exists()]
    if inside:
        return f"; name one of those in it: {', '.join((folder / name).uri for name in inside)}"
    near = did_you_mean(folder.name, folder.parent.names())
    return (
        f"{near}. Make one with one of\n  python -m pipelines prepare fashion_mnist\n"
        "  python -m pipelines prepare folder PATH\n  python -m pipelines prepare csv FILE\n"
        "  python -m pipelines prepare index URI"
    )


def digest_of(shards: Iterable[Shard | tuple[str, int, str]], *, captions: str = "") -> str:
    """Return the `Manifest.digest` of a set.

    Args:
        shards: shards, given as such or as (path, num_rows, version).
        captions: the set's class captions, as `Manifest.captions_json` has them.
    """
    rows = "".join(f"{num_rows}:{version}\n" for _, num_rows, version in shards)
    return hashlib.sha256((rows + captions).encode()).hexdigest()[:16]


def is_prepared(folder: Location) -> bool:
    """Return True if the folder holds a data set that this version reads."""
    try:
        read_manifest(folder)
    except SampleError:
        return False
    return True


def refuse_prepared(folders: Iterable[Location]) -> None:
    """Make sure that no data set is overwritten.

    Raises:
        ConfigError: if there is a data set in one of the folders.
    """
    for folder in folders:
        if is_prepared(folder):
            raise ConfigError(
                f"{folder.uri} is a data set already; remove it or name another --out"
            )


def write_manifest(folder: Location, shards: Sequence[Shard], manifest: Manifest) -> Manifest:
    """Write a data set's two files, the manifest last: a half-written set has none.

    Args:
        folder: folder of the data set.
        shards: shards in the order that rows are counted in.
        manifest: description of the set; `num_rows` and `digest` are computed here.

    Returns:
        The manifest that was written.
    """
    columns = dict(zip(_SHARDS_SCHEMA.names, zip(*shards, strict=True), strict=True))
    table = pa.table({name: list(v) for name, v in columns.items()}, schema=_SHARDS_SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    (folder / SHARDS_FILE).write_bytes(buffer.getvalue())
    manifest = dataclasses.replace(
        manifest,
        num_rows=sum(shard.num_rows for shard in shards),
        digest=digest_of(shards, captions=manifest.captions_json),
    )
    (folder / MANIFEST_FILE).write_bytes(to_json(manifest).encode())
    return manifest


@dataclass
class ShardWriter:
    """A writer of samples into shards; the manifest comes last, so a half-written set has none.

    Row groups are small on purpose: a run of consecutive rows is read without much around it. Since
    training draws runs of rows, neighbours should not be alike: `shuffle` keeps a (small) set in
    memory and writes it in the order of its keys' digests.
    """

    folder: Location
    name: str
    kind: SampleKind = "image-text"
    class_names: Sequence[str] = ()
    class_captions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    held_out_languages: Sequence[str] = ()
    licence: str = "unknown"
    origin: str = ""
    evaluation_only: bool = False
    files_at: str | None = None
    shuffle: bool = False
    rows_per_shard: int = 8192
    row_group_rows: int = 64
    _held: list[RawSample] = field(default_factory=list)
    _pending: list[RawSample] = field(default_factory=list)
    _pending_bytes: int = 0
    _shards: list[Shard] = field(default_factory=list)
    _rejects: list[dict[str, str]] = field(default_factory=list)

    def add(self, sample: RawSample) -> None:
        """Add one sample; one with a text that is not Unicode is recorded as a reject."""
        path = sample.image_at.path if sample.image_at is not None else None
        texts = [*(sample.captions or ()), *(sample.languages or ()), sample.question, path]
        if wrong := [text for text in texts if text is not None and not is_unicode(text)]:
            self.reject(sample.key, "invalid_unicode", wrong[0][:80])
            return
        sample = sample._replace(key=readable(sample.key))
        if self.shuffle:
            self._held.append(sample)
        else:
            self._append(sample)

    def reject(self, key: str, reason: str, detail: str = "") -> None:
        """Record a row that cannot be used."""
        self._rejects.append({"key": readable(key), "reason": reason, "detail": readable(detail)})

    def close(self) -> Manifest:
        """Write the remaining samples, the rejects, and the manifest.

        Raises:
            SampleError: if there was no sample.
        """
        for sample in sorted(self._held, key=lambda sample: shuffled_place(sample.key)):
            self._append(sample)
        if self._pending:
            self._write_shard()
        if not self._shards:
            _write_rejects(self.folder, self._rejects)
            reasons = sorted({reject["reason"] for reject in self._rejects})
            raise SampleError(
                f"{self.name}: not one usable sample ({len(self._rejects)} rejected: "
                f"{', '.join(reasons) or 'none found'})"
            )
        return finish_data_set(
            self.folder,
            self._shards,
            self._rejects,
            Manifest(
                name=self.name,
                kind=self.kind,
                evaluation_only=self.evaluation_only,
                files_at=self.files_at,
                class_names=tuple(self.class_names),
                class_captions=dict(self.class_captions),
                held_out_languages=tuple(self.held_out_languages),
                licence=self.licence,
                origin=self.origin,
            ),
        )

    def _append(self, sample: RawSample) -> None:
        self._pending.append(sample)
        self._pending_bytes += len(sample.image or b"")
        if len(self._pending) == self.rows_per_shard or self._pending_bytes > _MAX_SHARD_BYTES:
            self._write_shard()

    def _write_shard(self) -> None:
        if not self._shards:
            # A set that is being overwritten must not count as one until it is whole again.
            (self.folder / MANIFEST_FILE).remove_file()
        columns = dict(zip(SCHEMA.names, zip(*map(_row, self._pending), strict=True), strict=True))
        table = pa.table({name: list(values) for name, values in columns.items()}, schema=SCHEMA)
        buffer = io.BytesIO()
        # Pictures are compressed already.
        compression = {name: "zstd" for name in SCHEMA.names if name != "image"}
        pq.write_table(
            table,
            buffer,
            row_group_size=self.row_group_rows,
            use_dictionary=["captions.list.element", "languages.list.element", "image_path"],  # pyright: ignore[reportArgumentType]
            compression=compression | {"image": "none"},  # pyright: ignore[reportArgumentType]
        )
        path = f"shard-{len(self._shards):05d}.parquet"
        (self.folder / path).write_bytes(buffer.getvalue())
        version = hashlib.sha256(buffer.getvalue()).hexdigest()
        self._shards.append(Shard(path, len(self._pending), version))
        self._pending.clear()
        self._pending_bytes = 0


def finish_data_set(
    folder: Location,
    shards: Sequence[Shard],
    rejects: Sequence[dict[str, str]],
    manifest: Manifest,
) -> Manifest:
    """Write the list of rejects, if any, and the manifest; see `write_manifest`."""
    _write_rejects(folder, rejects)
    return write_manifest(folder, shards, dataclasses.replace(manifest, num_rejected=len(rejects)))


def shuffled_place(key: str) -> bytes:
    """Return a sample's place in a shuffled set, which depends on its key alone."""
    return hashlib.sha256(f"order of {key}".encode(errors="surrogatepass")).digest()


def _write_rejects(folder: Location, rejects: Sequence[dict[str, str]]) -> None:
    place = folder / REJECTS_FILE
    place.remove_file()
    if rejects:
        lines = [f"{json.dumps(reject, ensure_ascii=False)}\n" for reject in rejects]
        place.write_bytes("".join(lines).encode())


def _row(sample: RawSample) -> tuple[object, ...]:
    """Return a sample's values in the order of `SCHEMA`."""
    return (
        *(sample.key, sample.image, *(sample.image_at or (None, None, None))),
        *(sample.captions, sample.languages, sample.question, sample.class_id, sample.score),
    )


def _format_version(content: bytes) -> object:
    """Return the format version that a manifest states; None where it is no JSON object."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found.get("format_version") if isinstance(found, dict) else None
