"""Flickr30k (Young et al., TACL 2014): 31,783 photographs with five captions each, in English.

    SOURCE/flickr30k-images/, flickr30k_images/ or images/
    SOURCE/dataset_flickr30k.json, for Karpathy's split
    SOURCE/results_20130124.token or results.csv

The authors' own captions, in the last two, come without a split.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from clippo_core.errors import ConfigError
from pipelines.datasets.manifest import Manifest, refuse_prepared
from pipelines.datasets.prepare.public import published
from pipelines.datasets.prepare.rows import RejectedRow, Row
from pipelines.runtime.storage import Location

_KARPATHY_FILE = "dataset_flickr30k.json"
_PICTURES = ("flickr30k-images", "flickr30k_images", "images")
_LICENCE = "for research and education only; pictures: terms of Flickr"
#: Patterns of a caption's name, number and text in the two files that are published.
_LINES = {
    "results_20130124.token": re.compile(r"([^#\t]+)#(\d+)\t(.*)"),
    "results.csv": re.compile(r"([^|]+)\|\s*(\d+)\|(.*)"),
}


def prepare_flickr30k(
    source: Location, out: Location, *, splits: Sequence[str] | None = None
) -> list[Location]:
    """Write Flickr30k: `out/train`, `out/val` and `out/test` by Karpathy's split, else `out/all`.

    A key is the picture's file name without suffix. `val` and `test` are for evaluation only.

    Args:
        source: the folder with the captions' file and the pictures' folder.
        out: folder of the sets.
        splits: splits of Karpathy's to write; None writes all.
    """
    names = source.names()
    pictures = next((name for name in _PICTURES if name in names), None)
    captions = next((name for name in (_KARPATHY_FILE, *_LINES) if name in names), None)
    if captions is None:
        raise published.wrong_layout(source, _KARPATHY_FILE, *_LINES)
    if pictures is None:
        raise published.wrong_layout(source, *(f"{folder}/" for folder in _PICTURES))
    if captions == _KARPATHY_FILE:

        def locate(image: dict[str, Any]) -> tuple[str, str]:
            name = str(image.get("filename"))
            return name.rpartition(".")[0], f"{pictures}/{name}"

        about = Manifest(name="flickr30k", licence=_LICENCE)
        return published.write_karpathy(source / captions, out, about, locate, splits)
    if splits is not None:
        raise ConfigError(f"{captions} knows no splits; they are in {_KARPATHY_FILE}")
    refuse_prepared([out / "all"])
    about = Manifest(
        name="flickr30k",
        licence=_LICENCE,
        origin=f"{source.uri}, {captions} (Young et al., TACL 2014)",
        files_at=source.uri,
    )
    files = published.list_files(source, pictures)
    rows = _rows(published.read_lines(source / captions), captions, pictures)
    return published.write(out, about, {"all": rows}, files)


def _rows(lines: Sequence[str], file: str, pictures: str) -> Iterator[Row]:
    captions: dict[str, list[published.Caption]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (number == 1 and line.startswith("image_name")):
            continue
        if found := _LINES[file].fullmatch(line):
            name, caption = found[1].strip(), published.Caption(f"{file}:{number}", found[3])
            captions.setdefault(name, []).append(caption)
        else:
            # The published results.csv has such a line: a separator is missing in it.
            yield RejectedRow(f"{file}:{number}", "malformed_row", line)
    for name, of_picture in captions.items():
        yield from published.caption_rows(name.rpartition(".")[0], f"{pictures}/{name}", of_picture)
