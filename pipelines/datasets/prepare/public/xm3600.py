"""Crossmodal-3600 (arXiv:2205.12522): 3,600 photographs with captions in 36 languages.

    SOURCE/captions.jsonl
    SOURCE/images/KEY.jpg

Each line of captions.jsonl has the captions of a picture in all languages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.datasets.manifest import ShardWriter, refuse_prepared
from pipelines.datasets.prepare.public.published import (
    Caption,
    RejectedRow,
    Row,
    caption_rows,
    clean,
    list_files,
    read_lines,
    write_rows,
)
from pipelines.runtime.storage import Location

_CAPTIONS = "captions.jsonl"
_PICTURES = "images"


def prepare_xm3600(source: Location, out: Location) -> list[Location]:
    """Write Crossmodal-3600 as one set, for evaluation only.

    Each picture's captions of all languages are together, and `languages` says which is which.

    Args:
        source: the folder with captions.jsonl and images/.
        out: where the set goes.

    Returns:
        The set's folder.

    Raises:
        ConfigError: if a set is there already.
        SampleError: if the files are not there, or not as published.
    """
    refuse_prepared([out])
    lines = read_lines(source / _CAPTIONS)
    writer = ShardWriter(
        out,
        name="xm3600",
        licence="captions CC-BY-4.0; pictures CC-BY-2.0",
        origin=f"{source.uri}, Crossmodal-3600 (arXiv:2205.12522)",
        evaluation_only=True,
        files_at=source.uri,
    )
    return [write_rows(writer, _rows(lines), list_files(source, _PICTURES))]


def _rows(lines: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        where = f"{_CAPTIONS}:{number}"
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            yield RejectedRow(where, "malformed_row", str(error))
            continue
        key = clean(entry.get("image/key")) if isinstance(entry, dict) else ""
        if not key:
            yield RejectedRow(where, "malformed_row", "no image/key")
            continue
        yield from caption_rows(key, f"{_PICTURES}/{key}.jpg", _captions(key, entry))


def _captions(key: str, entry: dict[str, Any]) -> Iterator[Caption]:
    """Captions in the order of the file; what is an object is a language, the rest is not."""
    for language, found in entry.items():
        if isinstance(found, dict):
            for number, text in enumerate(found.get("caption") or ()):
                yield Caption(f"{key}/{language}/{number}", text, language)
