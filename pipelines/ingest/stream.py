"""The sample plan as a Ray Data stream: one unit of work is one rank's batch is one block.

Blocks of equal size, in order, are dealt to the ranks round robin: block `step * ranks + rank`
reaches `rank`. So each rank gets whole batches, without copies, and the stream is the same for any
number of render workers. Read by Ray's documentation and source at 2.60; tests/integration hold it
to that.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import ray.data
from ray.data import DataContext, ExecutionOptions, TaskPoolStrategy
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from pipelines.background import in_background
from pipelines.ingest.stages import (
    PreparedBatch,
    StreamSpec,
    from_block,
    prepare_batch,
    to_block,
)
from pipelines.schema import ScalingConfig

DATASET = "pairs"
#: Ray's guard against stalls also kills a trainer that pauses; a day is no stall.
NO_PROGRESS_TIMEOUT_S = 24 * 3600


@dataclass(frozen=True)
class StreamRange:
    """The part of a run that a stream delivers, and over how many ranks.

    Ray Data plans all units of an iteration before the first batch, about 1 ms each; so a run is
    delivered in segments of whole steps, one iteration each, which costs 0.2 s between them.
    """

    start_step: int
    total_steps: int
    num_ranks: int
    units_per_segment: int = 1024

    def segment(self, number: int) -> range:
        """Units of the segment: every step of it, every rank."""
        length = max(self.units_per_segment // self.num_ranks, 1) * self.num_ranks
        start = self.start_step * self.num_ranks + number * length
        end = self.total_steps * self.num_ranks
        return range(min(start, end), min(start + length, end))


class PlannedBatches(Datasource):
    """Ray Data's view of a stream: one read task per unit, in the plan's order."""

    def __init__(self, spec: StreamSpec, steps: StreamRange):
        super().__init__()
        self._spec = spec
        self._steps = steps

    def get_name(self) -> str:
        """What Ray calls the operator."""
        return "RenderPairs"

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown, and of no use for a stream."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002 - the plan decides
        per_task_row_limit: int | None = None,  # noqa: ARG002
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        """The units of the segment that this execution delivers.

        Every iteration over the dataset is one execution; Ray counts them in `_execution_idx`,
        which its own shuffles use in the same way. Without a context Ray is only planning.
        """
        segment = getattr(data_context, "_execution_idx", 0) if data_context is not None else 0
        size = self._spec.render.image_size_px
        rows = self._spec.plan.batch_size // self._steps.num_ranks
        metadata = BlockMetadata(
            num_rows=rows, size_bytes=rows * size * size * 3, input_files=None, exec_stats=None
        )
        return [
            ReadTask(
                functools.partial(_read_unit, self._spec, unit, self._steps.num_ranks), metadata
            )
            for unit in self._steps.segment(segment)
        ]


def _read_unit(spec: StreamSpec, unit: int, num_ranks: int) -> Iterator[pa.Table]:
    step, rank = divmod(unit, num_ranks)
    rows = spec.plan.batch_size // num_ranks
    planned = spec.plan.batch(step)[rank * rows : (rank + 1) * rows]
    yield to_block(in_background(prepare_batch, spec, planned, step=step))


def stream_dataset(
    spec: StreamSpec, steps: StreamRange, scaling: ScalingConfig
) -> ray.data.Dataset:
    """The dataset to hand to a trainer; each iteration over it delivers the next segment."""
    context = DataContext.get_current()
    context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S
    context.enable_progress_bars = False
    size = spec.render.image_size_px
    block_bytes = spec.plan.batch_size // steps.num_ranks * size * (size * 3 + 4 * 2)
    # A block above 1.5 times this size would be split, and its batch with it.
    context.target_max_block_size = max(2 * block_bytes, 128 * 2**20)
    return ray.data.read_datasource(
        PlannedBatches(spec, steps),
        override_num_blocks=1,
        num_cpus=scaling.renderer_cpus,
        compute=TaskPoolStrategy(size=scaling.max_renderers),
    )


def execution_options() -> ExecutionOptions:
    """What a trainer's `DataConfig` needs so that batches keep their order."""
    return ExecutionOptions(preserve_order=True)


def iterate_batches(
    shard: ray.data.DataIterator, spec: StreamSpec, steps: StreamRange
) -> Iterator[PreparedBatch]:
    """A rank's batches, from `steps.start_step` to the end of the run.

    Args:
        shard: this rank's part of `stream_dataset`.
        spec: of the stream.
        steps: of the stream.

    Raises:
        RuntimeError: if a batch arrives out of turn, which would be a bug.
    """
    batch_size = spec.plan.batch_size // steps.num_ranks
    step = steps.start_step
    while step < steps.total_steps:
        arrived = shard.iter_batches(
            batch_size=batch_size, batch_format="pyarrow", prefetch_batches=2, drop_last=True
        )
        before = step
        for block in arrived:
            batch = from_block(block, spec.render)
            if batch.step != step:
                raise RuntimeError(f"the stream delivered step {batch.step} in place of {step}")
            yield batch
            step += 1
        if step == before:
            raise RuntimeError(f"the stream ended at step {step} of {steps.total_steps}")
