"""The pictures to search: embedded once, compared with a query by one matrix product."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import ray
import ray.exceptions
from jaxtyping import Float32

from clippo_core.encoding import encode_pictures
from clippo_core.errors import SampleError
from pipelines.datasets.manifest import RawSample
from pipelines.datasets.sources import open_source
from pipelines.embedding import InputKind, loaded_model, read_samples, split_input
from pipelines.runtime.progress import progress
from pipelines.runtime.storage import Location


class Match(NamedTuple):
    """A picture that was found: its number in the collection, and its cosine similarity."""

    picture: int
    score: float


@dataclass(frozen=True, eq=False)
class EmbeddedPictures:
    """Part of a collection, as a task returns it.

    Attributes:
        rows: number of each picture in the data set, or in the folder's list.
        keys: name of each picture in the data set, or its path in the folder.
        captions: a caption of each, an English one if there is one; "" where there is none.
        embeddings: vectors of unit length.
        rejected: the reason for each picture that could not be decoded.
    """

    rows: tuple[int, ...]
    keys: tuple[str, ...]
    captions: tuple[str, ...]
    embeddings: Float32[np.ndarray, "picture embed"]
    rejected: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Collection:
    """Embedded pictures, and where they can be read again."""

    name: str
    kind: InputKind
    place: str
    pictures: EmbeddedPictures

    def __len__(self) -> int:
        return len(self.pictures.keys)

    def nearest(
        self,
        query: Float32[np.ndarray, " embed"],
        *,
        count: int,
        but: int | None = None,
    ) -> list[Match]:
        """Find the pictures most like a query, the best first, equals in their order.

        Args:
            query: a vector of unit length.
            count: how many to find at most.
            but: a picture to leave out.
        """
        scores = self.pictures.embeddings @ query
        if but is not None:
            scores[but] = -np.inf
        count = min(count, len(scores) - (but is not None))
        if count <= 0:
            return []
        # All that reach the score of the last place are taken, so that the choice among equals does
        # not depend on how numpy partitions.
        last = np.partition(scores, -count)[-count]
        candidates = np.flatnonzero(scores >= last)
        best = candidates[np.argsort(-scores[candidates], kind="stable")][:count]
        return [Match(int(picture), float(scores[picture])) for picture in best]

    def read(self, picture: int) -> bytes | None:
        """Read an encoded picture; None if its file is no longer there."""
        row, key = self.pictures.rows[picture], self.pictures.keys[picture]
        try:
            (sample,) = read_samples(self.kind, self.place, [row], [key])
        except FileNotFoundError:
            return None
        return sample.image

    @property
    def class_captions(self) -> dict[str, tuple[str, ...]]:
        """Names of the data set's classes in many languages; {} where it has none."""
        is_data_set = self.kind == "data set"
        return open_source(self.place).manifest.class_captions if is_data_set else {}

    @property
    def rejected(self) -> dict[str, int]:
        """Return the number of pictures that could not be used, by reason."""
        return dict(Counter(self.pictures.rejected))


def embed_collection(
    checkpoint: str, kind: InputKind, place: Location, *, cpus: float, limit: int | None = None
) -> Collection:
    """Embed all pictures of a data set or a folder, each part of it in a Ray task.

    Args:
        checkpoint: a native folder or a .npz, where every machine finds it.
        kind: "data set" or "pictures".
        place: where the pictures are.
        cpus: CPUs that Ray sets aside for a task.
        limit: take the first so many; None: all.

    Raises:
        SampleError: if there is no picture that can be used.
    """
    units = list(split_input(kind, place.uri, limit=limit))
    task = ray.remote(_embed_unit).options(num_cpus=cpus)
    pending = {
        task.remote(checkpoint, kind, place.uri, unit): int(unit["stop"] - unit["start"])
        for unit in units
    }
    order = list(pending)
    with progress("embedding", unit="picture", total=sum(pending.values())) as bar:
        while pending:
            for reference in ray.wait(list(pending), num_returns=1)[0]:
                _result(reference)
                bar.update(pending.pop(reference))
    pictures = _joined([_result(reference) for reference in order])
    name = open_source(place.uri).name if kind == "data set" else place.name
    collection = Collection(name, kind, place.uri, pictures)
    if not len(collection):
        raise SampleError(
            f"none of the {len(pictures.rejected)} samples of {place.uri} is a picture that can "
            f"be used: {collection.rejected}; expected a data set or a folder of pictures"
        )
    return collection


def _result(reference: Any) -> EmbeddedPictures:
    """Return what a task returned, or raise its own error."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _embed_unit(
    checkpoint: str, kind: InputKind, place: str, unit: dict[str, Any]
) -> EmbeddedPictures:
    """Read, decode and embed the pictures of one part."""
    model, _ = loaded_model(checkpoint)
    rows = range(unit["start"], unit["stop"])
    samples = read_samples(kind, place, rows, unit["items"])
    found = encode_pictures(model, enumerate(sample.image for sample in samples))
    return EmbeddedPictures(
        rows=tuple(rows[number] for number in found.names),
        keys=tuple(samples[number].key for number in found.names),
        captions=tuple(_caption(samples[number]) for number in found.names),
        embeddings=found.embeddings,
        rejected=tuple(problem.reason for _, problem in found.rejected),
    )


def _caption(sample: RawSample) -> str:
    """Return the first caption that is not blank, an English one where languages are known."""
    texts = [text or "" for text in sample.captions or ()]
    languages = sample.languages or [""] * len(texts)
    is_other = [language != "en" for language in languages]
    ordered = sorted(zip(is_other, texts, strict=False), key=lambda pair: pair[0])
    return next((text for _, text in ordered if text.strip()), "")


def _joined(parts: Sequence[EmbeddedPictures]) -> EmbeddedPictures:
    return EmbeddedPictures(
        rows=tuple(row for part in parts for row in part.rows),
        keys=tuple(key for part in parts for key in part.keys),
        captions=tuple(caption for part in parts for caption in part.captions),
        embeddings=np.concatenate([part.embeddings for part in parts]),
        rejected=tuple(reason for part in parts for reason in part.rejected),
    )
