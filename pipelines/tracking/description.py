"""The description of a run in MLflow: what a person wants to know before looking at any chart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.reporting.reports import EvaluationReport


@dataclass
class RunDescription:
    """What is known of a run so far.

    Attributes:
        run: the run's folder or URI.
        step: steps that were made.
        steps: steps that the run is to make.
        bottleneck: the part of the run that holds up the rest; "" while that is not known.
        num_rejected: samples that were rejected.
        results: by evaluation, the step and the line of its newest result.
        failures: by evaluation, the step and the reason, where the newest one failed.
    """

    run: str
    steps: int
    step: int = 0
    bottleneck: str = ""
    num_rejected: int = 0
    results: dict[str, tuple[int, str]] = field(default_factory=dict)
    failures: dict[str, tuple[int, str]] = field(default_factory=dict)

    def evaluated(self, report: EvaluationReport, step: int) -> None:
        """Take in an evaluation of the checkpoint of a step."""
        known = max(found.get(report.name, (-1, ""))[0] for found in (self.results, self.failures))
        if step < known:
            return
        if report.status != "ok":
            self.failures[report.name] = (step, f"{report.status}: {report.message}")
            return
        self.failures.pop(report.name, None)
        self.results[report.name] = (step, first_metric(report.result))

    @property
    def failed(self) -> list[str]:
        """Evaluations whose newest attempt failed."""
        return sorted(self.failures)

    def text(self, state: str) -> str:
        """Return the description as Markdown.

        Args:
            state: "running", "completed", "interrupted", or an error.
        """
        lines = [f"**{state}**, {self.step} of {self.steps} steps"]
        lines += [f"- {name}: {line} (step {step})" for name, (step, line) in self.results.items()]
        for name, (step, why) in self.failures.items():
            lines.append(f"- **failed**: {name} (step {step}): {' '.join(why.split())[:300]}")
        if self.bottleneck:
            lines.append(f"- limited by {self.bottleneck}")
        if self.num_rejected:
            lines.append(
                f"- {self.num_rejected} samples rejected: "
                f"`python -m pipelines inspect {self.run} --rejects`"
            )
        if state != "completed":
            lines.append(f"- go on with `python -m pipelines resume {self.run}`")
        return "\n".join(lines)


def first_metric(result: Mapping[str, Any]) -> str:
    """Return the metric that counts, beside its floors, as "accuracy 0.8 (chance 0.1)"."""
    name, value = next(iter(result["metrics"].items()))
    floors = ", ".join(f"{floor} {at:.4g}" for floor, at in result["floors"].get(name, {}).items())
    return f"{name} {value:.4g}" + (f" ({floors})" if floors else "")
