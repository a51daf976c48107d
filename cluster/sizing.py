"""`python -m cluster.sizing PRESET --gpus 8`: how many render workers feed these GPUs.

It measures on this machine how fast one render worker on one core is with the preset's data, and
how fast the training step is unless that is given. The last line is the number of workers.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Annotated

import tyro

from clippo_core.errors import ConfigError
from pipelines.cli import exit_code_of
from pipelines.cli.arguments import PRESET_OR_FILE, load_base, parse, take_subject
from pipelines.config.resolution import ResolvedRun, resolve
from pipelines.config.settings import RunConfig
from pipelines.datasets.prepare.registry import prepare_missing
from pipelines.runtime.placement import BLOCKS_PER_RANK
from pipelines.runtime.scratch import scratch_folder
from pipelines.stream.batch import StreamSpec
from pipelines.stream.stream import Unit, batch_bytes, make_block, steps_per_unit
from pipelines.training.token_vocabulary import with_vocabulary

#: Seconds that a render worker loses between two tasks, and with each byte that it hands over.
#: Fitted (EXPERIMENTS.md, 2026-11-27); tests/benchmarks/sizing.py compares them with a stream.
TASK_OVERHEAD_S, BYTE_S = 0.02, 0.85e-9
#: CPU seconds that a row costs in the process that takes the batches and in Ray's own.
ELSEWHERE_S = 0.00006
#: Seconds that the one process which deals the blocks out needs for a block.
DEALING_S = 0.016


@dataclass(frozen=True)
class SizingArguments:
    """Predict the render workers that a number of GPUs needs."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    """Preset with overrides."""
    gpus: int = 1
    """GPUs that train, one rank each."""
    pairs_per_gpu_s: float | None = None
    """Pairs per second of one GPU; None measures them here, on a GPU if there is one, else on the
    cores of this machine."""
    seconds: float = 10.0
    """Duration of each measurement in seconds."""
    node_cpus: int = 16
    """CPUs of a node that renders."""


@dataclass(frozen=True)
class RendererRate:
    """The speed of one render worker on one core.

    Attributes:
        rows_per_s: rows per second in a render task, without Ray's own time for the task.
        rows_per_block: rows of a task's block.
        bytes_per_row: size of a row in the blocks.
        cpu_share: share of the time in which it computed instead of waiting for storage or its
            core.
    """

    rows_per_s: float
    rows_per_block: int
    bytes_per_row: float
    cpu_share: float

    def task_s(self, workers: int, *, cores: int | None = None) -> float:
        """Return the seconds between the starts of two tasks, on each of some workers in Ray.

        Args:
            workers: number of workers at work.
            cores: number of cores that they share with the process that takes the batches and with
                Ray's own; None gives each worker a core to itself.
        """
        handed_over_s = TASK_OVERHEAD_S + BYTE_S * self.rows_per_block * self.bytes_per_row
        is_shared = cores is not None and workers >= cores
        elsewhere_s = ELSEWHERE_S * self.rows_per_block if is_shared else 0.0
        return self.rows_per_block / self.rows_per_s + handed_over_s + elsewhere_s

    def rows_per_s_in_ray(self, workers: int, *, cores: int | None = None) -> float:
        """Return the rows per second of all workers together; see `task_s` for the arguments."""
        return workers * self.rows_per_block / self.task_s(workers, cores=cores)


def measure_renderer(
    spec: StreamSpec, num_ranks: int, num_steps: int, *, seconds: float
) -> RendererRate:
    """Return the speed of making blocks in a process of its own, as a render task does.

    Args:
        spec: settings of the stream.
        num_ranks: ranks over which a batch is divided.
        num_steps: steps whose batches form a block.
        seconds: duration of the measurement, after a block that warms up.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_be_like_a_worker) as pool:
        return pool.submit(_make_blocks, spec, num_ranks, num_steps, seconds).result()


def _be_like_a_worker() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.nice(15)  # as Ray's workers are, so that programs beside it take as much from it


def _make_blocks(spec: StreamSpec, ranks: int, num_steps: int, seconds: float) -> RendererRate:
    def block(number: int) -> tuple[int, int]:
        steps = range(number * num_steps, (number + 1) * num_steps)
        made = make_block(spec, Unit(steps, 0), ranks)
        return made.num_rows, made.nbytes

    block(0)
    started, cpu_started = time.perf_counter(), time.process_time()
    made = [block(1), block(2)]
    while time.perf_counter() - started < seconds:
        made.append(block(len(made) + 1))
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu_started
    rows = sum(count for count, _ in made)
    return RendererRate(
        rows_per_s=rows / elapsed,
        rows_per_block=made[0][0],
        bytes_per_row=sum(size for _, size in made) / rows,
        cpu_share=cpu / elapsed,
    )


@dataclass(frozen=True)
class Prediction:
    """The resources that a number of ranks needs.

    Attributes:
        rows_per_s: rows per second that the ranks take.
        renderers: render workers that deliver that many.
        bytes_per_s: traffic from the renderers to the ranks.
        object_store_bytes: size of the object stores of all render nodes together.
        blocks_per_s: blocks per second that are dealt to the ranks.
    """

    rows_per_s: float
    renderers: int
    bytes_per_s: float
    object_store_bytes: float
    blocks_per_s: float


def predict(rate: RendererRate, *, gpus: int, pairs_per_gpu_s: float) -> Prediction:
    """Return the needs of all GPUs, from the speeds of one render worker and of one GPU."""
    rows_per_s = gpus * pairs_per_gpu_s
    renderers = math.ceil(rows_per_s / rate.rows_per_s_in_ray(1))
    block_bytes = rate.rows_per_block * rate.bytes_per_row
    return Prediction(
        rows_per_s=rows_per_s,
        renderers=renderers,
        bytes_per_s=rows_per_s * rate.bytes_per_row,
        # Ray Data takes half of the store.
        object_store_bytes=2 * (BLOCKS_PER_RANK * gpus + renderers) * block_bytes,
        blocks_per_s=rows_per_s / rate.rows_per_block,
    )


def measure_step(resolved: ResolvedRun, *, rows: int, seconds: float) -> float:
    """Return the pairs per second of the training step on this machine's GPU, or on its cores.

    Args:
        resolved: the run.
        rows: pairs of a rank's batch; with fewer than the run's the logits cost less.
        seconds: duration of the measurement, after a step that warms up.
    """
    # Imported here: torch takes seconds, and a wrong flag should be reported at once.
    import torch

    from clippo_core.modeling import make_model
    from clippo_core.training.precision import find_precision
    from clippo_core.training.state import TrainState
    from clippo_core.training.step import PairBatch, StepOptions, train_step
    from pipelines.stream.batch import open_vocabulary, prepare_batch

    config, device = resolved.config, "cuda" if torch.cuda.is_available() else "cpu"
    vocabulary = resolved.stream.vocabulary
    model = make_model(
        config.model,
        seed=0,
        font=resolved.renderer.font,
        vocabulary=None if vocabulary is None else open_vocabulary(vocabulary),
    )
    state = TrainState.create(model, config.optim, device=device)
    precision = find_precision(config.train.precision, torch.device(device))
    steps, options = config.train.steps, StepOptions(precision=precision)
    batch = prepare_batch(resolved.stream, resolved.stream.plan.batch(0)[:rows], step=0)

    def step() -> None:
        pairs = PairBatch(torch.tensor(batch.images, device=device), batch.texts, batch.left_texts)
        metrics = train_step(state, pairs, config.optim, total_steps=steps, options=options)
        float(metrics["loss"])

    step()
    started, count = time.perf_counter(), 0
    while count < 2 or time.perf_counter() - started < seconds:
        step()
        count += 1
    return rows * count / (time.perf_counter() - started)


def _report(
    rate: RendererRate, found: Prediction, speed: float, where: str, arguments: SizingArguments
) -> None:
    gpus, node_cpus = arguments.gpus, arguments.node_cpus
    print(f"one render worker     {rate.rows_per_s_in_ray(1):>12,.0f} pairs/s on one core")
    print(f"  of which it waits   {1 - rate.cpu_share:>12.0%}")
    print(f"one rank              {speed:>12,.0f} pairs/s {where}")
    print(f"{gpus} ranks take          {found.rows_per_s:>12,.0f} pairs/s")
    print(f"  over the network    {found.bytes_per_s / 1e6:>12,.1f} MB/s")
    print(f"  object stores       {found.object_store_bytes / 1e9:>12,.2f} GB on the render nodes")
    print(
        f"  blocks              {found.blocks_per_s:>12,.1f} per s, {rate.rows_per_block} rows each"
    )
    if found.blocks_per_s * DEALING_S > 0.5:
        print(
            f"  one process deals {1 / DEALING_S:.0f} of them per s at most: make them larger "
            "(data.steps-per-task, fewer ranks)"
        )
    nodes = math.ceil(found.renderers / node_cpus)
    print(
        "a render worker is a task of Ray on one CPU, which decodes pictures and draws texts; a\n"
        "rank is a process that trains on one GPU; a block is what a render worker hands over"
    )
    print(
        f"needed beside the ranks: {found.renderers} CPUs that render, which are {nodes} nodes of "
        f"{node_cpus} (--node-cpus)"
    )
    print("render workers (scaling.max-renderers):")
    print(found.renderers)


def _size(argv: list[str], aside: str) -> None:
    """Measure, predict and print; files that must be written go to the folder `aside`."""
    name, rest = take_subject(argv, command="sizing", subject=PRESET_OR_FILE)
    default = SizingArguments(load_base(name, rest))
    arguments = parse(
        SizingArguments, rest, command="sizing", default=default, subject=PRESET_OR_FILE
    )
    gpus, config = arguments.gpus, arguments.config
    if gpus < 1:
        raise ConfigError(f"--gpus={gpus}; expected 1 or more")
    if arguments.node_cpus < 1:
        raise ConfigError(f"--node-cpus={arguments.node_cpus}; expected 1 or more")
    prepare_missing(config.data.sources)
    if config.model.reads_tokens:
        # The vocabulary is trained before the run begins, and written to its folder.
        storage = dataclasses.replace(config.storage, root=aside)
        config = dataclasses.replace(config, storage=storage)
    resolved = with_vocabulary(resolve(config))
    spec = resolved.stream
    if spec.plan.batch_size % gpus:
        raise ConfigError(
            f"train.global_batch_size={spec.plan.batch_size} does not divide over {gpus} GPUs"
        )
    steps = steps_per_unit(spec, gpus, wanted=resolved.config.data.steps_per_task)
    size = steps * batch_bytes(spec, gpus)
    print(f"measuring blocks of {steps} steps, {size / 1e6:.0f} MB at most", file=sys.stderr)
    rate = measure_renderer(spec, gpus, steps, seconds=arguments.seconds)
    speed, where = arguments.pairs_per_gpu_s, "as given"
    if speed is None:
        rows = min(spec.plan.batch_size // gpus, 32)
        speed = measure_step(resolved, rows=rows, seconds=arguments.seconds)
        where = "measured here"
    _report(rate, predict(rate, gpus=gpus, pairs_per_gpu_s=speed), speed, where, arguments)


def main(argv: list[str]) -> int:
    """Run the measurements and print the prediction; return 0, or an error's exit code."""
    with scratch_folder() as aside:
        return exit_code_of(lambda: _size(argv, str(aside)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
