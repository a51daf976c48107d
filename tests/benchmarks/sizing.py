"""Sizing's prediction beside the stream that it predicts: `python -m tests.benchmarks.sizing`.

Predicts from one render worker in a process of its own, then measures the stream through Ray Data
with one worker and with two into a consumer that does nothing; in turn, medians of some rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import ray

from clippo_core.config import ClippoConfig, RenderConfig
from cluster.sizing import RendererRate, measure_renderer
from pipelines.ingest.manifest import ShardWriter
from pipelines.ingest.stages import StreamSpec
from pipelines.ingest.stream import (
    StreamRange,
    iterate_batches,
    steps_per_unit,
    stream_dataset,
)
from pipelines.ray_session import ray_session
from pipelines.resolve import resolve
from pipelines.schema import DataConfig, RunConfig, ScalingConfig, TrainConfig
from pipelines.storage import Location
from tests.benchmarks import report
from tests.benchmarks.stream import photos

BATCH = 128
#: Batches that come before the clock starts: processes start, caches fill.
WARM_UP = 12
WORKERS = (1, 2)


def stream_spec(folder: Path, image_size_px: int) -> StreamSpec:
    writer = ShardWriter(Location.of(folder), name="photos")
    for sample in photos(4000):
        writer.add(sample)
    writer.close()
    config = RunConfig(
        model=ClippoConfig(render=RenderConfig(image_size_px=image_size_px)),
        data=DataConfig(sources=(str(folder),), run_length=16),
        train=TrainConfig(steps=10**6, global_batch_size=BATCH),
    )
    return resolve(config).stream


def rows_per_s(spec: StreamSpec, workers: int, seconds: float) -> float:
    """Of the stream, into a consumer that does nothing."""
    scaling = ScalingConfig(max_renderers=workers, renderer_cpus=1)
    per_unit = steps_per_unit(spec, 1)
    steps = StreamRange(0, 10**5, 1, steps_per_unit=per_unit)
    dataset = stream_dataset(spec, steps, scaling, beside_ranks=False)
    (shard,) = dataset.streaming_split(1, equal=True)
    batches = iterate_batches(shard, spec, steps)
    # From one block's first batch to another's: within a block they come at once.
    for _ in range(max(WARM_UP // per_unit, workers + 1) * per_unit + 1):
        next(batches)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        for _ in range(per_unit):
            next(batches)
        count += per_unit * BATCH
    elapsed = time.perf_counter() - started
    batches.close()
    return count / elapsed


def compare(spec: StreamSpec, rounds: int, seconds: float) -> dict[str, float]:
    rates: list[RendererRate] = []
    measured: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    for _ in range(rounds):
        rates.append(measure_renderer(spec, 1, steps_per_unit(spec, 1), seconds=seconds))
        for workers in WORKERS:
            measured[workers].append(rows_per_s(spec, workers, seconds))
    one = statistics.median(rate.rows_per_s_in_ray for rate in rates)
    figures = {
        "rows_per_block": float(rates[0].rows_per_block),
        "plain_rows_per_s": statistics.median(rate.rows_per_s for rate in rates),
        "plain_cpu_share": statistics.median(rate.cpu_share for rate in rates),
    }
    for workers in WORKERS:
        found = statistics.median(measured[workers])
        figures |= {
            f"predicted_rows_per_s_{workers}": one * workers,
            f"measured_rows_per_s_{workers}": found,
            f"measured_over_predicted_{workers}": found / (one * workers),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    arguments = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as scratch, ray_session(cpus=3):
        for size in (64, 224):
            spec = stream_spec(Path(scratch) / f"{size}", size)
            figures[f"320x240 JPEG to {size} px"] = compare(
                spec, arguments.rounds, arguments.seconds
            )
        ray.shutdown()
    for name, values in figures.items():
        print(name)
        for key, value in values.items():
            print(f"  {key:<34}{value:>12,.2f}")
    report.write("sizing", figures)


if __name__ == "__main__":
    main()
