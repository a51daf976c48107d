"""Crossmodal-3600 (arXiv:2205.12522): 3,600 photographs with captions in 36 languages.

    SOURCE/captions.jsonl
    SOURCE/images/KEY.jpg

Each line of captions.jsonl has the captions of a picture in all languages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.datasets.manifest import Manifest, refuse_prepared
from pipelines.datasets.prepare.public import published
from pipelines.datasets.prepare.rows import RejectedRow, Row, write_rows
from pipelines.runtime.storage import Location

_CAPTIONS = "captions.jsonl"
_PICTURES = "images"


def prepare_xm3600(source: Location, out: Location) -> list[Location]:
    """Write Crossmodal-3600 as one set, for evaluation only.

    Each picture's captions of all languages are together, and `languages` says which is which.
    """
    refuse_prepared([out])
    about = Manifest(
        name="xm3600",
        licence="captions CC-BY-4.0; pictures CC-BY-2.0",
        origin=f"{source.uri}, Crossmodal-3600 (arXiv:2205.12522)",
        evaluation_only=True,
        files_at=source.uri,
    )
    rows = _rows(published.read_lines(source / _CAPTIONS))
    return [write_rows(out, about, published.usable(rows, published.list_files(source, _PICTURES)))]


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
        if key := published.clean(entry.get("image/key")) if isinstance(entry, dict) else "":
            yield from published.caption_rows(key, f"{_PICTURES}/{key}.jpg", _captions(key, entry))
        else:
            yield RejectedRow(where, "malformed_row", "no image/key")


def _captions(key: str, entry: dict[str, Any]) -> Iterator[published.Caption]:
    """Yield captions in the order of the file; objects are languages, the rest is left out."""
    for language, found in entry.items():
        if isinstance(found, dict):
            for number, text in enumerate(found.get("caption") or ()):
                yield published.Caption(f"{key}/{language}/{number}", text, language)
