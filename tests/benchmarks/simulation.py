"""How far the design goes: `python -m tests.benchmarks.simulation [--gpus 8]`.

One render worker is measured here (photographs of 640x480 to 224 px); what Ray takes for a block is
what `tests.benchmarks.sizing` found. From these a run of more machines than are at hand is played
through, block by block: workers render in order and no further ahead than the stream may, one
process deals the blocks out in order, each travels over its rank's link, and all ranks step
together. Prints pairs/s, the share of time that ranks wait for data, how busy each part is, and
which is the first to be full.

What a GPU takes, and what the links carry, are assumptions of the command line.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clippo_core.config import ClippoConfig, RenderConfig
from cluster.sizing import DEALING_S, RendererRate, measure_renderer
from pipelines.config.resolution import resolve
from pipelines.config.settings import DataConfig, RunConfig, ScalingConfig, TrainConfig
from pipelines.datasets.manifest import RawSample, ShardWriter
from pipelines.runtime.placement import BLOCKS_PER_RANK
from pipelines.runtime.storage import Location
from pipelines.stream.batch import StreamSpec
from pipelines.stream.stream import steps_per_unit
from tests.benchmarks import report
from tests.benchmarks.captions import captions
from tests.benchmarks.photographs import encode, rough

RENDERERS = (16, 32, 64, 128, 256, 512)
#: Block rows that the simulation plays through, the first half of them to warm up.
ROUNDS = 400
#: Spread of a block's rendering time; photographs differ.
SPREAD = 0.1


@dataclass(frozen=True)
class Machines:
    """What is simulated.

    Attributes:
        gpus: ranks, one each.
        renderers: workers of one core each.
        pairs_per_gpu_s: that a GPU takes.
        link_bytes_per_s: into each rank's machine, for each of its ranks.
    """

    gpus: int
    renderers: int
    pairs_per_gpu_s: float
    link_bytes_per_s: float


def photographs(count: int) -> Iterator[RawSample]:
    distinct = [encode(rough(640, 480, seed=seed), "JPEG", quality=90) for seed in range(16)]
    for number, caption in enumerate(captions(count)):
        yield RawSample(f"{number:05d}", distinct[number % 16], [caption], None)


def stream_spec(folder: Path, gpus: int, pairs_per_rank: int) -> StreamSpec:
    writer = ShardWriter(Location.of(folder), name="photographs")
    for sample in photographs(2048):
        writer.add(sample)
    writer.close()
    config = RunConfig(
        model=ClippoConfig(render=RenderConfig(image_size_px=224), text_patches="occupied"),
        data=DataConfig(sources=(str(folder),)),
        train=TrainConfig(steps=10**6, global_batch_size=gpus * pairs_per_rank),
        scaling=ScalingConfig(num_ranks=gpus),
    )
    return resolve(config).stream


def simulate(rate: RendererRate, machines: Machines) -> dict[str, float]:
    """Play a run through.

    Args:
        rate: of one render worker.
        machines: that take part.
    """
    gpus, rows = machines.gpus, rate.rows_per_block
    render_s = rate.task_s(machines.renderers)
    step_s = rows / machines.pairs_per_gpu_s
    send_s = rows * rate.bytes_per_row / machines.link_bytes_per_s
    ahead = BLOCKS_PER_RANK * gpus + machines.renderers
    spread = np.random.default_rng(0).lognormal(0, SPREAD, ROUNDS * gpus)
    free_at = [0.0] * machines.renderers
    dealt_at, link_free_at = 0.0, [0.0] * gpus
    taken_at: list[float] = []
    ends = [0.0]
    for row in range(ROUNDS):
        arrivals = []
        for rank in range(gpus):
            unit = row * gpus + rank
            # The stream's buffer: a block may be begun once one so many places before was taken.
            room_at = taken_at[(unit - ahead) // gpus] if unit >= ahead else 0.0
            begun = max(heapq.heappop(free_at), room_at)
            made = begun + render_s * spread[unit]
            heapq.heappush(free_at, made)
            dealt_at = max(dealt_at, made) + DEALING_S
            link_free_at[rank] = max(link_free_at[rank], dealt_at) + send_s
            arrivals.append(link_free_at[rank])
        taken_at.append(max(*arrivals, ends[-1]))
        ends.append(taken_at[-1] + step_s)
    first = ROUNDS // 2
    elapsed = ends[-1] - ends[first]
    count = ROUNDS - first
    return {
        "pairs_per_s": count * gpus * rows / elapsed,
        "ranks_wait": max(1 - count * step_s / elapsed, 0.0),
        "renderers_busy": count * gpus * render_s / (elapsed * machines.renderers),
        "dealing_busy": count * gpus * DEALING_S / elapsed,
        "links_busy": count * send_s / elapsed,
    }


def fullest(figures: dict[str, float]) -> str:
    """The part that limits: ranks, where they wait for less than 3 %."""
    if figures["ranks_wait"] < 0.03:
        return "the GPUs"
    parts = ("renderers_busy", "dealing_busy", "links_busy")
    return max(parts, key=lambda name: figures[name]).removesuffix("_busy")


def show(name: str, rows: Sequence[tuple[int, dict[str, float]]]) -> None:
    print(name)
    print(f"  {'renderers':>9}{'pairs/s':>10}{'wait':>7}{'render':>8}{'deal':>7}{'link':>7}  limit")
    for renderers, found in rows:
        shares = (found[k] for k in ("renderers_busy", "dealing_busy", "links_busy"))
        print(
            f"  {renderers:>9}{found['pairs_per_s']:>10,.0f}{found['ranks_wait']:>7.0%}"
            + "".join(f"{share:>7.0%}" for share in shares)
            + f"  {fullest(found)}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--pairs-per-gpu-s", type=float, nargs="+", default=[1000.0, 3000.0])
    parser.add_argument("--pairs-per-rank", type=int, default=1280)
    parser.add_argument("--link-gbit-s", type=float, default=10.0, help="for each rank")
    parser.add_argument("--seconds", type=float, default=8.0, help="to measure a worker for")
    arguments = parser.parse_args()
    gpus, link = arguments.gpus, arguments.link_gbit_s * 1e9 / 8
    with tempfile.TemporaryDirectory() as scratch:
        spec = stream_spec(Path(scratch), gpus, arguments.pairs_per_rank)
        rate = measure_renderer(spec, gpus, steps_per_unit(spec, gpus), seconds=arguments.seconds)
    figures: dict[str, object] = {
        "one_worker_rows_per_s": rate.rows_per_s_in_ray(1),
        "rows_per_block": rate.rows_per_block,
        "mb_per_block": rate.rows_per_block * rate.bytes_per_row / 1e6,
    }
    for name, value in figures.items():
        print(f"{name:<24}{value:>12,.1f}")
    for count, pace in itertools.product((gpus, 8 * gpus), arguments.pairs_per_gpu_s):
        found = [
            (renderers, simulate(rate, Machines(count, renderers, pace, link)))
            for renderers in RENDERERS
        ]
        name = f"{count} GPUs of {pace:,.0f} pairs/s"
        show(name, found)
        figures[name] = {str(renderers): values for renderers, values in found}
    report.write("simulation", figures)


if __name__ == "__main__":
    main()
