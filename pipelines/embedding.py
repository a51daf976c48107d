"""Batch inference: Ray Data embeds pictures and texts into Parquet files.

A unit of work is some rows of the input. Its task writes one Parquet file of a fixed name, so that
a task that is done again overwrites its own file.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from ray.data import DataContext, TaskPoolStrategy

from clippo_core import errors
from clippo_core.checkpoints import load_checkpoint, model_identity
from clippo_core.config import Precision
from clippo_core.encoding import encode_pictures
from clippo_core.errors import ClippoError, ConfigError, SampleError
from clippo_core.modeling import PairModel
from clippo_core.training.precision import autocast
from pipelines.datasets.manifest import MANIFEST_FILE, RawSample
from pipelines.datasets.prepare.pictures import PICTURE_SUFFIXES
from pipelines.datasets.sources import locate_source, open_source
from pipelines.runtime.devices import task_device
from pipelines.runtime.progress import progress
from pipelines.runtime.run_checkpoints import fetched
from pipelines.runtime.storage import Location

#: The leading underscore hides the file from readers of the folder as one Parquet data set.
SUMMARY_FILE = "_embeddings.json"
REJECTS_FILE = "_rejects.jsonl"
UNIT_ROWS = 512
InputKind = Literal["data set", "pictures", "texts"]


@dataclass(frozen=True)
class EmbeddingJob:
    """The input, the model that embeds it, the folder for the results, and the precision."""

    checkpoint: str
    kind: InputKind
    input: str
    out: str
    precision: Precision = "float32"


@dataclass(frozen=True)
class EmbeddingSummary:
    """The number of embeddings that were made, and the model that made them."""

    num_embeddings: int
    num_rejected: int
    model: str


def embed(
    job: EmbeddingJob, *, cpus: float, gpus: float = 0, max_tasks: int | None
) -> EmbeddingSummary:
    """Embed everything in the input.

    Writes `part-*.parquet` with the columns `key`, `kind` ("image" or "text"), `text` (null for
    pictures), `embedding` (unit length) and `model` (its identity), a summary, and the rejects.

    Args:
        job: the input, the model, and the folder for the results.
        cpus: CPUs that Ray sets aside for a task, which decodes on as many.
        gpus: GPUs that Ray sets aside for a task; a part of one lets several tasks share it.
        max_tasks: tasks at a time; None: as many as fit.

    Raises:
        ConfigError: if there are embeddings in `out` already, or torch cannot use the GPUs.
        CheckpointError: if the checkpoint cannot be read.
        SampleError: if the input holds nothing, or nothing of it can be used.
    """
    out = Location.of(job.out)
    if any(name.endswith(".parquet") for name in out.names()):
        raise ConfigError(f"{out.uri} holds Parquet files already; name another folder with --out")
    units = list(split_input(job.kind, job.input))
    DataContext.get_current().enable_progress_bars = False
    summaries = ray.data.from_items(units, override_num_blocks=len(units)).map_batches(
        functools.partial(_embed_unit, job),  # pyright: ignore[reportArgumentType]
        batch_size=1,
        num_cpus=cpus,
        num_gpus=gpus,
        compute=TaskPoolStrategy(size=min(max_tasks or len(units), len(units))),
    )
    rejects, total, model = [], 0, ""
    with progress("embedding", unit="part", total=len(units)) as bar:
        for row in summaries.iter_rows():
            if row["error"]:
                name, message = json.loads(row["error"])
                raise getattr(errors, name)(message)
            total, model = total + row["num_embeddings"], row["model"]
            rejects += json.loads(row["rejects"])
            bar.update()
    if rejects:
        lines = [json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects]
        (out / REJECTS_FILE).write_bytes("".join(lines).encode())
    if not total:
        raise SampleError(
            f"{job.input}: nothing of it could be embedded, see {out.uri}/{REJECTS_FILE}"
        )
    summary = EmbeddingSummary(total, len(rejects), model)
    asked = {"checkpoint": job.checkpoint, "precision": job.precision, "input": job.input}
    (out / SUMMARY_FILE).write_json(asked | asdict(summary))
    return summary


def input_kind(name: str) -> tuple[InputKind, Location]:
    """Tell a prepared data set, a folder of pictures, and a file of one text a line apart.

    Raises:
        SampleError: if it is none of these.
    """
    place = locate_source(name)
    if (place / MANIFEST_FILE).exists():
        return "data set", place
    if place.is_local and Path(place.uri).is_dir():
        return "pictures", place
    as_file = Location.of(name)
    if name.endswith(".txt") and as_file.exists():
        return "texts", as_file
    raise SampleError(
        f"{name} is no prepared data set, no folder of pictures on this disk, and no .txt file of "
        "one text a line"
    )


def split_input(
    kind: InputKind, place: str, *, limit: int | None = None
) -> Iterator[dict[str, Any]]:
    """Split an input into parts: rows of a data set, or the paths or texts themselves.

    Args:
        kind: kind of the input.
        place: where it is, as `input_kind` found it.
        limit: take the first so many; None: all.

    Raises:
        SampleError: if there is nothing.
    """
    items: Sequence[str] = ()
    if kind == "data set":
        count = open_source(place).num_rows
    else:
        items = _picture_paths(place) if kind == "pictures" else _text_lines(place)
        count = len(items)
    if not count:
        raise SampleError(f"{place} holds no {kind}")
    count = count if limit is None else min(count, limit)
    for number, start in enumerate(range(0, count, UNIT_ROWS)):
        stop = min(start + UNIT_ROWS, count)
        yield {"number": number, "start": start, "stop": stop, "items": list(items[start:stop])}


def _picture_paths(folder: str) -> list[str]:
    files = (file for file in Path(folder).rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES)
    return sorted(file.relative_to(folder).as_posix() for file in files)


def _text_lines(file: str) -> list[str]:
    text = Location.of(file).read_bytes().decode("utf-8", errors="replace")
    return [line for line in text.split("\n") if line.strip()]


def _embed_unit(job: EmbeddingJob, unit: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    """Return what was made of a unit, or the error that ends the work, as a batch of one row.

    An error is not raised, since Ray Data would put its own words around it.
    """
    summary = {"num_embeddings": 0, "model": "", "rejects": "[]", "error": ""}
    try:
        summary |= _write_unit(job, unit)
    except ClippoError as error:
        summary["error"] = json.dumps([type(error).__name__, str(error)])
    return {name: np.array([value]) for name, value in summary.items()}


def _write_unit(job: EmbeddingJob, unit: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    """Embed one unit and write its file."""
    model, identity = loaded_model(job.checkpoint)
    start, stop = int(unit["start"][0]), int(unit["stop"][0])
    items = [str(item) for item in unit["items"][0]]
    tables, rejects = [], []
    with autocast(model.device, job.precision):
        if job.kind == "texts":
            keyed = [
                (str(line), text) for line, text in zip(range(start, stop), items, strict=True)
            ]
        else:
            samples = read_samples(job.kind, job.input, range(start, stop), items)
            found = encode_pictures(model, ((sample.key, sample.image) for sample in samples))
            rejects = [{"key": key, **asdict(problem)} for key, problem in found.rejected]
            tables.append(_table(identity, "image", found.names, None, found.embeddings))
            keyed = [(s.key, text) for s in samples for text in s.captions or [] if text]
        texts = [text for _, text in keyed]
        embeddings = model.encode_texts(texts)
    tables.append(_table(identity, "text", [key for key, _ in keyed], texts, embeddings))
    table = pa.concat_tables(tables)
    if table.num_rows:
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        (Location.of(job.out) / f"part-{unit['number'][0]:05d}.parquet").write_bytes(
            buffer.getvalue()
        )
    return {"num_embeddings": table.num_rows, "model": identity, "rejects": json.dumps(rejects)}


def read_samples(
    kind: InputKind, place: str, rows: Sequence[int], items: Sequence[str]
) -> list[RawSample]:
    """Read samples of a data set by their rows, or pictures of a folder by their paths."""
    if kind == "data set":
        return open_source(place).read(rows)
    return [RawSample(item, (Path(place) / item).read_bytes(), None, None) for item in items]


def _table(
    identity: str,
    kind: Literal["image", "text"],
    keys: Sequence[str],
    texts: Sequence[str] | None,
    embeddings: np.ndarray[Any, Any],
) -> pa.Table:
    count, embed_dim = embeddings.shape
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), embed_dim)
    return pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "kind": pa.array([kind] * count, pa.string()),
            "text": pa.nulls(count, pa.string()) if texts is None else pa.array(texts, pa.string()),
            "embedding": vectors,
            "model": pa.array([identity] * count, pa.string()),
        }
    )


@functools.lru_cache(maxsize=1)
def loaded_model(checkpoint: str) -> tuple[PairModel, str]:
    """Return the model and its identity, loaded once per worker process."""
    with fetched(Location.of(checkpoint)) as path:
        model = load_checkpoint(path)
    identity = model_identity(model)
    return model.to(task_device()), identity
