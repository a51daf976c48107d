"""Several runs as trials of Ray Tune: so many at a time, each on the machines that it asks for.

A trial takes hardly any CPU: its run's ranks, render tasks and evaluations ask for their own.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import ray
import ray.tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

from clippo_core.config import from_json, to_json
from pipelines.config.resolution import RUN_FILE, read_run_config, resolve
from pipelines.config.settings import RunConfig
from pipelines.runtime.ray_session import needed_cpus, ray_session
from pipelines.runtime.storage import Location
from pipelines.training.run import StoppedError, train

#: CPUs that Ray sets aside for a trial's actor; it cannot place an actor that takes nothing.
_TRIAL_CPUS = 0.001


@dataclass(frozen=True)
class EndedRun:
    """A run of several, and its end.

    Attributes:
        run: the run's folder.
        message: why it failed; "" if it was completed.
    """

    run: str
    message: str = ""


def make_runs(
    configs: Sequence[RunConfig],
    folder: Location,
    *,
    concurrent: int = 1,
    tags: Mapping[str, str] | None = None,
) -> dict[str, EndedRun]:
    """Make runs to their ends; those that are there already go on. One that fails stops no other.

    Args:
        configs: the runs, whose names differ.
        folder: folder for the files of Ray Tune.
        concurrent: number of parallel runs.
        tags: further tags of the new runs in MLflow.

    Returns:
        The runs by their names.

    Raises:
        StoppedError: after SIGTERM.
    """
    # Tune would take Ctrl-C as a wish to end well; runs go on later from their checkpoints.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    # And it would print its own tables, again and again.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    root, filesystem = folder.arrow_path()
    by_name = {str(config.storage.run): config for config in configs}
    trainable = ray.tune.with_parameters(
        _tune_trial, configs={n: to_json(c) for n, c in by_name.items()}, tags=dict(tags or {})
    )
    needed = max(map(needed_cpus, configs))
    with ray_session(cpus=concurrent * (needed + _TRIAL_CPUS)), _stopped_by_sigterm(folder):
        found = ray.tune.Tuner(
            ray.tune.with_resources(trainable, {"CPU": _TRIAL_CPUS}),
            param_space={"run": ray.tune.grid_search(list(by_name))},
            tune_config=ray.tune.TuneConfig(max_concurrent_trials=concurrent),
            run_config=ray.tune.RunConfig(
                # A new name for each attempt, so that Ray finds no state of an earlier one.
                name=f"tune-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
                storage_path=f"{root}/ray",
                storage_filesystem=filesystem,
                verbose=0,
                callbacks=[_Told(len(configs))],
            ),
        ).fit()
    ended = {
        name: EndedRun(_folder_of(config).uri, "Ray Tune lost it; see its logs")
        for name, config in by_name.items()
    }
    for number in range(len(found)):
        metrics: Mapping[str, Any] = found[number].metrics or {}
        if "ended" in metrics:
            run = EndedRun(**metrics["ended"])
            ended[Location.of(run.run).name] = run
    return ended


def _folder_of(config: RunConfig) -> Location:
    return Location.of(config.storage.root) / str(config.storage.run)


class _Told(ray.tune.Callback):
    """Says on the terminal which runs have begun and ended."""

    def __init__(self, count: int) -> None:
        self._count, self._ended = count, 0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        tqdm.write(f"{trial.config['run']} begins")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._ended += 1
        tqdm.write(f"{trial.config['run']} ended, {self._ended} of {self._count}")


@contextmanager
def _stopped_by_sigterm(folder: Location) -> Iterator[None]:
    stopped: list[StoppedError] = []

    def stop(_number: int, _frame: Any) -> None:
        stopped.append(
            StoppedError(
                f"stopped; the same command goes on from the last checkpoints in {folder.uri}"
            )
        )
        raise stopped[0]

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except SystemError:
        # Ray's compiled code makes one of what a signal's handler raises meanwhile.
        if stopped:
            raise stopped[0] from None
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def _tune_trial(
    config: Mapping[str, Any], *, configs: Mapping[str, str], tags: Mapping[str, str]
) -> None:
    """Make one run, for Tune.

    Tune has everything that a trial starts share the trial's own resources. The run is therefore
    started by a task that is placed by hand, outside of them.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    task = ray.remote(make_run).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
    ended: EndedRun = ray.get(task.remote(configs[config["run"]], tags))
    ray.tune.report({"ended": asdict(ended)})


def make_run(config_json: str, tags: Mapping[str, str]) -> EndedRun:
    """Train a run to its end; one that is there already goes on.

    Args:
        config_json: the run's settings.
        tags: further tags of a new run in MLflow.
    """
    config = from_json(RunConfig, config_json, where="a run's config")
    run = _folder_of(config)
    try:
        is_there = (run / RUN_FILE).exists()
        resolved = resolve(read_run_config(run) if is_there else config)
        train(resolved, is_resumed=is_there, tags=tags)
    except Exception as error:  # noqa: BLE001 - one run that diverges is no reason to lose the others
        return EndedRun(run.uri, f"{type(error).__name__}: {error}")
    return EndedRun(run.uri)
