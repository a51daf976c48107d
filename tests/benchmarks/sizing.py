"""Sizing's prediction beside the stream that it predicts: `python -m tests.benchmarks.sizing`.

Predicts from one render worker in a process of its own, then measures the stream through Ray Data
with one worker and with two into a consumer that does nothing, and the same blocks made by a torch
`DataLoader` with as many workers; in turn, medians of some rounds. And
what a block costs Ray, in CPU time of all its processes: of one step, and of as many as fill it.
Two workers leave no core of two to the consumer and to Ray. How workers add up while cores are free
is therefore measured with some that rest after each block, for twice the CPU time that it took.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import psutil
import pyarrow as pa
import ray
import torch.utils.data
from ray.data import ReadTask

from clippo_core.config import ClippoConfig, RenderConfig
from cluster.sizing import RendererRate, measure_renderer
from pipelines.config.resolution import resolve
from pipelines.config.settings import DataConfig, RunConfig, ScalingConfig, TrainConfig
from pipelines.datasets.manifest import RawSample, ShardWriter
from pipelines.runtime.ray_session import ray_session
from pipelines.runtime.storage import Location
from pipelines.stream import stream
from pipelines.stream.batch import StreamSpec
from pipelines.stream.stream import (
    PlannedBatches,
    StreamRange,
    Unit,
    iterate_batches,
    make_block,
    steps_per_unit,
    stream_dataset,
)
from tests.benchmarks import report
from tests.benchmarks.photographs import encode, rough
from tests.benchmarks.stream import photos

BATCH = 128
#: Batches that come before the clock starts: processes start, caches fill.
WARM_UP = 12
WORKERS = (1, 2)
#: How many of those that rest: on two cores, four together take more than one.
RESTING_WORKERS = (1, 2, 4)
#: Short blocks, as few come in a measurement of workers that rest.
RESTING_STEPS = 4


def large_pngs(count: int) -> list[RawSample]:
    """PNG files of 640x480 px, 40 different ones: ten times the work of `photos`."""
    encoded = [encode(rough(640, 480, seed=seed)) for seed in range(40)]
    return [RawSample(f"{n}", encoded[n % 40], [f"picture number {n}"]) for n in range(count)]


def stream_spec(folder: Path, image_size_px: int, samples: list[RawSample]) -> StreamSpec:
    writer = ShardWriter(Location.of(folder), name="photos")
    for sample in samples:
        writer.add(sample)
    writer.close()
    config = RunConfig(
        model=ClippoConfig(render=RenderConfig(image_size_px=image_size_px)),
        data=DataConfig(sources=(str(folder),), run_length=16),
        train=TrainConfig(steps=10**6, global_batch_size=BATCH),
    )
    return resolve(config).stream


def cpu_seconds() -> float:
    """Of this process and all that it started, Ray's included."""
    total = 0.0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


class RestingWorkers(PlannedBatches):
    """Render tasks that use a third of a core each."""

    def get_read_tasks(self, *args: Any, **kwargs: Any) -> list[ReadTask]:
        tasks = super().get_read_tasks(*args, **kwargs)
        return [ReadTask(functools.partial(resting, task.read_fn), task.metadata) for task in tasks]


def resting(read: Callable[[], Iterable[pa.Table]]) -> Iterator[pa.Table]:
    started = time.process_time()
    blocks = list(read())
    time.sleep(2 * (time.process_time() - started))
    yield from blocks


class Measured(NamedTuple):
    """Of the stream: rows per second, and CPU time of a row over all processes."""

    rows_per_s: float
    cpu_ms_per_row: float


def measure(
    spec: StreamSpec, workers: int, seconds: float, per_unit: int | None = None
) -> Measured:
    """The stream, into a consumer that does nothing."""
    scaling = ScalingConfig(max_renderers=workers, renderer_cpus=1)
    per_unit = steps_per_unit(spec, 1, wanted=per_unit)
    steps = StreamRange(0, 10**5, 1, steps_per_unit=per_unit)
    dataset = stream_dataset(spec, steps, scaling, beside_ranks=False)
    (shard,) = dataset.streaming_split(1, equal=True)
    batches = iterate_batches(shard, spec, steps)
    # From one block's first batch to another's: within a block they come at once.
    for _ in range(max(WARM_UP // per_unit, workers + 1) * per_unit + 1):
        next(batches)
    started, cpu_started, count = time.perf_counter(), cpu_seconds(), 0
    while time.perf_counter() - started < seconds:
        for _ in range(per_unit):
            next(batches)
        count += per_unit * BATCH
    elapsed, cpu = time.perf_counter() - started, cpu_seconds() - cpu_started
    batches.close()
    return Measured(count / elapsed, 1000 * cpu / count)


class PlannedBlocks(torch.utils.data.Dataset):
    """What the render tasks make, for a `DataLoader`."""

    def __init__(self, spec: StreamSpec, per_unit: int) -> None:
        self._spec, self._per_unit = spec, per_unit

    def __len__(self) -> int:
        return 10**5

    def __getitem__(self, number: int) -> pa.Table:
        first = number * self._per_unit
        return make_block(self._spec, Unit(range(first, first + self._per_unit), 0), 1)


def rows_per_s_of_data_loader(spec: StreamSpec, workers: int, seconds: float) -> float:
    """As `measure`, through torch's processes and pipes."""
    loader = torch.utils.data.DataLoader(
        PlannedBlocks(spec, steps_per_unit(spec, 1)),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn",
    )
    blocks = iter(loader)
    for _ in range(workers + 1):
        next(blocks)
    started, rows = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        rows += next(blocks).num_rows
    return rows / (time.perf_counter() - started)


def compare(spec: StreamSpec, rounds: int, seconds: float) -> dict[str, float]:
    rates: list[RendererRate] = []
    measured: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    loaded: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    for _ in range(rounds):
        rates.append(measure_renderer(spec, 1, steps_per_unit(spec, 1), seconds=seconds))
        for workers in WORKERS:
            measured[workers].append(measure(spec, workers, seconds).rows_per_s)
            loaded[workers].append(rows_per_s_of_data_loader(spec, workers, seconds))
    figures = {
        "rows_per_block": float(rates[0].rows_per_block),
        "plain_rows_per_s": statistics.median(rate.rows_per_s for rate in rates),
        "plain_cpu_share": statistics.median(rate.cpu_share for rate in rates),
    }
    cores = len(os.sched_getaffinity(0))
    for workers in WORKERS:
        found = statistics.median(measured[workers])
        predicted = statistics.median(
            rate.rows_per_s_in_ray(workers, cores=cores) for rate in rates
        )
        figures |= {
            f"predicted_rows_per_s_{workers}": predicted,
            f"measured_rows_per_s_{workers}": found,
            f"measured_over_predicted_{workers}": found / predicted,
            f"data_loader_rows_per_s_{workers}": statistics.median(loaded[workers]),
        }
    figures["measured_over_plain"] = figures["measured_rows_per_s_1"] / figures["plain_rows_per_s"]
    figures["two_workers_over_one"] = (
        figures["measured_rows_per_s_2"] / figures["measured_rows_per_s_1"]
    )
    return figures


def add_up(spec: StreamSpec, rounds: int, seconds: float) -> dict[str, float]:
    """Rows per second of workers that rest, beside those of one."""
    rates: dict[int, list[float]] = {workers: [] for workers in RESTING_WORKERS}
    with mock.patch.object(stream, "PlannedBatches", RestingWorkers):
        for _ in range(rounds):
            for workers in RESTING_WORKERS:
                found = measure(spec, workers, seconds, RESTING_STEPS)
                rates[workers].append(found.rows_per_s)
    medians = {workers: statistics.median(found) for workers, found in rates.items()}
    figures = {f"rows_per_s, {workers}": rate for workers, rate in medians.items()}
    return figures | {
        f"{workers} over one": rate / medians[1] for workers, rate in medians.items() if workers > 1
    }


def cost_of_blocks(spec: StreamSpec, rounds: int, seconds: float) -> dict[str, float]:
    """CPU time of a row: in a plain process, in Ray with blocks of one step, and with full ones."""
    full = steps_per_unit(spec, 1)
    found: dict[str, list[float]] = {"plain": [], "1 step": [], f"{full} steps": []}
    for _ in range(rounds):
        rate = measure_renderer(spec, 1, full, seconds=seconds)
        found["plain"].append(1000 * rate.cpu_share / rate.rows_per_s)
        for steps in (1, full):
            name = "1 step" if steps == 1 else f"{full} steps"
            found[name].append(measure(spec, 1, seconds, steps).cpu_ms_per_row)
    medians = {name: statistics.median(values) for name, values in found.items()}
    costs = {f"cpu_ms_per_row, {name}": value for name, value in medians.items()}
    return costs | {
        f"plain over {name}": medians["plain"] / medians[name]
        for name in medians
        if name != "plain"
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--quick", action="store_true", help="JPEGs to 64 px alone")
    arguments = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as scratch, ray_session(cpus=3):
        for size in (64,) if arguments.quick else (64, 224):
            spec = stream_spec(Path(scratch) / f"{size}", size, photos(4000))
            if size == 64:
                figures[f"cost of a block, {size} px"] = cost_of_blocks(
                    spec, arguments.rounds, arguments.seconds
                )
                figures[f"workers that rest, {size} px"] = add_up(
                    spec, arguments.rounds, 2 * arguments.seconds
                )
            # Last, since it ends with torch's loader: a stream's threads outlive it for a moment,
            # and must not find Ray gone.
            figures[f"320x240 JPEG to {size} px"] = compare(
                spec, arguments.rounds, arguments.seconds
            )
        if not arguments.quick:
            heavy = stream_spec(Path(scratch) / "heavy", 224, large_pngs(640))
            figures["640x480 PNG to 224 px"] = compare(
                heavy, arguments.rounds, 2 * arguments.seconds
            )
        ray.shutdown()
    report.show(figures)
    report.write("sizing", figures)


if __name__ == "__main__":
    main()
