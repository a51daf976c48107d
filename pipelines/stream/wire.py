"""Batches as Arrow blocks, in which they travel from render workers to ranks."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from clippo_core.config import RenderConfig
from clippo_core.rendering import TextRasters
from clippo_core.vocabulary import PreparedTexts, TokenTexts
from pipelines.stream.batch import Effort, PreparedBatch, RejectedRow, VocabularyReference


def to_block(batch: PreparedBatch) -> pa.Table:
    """Write a batch as one Arrow block, a row per pair; the first row also has the notes.

    A left side is a picture or a text's bytes; the other of the two columns is empty there.
    """
    count, num_images = len(batch.keys), len(batch.images)
    image_bytes = batch.images[0].nbytes if num_images else 0
    image_ends = np.minimum(np.arange(count + 1), num_images) * image_bytes
    left_ends, left_content = _text_bytes(batch.left_texts)
    left_ends = np.concatenate([np.zeros(num_images, np.int64), left_ends])
    notes = {
        "step": batch.step,
        "first_image": batch.first_image,
        "effort": asdict(batch.effort),
        "rejected": [asdict(row) for row in batch.rejected],
    }
    targets = batch.targets
    labelled = {} if targets is None else {"target": _binary(_row_ends(targets), targets)}
    return pa.table(
        {
            **labelled,
            "key": batch.keys,
            "image": _binary(image_ends, batch.images),
            "left_text": _binary(left_ends, left_content),
            "text": _binary(*_text_bytes(batch.texts)),
            "group": batch.groups,
            "note": [json.dumps(notes)] + [""] * (count - 1),
        }
    )


def from_block(
    block: pa.Table, render: RenderConfig, vocabulary: VocabularyReference | None = None
) -> PreparedBatch:
    """Read the batch in a block; pixels are a view of the block's memory, not to be written to.

    Args:
        block: a block that `to_block` made, or a part of one.
        render: the config that its texts were rendered with, the font's hash included.
        vocabulary: the one that its texts were cut into tokens by; None: they were rendered.
    """
    block = block.combine_chunks()
    size = render.image_size_px
    _, pixels = _values(block, "image")
    images = pixels.reshape(-1, size, size, 3)
    left_texts, texts = (
        _rasters(block, name, render) if vocabulary is None else _tokens(block, name, vocabulary)
        for name in ("left_text", "text")
    )
    if isinstance(left_texts, TextRasters):
        left_texts = left_texts.take(np.arange(len(images), len(left_texts)))
    notes = json.loads(block.column("note")[0].as_py())
    rejected = [RejectedRow(**row) for row in notes["rejected"]]
    keys = block.column("key").to_pylist()
    effort = Effort(**notes["effort"])
    targets = None
    if "target" in block.column_names:
        targets = _values(block, "target")[1].view(np.float32).reshape(len(keys), -1)
    return PreparedBatch(
        step=notes["step"],
        keys=keys,
        images=images,
        left_texts=left_texts,
        texts=texts,
        groups=block.column("group").to_numpy(),
        rejected=rejected,
        effort=effort,
        targets=targets,
        first_image=notes["first_image"],
    )


def _row_ends(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.arange(len(rows) + 1) * rows[0].nbytes


def _text_bytes(
    texts: PreparedTexts,
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, Any]]:
    """Return where each text ends in bytes, from 0 on, and the bytes of all texts."""
    if isinstance(texts, TokenTexts):
        return np.arange(len(texts) + 1) * texts.ids.shape[1] * texts.ids.itemsize, texts.ids
    row_bytes = texts.config.image_size_px * np.dtype(np.uint16).itemsize
    return texts.row_offsets.astype(np.int64) * row_bytes, texts.columns


def _binary(ends: np.ndarray[Any, Any], content: np.ndarray[Any, Any]) -> pa.LargeBinaryArray:
    """Make an Arrow column over an array's memory; `ends[i:i+2]` delimits item `i`."""
    buffers = [
        None,
        pa.py_buffer(ends.astype(np.int64)),
        pa.py_buffer(np.ascontiguousarray(content)),
    ]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(ends) - 1, buffers)


def _values(
    block: pa.Table, name: str
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.uint8]]]:
    """Return the ends of a column's items in bytes, from 0 on, and their bytes, not copied."""
    column = block.column(name).chunk(0)
    ends = np.frombuffer(column.buffers()[1], np.int64)
    ends = ends[column.offset : column.offset + len(column) + 1]
    # Arrow leaves the buffer out where all items are empty.
    content = np.frombuffer(column.buffers()[2] or b"", np.uint8)
    return ends - ends[0], content[ends[0] : ends[-1]]


def _rasters(block: pa.Table, name: str, render: RenderConfig) -> TextRasters:
    ends, content = _values(block, name)
    size = render.image_size_px
    row_offsets = (ends // (size * np.dtype(np.uint16).itemsize)).astype(np.int32)
    return TextRasters(content.view(np.uint16).reshape(-1, size), row_offsets, render)


def _tokens(block: pa.Table, name: str, vocabulary: VocabularyReference) -> TokenTexts:
    _, content = _values(block, name)
    return TokenTexts(content.view(np.int32).reshape(-1, vocabulary.max_tokens), vocabulary.sha256)
