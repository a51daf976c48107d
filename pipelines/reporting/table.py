"""A table of results: a row for each metric, a column for each checkpoint."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.reporting.paper import PUBLISHED, Published, published
from pipelines.runtime.storage import Location

_CSV_COLUMNS = (
    *("checkpoint", "benchmark", "metric", "value", "low", "high", "floor", "floor_of"),
    *("num_samples", "paper_percent", "paper_model"),
)
#: Parts of the names of metrics that are shares, and are shown in percent.
_SHARES = ("accuracy", "recall", "rate", "share", "f1", "explained")


@dataclass(frozen=True)
class Evaluated:
    """A checkpoint's results.

    Attributes:
        name: the name by which a person knows the checkpoint.
        folder: where its results and pictures are.
        results: the JSON of each, by its name, such as "zero_shot/fashion_mnist-test".
    """

    name: str
    folder: Location
    results: Mapping[str, Mapping[str, Any]]

    @property
    def failures(self) -> dict[str, str]:
        """Return the first line of the reason for each result that is not ok, by its name."""
        return {
            name: f"{result['status']}: {result.get('message', '').partition(chr(10))[0]}"
            for name, result in self.results.items()
            if result["status"] != "ok"
        }


@dataclass(frozen=True)
class Cell:
    """A score, as it is stored."""

    value: float
    interval: tuple[float, float] | None
    floors: Mapping[str, float]
    num_samples: int


@dataclass(frozen=True)
class Row:
    """A metric of a benchmark, with None in the place of a checkpoint that lacks it."""

    benchmark: str
    metric: str
    cells: tuple[Cell | None, ...]

    @property
    def is_share(self) -> bool:
        """Return true if the metric is shown in percent."""
        return any(part in self.metric for part in _SHARES)

    @property
    def label(self) -> str:
        """Return the metric as a person reads it."""
        return self.metric.replace("_", " ") + (", %" if self.is_share else "")

    @property
    def paper(self) -> Published | None:
        """Return the paper's row for this metric, or None."""
        return published(self.benchmark, self.metric)

    @property
    def paper_text(self) -> str:
        """Return the paper's number and the model that it is of; "" where it has none."""
        if self.paper is None:
            return ""
        model, percent = self.paper.first
        return f"{percent:g} ({model})"

    def shown(self, value: float) -> str:
        """Return a value as the table has it."""
        if self.is_share:
            return f"{100 * value:.1f}"
        return f"{value:.3f}" if abs(value) < 10 and value % 1 else f"{value:.4g}"

    def interval_text(self, cell: Cell) -> str:
        """Return the 95 % interval; "" for a metric that is no mean of samples."""
        return "" if cell.interval is None else " to ".join(map(self.shown, cell.interval))

    @property
    def floor_lines(self) -> list[str]:
        """Return the floor of each name as text; a range where checkpoints have different ones.

        A floor is the score of something that knows nothing. Names of equal floors share a line.
        """
        floors = [cell.floors for cell in self.cells if cell is not None]
        names: dict[str, list[str]] = {}
        for name in dict.fromkeys(name for found in floors for name in found):
            values = [found[name] for found in floors if name in found]
            ends = dict.fromkeys((self.shown(min(values)), self.shown(max(values))))
            names.setdefault(" to ".join(ends), []).append(name)
        return [f"{', '.join(of)} {value}" for value, of in names.items()]


def make_rows(evaluated: Sequence[Evaluated]) -> list[Row]:
    """Return the rows of all metrics that a checkpoint has, benchmark by benchmark."""
    rows: list[Row] = []
    for benchmark in sorted({name for one in evaluated for name in one.results}):
        of_each = [one.results.get(benchmark, {}) for one in evaluated]
        metrics = dict.fromkeys(m for result in of_each for m in result.get("metrics", {}))
        rows += [
            Row(benchmark, metric, tuple(_cell(result, metric) for result in of_each))
            for metric in metrics
        ]
    return rows


def _cell(result: Mapping[str, Any], metric: str) -> Cell | None:
    value = result.get("metrics", {}).get(metric)
    if result.get("status") != "ok" or value is None:
        return None
    # Older results have no floors and intervals, and are shown without.
    interval = result.get("intervals", {}).get(metric)
    return Cell(
        value=value,
        interval=None if interval is None else (interval[0], interval[1]),
        floors=result.get("floors", {}).get(metric, {}),
        num_samples=result["num_samples"],
    )


def paper_lines(rows: Sequence[Row]) -> list[list[str]]:
    """Return a header and all that the paper has for some rows; nothing where it has nothing."""
    models = list(dict.fromkeys(model for one in PUBLISHED for model in one.percent))
    lines = [["in the paper, %", *models, "with"]]
    for one in filter(None, (row.paper for row in rows)):
        numbers = [f"{one.percent[m]:g}" if m in one.percent else "" for m in models]
        lines.append([f"{one.benchmark} {one.metric}", *numbers, one.how])
    return lines if len(lines) > 1 else []


def to_markdown(evaluated: Sequence[Evaluated]) -> str:
    """Return the table, the paper's models where a row is theirs, and what failed."""
    rows, names = make_rows(evaluated), [one.name for one in evaluated]
    table = [["benchmark", "metric", *names, "floor", "paper"]]
    before = ""
    for row in rows:
        cells = [_markdown_cell(row, cell) for cell in row.cells]
        name = row.benchmark if row.benchmark != before else ""
        before = row.benchmark
        table.append([name, row.label, *cells, "; ".join(row.floor_lines), row.paper_text])
    theirs = paper_lines(rows)
    if not theirs:
        table = [line[:-1] for line in table]
    lines = _markdown_table(table, texts=(0, 1, 2 + len(names)))
    lines += ["", "In brackets: 95 % intervals."]
    if theirs:
        lines += ["", *_markdown_table(theirs, texts=(0, len(theirs[0]) - 1))]
    failures = [
        f"- {name} of {one.name}: {why}" for one in evaluated for name, why in one.failures.items()
    ]
    if failures:
        lines += ["", "Not ended well:", "", *failures]
    return "\n".join(lines) + "\n"


def _markdown_cell(row: Row, cell: Cell | None) -> str:
    if cell is None:
        return ""
    interval = row.interval_text(cell)
    return row.shown(cell.value) + (f" [{interval}]" if interval else "")


def _markdown_table(lines: Sequence[Sequence[str]], texts: Collection[int]) -> list[str]:
    """Return a table below its header; columns other than `texts` are set to the right."""
    rule = ["---" if number in texts else "--:" for number in range(len(lines[0]))]
    cleaned = [
        [cell.replace("|", "/").replace("\n", " ") for cell in line]
        for line in (lines[0], rule, *lines[1:])
    ]
    return [f"| {' | '.join(cells)} |" for cells in cleaned]


def to_csv(evaluated: Sequence[Evaluated]) -> str:
    """Return a line for each metric of each checkpoint, values as they are stored."""
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow(_CSV_COLUMNS)
    for row in make_rows(evaluated):
        model, percent = row.paper.first if row.paper is not None else ("", "")
        for one, cell in zip(evaluated, row.cells, strict=True):
            if cell is None:
                continue
            low, high = cell.interval or ("", "")
            of, floor = max(cell.floors.items(), key=lambda item: item[1], default=("", ""))
            found = (cell.value, low, high, floor, of, cell.num_samples, percent, model)
            table.writerow([one.name, row.benchmark, row.metric, *found])
    return written.getvalue()
