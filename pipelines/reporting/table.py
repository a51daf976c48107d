"""A table of results: a row for each metric, a column for each checkpoint."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
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
        name: as a person would call the checkpoint.
        folder: where its results and pictures are.
        results: the JSON of each, by its name, such as "zero_shot/fashion_mnist-test".
    """

    name: str
    folder: Location
    results: Mapping[str, Mapping[str, Any]]

    @property
    def failures(self) -> dict[str, str]:
        """What did not end well, and why; the first line of it."""
        bad = {name: r for name, r in self.results.items() if r["status"] != "ok"}
        return {
            name: f"{r['status']}: {r.get('message', '').partition(chr(10))[0]}"
            for name, r in bad.items()
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
    """A metric of a benchmark; None for a checkpoint that has it not."""

    benchmark: str
    metric: str
    cells: tuple[Cell | None, ...]

    @property
    def is_share(self) -> bool:
        """Whether it is shown in percent."""
        return any(part in self.metric for part in _SHARES)

    @property
    def label(self) -> str:
        """The metric as a person reads it."""
        return self.metric.replace("_", " ") + (", %" if self.is_share else "")

    @property
    def paper(self) -> Published | None:
        """What the paper has in its place."""
        return published(self.benchmark, self.metric)

    @property
    def paper_text(self) -> str:
        """The paper's number and whose it is; "" where it has none."""
        if self.paper is None:
            return ""
        model, percent = self.paper.first
        return f"{percent:g} ({model})"

    def shown(self, value: float) -> str:
        """A value as the table has it."""
        if self.is_share:
            return f"{100 * value:.1f}"
        return f"{value:.3f}" if abs(value) < 10 and value % 1 else f"{value:.4g}"

    def interval_text(self, cell: Cell) -> str:
        """The 95 % interval; "" where no samples decide."""
        if cell.interval is None:
            return ""
        low, high = cell.interval
        return f"{self.shown(low)} to {self.shown(high)}"

    @property
    def floor_lines(self) -> list[str]:
        """What gets which floor; where checkpoints differ in one, from the least to the most."""
        values: dict[str, list[float]] = {}
        for cell in self.cells:
            for name, value in (cell.floors if cell is not None else {}).items():
                values.setdefault(name, []).append(value)
        names: dict[str, list[str]] = {}
        for name, found in values.items():
            ends = dict.fromkeys((self.shown(min(found)), self.shown(max(found))))
            names.setdefault(" to ".join(ends), []).append(name)
        return [f"{', '.join(of)} {value}" for value, of in names.items()]


def make_rows(evaluated: Sequence[Evaluated]) -> list[Row]:
    """The rows of all metrics that a checkpoint has, benchmark by benchmark."""
    names: dict[str, None] = {}
    for name in sorted({name for one in evaluated for name in one.results}):
        names[name] = None
    rows: list[Row] = []
    for benchmark in names:
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
    # Results of before there were floors and intervals are shown without.
    interval = result.get("intervals", {}).get(metric)
    return Cell(
        value=value,
        interval=None if interval is None else (interval[0], interval[1]),
        floors=result.get("floors", {}).get(metric, {}),
        num_samples=result["num_samples"],
    )


def to_markdown(evaluated: Sequence[Evaluated]) -> str:
    """The table, the paper's models where a row is theirs, and what failed."""
    rows = make_rows(evaluated)
    has_paper = any(row.paper is not None for row in rows)
    header = ["benchmark", "metric", *(one.name for one in evaluated), "floor"]
    lines = [_line([*header, *["paper"] * has_paper])]
    lines.append(_line(["---", "---", *["--:"] * len(evaluated), "---", *["--:"] * has_paper]))
    before = ""
    for row in rows:
        cells = [_markdown_cell(row, cell) for cell in row.cells]
        name = row.benchmark if row.benchmark != before else ""
        before = row.benchmark
        paper = [row.paper_text] * has_paper
        lines.append(_line([name, row.label, *cells, "; ".join(row.floor_lines), *paper]))
    lines += ["", "In brackets: 95 % intervals."]
    if theirs := [row.paper for row in rows if row.paper is not None]:
        lines += ["", *paper_lines(theirs)]
    return "\n".join([*lines, *_failure_lines(evaluated)]) + "\n"


def _markdown_cell(row: Row, cell: Cell | None) -> str:
    if cell is None:
        return ""
    interval = row.interval_text(cell)
    return row.shown(cell.value) + (f" [{interval}]" if interval else "")


def paper_lines(found: Iterable[Published]) -> list[str]:
    """All that the paper has for some rows, as a table of its own."""
    models = list(dict.fromkeys(model for one in PUBLISHED for model in one.percent))
    lines = [_line(["in the paper, %", *models, "with"])]
    lines.append(_line(["---", *["--:"] * len(models), "---"]))
    for one in found:
        numbers = [f"{one.percent[m]:g}" if m in one.percent else "" for m in models]
        lines.append(_line([f"{one.benchmark} {one.metric}", *numbers, one.how]))
    return lines


def _failure_lines(evaluated: Sequence[Evaluated]) -> list[str]:
    failures = [
        f"- {name} of {one.name}: {why}" for one in evaluated for name, why in one.failures.items()
    ]
    return ["", "Not ended well:", "", *failures] if failures else []


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"


def to_csv(evaluated: Sequence[Evaluated]) -> str:
    """A line for each metric of each checkpoint, values as they are stored."""
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow(_CSV_COLUMNS)
    for row in make_rows(evaluated):
        model, percent = row.paper.first if row.paper is not None else ("", "")
        for one, cell in zip(evaluated, row.cells, strict=True):
            if cell is None:
                continue
            low, high = cell.interval or ("", "")
            floors = cell.floors
            highest = max(floors, key=lambda name: floors[name], default="")
            floor = floors.get(highest, "")
            found = (cell.value, low, high, floor, highest, cell.num_samples, percent, model)
            table.writerow([one.name, row.benchmark, row.metric, *found])
    return written.getvalue()
