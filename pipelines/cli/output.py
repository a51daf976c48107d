"""The text that commands print about a run: with `--dry-run` before it, and at its end."""

from __future__ import annotations

import sys

from pipelines.config.derived import derive, warnings_of
from pipelines.config.resolution import ResolvedRun, validate
from pipelines.reporting.stored import file_name, result_lines
from pipelines.training.run import RunSummary


def print_summary(summary: RunSummary) -> None:
    """Print the last checkpoint's evaluations, the way to the dashboard, and the checkpoint."""
    for report in summary.evaluations:
        if report.checkpoint == summary.checkpoint.uri and report.status == "ok":
            print("\n".join(result_lines(report)))
            folder = summary.run / "evaluations" / summary.checkpoint.name
            for name in report.pictures:
                print(f"picture: {(folder / f'{file_name(report)}-{name}.png').uri}")
    failed = [f"{r.name}: {r.status}: {r.message}" for r in summary.evaluations if r.status != "ok"]
    if failed:
        print(f"{len(failed)} evaluations failed:", *failed, sep="\n  ")
    if summary.bottleneck:
        print(f"limited by {summary.bottleneck}")
    tracked = summary.tracked
    charts = f"#/experiments/{tracked.experiment_id}/runs/{tracked.run_id}/model-metrics"
    if tracked.uri.startswith("http"):
        print(f"MLflow: {tracked.uri}/{charts}")
    else:
        print(f"dashboard: {sys.executable} -m mlflow server --port 5000 \\")
        print(f"  --backend-store-uri {tracked.uri}")
        print(f"  then http://127.0.0.1:5000/{charts}")
    print(summary.checkpoint.uri)


def print_plan(resolved: ResolvedRun) -> None:
    """Validate config and data, and print what follows from them.

    Raises:
        ClippoError: if the run could not be made.
    """
    rejected = validate(resolved)
    derived = derive(resolved)
    for key, value in derived.items():
        print(f"{key}: {value}")
    for line in warnings_of(derived):
        print(f"warning: {line}")
    print(f"rejected among the first samples: {rejected}")
    print(f"would train in {resolved.run.uri}")
