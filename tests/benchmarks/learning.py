"""Fewer patches of a text, and learning: `python -m tests.benchmarks.learning`.

Trains the demo, in a plain loop of the pipeline's own functions, with each setting on the same
samples from the same initial weights, and prints zero-shot accuracy on Fashion-MNIST's test images.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics

import torch

from clippo_core.config import TextPatches
from clippo_core.modeling import make_model
from clippo_core.training.state import TrainState
from clippo_core.training.step import PairBatch, train_step
from pipelines.config.presets import demo
from pipelines.config.resolution import resolve
from pipelines.datasets.prepare.registry import prepare_missing
from pipelines.datasets.sources import locate_source, open_source
from pipelines.evaluation.tasks import EvaluationOptions, find_evaluation
from pipelines.stream.batch import prepare_batch
from tests.benchmarks import report

SETTINGS: tuple[TextPatches, ...] = ("all", "occupied")


def accuracy_of(text_patches: TextPatches, seed: int, steps: int) -> float:
    preset = demo()
    config = dataclasses.replace(
        preset,
        model=dataclasses.replace(preset.model, text_patches=text_patches),
        train=dataclasses.replace(preset.train, seed=seed, steps=steps),
    )
    resolved = resolve(config)
    model = make_model(config.model, seed=seed, font=resolved.renderer.font)
    state = TrainState.create(model, config.optim)
    for step in range(steps):
        batch = prepare_batch(resolved.stream, resolved.stream.plan.batch(step), step=step)
        pairs = PairBatch(torch.tensor(batch.images), batch.texts, batch.left_texts)
        train_step(state, pairs, config.optim, total_steps=steps)
    task, _, test = config.evaluation.tasks[0].partition(":")
    options = EvaluationOptions(templates=config.evaluation.templates)
    found = find_evaluation(task)(state.model, open_source(locate_source(test).uri), options)
    return found.metrics["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=demo().train.steps)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    arguments = parser.parse_args()
    prepare_missing(demo().data.sources)
    figures = {name: dict[str, float]() for name in arguments.settings}
    for seed in range(arguments.seeds):
        for name, found in figures.items():
            found[f"accuracy, seed {seed}"] = accuracy_of(name, seed, arguments.steps)
            print(f"{name}, seed {seed}: {found[f'accuracy, seed {seed}']:.4f}", flush=True)
    for found in figures.values():
        found["mean"] = statistics.mean(found.values())
    report.show(figures)
    report.write("learning", figures)


if __name__ == "__main__":
    main()
