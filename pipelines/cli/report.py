"""`report` puts the results of checkpoints side by side, with the paper's numbers."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from clippo_core.errors import SampleError
from pipelines.cli.arguments import parse
from pipelines.config.resolution import RUN_FILE, newest_run
from pipelines.reporting.page import to_html
from pipelines.reporting.stored import stored_results
from pipelines.reporting.table import Evaluated, to_csv, to_markdown
from pipelines.runtime.storage import Location
from pipelines.tracking.models import is_registered, model_name


@dataclass(frozen=True)
class ReportArguments:
    """Show the results of any number of checkpoints side by side."""

    of: tyro.conf.Positional[tuple[str, ...]] = ()
    """Runs (the newest checkpoint with results), checkpoints, big_vision .npz, models:/NAME@ALIAS,
    or folders that evaluate was given as --out; none: the newest run."""
    out: str = "report"
    """Folder for report.md, report.csv and report.html."""


def run(argv: list[str]) -> None:
    """Print the table; the last lines are the files."""
    arguments = parse(ReportArguments, argv, command="report")
    names = arguments.of or (newest_run().uri,)
    if not arguments.of:
        print(f"of the newest run, {names[0]}")
    evaluated = [find_results(reference) for reference in names]
    markdown, folder = to_markdown(evaluated), Location.of(arguments.out)
    files = {"md": markdown, "csv": to_csv(evaluated), "html": to_html(evaluated)}
    print(markdown)
    for suffix, content in files.items():
        (folder / f"report.{suffix}").write_bytes(content.encode())
    print("\n".join((folder / f"report.{suffix}").uri for suffix in files))


def find_results(reference: str) -> Evaluated:
    """Return the results of a run, a checkpoint, a registered model or a folder of results.

    The checkpoint need not be there any more: its results outlive it.

    Raises:
        SampleError: if there are none.
    """
    for name, folder in _candidates(reference):
        if results := stored_results(folder):
            return Evaluated(name, folder, results)
    raise SampleError(
        f"{reference} has no results yet; make some with\n"
        f"  python -m pipelines evaluate {reference} --tasks zero_shot:DATA_SET …"
    )


def _candidates(reference: str) -> list[tuple[str, Location]]:
    """Return names, and the folders that results may be in, the likeliest first."""
    place = Location.of(reference)
    name = model_name(reference, place)
    if is_registered(reference):
        return [(name, Location.of(".") / "evaluations" / name)]
    if (place / RUN_FILE).exists():
        folder = place / "evaluations"
        return [(f"{place.name}/{step}", folder / step) for step in reversed(folder.names())]
    if place.parent.name == "checkpoints":
        return [(name, place.parent.parent / "evaluations" / place.name)]
    return [(name, place.parent / "evaluations" / place.name), (name, place)]
