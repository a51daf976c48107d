"""The description of a run in MLflow: what a person wants to know before looking at any chart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipelines.reporting.reports import Benchmark, EvaluationReport

#: Events that the description has room for, the last ones.
_SHOWN_EVENTS = 10


class Evaluated(NamedTuple):
    """The outcome of an evaluation at a step: its metric beside its floor, or why it failed."""

    step: int
    name: str
    outcome: str


@dataclass
class RunDescription:
    """The facts that are known of a run so far.

    Attributes:
        run: the run's folder or URI.
        step: steps that were made.
        steps: steps that the run is to make.
        bottleneck: the part of the run that holds up the rest; "" while that is not known.
        num_rejected: samples that were rejected.
        results: by evaluation, its newest result.
        failures: by evaluation, why its newest attempt failed, where it did.
        events: what happened to the run's machines, in order.
    """

    run: str
    steps: int
    step: int = 0
    bottleneck: str = ""
    num_rejected: int = 0
    results: dict[Benchmark, Evaluated] = field(default_factory=dict[Benchmark, "Evaluated"])
    failures: dict[Benchmark, Evaluated] = field(default_factory=dict[Benchmark, "Evaluated"])

    events: list[str] = field(default_factory=list[str])

    def evaluated(self, report: EvaluationReport, step: int) -> None:
        """Take in an evaluation of the checkpoint of a step."""
        benchmark = report.benchmark
        known = [
            found[benchmark].step for found in (self.results, self.failures) if benchmark in found
        ]
        if step < max(known, default=0):
            return
        if report.status != "ok":
            why = " ".join(report.message.split())[:300]
            self.failures[benchmark] = Evaluated(step, report.name, f"{report.status}: {why}")
            return
        self.failures.pop(benchmark, None)
        self.results[benchmark] = Evaluated(step, report.name, first_metric(report.result))

    @property
    def failed(self) -> list[str]:
        """Evaluations whose newest attempt failed."""
        return sorted(found.name for found in self.failures.values())

    @property
    def newest_result(self) -> Evaluated | None:
        """The result of the latest checkpoint that has one."""
        return max(self.results.values(), key=lambda found: found.step, default=None)

    def text(self, state: str) -> str:
        """Return the description as Markdown.

        Args:
            state: "running", "completed", "interrupted", or an error.
        """
        lines = [f"**{state}**, {self.step} of {self.steps} steps"]
        lines += [f"- {r.name}: {r.outcome} (step {r.step})" for r in self.results.values()]
        for failure in self.failures.values():
            lines.append(f"- **failed**: {failure.name} (step {failure.step}): {failure.outcome}")
        if self.bottleneck:
            lines.append(f"- limited by {self.bottleneck}")
        if self.num_rejected:
            lines.append(
                f"- {self.num_rejected} samples rejected: "
                f"`python -m pipelines inspect {self.run} --rejects`"
            )
        lines += [f"- {event}" for event in self.events[-_SHOWN_EVENTS:]]
        if state != "completed":
            lines.append(f"- go on with `python -m pipelines resume {self.run}`")
        return "\n".join(lines)


def first_metric(result: Mapping[str, Any]) -> str:
    """Return the metric that counts, beside its floors, as "accuracy 0.8 (chance 0.1)"."""
    name, value = next(iter(result["metrics"].items()))
    floors = ", ".join(f"{floor} {at:.4g}" for floor, at in result["floors"].get(name, {}).items())
    return f"{name} {value:.4g}" + (f" ({floors})" if floors else "")
