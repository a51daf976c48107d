"""Pictures of a data set, decoded and encoded batch by batch; its captions and their room."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from clippo_core.errors import Rejected, SampleError
from clippo_core.evaluation.text_pairs import share_full
from clippo_core.images import decode_image
from clippo_core.modeling import PairModel
from pipelines.datasets.manifest import RawSample
from pipelines.datasets.sources import Source
from pipelines.evaluation.results import require_pictures

BATCH_SIZE = 256
IMAGES_IN_PICTURE = 40

Canvases = UInt8[np.ndarray, "image height_px width_px 3"]
#: Canvases -> features.
Encode = Callable[[Canvases], Float32[np.ndarray, "image feature"]]


@dataclass(frozen=True, eq=False)
class EmbeddedSource:
    """The usable pictures of a data set, embedded; some of them as pixels, to be shown."""

    images: Float32[np.ndarray, "image embed"]
    samples: list[RawSample]
    num_rejected: int
    shown: UInt8[np.ndarray, "image height_px width_px 3"]


def embed_source(
    model: PairModel, source: Source, *, limit: int | None, encode: Encode | None = None
) -> EmbeddedSource:
    """Decode and embed the pictures of a data set.

    Args:
        model: embeds them.
        source: the data set.
        limit: take the first so many; None: all.
        encode: makes other features of pictures than their embeddings.

    Raises:
        SampleError: if none can be decoded.
    """
    require_pictures(source, "an evaluation of pictures")
    return embed_samples(model, itertools.islice(source, limit), name=source.name, encode=encode)


def embed_samples(
    model: PairModel, samples: Iterable[RawSample], *, name: str, encode: Encode | None = None
) -> EmbeddedSource:
    """`embed_source` of samples that are at hand; `name` says in errors whose they are."""
    encode = encode or (lambda canvases: model.encode_images(canvases, batch_size=BATCH_SIZE))
    embeddings, usable, shown, num_rejected = [], [], None, 0
    for batch, pixels, rejected in decoded_batches(model, samples):
        num_rejected += rejected
        if not batch:
            continue
        usable += batch
        embeddings.append(encode(pixels))
        shown = pixels[:IMAGES_IN_PICTURE] if shown is None else shown
    if shown is None:
        raise SampleError(f"{name}: not one of {num_rejected} pictures can be decoded")
    return EmbeddedSource(np.concatenate(embeddings), usable, num_rejected, shown)


def decoded_batches(
    model: PairModel, samples: Iterable[RawSample], *, size: int = BATCH_SIZE
) -> Iterator[tuple[list[RawSample], Canvases, int]]:
    """Samples whose pictures can be decoded, these on the model's canvas, and how many cannot."""
    canvas_px, iterator = model.config.render.image_size_px, iter(samples)
    while batch := list(itertools.islice(iterator, size)):
        decoded = [
            decode_image(s.image, model.config.image, image_size_px=canvas_px) for s in batch
        ]
        pixels = [canvas for canvas in decoded if not isinstance(canvas, Rejected)]
        usable = [not isinstance(canvas, Rejected) for canvas in decoded]
        stacked = np.stack(pixels) if pixels else np.empty((0, canvas_px, canvas_px, 3), np.uint8)
        yield list(itertools.compress(batch, usable)), stacked, len(batch) - len(pixels)


def captions_of(source: Source, samples: Sequence[RawSample]) -> list[list[str]]:
    """The captions of each sample, without blank ones.

    Raises:
        SampleError: if one has none.
    """
    captions = [[text for text in sample.captions or [] if text] for sample in samples]
    bare = [s.key for s, found in zip(samples, captions, strict=True) if not found]
    if bare:
        raise SampleError(f"{source.name}: {len(bare)} samples have no caption, e.g. {bare[0]}")
    return captions


def full_texts(model: PairModel, texts: Sequence[str]) -> dict[str, float]:
    """For a result's details: the share of texts that fill their room, and so may be cut."""
    room = "max_tokens" if model.config.reads_tokens else "the_canvas"
    return {f"share_of_texts_that_fill_{room}": share_full(model.prepare_texts(texts))}
