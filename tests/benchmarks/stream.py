"""The stream of samples: `python -m tests.benchmarks.stream [--steps N]`.

How well a plan shuffles, what it costs for 1e5 and 1e9 samples, how soon a stream starts at any
step, what 5 % broken pictures and 5 % blank captions cost, and whether memory stays flat over many
steps.
"""

from __future__ import annotations

import argparse
import gc
import io
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import ray
from PIL import Image
from ray.data import DataContext

from clippo_core.config import ClippoConfig, RenderConfig
from pipelines.config.resolution import resolve
from pipelines.config.settings import DataConfig, RunConfig, ScalingConfig, TrainConfig
from pipelines.datasets.manifest import Manifest, RawSample, Shard, ShardWriter, write_manifest
from pipelines.runtime.ray_session import ray_session
from pipelines.runtime.storage import Location
from pipelines.stream.batch import StreamSpec, prepare_batch
from pipelines.stream.stream import (
    StreamRange,
    execution_options,
    iterate_batches,
    stream_dataset,
)
from tests.benchmarks import report
from tests.integration.colours import colour_samples

BATCH = 128
ROWS_OF_A_SHARD = 10_000


def config_of(source: Path | str, *, steps: int = 10**6) -> RunConfig:
    return RunConfig(
        model=ClippoConfig(render=RenderConfig(image_size_px=64)),
        data=DataConfig(sources=(str(source),), run_length=16),
        train=TrainConfig(steps=steps, global_batch_size=BATCH),
        scaling=ScalingConfig(renderer_cpus=0.5, max_renderers=2),
    )


def write_shard(folder: Path) -> Path:
    writer = ShardWriter(Location.of(folder), name="colours", rows_per_shard=ROWS_OF_A_SHARD)
    for sample in colour_samples(ROWS_OF_A_SHARD):
        writer.add(sample)
    writer.close()
    return folder


def as_if_larger(folder: Path, original: Path, rows: int) -> Path:
    """A manifest of many shards that are all the same file: a set of any size on a small disk."""
    shards = [
        Shard("shard-00000.parquet", ROWS_OF_A_SHARD, f"v{number}")
        for number in range(rows // ROWS_OF_A_SHARD)
    ]
    place = Location.of(folder)
    write_manifest(place, shards, Manifest(name=f"{rows:.0e}", shards_at=str(original)))
    return folder


def rss_mb() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


def planning(folder: Path) -> dict[str, float]:
    """What the driver pays for the plan of a run, and how well it shuffles."""
    before, started = rss_mb(), time.perf_counter()
    resolved = resolve(config_of(folder))
    plan = resolved.stream.plan
    opened = time.perf_counter() - started
    started = time.perf_counter()
    rows = [plan.batch(step).row for step in range(2000)]
    planned = time.perf_counter() - started
    starts = np.concatenate(rows[:200])[:: plan.run_length].astype(float)
    shards = [len(np.unique(r // ROWS_OF_A_SHARD)) for r in rows[:200]]
    del rows
    # Reading touches a few shards' places; the table of them is what could grow.
    resolved.sources[0].read(range(64))
    return {
        "open_s": opened,
        "ms_per_planned_batch": planned / 2000 * 1000,
        "driver_growth_mb": rss_mb() - before,
        "shards_per_batch": float(np.mean(shards)),
        "runs_per_batch": BATCH / plan.run_length,
        "serial_correlation_of_runs": float(np.corrcoef(starts[:-1], starts[1:])[0, 1]),
    }


def restart_seconds(spec: StreamSpec, scaling: ScalingConfig, step: int) -> float:
    """From asking for a stream that starts at a step to its first batch."""
    started = time.perf_counter()
    next(batches(spec, scaling, StreamRange(step, step + 4, 1)))
    return time.perf_counter() - started


def batches(spec: StreamSpec, scaling: ScalingConfig, steps: StreamRange) -> Iterator:
    DataContext.get_current().execution_options = execution_options()
    (shard,) = stream_dataset(spec, steps, scaling).streaming_split(1, equal=True)
    return iterate_batches(shard, spec, steps)


def object_store_mb() -> float:
    from ray._private.internal_api import memory_summary

    found = re.search(r"Plasma memory usage ([\d.]+) MiB", memory_summary(stats_only=True))
    assert found is not None
    return float(found[1])


def endurance(spec: StreamSpec, scaling: ScalingConfig, steps: int) -> dict[str, float]:
    """Memory in the first and the last fifth of a long stream."""
    driver, store = [], []
    started = time.perf_counter()
    for number, _ in enumerate(batches(spec, scaling, StreamRange(0, steps, 1))):
        if number % (steps // 40) == steps // 80:
            driver.append(psutil.Process().memory_info().rss / 2**20)
            store.append(object_store_mb())
    fifth = len(driver) // 5
    return {
        "steps": steps,
        "rows_per_s": steps * BATCH / (time.perf_counter() - started),
        "driver_mb_first_fifth": float(np.mean(driver[:fifth])),
        "driver_mb_last_fifth": float(np.mean(driver[-fifth:])),
        "object_store_mb_first_fifth": float(np.mean(store[:fifth])),
        "object_store_mb_last_fifth": float(np.mean(store[-fifth:])),
        "object_store_mb_max": float(np.max(store)),
    }


def photos(count: int) -> list[RawSample]:
    """JPEG files of 320x240 px, 200 different ones."""
    encoded = []
    for seed in range(200):
        rough = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(rough).resize((320, 240), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        encoded.append(buffer.getvalue())
    return [RawSample(f"{n}", encoded[n % 200], [f"photo number {n}"]) for n in range(count)]


def damage(folder: Path, samples: list[RawSample]) -> tuple[Path, Path]:
    """The samples, and the same with 5 % broken pictures and 5 % blank captions."""
    broken = [
        sample._replace(image=(sample.image or b"")[: len(sample.image or b"") // 2])
        if number % 20 == 3
        else sample._replace(captions=[" "]) if number % 20 == 11
        else sample
        for number, sample in enumerate(samples)
    ]  # fmt: skip
    for name, rows in (("clean", samples), ("broken", broken)):
        writer = ShardWriter(Location.of(folder / name), name=name)
        for sample in rows:
            writer.add(sample)
        writer.close()
    return folder / "clean", folder / "broken"


def cost_of_rejects(folder: Path, samples: list[RawSample]) -> dict[str, float]:
    """Rows per second on one core, clean and damaged in turn."""
    specs = {source.name: resolve(config_of(source)).stream for source in damage(folder, samples)}

    def work(spec: StreamSpec) -> int:
        return sum(
            len(prepare_batch(spec, spec.plan.batch(step), step=step).rejected)
            for step in range(40)
        )

    rejected = work(specs["broken"])
    seconds = report.seconds_each({name: lambda s=spec: work(s) for name, spec in specs.items()})
    return {
        "rows_per_s_clean": 40 * BATCH / seconds["clean"],
        "rows_per_s_damaged": 40 * BATCH / seconds["broken"],
        "slower_by": 1 - seconds["clean"] / seconds["broken"],
        "rejected_share": rejected / (40 * BATCH),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="length of the long run")
    steps = parser.parse_args().steps
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        original = write_shard(folder / "original")
        large = as_if_larger(folder / "1e9", original, 10**9)
        figures["plan of 1e5"] = planning(as_if_larger(folder / "1e5", original, 10**5))
        figures["plan of 1e9"] = planning(large)
        for name, samples in (
            ("24 px PNG", colour_samples(6_000)),
            ("320x240 JPEG", photos(6_000)),
        ):
            place = folder / name.replace(" ", "_")
            figures[f"5 % + 5 % bad rows, {name}"] = cost_of_rejects(place, samples)
        with ray_session(cpus=1):
            resolved = resolve(config_of(large, steps=10**7))
            spec, scaling = resolved.stream, resolved.config.scaling
            list(batches(spec, scaling, StreamRange(0, 8, 1)))
            figures["restart at step"] = {
                f"{step}": restart_seconds(spec, scaling, step) for step in (0, 12_345, 7_000_000)
            }
            figures[f"{steps} steps over 1e9"] = endurance(spec, scaling, steps)
        ray.shutdown()
    report.show(figures)
    report.write("stream", figures)


if __name__ == "__main__":
    main()
