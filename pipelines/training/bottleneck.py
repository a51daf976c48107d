"""Figures of the stream, and the part of a run that holds up the rest.

Batches carry notes of what they took to prepare and when they were ready; by Little's law, seconds
of work per second are workers at work, and seconds of lying ready per second are batches ready.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipelines.config.settings import ScalingConfig

if TYPE_CHECKING:
    # The monitor is a process that waits for this module, and for nothing else of the stream.
    from pipelines.runtime.placement import Capacity
    from pipelines.stream.batch import PreparedBatch

STAGES = ("read", "decode", "render")
#: A rank that waits for data less than this is not held up by it.
TOLERABLE_WAIT = 0.03
#: Share of the possible render tasks that counts as all: so many are at work on average then.
_ALL_AT_WORK = 0.8
#: How many times the canvas' side pictures have to be that their size is worth a word.
_FAR_LARGER = 4


def effort_of(batch: PreparedBatch, now: float) -> dict[str, float]:
    """Return figures of a batch that may be added up, over ranks and over steps.

    Args:
        batch: the batch, as it arrived.
        now: Unix time of the arrival. Clocks of machines differ; a batch from the future counts as
            just ready.
    """
    effort = batch.effort
    sums = {f"{stage}_s": effort.seconds.get(stage, 0.0) for stage in STAGES}
    sums |= {f"{stage}_cpu_s": effort.cpu_seconds.get(stage, 0.0) for stage in STAGES}
    return sums | {"ready_s": max(now - effort.finished_at, 0.0)}


@dataclass
class StreamWindow:
    """Sums over steps, from which rank 0 computes what it logs."""

    steps: int = 0
    elapsed_s: float = 0.0
    wait_s: float = 0.0
    sums: Counter[str] = field(default_factory=Counter)

    def add(
        self, sums: Mapping[str, float], *, steps: int, elapsed_s: float, wait_s: float
    ) -> None:
        """Count some steps: `sums` over all ranks, `elapsed_s` and `wait_s` on average."""
        self.steps += steps
        self.elapsed_s += elapsed_s
        self.wait_s += wait_s
        self.sums.update(sums)  # pyright: ignore[reportArgumentType] - a Counter of seconds

    def figures(self, batch_size: int) -> StreamFigures:
        """Return the rates and averages over these steps.

        Args:
            batch_size: samples of a step, over all ranks.
        """
        rows = max(self.steps * batch_size, 1)
        elapsed_s = max(self.elapsed_s, 1e-9)
        return StreamFigures(
            rows_per_s=rows / elapsed_s,
            workers=sum(self.sums[f"{stage}_s"] for stage in STAGES) / elapsed_s,
            queue_batches=self.sums["ready_s"] / elapsed_s,
            wait_ratio=self.wait_s / elapsed_s,
            ms_per_row={stage: 1000 * self.sums[f"{stage}_s"] / rows for stage in STAGES},
            cpu_ms_per_row={stage: 1000 * self.sums[f"{stage}_cpu_s"] / rows for stage in STAGES},
        )


@dataclass(frozen=True)
class StreamFigures:
    """Rates and averages of the stream over some steps.

    Attributes:
        rows_per_s: samples that were trained on per second.
        workers: render tasks at work, on average.
        queue_batches: ranks' batches that lay ready, on average.
        wait_ratio: share of the time that ranks waited for a batch.
        ms_per_row: milliseconds on the clock that each stage takes for a sample.
        cpu_ms_per_row: CPU milliseconds that each stage takes for a sample; less where a task
            waited for storage or for its turn on a core.
    """

    rows_per_s: float
    workers: float
    queue_batches: float
    wait_ratio: float
    ms_per_row: Mapping[str, float]
    cpu_ms_per_row: Mapping[str, float]

    def metrics(self) -> dict[str, float]:
        """Return the figures by the names that they have in MLflow's charts."""
        found = {
            "stream/rows_per_s": self.rows_per_s,
            "stream/workers": self.workers,
            "stream/queue_batches": self.queue_batches,
            "data/wait_ratio": self.wait_ratio,
        }
        found |= {f"stream/{s}_ms_per_row": value for s, value in self.ms_per_row.items()}
        return found | {f"stream/{s}_cpu_ms_per_row": v for s, v in self.cpu_ms_per_row.items()}


@dataclass(frozen=True)
class PictureSides:
    """The longest side of a typical picture of a run as it is stored, and of its canvas, in px."""

    stored_px: float
    canvas_px: int

    @property
    def are_far_larger(self) -> bool:
        """True if most of what is decoded is thrown away."""
        return self.stored_px > _FAR_LARGER * self.canvas_px


def verdict(
    figures: StreamFigures,
    scaling: ScalingConfig,
    capacity: Capacity,
    *,
    pictures: PictureSides | None = None,
) -> str:
    """Say which stage limits a run, and what to do about it, the cheapest remedy first.

    Args:
        figures: the stream's over the run, or over the part of it since the ranks started.
        scaling: the run's settings.
        capacity: the places that its cluster has for it.
        pictures: sizes of its pictures; None where it has none.
    """
    wait = figures.wait_ratio
    if wait <= TOLERABLE_WAIT:
        spare = f"{figures.queue_batches:.1f} batches lie ready"
        return (
            f"device: ranks wait for data {wait:.1%} of the time, {spare}; faster with more ranks"
        )
    stage = max(STAGES, key=lambda name: figures.ms_per_row[name])
    text = f"{stage}: ranks wait for data {wait:.0%} of the time"
    # Rows per second if ranks never waited, times the seconds that a row takes to prepare.
    needed = math.ceil(
        figures.rows_per_s / max(1 - wait, 0.05) * sum(figures.ms_per_row.values()) / 1000
    )
    if stage == "decode" and pictures is not None and pictures.are_far_larger:
        share = figures.ms_per_row["decode"] / max(sum(figures.ms_per_row.values()), 1e-9)
        return (
            f"{text}, and decoding is {share:.0%} of a render task's work: pictures are "
            f"{pictures.stored_px:.0f} px, the canvas {pictures.canvas_px}; shrink them once: "
            f"python -m pipelines prepare … --max-side-px {2 * pictures.canvas_px}"
        )
    cpu = sum(figures.cpu_ms_per_row.values()) / max(sum(figures.ms_per_row.values()), 1e-9)
    tasks = capacity.running_tasks(scaling)
    if figures.workers < _ALL_AT_WORK * tasks:
        return (
            f"{text}, though {figures.workers:.1f} of {tasks} render tasks are at work: Ray's own "
            "work or the network holds the stream up; more samples per task cost less "
            "(data.steps-per-task, a larger batch)"
        )
    if cpu < 0.5:
        cause, cure = (
            ("storage", "raise data.run-length, or let more tasks wait at a time: lower "
             "scaling.renderer-cpus")
            if stage == "read"
            else ("a core that ranks or other programs use", "render on nodes of their own")
            if capacity.is_shared
            else ("a core that other programs use", "free the nodes that render of them")
        )  # fmt: skip
        text += f", and {1 - cpu:.0%} of a render task's time is waiting for {cause}; {cure}, or"
    else:
        text += "; renderers:"
    needed = max(needed, tasks + 1)
    if scaling.max_renderers is not None and scaling.max_renderers < capacity.render_tasks:
        return f"{text} raise scaling.max-renderers to {needed}"
    raised = "" if scaling.max_renderers is None else f"scaling.max-renderers={needed} and "
    return f"{text} {raised}add nodes for {needed - tasks} more render tasks"
