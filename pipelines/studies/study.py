"""A study: the runs that its claims need, of which the missing ones are made, and the verdicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from clippo_core.errors import ClippoError
from pipelines.checkpoint_evaluation import evaluate_checkpoint
from pipelines.config.settings import EvaluationConfig, RunConfig
from pipelines.datasets.prepare.registry import prepare_missing
from pipelines.datasets.sources import open_source
from pipelines.evaluation.tasks import parse_benchmark
from pipelines.reporting.stored import stored_results
from pipelines.runtime.run_checkpoints import whole_checkpoints
from pipelines.runtime.storage import Location
from pipelines.studies.claims import ARMS, Arm, Claim
from pipelines.studies.verdicts import Estimate, Verdict, estimate, together
from pipelines.training.many_runs import make_runs

#: Results of runs: by arm, one for each seed, the metrics by TASK/SOURCE/METRIC.
Measured = Mapping[str, Sequence[Mapping[str, float]]]


@dataclass(frozen=True)
class StudySettings:
    """The runs of a study.

    Attributes:
        root: folder of the runs.
        seeds: how many runs an arm has, unless it takes so long that fewer must do.
        is_quick: True for short runs.
        concurrent: number of parallel runs.
    """

    root: str
    seeds: int
    is_quick: bool
    concurrent: int


@dataclass(frozen=True)
class Finding:
    """A claim and what came of it.

    Attributes:
        claim: the claim.
        verdict: the verdict on it.
        parts: the verdict on each comparison, and by how much the first arm is better.
        table: by metric, the estimate of each arm.
        missing: why runs are missing that it needs, by their names.
    """

    claim: Claim
    verdict: Verdict
    parts: list[tuple[str, Verdict, Estimate]]
    table: dict[str, dict[str, Estimate]]
    missing: dict[str, str]


def study(claims: Sequence[Claim], settings: StudySettings) -> list[Finding]:
    """Make the runs that are missing, evaluate them, and judge the claims.

    A run that fails is named, and the others go on; runs that are there are not made again.
    """
    arms = _arms_of(claims)
    failures: dict[str, str] = {}
    for wave in ([a for a in arms if a.after is None], [a for a in arms if a.after is not None]):
        configs = {
            _run_name(arm, seed): _config(arm, seed, settings)
            for arm in wave
            for seed in range(arm.num_seeds(settings.seeds))
        }
        failures |= _make(configs, settings)
    measured = {
        arm.name: [
            _metrics(_last_results(arm, seed, settings))
            for seed in range(arm.num_seeds(settings.seeds))
        ]
        for arm in arms
    }
    return [_judge(claim, measured, failures) for claim in claims]


def _arms_of(claims: Iterable[Claim]) -> list[Arm]:
    """Return the arms of some claims, and those that they start from, each once."""
    names = dict.fromkeys(name for claim in claims for name in claim.arms)
    before = [ARMS[name].after for name in names]
    return [ARMS[name] for name in dict.fromkeys([*before, *names]) if name is not None]


def _run_name(arm: Arm, seed: int) -> str:
    return f"{arm.name}-seed-{seed}"


def _config(arm: Arm, seed: int, settings: StudySettings) -> RunConfig | str:
    """Return the settings of a run; a text says why it cannot be made."""
    config = arm.config
    length = arm.quick_steps if settings.is_quick else config.train.steps
    train = dataclasses.replace(config.train, steps=length, checkpoint_every=length, seed=seed)
    storage = dataclasses.replace(config.storage, root=settings.root, run=_run_name(arm, seed))
    config = dataclasses.replace(config, train=train, storage=storage)
    prepare_missing([*config.data.sources, *(t.partition(":")[2] for t in config.evaluation.tasks)])
    if arm.after is None or arm.complete is None:
        return config
    start = whole_checkpoints(Location.of(settings.root) / f"{arm.after}-seed-{seed}")
    if not start:
        return f"{arm.after}-seed-{seed}, from which it starts, has no checkpoint"
    return arm.complete(config, start[-1][1].uri)


def _make(configs: Mapping[str, RunConfig | str], settings: StudySettings) -> dict[str, str]:
    """Make the runs that are not complete; return why some could not be."""
    failures = {name: config for name, config in configs.items() if isinstance(config, str)}
    possible = {name: config for name, config in configs.items() if not isinstance(config, str)}
    root = Location.of(settings.root)
    missing = [
        config
        for name, config in possible.items()
        if not (done := whole_checkpoints(root / name)) or done[-1][0] < config.train.steps
    ]
    if missing:
        ended = make_runs(missing, root, concurrent=settings.concurrent)
        failures |= {name: run.message for name, run in ended.items() if run.message}
    for name, config in possible.items():
        if name not in failures:
            failures |= _evaluate_missing(root / name, config.evaluation)
    return failures


def _evaluate_missing(run: Location, evaluation: EvaluationConfig) -> dict[str, str]:
    """Evaluate a complete run's checkpoint by the tasks of which there is no result."""
    checkpoint = whole_checkpoints(run)[-1][1]
    folder = run / "evaluations" / checkpoint.name
    found = {name for name, r in stored_results(folder).items() if r["status"] == "ok"}
    wanted = {text: _result_name(text) for text in evaluation.tasks}
    tasks = tuple(text for text, name in wanted.items() if name not in found)
    if not tasks:
        return {}
    try:
        wanted_now = dataclasses.replace(evaluation, tasks=tasks)
        reports = evaluate_checkpoint(checkpoint, wanted_now, folder)
    except ClippoError as error:
        return {run.name: str(error)}
    failed = [f"{report.name}: {report.message}" for report in reports if report.status != "ok"]
    return {run.name: "; ".join(failed)} if failed else {}


def _result_name(task: str) -> str:
    benchmark = parse_benchmark(task)
    return f"{benchmark.task}/{open_source(benchmark.source).name}"


def _last_results(arm: Arm, seed: int, settings: StudySettings) -> Mapping[str, Mapping]:
    run = Location.of(settings.root) / _run_name(arm, seed)
    whole = whole_checkpoints(run)
    return stored_results(run / "evaluations" / whole[-1][1].name) if whole else {}


def _metrics(results: Mapping[str, Mapping]) -> dict[str, float]:
    return {
        f"{name}/{metric}": value
        for name, result in results.items()
        if result["status"] == "ok"
        for metric, value in result["metrics"].items()
    }


def _judge(claim: Claim, measured: Measured, failures: Mapping[str, str]) -> Finding:
    parts: list[tuple[str, Verdict, Estimate]] = []
    for comparison in claim.comparisons:
        ours = _values(measured, comparison.ours, comparison.metric)
        theirs = comparison.theirs
        other = [theirs] * len(ours) if not isinstance(theirs, str) else []
        other = other or _values(measured, str(theirs), comparison.metric)
        if ours and len(ours) == len(other):
            parts.append((comparison.about, *comparison.judge(ours, other)))
        else:
            nothing = Estimate(float("nan"), float("inf"))
            parts.append((comparison.about, "not shown", nothing))
    metrics = dict.fromkeys(c.metric for c in claim.comparisons) | dict.fromkeys(
        claim.shown.values()
    )
    table = {
        metric: {
            arm: estimate(values)
            for arm in claim.arms
            if (values := _values(measured, arm, metric))
        }
        for metric in metrics
    }
    of_arms = tuple(f"{arm}-seed-" for arm in claim.arms)
    missing = {name: why for name, why in failures.items() if name.startswith(of_arms)}
    return Finding(claim, together([verdict for _, verdict, _ in parts]), parts, table, missing)


def _values(measured: Measured, arm: str, metric: str) -> list[float]:
    """Return a metric of an arm's runs, in the order of seeds; [] if a run lacks it."""
    found = [run[metric] for run in measured.get(arm, ()) if metric in run]
    return found if len(found) == len(measured.get(arm, ())) else []
