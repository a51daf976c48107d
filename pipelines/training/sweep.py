"""Fine-tuning by several learning rates, compared on a held-out part of the training set.

Each learning rate is a run of `pipelines.training.run`; see `many_runs`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clippo_core.errors import ConfigError, StorageError
from pipelines.config.resolution import RUN_FILE, resolve, tracking_uri, validate
from pipelines.config.settings import RunConfig, SweepSettings
from pipelines.datasets.manifest import RawSample, ShardWriter, is_prepared
from pipelines.datasets.prepare.rows import is_held_out
from pipelines.datasets.sources import Source, locate_source, open_source
from pipelines.evaluation.tasks import parse_benchmark
from pipelines.reporting.stored import stored_results
from pipelines.runtime.run_checkpoints import SWEEP_FILE, whole_checkpoints
from pipelines.runtime.storage import Location
from pipelines.tracking.mlflow_run import RunTracker
from pipelines.training.many_runs import EndedRun, make_runs
from pipelines.training.run import StoppedError

TRAIN, HELD_OUT = "train", "held_out"


@dataclass(frozen=True)
class Trial:
    """A learning rate, with the run that used it and its score.

    Attributes:
        learning_rate: the peak of the run's schedule.
        run: the run's folder.
        score: the first metric on the held-out part, the mean over several parts by their samples;
            None: the run failed.
        message: why the run failed.
    """

    learning_rate: float
    run: str
    score: float | None
    message: str = ""


@dataclass(frozen=True)
class SweepResult:
    """All trials, in the order that they were asked for, and the best of them.

    Attributes:
        trials: one for each learning rate.
        metric: the metric by which they are compared; more is better.
        num_held_out: how many samples they are compared on.
        folder: the sweep's folder.
    """

    trials: list[Trial]
    metric: str
    num_held_out: int
    folder: Location

    @property
    def best(self) -> Trial:
        """Return the trial with the highest score, the first of equal ones.

        Raises:
            StorageError: if all failed.
        """
        ended = [(trial.score, trial) for trial in self.trials if trial.score is not None]
        if not ended:
            raise StorageError(
                "all runs of the sweep failed:\n"
                + "\n".join(f"  {trial.run}: {trial.message}" for trial in self.trials)
            )
        return max(ended, key=lambda pair: pair[0])[1]

    def table(self) -> str:
        """Return the trials as a table for a terminal."""
        best = self.best
        lines = [f"learning rate  {self.metric} on {self.num_held_out} held-out samples"]
        for trial in self.trials:
            score = f"failed: {trial.message}" if trial.score is None else f"{trial.score:.4f}"
            mark = "  best" if trial is best else ""
            lines.append(f"{trial.learning_rate:<13g}  {score}{mark}")
        return "\n".join(lines)


def sweep(config: RunConfig, settings: SweepSettings) -> SweepResult:
    """Make a run for each learning rate, or go on with those that are there.

    Args:
        config: the runs' settings, with the whole training sets; its evaluations are left out, and
            the run's name becomes the sweep's.
        settings: the learning rates, and how they are compared.

    Raises:
        ConfigError: if settings contradict each other, or the machines do not suffice.
        SampleError: if the data cannot be used, or nothing of it is held out.
        StorageError: if all runs fail.
        StoppedError: after SIGTERM.
    """
    settings.check()
    assert config.storage.run is not None
    folder = Location.of(config.storage.root) / config.storage.run
    if (folder / RUN_FILE).exists():
        raise ConfigError(f"{folder.uri} is a run, not a sweep; name another with --storage.run")
    sources = [open_source(locate_source(name).uri) for name in config.data.sources]
    parts = [
        split_source(source, folder / "data" / str(number), settings.held_out_share)
        for number, source in enumerate(sources)
    ]
    configs = [_trial_config(config, folder, parts, rate) for rate in settings.learning_rates]
    for trial in configs:
        validate(resolve(trial))
    parent = _open_parent(configs[0], folder, settings)
    status = "FAILED"
    try:
        tags = {"mlflow.parentRunId": parent.run.run_id}
        ended = make_runs(configs, folder, concurrent=settings.concurrent, tags=tags)
        result = _result(ended, configs, folder)
        (folder / SWEEP_FILE).write_json(
            {
                "best": Location.of(result.best.run).name,
                "metric": result.metric,
                "held_out_share": settings.held_out_share,
                "num_held_out": result.num_held_out,
                "trials": [dataclasses.asdict(trial) for trial in result.trials],
            }
        )
        parent.log_metrics({f"best/{result.metric}": result.best.score or 0.0}, step=0)
        parent.set_tag("clippo.best_run", result.best.run)
        status = "FINISHED"
        return result
    except (StoppedError, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        parent.finish(status)


def split_source(source: Source, folder: Location, share: float) -> tuple[Location, Location]:
    """Write a training set as two, `folder/train` and `folder/held_out`, unless they are there.

    Questions about one picture stay together where the picture lies in a file of its own.

    Returns:
        The folders of the two sets.

    Raises:
        SampleError: if one of them would be empty.
    """
    places = (folder / TRAIN, folder / HELD_OUT)
    if all(is_prepared(place) for place in places):
        return places
    manifest, name = source.manifest, source.name.removesuffix(f"-{TRAIN}")
    writers = [
        ShardWriter(
            place,
            # The names of published sets are kept, so that GLUE's are known by theirs.
            name=f"{name}-{split}",
            kind=manifest.kind,
            class_names=manifest.class_names,
            licence=manifest.licence,
            origin=f"{source.folder.uri}, {part:g} of it",
            evaluation_only=place.name == HELD_OUT,
            files_at=manifest.files_at or source.folder.uri,
        )
        for place, split, part in zip(places, (TRAIN, "dev"), (1 - share, share), strict=True)
    ]
    for sample in source.rows():
        writers[int(is_held_out(_group_of(sample), share))].add(sample)
    for writer in writers:
        writer.close()
    return places


def _group_of(sample: RawSample) -> str:
    """Return the key that groups samples, so that one picture's questions stay together."""
    at = sample.image_at
    return sample.key if at is None else f"{at.path}:{at.offset}"


def _trial_config(
    config: RunConfig,
    folder: Location,
    parts: Sequence[tuple[Location, Location]],
    learning_rate: float,
) -> RunConfig:
    tasks = tuple(f"{config.finetune.task}:{held_out.uri}" for _, held_out in parts)
    return dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, learning_rate=learning_rate),
        data=dataclasses.replace(config.data, sources=tuple(train.uri for train, _ in parts)),
        storage=dataclasses.replace(
            config.storage, root=folder.uri, run=f"learning-rate-{learning_rate:g}"
        ),
        tracking=dataclasses.replace(
            config.tracking, uri=tracking_uri(config), champion_metric=None
        ),
        evaluation=dataclasses.replace(config.evaluation, tasks=tasks, limit=None),
    )


def _open_parent(config: RunConfig, folder: Location, settings: SweepSettings) -> RunTracker:
    assert config.tracking.uri is not None
    tracker = RunTracker.open(
        config.tracking.uri,
        experiment=config.tracking.experiment,
        name=folder.name,
        artifacts=folder.parent / "mlartifacts",
        tags={"clippo.sweep": folder.uri, "clippo.preset": config.preset},
    )
    tracker.log_params(
        {
            "sweep.learning_rates": list(settings.learning_rates),
            "sweep.held_out_share": settings.held_out_share,
        }
    )
    return tracker


def held_out_score(run: Location, config: RunConfig) -> tuple[float, str, int]:
    """Return the first metric of a run's last checkpoint on the held-out part, its name and count.

    Raises:
        StorageError: if it was not measured.
    """
    last = whole_checkpoints(run)[-1][1]
    results = stored_results(run / "evaluations" / last.name)
    wanted = [parse_benchmark(text) for text in config.evaluation.tasks]
    names = {f"{b.task}/{open_source(b.source).name}" for b in wanted}
    good = [results[name] for name in names if results.get(name, {}).get("status") == "ok"]
    if len(good) < len(names):
        raise StorageError(
            f"{last.uri} was not measured on the held-out part: "
            f"{[result.get('message') for result in results.values()]}"
        )
    counts = [result["num_samples"] for result in good]
    metric = next(iter(good[0]["metrics"]))
    total = sum(n * result["metrics"][metric] for n, result in zip(counts, good, strict=True))
    return total / sum(counts), metric, sum(counts)


def _result(
    ended: Mapping[str, EndedRun], configs: Sequence[RunConfig], folder: Location
) -> SweepResult:
    trials: list[Trial] = []
    metric, count = "score", 0
    for config in configs:
        found, rate = ended[str(config.storage.run)], config.optim.learning_rate
        score, message = None, found.message
        if not message:
            try:
                score, metric, count = held_out_score(Location.of(found.run), config)
            except StorageError as error:
                message = str(error)
        trials.append(Trial(rate, found.run, score, message))
    return SweepResult(trials, metric, count, folder)
