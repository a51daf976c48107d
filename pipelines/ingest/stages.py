"""What a render worker does: samples of the plan in, a block of one rank's batch out."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from clippo_core.config import ImageConfig, RenderConfig
from clippo_core.errors import RenderError, SampleError
from clippo_core.images import decode_image
from clippo_core.rejected import Rejected, RejectReason
from clippo_core.rendering import TextRasters, TextRenderer
from clippo_core.rendering.unifont import parse_font
from clippo_core.sample_plan import PlannedSamples, SamplePlan
from pipelines.ingest.manifest import RawSample
from pipelines.ingest.sources import Source, open_source
from pipelines.storage import Location


@dataclass(frozen=True)
class SourceReference:
    """A data set by place and content, as it travels to workers."""

    uri: str
    digest: str


@dataclass(frozen=True)
class StreamSpec:
    """Everything that decides what a step's batch is; small, since each render task gets one.

    Attributes:
        plan: which samples form a batch.
        sources: the data sets, in the plan's order.
        render: how captions are drawn, with the font's hash.
        image: how pictures are resized.
        font_uri: the font's file where it is not the bundled one.
    """

    plan: SamplePlan
    sources: tuple[SourceReference, ...]
    render: RenderConfig
    image: ImageConfig
    font_uri: str | None = None


@dataclass(frozen=True)
class RejectedRow:
    """A sample that could not be used, and where it would have stood."""

    key: str
    source: str
    reason: RejectReason
    detail: str
    step: int


@dataclass(frozen=True, eq=False)
class PreparedBatch:
    """One rank's batch, ready for the device.

    Attributes:
        step: that it belongs to.
        keys: of the samples.
        images: on the canvas.
        texts: rendered captions.
        rejected: samples that were replaced.
        seconds: that reading, decoding and rendering took.
    """

    step: int
    keys: list[str]
    images: UInt8[np.ndarray, "sample height_px width_px 3"]
    texts: TextRasters
    rejected: list[RejectedRow]
    seconds: Mapping[str, float]


def prepare_batch(spec: StreamSpec, planned: PlannedSamples, *, step: int) -> PreparedBatch:
    """Read, decode and render samples; each rejected one is replaced out of its run's reserve.

    Raises:
        SampleError: if a whole reserve was rejected, or a data set changed since the run began.
    """
    renderer = open_renderer(spec.render, spec.font_uri)
    started = time.perf_counter()
    samples = read_planned(spec, planned)
    read = time.perf_counter()
    usable, rejected = [], []
    for slot, sample in enumerate(samples):
        usable.append(
            _first_usable(spec, renderer, planned[slot : slot + 1], sample, step, rejected)
        )
    decoded = time.perf_counter()
    texts = renderer.render_batch([sample.caption for sample in usable])
    seconds = {
        "read": read - started,
        "decode": decoded - read,
        "render": time.perf_counter() - decoded,
    }
    images = np.stack([sample.pixels for sample in usable])
    return PreparedBatch(step, [s.key for s in usable], images, texts, rejected, seconds)


class UsableSample(NamedTuple):
    """A sample with its picture on the canvas and the caption of this visit."""

    key: str
    pixels: UInt8[np.ndarray, "height_px width_px 3"]
    caption: str


def prepare_sample(
    spec: StreamSpec, renderer: TextRenderer, sample: RawSample, *, draw: int
) -> UsableSample | Rejected:
    """Decode the picture and draw one of the captions.

    Args:
        spec: how to decode.
        renderer: for telling whether the caption has anything to see.
        sample: as stored.
        draw: the visit's random number.
    """
    if not sample.captions:
        return Rejected("missing_caption", "no captions")
    caption = sample.captions[draw % len(sample.captions)]
    if caption is None:
        return Rejected("missing_caption", "null")
    if not renderer.render_batch([caption]).occupied_rows[0]:
        return Rejected("blank_caption", repr(caption[:80]))
    size = spec.render.image_size_px
    pixels = decode_image(sample.image, spec.image, image_size_px=size)
    return pixels if isinstance(pixels, Rejected) else UsableSample(sample.key, pixels, caption)


def read_planned(spec: StreamSpec, planned: PlannedSamples) -> list[RawSample]:
    """The stored rows of planned samples, in their order.

    Raises:
        SampleError: if a data set is missing, damaged, or changed since the run began.
    """
    samples: dict[int, RawSample] = {}
    for number in np.unique(planned.source):
        slots = np.flatnonzero(planned.source == number)
        rows = planned.row[slots]
        read = _open_reference(spec.sources[number]).read(rows)
        samples |= dict(zip(slots.tolist(), read, strict=True))
    return [samples[slot] for slot in range(len(planned))]


def _first_usable(
    spec: StreamSpec,
    renderer: TextRenderer,
    planned: PlannedSamples,
    sample: RawSample,
    step: int,
    rejected: list[RejectedRow],
) -> UsableSample:
    """The planned sample, or the first usable one of its reserve; notes the rejected ones."""
    outcome = prepare_sample(spec, renderer, sample, draw=int(planned.draw[0]))
    name = _open_reference(spec.sources[planned.source[0]]).name
    for attempt in range(1, spec.plan.run_length + 1):
        if not isinstance(outcome, Rejected):
            return outcome
        rejected.append(RejectedRow(sample.key, name, outcome.reason, outcome.detail, step))
        replacement = spec.plan.reserve(planned, attempt)
        (sample,) = read_planned(spec, replacement)
        outcome = prepare_sample(spec, renderer, sample, draw=int(replacement.draw[0]))
    if isinstance(outcome, Rejected):
        raise SampleError(
            f"{name}: {spec.plan.run_length} samples in a row cannot be used, the last one "
            f"({sample.key}) for {outcome.reason}: {outcome.detail}. Look at the data with\n"
            "  python -m pipelines inspect --help"
        )
    return outcome


@functools.lru_cache(maxsize=4)
def open_renderer(config: RenderConfig, font_uri: str | None) -> TextRenderer:
    """A renderer, made once per process, whose font may be in a bucket.

    Raises:
        RenderError: if the font is missing, damaged, or not the one that the config names.
    """
    if font_uri is None:
        return TextRenderer(config)
    try:
        font = parse_font(Location.of(font_uri).read_bytes(), name=font_uri)
    except FileNotFoundError:
        raise RenderError(f"the font {font_uri} does not exist") from None
    return TextRenderer(config, font=font)


@functools.lru_cache(maxsize=64)
def _open_reference(reference: SourceReference) -> Source:
    source = open_source(reference.uri)
    if source.manifest.digest != reference.digest:
        raise SampleError(
            f"{reference.uri} changed since the run began (digest {reference.digest} then, "
            f"{source.manifest.digest} now); put the old data back, or start a new run"
        )
    return source


def to_block(batch: PreparedBatch) -> pa.Table:
    """A batch as one Arrow block: per sample its key, pixels, and text rows; notes in the first."""
    count, *shape = batch.images.shape
    pixels = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(int(np.prod(shape))), count, [None, pa.py_buffer(batch.images)]
    )
    row_bytes = batch.texts.columns.shape[1] * batch.texts.columns.itemsize
    offsets = (batch.texts.row_offsets.astype(np.int64) * row_bytes).astype(np.int64)
    columns = pa.py_buffer(np.ascontiguousarray(batch.texts.columns))
    text_rows = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), count, [None, pa.py_buffer(offsets), columns]
    )
    notes = {
        "step": batch.step,
        "seconds": dict(batch.seconds),
        "rejected": [asdict(row) for row in batch.rejected],
    }
    note = [json.dumps(notes)] + [""] * (count - 1)
    return pa.table({"key": batch.keys, "image": pixels, "text_rows": text_rows, "note": note})


def from_block(block: pa.Table, render: RenderConfig) -> PreparedBatch:
    """The batch in a block; pixels are a view of the block's memory, not to be written to.

    Args:
        block: as `to_block` made it.
        render: the config that its texts were rendered with, the font's hash included.
    """
    block = block.combine_chunks()
    size = render.image_size_px
    pixels, text_rows = (block.column(name).chunk(0) for name in ("image", "text_rows"))
    images = _values(pixels, np.uint8, per_item=size * size * 3).reshape(-1, size, size, 3)
    start, end = text_rows.offset, text_rows.offset + len(text_rows)
    offsets = np.frombuffer(text_rows.buffers()[1], np.int64)[start : end + 1]
    row_bytes = size * 2
    row_offsets = ((offsets - offsets[0]) // row_bytes).astype(np.int32)
    data = np.frombuffer(text_rows.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
    texts = TextRasters(data.view(np.uint16).reshape(-1, size), row_offsets, render)
    notes = json.loads(block.column("note")[0].as_py())
    rejected = [RejectedRow(**row) for row in notes["rejected"]]
    keys = block.column("key").to_pylist()
    return PreparedBatch(notes["step"], keys, images, texts, rejected, notes["seconds"])


def _values(array: pa.FixedSizeBinaryArray, dtype: type, *, per_item: int) -> np.ndarray[Any, Any]:
    start = array.offset * per_item
    return np.frombuffer(array.buffers()[1], dtype)[start : start + len(array) * per_item]
