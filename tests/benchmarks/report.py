"""What the benchmarks share: competitors in turn, medians, and a record of the machine."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

RESULTS = Path(__file__).parents[2] / "build" / "benchmarks"
_LIBRARIES = ("numpy", "numba", "pillow", "torch", "pyarrow", "ray", "open_clip_torch")


def seconds_each(
    competitors: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 7,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each call; the competitors take turns, so that drift hits all alike.

    On one thread `time.process_time` is a clock that other programs on the machine hardly disturb.
    """
    taken: dict[str, list[float]] = {name: [] for name in competitors}
    for number in range(warm_up + rounds):
        for name, call in competitors.items():
            started = clock()
            call()
            if number >= warm_up:
                taken[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in taken.items()}


def run_id_of(client: MlflowClient, run: str) -> str:
    """Of the one run of that name that a benchmark trained."""
    (experiment,) = client.search_experiments(filter_string="name = 'clippo'")
    (found,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{run}'")
    return found.info.run_id


def machine() -> dict[str, object]:
    """Where the figures come from."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in _LIBRARIES},
    }


def show(figures: Mapping[str, Mapping[str, float]]) -> None:
    """Print groups of figures, one to a line."""
    for name, values in figures.items():
        print(name)
        for key, value in values.items():
            print(f"  {key:<34}{value:>16,.3f}")


def write(name: str, figures: Mapping[str, object]) -> None:
    """Store the figures with the machine; print where."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=2) + "\n")
    print(path)
