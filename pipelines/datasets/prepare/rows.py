"""Rows on their way into shards: samples, rejects with reasons, training and test data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

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


def parse_json_object(line: str) -> dict[str, Any] | str:
    """Return the JSON object that a line holds, or what is wrong with it."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return str(error)[:200]
    return row if isinstance(row, dict) else f"expected an object, found {type(row).__name__}"


def is_held_out(key: str, share: float) -> bool:
    """Return whether a key is among the share that is test data; the key alone decides."""
    digest = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
    return int(digest[:8], 16) < share * 2**32


def new_splits(out: Location, test_share: float) -> tuple[str, ...]:
    """Return the splits of a person's own data: train and test, or none where all is one set.

    Raises:
        ConfigError: if `test_share` is no share, or a data set is there already.
    """
    if not 0 <= test_share < 1:
        raise ConfigError(f"test_share={test_share}; expected a share of at least 0 and below 1")
    splits = SPLITS if test_share else ()
    refuse_prepared([out / split for split in splits] or [out])
    return splits


def write_rows(
    folder: Location, about: Manifest, rows: Iterable[Row], *, shuffle: bool = False
) -> Location:
    """Write rows as one data set, and return its folder.

    Args:
        folder: where the set goes.
        about: says what the set is; what it holds is counted.
        rows: its samples and rejects.
        shuffle: whether samples are held in memory and written in an order without meaning.

    Raises:
        SampleError: if there was no sample.
    """
    pairs = ((False, row) for row in rows)
    return write_divided(folder, about, pairs, splits=(), shuffle=shuffle)[0]


def write_splits(
    out: Location, about: Manifest, splits: Mapping[str, Iterable[Row]], *, shuffle: bool = False
) -> list[Location]:
    """Write `out/SPLIT` for each split; all but `train` and `all` are for evaluation only.

    Args:
        out: folder of the sets' folders.
        about: says what the sets are; its name goes before the split's.
        splits: rows by the name of their split.
        shuffle: whether those to train on are shuffled; tests are read whole.

    Returns:
        The sets' folders.

    Raises:
        SampleError: if a split has no sample.
    """
    return [
        write_rows(
            out / split,
            _about_split(about, split),
            rows,
            shuffle=shuffle and split in _TRAINED_ON,
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
        out: folder of the sets' folders; of the one set.
        about: says what the sets are; its name goes before the split's.
        rows: each with whether it is test data.
        splits: names of the two splits; none for one set.
        shuffle: see `write_rows`.
        total: number of rows, for the progress bar.

    Returns:
        The sets' folders.

    Raises:
        SampleError: if a set has no sample.
    """
    abouts = [_about_split(about, split) for split in splits] or [about]
    folders = [out / split for split in splits] or [out]
    writers = [
        ShardWriter(
            folder,
            name=of_set.name,
            kind=of_set.kind,
            class_names=of_set.class_names,
            licence=of_set.licence,
            origin=of_set.origin,
            evaluation_only=of_set.evaluation_only,
            files_at=of_set.files_at,
            shuffle=shuffle,
        )
        for folder, of_set in zip(folders, abouts, strict=True)
    ]
    for is_test, row in progress(about.name, unit="row", total=total, iterable=rows):
        if isinstance(row, RejectedRow):
            writers[is_test].reject(*row)
        else:
            writers[is_test].add(row)
    for writer in writers:
        writer.close()
    return folders


def _about_split(about: Manifest, split: str) -> Manifest:
    return replace(about, name=f"{about.name}-{split}", evaluation_only=split not in _TRAINED_ON)
