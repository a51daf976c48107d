"""Tables in text files: rows of CSV, and objects of JSON lines.

A row that cannot be read is a value, and reading goes on behind it.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from clippo_core.errors import SampleError
from pipelines.runtime.storage import Location


class DamagedRow(NamedTuple):
    """A row that cannot be read: the reason (to be counted), and details (for a person)."""

    reason: str
    detail: str


def json_objects(
    lines: Iterable[str], place: Location, columns: Sequence[str], advice: str = "name yours"
) -> Iterator[tuple[int, dict[str, Any] | DamagedRow]]:
    """Yield the number of each line that is not blank, and its JSON object or what is wrong.

    Raises:
        SampleError: if the first object lacks a column; see `require_columns`.
    """
    is_first = True
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, DamagedRow("invalid_json", str(error)[:200])
            continue
        if not isinstance(row, dict):
            yield (
                number,
                DamagedRow("invalid_json", f"expected an object, found {type(row).__name__}"),
            )
            continue
        if is_first:
            require_columns(place, columns, row, advice)
            is_first = False
        yield number, row


def csv_rows(
    lines: Iterable[str],
    place: Location,
    wanted: Sequence[str],
    *,
    advice: str = "name yours",
    **csv_format: Any,
) -> Iterator[tuple[int, dict[str, str] | DamagedRow]]:
    """Yield the number of each row's first line, and its values by column, "" where it is short.

    A quote that is never closed would swallow all rows behind it. Where a row cannot be read, or
    goes over several lines and comes out with another number of values than the header has, its
    first line alone is given up, and reading goes on with the next one.

    Args:
        lines: lines of the table with their ends, the header first.
        place: place of the table, for errors.
        wanted: columns that must be there.
        advice: end of an error about columns.
        csv_format: format as the module `csv` takes it.

    Raises:
        SampleError: if a wanted column is missing, or there twice.
    """
    source, header = _RepeatableLines(iter(lines)), None
    while (row := _next_row(source, csv_format)) is not None:
        number = source.number - len(source.taken) + 1
        if isinstance(row, DamagedRow):
            yield number, row
        elif header is None:
            require_columns(place, wanted, row, advice)
            header = row
        elif len(source.taken) > 1 and len(row) != len(header):
            source.repeat_all_but_first()
            detail = f"a quote is not closed: {len(row)} values, expected {len(header)}"
            yield number, DamagedRow("damaged_row", detail)
        elif row:
            yield number, dict(itertools.zip_longest(header, row[: len(header)], fillvalue=""))
    if header is None:
        require_columns(place, wanted, (), advice)


@dataclass
class _RepeatableLines:
    """Lines of which those of the row that is being read can be read again.

    Attributes:
        new: lines that were not read yet.
        taken: lines of the row.
        number: number of the line that was read last.
    """

    new: Iterator[str]
    taken: list[str] = field(default_factory=list)
    number: int = 0
    _again: deque[str] = field(default_factory=deque)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self.new)
        self.taken.append(line)
        self.number += 1
        return line

    def repeat_all_but_first(self) -> None:
        """Go back behind the first line of the row."""
        self._again.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken) - 1
        del self.taken[1:]


def _next_row(
    source: _RepeatableLines, csv_format: Mapping[str, Any]
) -> list[str] | DamagedRow | None:
    """Return the values of the next row, or why it cannot be read; None at the end."""
    source.taken.clear()
    try:
        return next(csv.reader(source, strict=True, **csv_format), None)
    except csv.Error as error:
        source.repeat_all_but_first()
        damaged = DamagedRow("damaged_row", str(error))
    # Such as `"12" screens`, as programs write that know no better.
    try:
        rows = list(csv.reader([source.taken[0], "behind it"], **csv_format))
    except csv.Error:
        return damaged
    return rows[0] if len(rows) == 2 else damaged


def require_columns(
    place: Location, wanted: Iterable[str], found: Iterable[str], advice: str = "name yours"
) -> None:
    """Make sure that a table has all wanted columns, each once.

    Raises:
        SampleError: if it lacks one; names the columns that it has, and ends in the advice.
    """
    names = list(found)
    for column in wanted:
        if column not in names:
            raise SampleError(f"{place.uri} has no column {column!r}; it has {names}; {advice}")
        if (times := names.count(column)) > 1:
            raise SampleError(
                f"{place.uri} has {times} columns called {column!r}; rename all but one"
            )
