"""Rows on their way into shards: samples, rejects with reasons, training and test data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import NamedTuple

from clippo_core.errors import ConfigError
from pipelines.datasets.manifest import Manifest, RawSample, ShardWriter, refuse_prepared
from pipelines.runtime.progress import progress
from pipelines.runtime.storage import Location

SPLITS = ("train", "test")
#: Splits of published sets that may be trained on; "all" is a set without splits.
_TRAINED_ON = ("train", "all")


class RejectedRow(NamedTuple):
    """A row that cannot be used: its key, the reason (to be counted), details (for a person)."""

    key: str
    reason: str
    detail: str = ""


Row = RawSample | RejectedRow


def tidy(text: str) -> str:
    """Return a text on one line, with single spaces."""
    return " ".join(text.split())


def is_held_out(key: str, share: float) -> bool:
    """Return True if a key is in the share that is test data; the key alone decides."""
    digest = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
    return int(digest[:8], 16) < share * 2**32


def new_splits(out: Location, test_share: float) -> tuple[str, ...]:
    """Return the splits of a person's own data: train and test, or none where all is one set.

    Raises:
        ConfigError: if `test_share` is not in [0, 1), or a data set is there already.
    """
    if not 0 <= test_share < 1:
        raise ConfigError(f"test_share={test_share}; expected a share of at least 0 and below 1")
    splits = SPLITS if test_share else ()
    refuse_prepared([out / split for split in splits] or [out])
    return splits


def write_rows(
    folder: Location, about: Manifest, rows: Iterable[Row], *, shuffle: bool = False
) -> Location:
    """Write rows as one data set, and return its folder; see `write_divided`."""
    pairs = ((False, row) for row in rows)
    return write_divided(folder, about, pairs, splits=(), shuffle=shuffle)[0]


def write_splits(
    out: Location, about: Manifest, splits: Mapping[str, Iterable[Row]], *, shuffle: bool = False
) -> list[Location]:
    """Write `out/SPLIT` for each split, and return the folders; see `write_divided`.

    All but `train` and `all` are for evaluation only, and not shuffled: they are read whole.
    """
    return [
        write_rows(
            out / split, _about(about, split), rows, shuffle=shuffle and split in _TRAINED_ON
        )
        for split, rows in splits.items()
    ]


def write_divided(
    out: Location,
    about: Manifest,
    rows: Iterable[tuple[bool, Row]],
    *,
    splits: Sequence[str] = SPLITS,
    shuffle: bool = False,
    total: int | None = None,
) -> list[Location]:
    """Write rows as two data sets at once, or as one.

    Args:
        out: folder that holds the two sets' folders, or the one set's folder.
        about: description of the sets; a split's name is added to its name.
        rows: pairs of True for test data, and the row.
        splits: names of the two splits; empty for one set.
        shuffle: gather the samples in memory and write them in an order without meaning.
        total: number of rows, for the progress bar.

    Returns:
        The sets' folders.

    Raises:
        SampleError: if a set has no sample.
    """
    writers = [_open(out / split, _about(about, split), shuffle) for split in splits]
    writers = writers or [_open(out, about, shuffle)]
    for is_test, row in progress(about.name, unit="row", total=total, iterable=rows):
        if isinstance(row, RejectedRow):
            writers[is_test].reject(*row)
        else:
            writers[is_test].add(row)
    for writer in writers:
        writer.close()
    return [writer.folder for writer in writers]


def _about(sets: Manifest, split: str) -> Manifest:
    is_test = split not in _TRAINED_ON
    return replace(sets, name=f"{sets.name}-{split}", evaluation_only=is_test)


def _open(folder: Location, about: Manifest, shuffle: bool) -> ShardWriter:
    names = {field.name for field in fields(ShardWriter)} & {field.name for field in fields(about)}
    return ShardWriter(folder, shuffle=shuffle, **{name: getattr(about, name) for name in names})
