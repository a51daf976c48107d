"""Embedding of encoded pictures, decoded in threads one batch ahead of the model."""

# NumPy and torch leave types unknown that this file uses.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8

from clippo_core.errors import Rejected
from clippo_core.images import decode_image
from clippo_core.modeling import PairModel

#: Number of pictures or texts that a model encodes at a time.
BATCH_SIZE = 256

#: The type by which a caller tells pictures apart, such as a number or a row of a data set.
Name = TypeVar("Name")
Canvases = UInt8[np.ndarray, "picture canvas_px canvas_px 3"]
#: A function that turns canvases into embeddings, or into other features.
Encode = Callable[[Canvases], Float[np.ndarray, "picture feature"]]


@dataclass(frozen=True, eq=False)
class DecodedBatch(Generic[Name]):
    """A batch of pictures on the model's canvas.

    Attributes:
        names: names of the decoded pictures, in the order in which they came.
        canvases: the pictures themselves, one for each name.
        rejected: the name of each other picture, and why it could not be decoded.
    """

    names: list[Name]
    canvases: Canvases
    rejected: list[tuple[Name, Rejected]]


@dataclass(frozen=True, eq=False)
class EncodedPictures(Generic[Name]):
    """Embeddings of pictures.

    Attributes:
        names: names of the decoded pictures, in the order in which they came.
        embeddings: unit-length embedding of each named picture, or what another function made of
            it.
        rejected: the name of each other picture, and why it could not be decoded.
    """

    names: list[Name]
    embeddings: Float[np.ndarray, "picture feature"]
    rejected: list[tuple[Name, Rejected]]


def encode_pictures(
    model: PairModel,
    pictures: Iterable[tuple[Name, bytes | None]],
    *,
    batch_size: int = BATCH_SIZE,
    encode: Encode | None = None,
) -> EncodedPictures[Name]:
    """Decode pictures and return their embeddings.

    The model computes in the caller's thread, so that an `autocast` around the call holds.

    Args:
        model: embeds them.
        pictures: the name and the encoded file of each; read as they are needed.
        batch_size: number of pictures that are decoded and encoded at a time.
        encode: makes something else than embeddings of a batch of canvases.
    """
    encode = encode or (lambda canvases: model.encode_images(canvases, batch_size=batch_size))
    names: list[Name] = []
    parts: list[Float[np.ndarray, "picture feature"]] = []
    rejected: list[tuple[Name, Rejected]] = []
    for batch in decoded_batches(model, pictures, batch_size=batch_size):
        names += batch.names
        rejected += batch.rejected
        if batch.names:
            parts.append(encode(batch.canvases))
    nothing = np.empty((0, model.config.vit.embed_dim), np.float32)
    return EncodedPictures(names, np.concatenate(parts) if parts else nothing, rejected)


def decoded_batches(
    model: PairModel,
    pictures: Iterable[tuple[Name, bytes | None]],
    *,
    batch_size: int = BATCH_SIZE,
) -> Iterator[DecodedBatch[Name]]:
    """Yield batches of pictures decoded onto a model's canvas, on as many threads as torch has.

    While the caller works on a batch, the next one is read and decoded; there are never more.

    Args:
        model: model whose settings say how pictures are resized.
        pictures: the name and the encoded file of each; one other thread iterates over them.
        batch_size: number of pictures that are decoded at a time; batches lack the rejected ones.
    """
    config, size = model.config.image, model.config.render.image_size_px
    remaining = iter(pictures)

    with ThreadPoolExecutor(torch.get_num_threads()) as decoders, ThreadPoolExecutor(1) as ahead:

        def read_batch() -> DecodedBatch[Name] | None:
            batch = list(itertools.islice(remaining, batch_size))
            canvases = np.empty((len(batch), size, size, 3), np.uint8)

            def decode(slot: int) -> Rejected | None:
                found = decode_image(batch[slot][1], config, image_size_px=size)
                if isinstance(found, Rejected):
                    return found
                canvases[slot] = found
                return None

            problems = list(decoders.map(decode, range(len(batch))))
            return _without_rejected([name for name, _ in batch], canvases, problems)

        coming = ahead.submit(read_batch)
        while (batch := coming.result()) is not None:
            coming = ahead.submit(read_batch)
            yield batch


def _without_rejected(
    names: list[Name], canvases: Canvases, problems: list[Rejected | None]
) -> DecodedBatch[Name] | None:
    """Split a batch into decoded pictures and rejected ones; None for an empty batch."""
    if not names:
        return None
    is_usable = np.array([problem is None for problem in problems])
    return DecodedBatch(
        names=list(itertools.compress(names, is_usable)),
        canvases=canvases if is_usable.all() else canvases[is_usable],
        rejected=[(n, p) for n, p in zip(names, problems, strict=True) if p is not None],
    )
