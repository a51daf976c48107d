"""What `--dry-run` prints of a run that would be made."""

from __future__ import annotations

from pipelines.resolve import ResolvedRun, derive, validate


def print_plan(resolved: ResolvedRun) -> None:
    """Validate config and data, and print what follows from them.

    Raises:
        ClippoError: if the run could not be made.
    """
    rejected = validate(resolved)
    for key, value in derive(resolved).items():
        print(f"{key}: {value}")
    print(f"rejected among the first samples: {rejected}")
    print(f"would train in {resolved.run.uri}")
