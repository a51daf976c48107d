"""An MLflow python function that embeds a table of texts and pictures by a checkpoint.

This file travels with every logged model, beside a copy of clippo_core, as a module of its own.
MLflow calls `_load_pyfunc`; nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from clippo_core.checkpoints import load_checkpoint
from clippo_core.encoding import encode_pictures
from clippo_core.errors import SampleError
from clippo_core.modeling import PairModel

if TYPE_CHECKING:
    import pandas as pd

TEXT, IMAGE = "text", "image"


def _load_pyfunc(data_path: str) -> ClippoFunction:  # pyright: ignore[reportUnusedFunction] - MLflow calls it
    return ClippoFunction(load_checkpoint(data_path))


class ClippoFunction:
    """The function that `mlflow.pyfunc.load_model` wraps."""

    def __init__(self, model: PairModel) -> None:
        """Take a loaded model."""
        self.model = model

    def predict(
        self,
        model_input: pd.DataFrame,
        params: Mapping[str, Any] | None = None,  # noqa: ARG002 - MLflow's protocol; there are none
    ) -> Float32[np.ndarray, "row embed"]:
        """Embed each row: its `text`, or its `image`, the bytes of a file such as a JPEG.

        Texts and pictures may be mixed, but a row has one of the two. Similar rows have a large
        dot product: embeddings have unit length.

        Raises:
            SampleError: if a row has none or both, or its picture cannot be decoded.
        """
        if not {TEXT, IMAGE} & set(model_input.columns):
            raise SampleError(
                f"there is no column {TEXT} or {IMAGE}; expected a DataFrame with one of them or "
                'both. A list of texts goes as [{"text": "a red car"}, …]'
            )
        texts, images = (_column(model_input, name) for name in (TEXT, IMAGE))
        for number, (text, image) in enumerate(zip(texts, images, strict=True)):
            if (text is None) == (image is None):
                raise SampleError(
                    f"row {number} has {'neither' if text is None else 'both'} of {TEXT} and "
                    f"{IMAGE}; expected one of them"
                )
        found = encode_pictures(
            self.model, ((row, image) for row, image in enumerate(images) if image is not None)
        )
        for row, why in found.rejected:
            raise SampleError(f"the picture in row {row} is refused: {why.reason}: {why.detail}")
        embeddings = np.empty((len(texts), self.model.config.vit.embed_dim), np.float32)
        embeddings[found.names] = found.embeddings
        text_rows = [row for row, text in enumerate(texts) if text is not None]
        embeddings[text_rows] = self.model.encode_texts([texts[row] for row in text_rows])
        return embeddings


def _column(table: pd.DataFrame, name: str) -> Sequence[Any]:
    """Return the values of a column, with None for each of pandas' words for a missing one."""
    if name not in table.columns:
        return [None] * len(table)
    return [value if isinstance(value, str | bytes) else None for value in table[name]]
