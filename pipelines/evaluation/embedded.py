"""A data set as evaluations see it: its pictures embedded, its captions, and their room."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int

from clippo_core.encoding import BATCH_SIZE, Canvases, Encode, decoded_batches, encode_pictures
from clippo_core.errors import SampleError
from clippo_core.evaluation.sequence_length import share_full
from clippo_core.modeling import PairModel
from pipelines.datasets.manifest import RawSample
from pipelines.datasets.sources import Source
from pipelines.evaluation.results import WITH_PICTURES, require_kind

IMAGES_IN_PICTURE = 40


@dataclass(frozen=True, eq=False)
class EmbeddedSource:
    """The pictures of a data set that can be decoded, embedded.

    Attributes:
        source: the data set.
        rows: the row of each picture in it, to read the file again.
        samples: the rest of these rows, without the files.
        images: an embedding, or other features, for each of them.
        num_rejected: number of pictures that cannot be decoded.
        shown: some of the pictures, for people to look at.
    """

    source: Source
    rows: Int[np.ndarray, " image"]
    samples: list[RawSample]
    images: Float32[np.ndarray, "image feature"]
    num_rejected: int
    shown: Canvases

    def decoded_again(self, model: PairModel, chosen: Int[np.ndarray, " chosen"]) -> Canvases:
        """Return some of the pictures on the model's canvas; their files are read once more."""
        size = model.config.render.image_size_px
        pixels = np.zeros((len(chosen), size, size, 3), np.uint8)
        files = [sample.image for sample in self.source.read(self.rows[chosen])]
        for batch in decoded_batches(model, enumerate(files)):
            pixels[batch.names] = batch.canvases
        return pixels


def embed_source(
    model: PairModel,
    source: Source,
    *,
    limit: int | None = None,
    rows: Int[np.ndarray, " row"] | None = None,
    encode: Encode | None = None,
) -> EmbeddedSource:
    """Decode and embed the pictures of a data set.

    Args:
        model: the model that embeds them.
        source: the data set.
        limit: take the first so many; None: all.
        rows: take these, in this order, instead of the first.
        encode: a function that makes other features of canvases than their embeddings.

    Raises:
        SampleError: if it has no pictures, or none that can be decoded.
    """
    require_kind(source, "an evaluation of pictures", WITH_PICTURES)
    encode = encode or (lambda canvases: model.encode_images(canvases, batch_size=BATCH_SIZE))
    shown: list[Canvases] = []

    def encode_and_show(canvases: Canvases) -> Float32[np.ndarray, "image feature"]:
        if not shown:
            shown.append(canvases[:IMAGES_IN_PICTURE].copy())
        return encode(canvases)

    numbered = (
        enumerate(itertools.islice(source, limit))
        if rows is None
        else zip(rows.tolist(), source.read(rows), strict=True)
    )
    found = encode_pictures(model, named_pictures(numbered), encode=encode_and_show)
    require_some(source, found.names, num_rejected=len(found.rejected))
    places, samples = zip(*found.names, strict=True)
    return EmbeddedSource(
        source, np.array(places), list(samples), found.embeddings, len(found.rejected), shown[0]
    )


def named_pictures(
    samples: Iterable[tuple[int, RawSample]],
) -> Iterator[tuple[tuple[int, RawSample], bytes | None]]:
    """Take the encoded pictures out of numbered samples, so that the samples need little memory."""
    for number, sample in samples:
        yield (number, sample._replace(image=None)), sample.image


def require_some(source: Source, decoded: Sequence[object], *, num_rejected: int) -> None:
    """Make sure that a picture could be decoded.

    Raises:
        SampleError: if none could be.
    """
    if not decoded:
        raise SampleError(f"{source.name}: not one of {num_rejected} pictures can be decoded")


def captions_of(source: Source, samples: Sequence[RawSample]) -> list[list[str]]:
    """Return the captions of each sample, without blank ones.

    Raises:
        SampleError: if one has none.
    """
    captions = [[text for text in sample.captions or [] if text] for sample in samples]
    bare = [s.key for s, found in zip(samples, captions, strict=True) if not found]
    if bare:
        raise SampleError(f"{source.name}: {len(bare)} samples have no caption, e.g. {bare[0]}")
    return captions


def full_texts(model: PairModel, texts: Sequence[str]) -> dict[str, float]:
    """Return, for a result's details, the share of texts that fill their room and may be cut."""
    room = "max_tokens" if model.config.reads_tokens else "the_canvas"
    return {f"share_of_texts_that_fill_{room}": share_full(model.prepare_texts(texts))}


def evenly(count: int, wanted: int) -> list[int]:
    """Choose at most so many of the numbers below a count, from the first to the last."""
    return sorted({round(n) for n in np.linspace(0, count - 1, min(count, wanted))})
