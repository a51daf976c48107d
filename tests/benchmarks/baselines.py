"""CLIPPO, 1T-CLIP and CLIP* on equal terms: `python -m tests.benchmarks.baselines PRESET`.

Trains each on the same samples of the preset's mixture through the pipeline, with nothing but the
model's `text_input` changed, evaluates the last checkpoint by the preset's tasks and those of
`--tasks`, and prints parameters, pairs per second, and the first metric of each task, mean over
seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from collections import defaultdict

from mlflow import MlflowClient

from clippo_core.config import TextInput
from pipelines.config.derived import count_parameters
from pipelines.config.presets import PRESETS, find_preset
from pipelines.config.resolution import resolve
from pipelines.config.settings import RunConfig
from pipelines.datasets.prepare.registry import prepare_missing
from pipelines.training.run import RunSummary, train
from tests.benchmarks import report

MODELS: dict[str, TextInput] = {
    "CLIPPO": "pixels",
    "1T-CLIP": "tokens_one_tower",
    "CLIP*": "tokens_two_towers",
}


def config_of(
    preset: RunConfig, text_input: TextInput, *, seed: int, steps: int | None, root: str
) -> RunConfig:
    """The preset with another model, evaluated once, at its end."""
    steps = preset.train.steps if steps is None else steps
    schedule = preset.optim.schedule
    if steps != preset.train.steps:
        schedule = dataclasses.replace(schedule, warmup_steps=None, cooldown_steps=None)
    return dataclasses.replace(
        preset,
        model=dataclasses.replace(preset.model, text_input=text_input),
        optim=dataclasses.replace(preset.optim, schedule=schedule),
        train=dataclasses.replace(preset.train, seed=seed, steps=steps, checkpoint_every=steps),
        storage=dataclasses.replace(preset.storage, root=root, run=f"{text_input}-{seed}"),
        tracking=dataclasses.replace(preset.tracking, pictures=False, registered_model=None),
    )


def pairs_per_s(summary: RunSummary) -> float:
    """Median over the logged steps, the first ones left out."""
    client = MlflowClient(summary.tracked.uri)
    points = client.get_metric_history(summary.tracked.run_id, "speed/pairs_per_s")
    return statistics.median(point.value for point in points[len(points) // 10 :])


def figures_of(config: RunConfig) -> dict[str, float]:
    """Train and evaluate; what is to be compared.

    Raises:
        RuntimeError: if an evaluation failed.
    """
    summary = train(resolve(config))
    found = {"parameters": float(count_parameters(config.model))}
    found["pairs_per_s"] = pairs_per_s(summary)
    for evaluation in summary.evaluations:
        if evaluation.status != "ok":
            raise RuntimeError(f"{evaluation.name}: {evaluation.message}")
        name, value = next(iter(evaluation.result["metrics"].items()))
        found[f"{evaluation.name}/{name}"] = value
        for floor, worth in evaluation.result["floors"].get(name, {}).items():
            found[f"{evaluation.name}/{name}, {floor}"] = worth
    return found


def show(figures: dict[str, dict[str, float]]) -> None:
    """The models side by side, a figure to a line."""
    names = list(dict.fromkeys(key for found in figures.values() for key in found))
    width = max(map(len, names))
    print(" " * width + "".join(f"{model:>16}" for model in figures))
    for name in names:
        values = [found.get(name, float("nan")) for found in figures.values()]
        print(f"{name:<{width}}" + "".join(f"{value:>16,.4g}" for value in values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", nargs="?", choices=list(PRESETS), default="demo")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tasks", nargs="+", default=[], help="beside the preset's")
    parser.add_argument("--root", help="folder to keep the runs in; by default they are removed")
    arguments = parser.parse_args()
    preset = find_preset(arguments.preset)
    tasks = (*preset.evaluation.tasks, *arguments.tasks)
    preset = dataclasses.replace(
        preset, evaluation=dataclasses.replace(preset.evaluation, tasks=tasks)
    )
    tested = [task.partition(":")[2] for task in preset.evaluation.tasks]
    prepare_missing([*preset.data.sources, *tested])
    per_seed: dict[str, dict[str, list[float]]] = {n: defaultdict(list) for n in MODELS}
    with tempfile.TemporaryDirectory(prefix="clippo-") as scratch:
        root = arguments.root or scratch
        for seed in range(arguments.seeds):
            for model, text_input in MODELS.items():
                config = config_of(preset, text_input, seed=seed, steps=arguments.steps, root=root)
                for name, value in figures_of(config).items():
                    per_seed[model][name].append(value)
    means = {
        model: {name: statistics.mean(values) for name, values in found.items()}
        for model, found in per_seed.items()
    }
    show(means)
    report.write("baselines", {"preset": arguments.preset, "means": means, "per_seed": per_seed})


if __name__ == "__main__":
    main()
