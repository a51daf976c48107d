"""What pairs of texts bring to reading: `python -m tests.benchmarks.text_pairs`.

Trains `registry_small` on pictures and captions alone, and with a share of text pairs, for as many
samples and from the same initial weights; then fine-tunes both on Rotten Tomatoes' snippets, from
each seed. In plain loops of the pipeline's own functions, one thread for each run. Prints accuracy
on the test set, before it the zero-shot accuracy, and beside it that of fresh weights, fine-tuned.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import multiprocessing
import os
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from clippo_core.checkpoints import load_checkpoint
from clippo_core.modeling import make_model
from clippo_core.training.fine_tuning import LabelledBatch, fine_tuning_step
from clippo_core.training.state import TrainState
from clippo_core.training.step import PairBatch, train_step
from pipelines.cli.finetune import base_config, completed, model_of
from pipelines.config.presets import registry_small
from pipelines.config.resolution import resolve
from pipelines.config.settings import EvaluationOptions, RunConfig
from pipelines.datasets.prepare.registry import prepare_missing
from pipelines.datasets.sources import locate_source, open_source
from pipelines.evaluation.tasks import find_evaluation
from pipelines.runtime.storage import Location
from pipelines.stream.batch import as_drawn, prepare_batch
from tests.benchmarks import report

TRAIN, TEST = "movie_reviews/rotten_tomatoes/train", "movie_reviews/rotten_tomatoes/test"
#: Nearly all snippets end below a canvas of 64 px.
CANVAS_PX = 128


def trained_on(share: float, seed: int, steps: int) -> RunConfig:
    """The preset with that share of text pairs."""
    preset = registry_small()
    texts = [
        name
        for name in preset.data.sources
        if open_source(locate_source(name).uri).manifest.kind != "image-text"
    ]
    sources = tuple(name for name in preset.data.sources if share or name not in texts)
    return dataclasses.replace(
        preset,
        data=dataclasses.replace(preset.data, sources=sources, text_share=share),
        train=dataclasses.replace(preset.train, seed=seed, steps=steps),
        evaluation=dataclasses.replace(preset.evaluation, tasks=()),
    )


def pretrain(config: RunConfig, checkpoint: Path, *, is_fresh: bool) -> None:
    resolved = resolve(config)
    model = make_model(config.model, seed=config.train.seed, font=resolved.renderer.font)
    state = TrainState.create(model, config.optim)
    for step in range(0 if is_fresh else config.train.steps):
        batch = prepare_batch(resolved.stream, resolved.stream.plan.batch(step), step=step)
        pairs = PairBatch(torch.tensor(batch.images), batch.texts, batch.left_texts)
        train_step(state, pairs, config.optim, total_steps=config.train.steps)
    state.save(checkpoint)


def fine_tune(checkpoint: Path, tuned: Path, *, seed: int, steps: int) -> None:
    base = base_config("text_classification", model_of(Location.of(checkpoint)))
    base = dataclasses.replace(
        base,
        train=dataclasses.replace(base.train, steps=steps, seed=seed),
        data=dataclasses.replace(base.data, sources=(TRAIN,)),
    )
    config = completed(
        base, "text_classification", Location.of(checkpoint), image_size_px=CANVAS_PX
    )
    resolved = resolve(config)
    font, head = resolved.renderer.font, resolved.classifier
    model = make_model(config.model, seed=seed, font=font, classifier=head)
    state = TrainState.create(model, config.optim, init_from=checkpoint)
    for step in range(steps):
        batch = prepare_batch(resolved.stream, resolved.stream.plan.batch(step), step=step)
        assert batch.targets is not None
        samples = LabelledBatch(
            torch.tensor(batch.images), as_drawn(batch.texts), torch.tensor(batch.targets)
        )
        fine_tuning_step(state, samples, config.optim, total_steps=steps)
    state.save(tuned)


def accuracy(task: str, checkpoint: Path) -> float:
    options = EvaluationOptions(text_templates=("{}", "a {} review", "it was {}"))
    model, source = load_checkpoint(checkpoint), open_source(locate_source(TEST).uri)
    return find_evaluation(task)(model, source, options).metrics["accuracy"]


def run(share: float | None, seed: int, steps: int, tuning_steps: int) -> dict[str, float]:
    """Of one model; a share of None means fresh weights."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, tuned = Path(scratch) / "pretrained", Path(scratch) / "tuned"
        pretrain(trained_on(share or 0.0, seed, steps), checkpoint, is_fresh=share is None)
        found = {"zero-shot": accuracy("text_zero_shot", checkpoint)}
        fine_tune(checkpoint, tuned, seed=seed, steps=tuning_steps)
        return found | {"fine-tuned": accuracy("text_classification", tuned)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--steps", type=int, default=400, help="of 128 pairs")
    parser.add_argument("--tuning-steps", type=int, default=1000, help="of 64 snippets")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    prepare_missing([*registry_small().data.sources, TRAIN, TEST])
    shares = (None, *arguments.shares)
    cases = list(itertools.product(range(arguments.seeds), shares))
    figures: dict[str, dict[str, float]] = {}
    names = {None: "fresh weights"} | {s: f"{s:.0%} text pairs" for s in arguments.shares}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, mp_context=spawn) as pool:
        running = {
            case: pool.submit(run, case[1], case[0], arguments.steps, arguments.tuning_steps)
            for case in cases
        }
        for (seed, share), result in running.items():
            for name, value in result.result().items():
                figures.setdefault(names[share], {})[f"{name}, seed {seed}"] = value
                print(f"{names[share]}, {name}, seed {seed}: {value:.4f}", flush=True)
    for found in figures.values():
        for kind in ("zero-shot", "fine-tuned"):
            values = [value for name, value in found.items() if name.startswith(f"{kind}, seed")]
            found[f"{kind}, mean"] = statistics.mean(values)
    report.show(figures)
    report.write("text_pairs", figures)


if __name__ == "__main__":
    main()
