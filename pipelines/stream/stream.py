"""The sample plan as a Ray Data stream: a unit of work, one block, is a rank's batch of some steps.

Blocks of equal size, in order, are dealt to the ranks round robin: block `number * ranks + rank`
reaches `rank`. So each rank gets whole batches, without copies, and the stream is the same for any
number of render workers. This rests on Ray's documentation and source at 2.60; tests/integration
fail where another release does otherwise.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext, ExecutionOptions, TaskPoolStrategy
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from pipelines.config.settings import ScalingConfig
from pipelines.ray_compat import execution_index
from pipelines.stream.batch import PreparedBatch, StreamSpec, prepare_batch
from pipelines.stream.wire import from_block, to_block

DATASET = "pairs"
#: Ray's guard against stalls also kills a trainer that pauses; a day is no stall.
NO_PROGRESS_TIMEOUT_S = 24 * 3600
#: Seconds of work in a render task: Ray takes about 0.1 s between two tasks of a worker.
TASK_S = 2.0
#: Largest block of a task, so that a few for each rank fit into an object store.
MAX_BLOCK_BYTES = 256 * 2**20
#: Seconds to prepare a row where nobody has measured: a photograph brought to 224 px.
TYPICAL_ROW_S = 0.001


@dataclass(frozen=True)
class StreamRange:
    """The part of a run that a stream delivers, and over how many ranks.

    Ray Data plans all units of an iteration before the first batch, about 1 ms each; so a run is
    delivered in segments of whole steps, one iteration each, which costs 0.2 s between them.

    A unit of work covers a rank's batches of `steps_per_unit` steps: a task costs Ray about 30 ms
    of CPU time whatever it does, more than a small batch takes to prepare.
    """

    start_step: int
    total_steps: int
    num_ranks: int
    units_per_segment: int = 1024
    steps_per_unit: int = 1

    def segment(self, number: int) -> list[Unit]:
        """Return the units of a segment, which cover every step of it on every rank.

        The first units of a run are small, so that its first step does not wait for many more.
        """
        length = max(self.units_per_segment // self.num_ranks, 1) * self.steps_per_unit
        step = self.start_step + number * length
        end = min(step + length, self.total_steps)
        size = self.steps_per_unit if number else 1
        units = []
        while step < end:
            steps = range(step, min(step + size, end))
            units += [Unit(steps, rank) for rank in range(self.num_ranks)]
            step, size = steps.stop, min(2 * size, self.steps_per_unit)
        return units


class Unit(NamedTuple):
    """The work of one render task: a rank's batches of consecutive steps."""

    steps: range
    rank: int


def steps_per_unit(
    spec: StreamSpec,
    num_ranks: int,
    *,
    wanted: int | None = None,
    row_s: float = TYPICAL_ROW_S,
    max_bytes: float = MAX_BLOCK_BYTES,
) -> int:
    """Return how many steps a render task works for: about `TASK_S` seconds, one block at most.

    Args:
        spec: the stream.
        num_ranks: ranks over which each batch is divided.
        wanted: the answer where a person has given it.
        row_s: seconds that a render worker takes to prepare a row.
        max_bytes: largest size of a block, where object stores are small.
    """
    if wanted is not None:
        return wanted
    rows = spec.plan.batch_size // num_ranks
    of_time = round(TASK_S / (rows * row_s))
    of_size = int(min(max_bytes, MAX_BLOCK_BYTES) // batch_bytes(spec, num_ranks))
    return max(1, min(of_time, of_size))


def batch_bytes(spec: StreamSpec, num_ranks: int) -> int:
    """Return a generous size of a rank's batch: a picture and four rows of text for each pair."""
    size = spec.render.image_size_px
    tokens = 0 if spec.vocabulary is None else spec.vocabulary.max_tokens
    targets = 0 if spec.labels is None else spec.labels.num_outputs
    return spec.plan.batch_size // num_ranks * (size * (size * 3 + 4 * 2) + 4 * (tokens + targets))


class PlannedBatches(Datasource):
    """Ray Data's view of a stream: one read task per unit, in the plan's order."""

    def __init__(self, spec: StreamSpec, steps: StreamRange, *, beside_ranks: bool = True):
        super().__init__()
        self._spec = spec
        self._steps = steps
        self._beside_ranks = beside_ranks

    def get_name(self) -> str:
        """Return the name that Ray shows for the operator."""
        return "RenderPairs"

    def estimate_inmemory_data_size(self) -> int | None:
        """Return None: the size is unknown, and of no use for a stream."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002 - the plan decides
        per_task_row_limit: int | None = None,  # noqa: ARG002
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        """Return a task for each unit of the segment that this execution delivers.

        Every iteration over the dataset is one execution, and Ray counts them.
        """
        segment = execution_index(data_context)
        spec, num_ranks = self._spec, self._steps.num_ranks
        rows, size_bytes = spec.plan.batch_size // num_ranks, batch_bytes(spec, num_ranks)
        return [
            ReadTask(
                functools.partial(
                    _read_unit, spec, unit, num_ranks, beside_ranks=self._beside_ranks
                ),
                BlockMetadata(
                    num_rows=len(unit.steps) * rows,
                    size_bytes=len(unit.steps) * size_bytes,
                    input_files=None,
                    exec_stats=None,
                ),
            )
            for unit in self._steps.segment(segment)
        ]


def _read_unit(
    spec: StreamSpec, unit: Unit, num_ranks: int, *, beside_ranks: bool
) -> Iterator[pa.Table]:
    if beside_ranks:
        # The lowest priority, since a rank's threads wait for each other. It is set, not added to:
        # Ray uses the process again.
        os.setpriority(os.PRIO_PROCESS, 0, 19)
    yield make_block(spec, unit, num_ranks, node=ray.get_runtime_context().get_node_id())


def make_block(spec: StreamSpec, unit: Unit, num_ranks: int, *, node: str = "") -> pa.Table:
    """Prepare a unit's batches and return them as one block, one after the other.

    Args:
        spec: the stream.
        unit: the steps, and the rank whose part of them is made.
        num_ranks: ranks over which each batch is divided.
        node: the cluster's node, for the batches' notes.
    """
    rows = spec.plan.batch_size // num_ranks
    mine = slice(unit.rank * rows, (unit.rank + 1) * rows)
    is_image = np.array([source.kind == "image-text" for source in spec.sources])
    batches: list[PreparedBatch] = []
    for step in unit.steps:
        planned = spec.plan.batch(step)
        batch = prepare_batch(spec, planned[mine], step=step)
        first_image = int(is_image[planned.source[: mine.start]].sum())
        batches.append(dataclasses.replace(batch, first_image=first_image))
    now = time.time()
    tables = []
    for batch in batches:
        effort = dataclasses.replace(batch.effort, node=node, finished_at=now)
        tables.append(to_block(dataclasses.replace(batch, effort=effort)))
    return pa.concat_tables(tables).combine_chunks()


def stream_dataset(
    spec: StreamSpec,
    steps: StreamRange,
    scaling: ScalingConfig,
    *,
    selector: Mapping[str, str] | None = None,
    beside_ranks: bool = True,
) -> ray.data.Dataset:
    """Make the dataset to hand to a trainer; each iteration over it delivers the next segment.

    Args:
        spec: the stream.
        steps: the steps to deliver.
        scaling: how many render tasks there may be, and of how many CPUs.
        selector: labels of the nodes that render; None: any node.
        beside_ranks: whether ranks may be on the same cores, to which render tasks then yield.
    """
    context = DataContext.get_current()
    context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S
    context.enable_progress_bars = False
    # Here as well as in what a trainer is given: helper tasks of Ray Data look here.
    context.execution_options = execution_options(selector)
    block_bytes = steps.steps_per_unit * batch_bytes(spec, steps.num_ranks)
    # A block above 1.5 times this size would be split, and its batch with it.
    context.target_max_block_size = max(2 * block_bytes, 128 * 2**20)
    return ray.data.read_datasource(
        PlannedBatches(spec, steps, beside_ranks=beside_ranks),
        override_num_blocks=1,
        num_cpus=scaling.renderer_cpus,
        compute=TaskPoolStrategy(size=scaling.max_renderers),
    )


def execution_options(selector: Mapping[str, str] | None = None) -> ExecutionOptions:
    """Make options that keep batches in order and tasks on their nodes, for a `DataConfig` too."""
    return ExecutionOptions(
        preserve_order=True, label_selector=None if selector is None else dict(selector)
    )


def iterate_batches(
    shard: ray.data.DataIterator, spec: StreamSpec, steps: StreamRange
) -> Iterator[PreparedBatch]:
    """Yield a rank's batches, from `steps.start_step` to the end of the run.

    Args:
        shard: this rank's part of `stream_dataset`.
        spec: the stream.
        steps: the steps that it delivers.

    Raises:
        RuntimeError: if a batch arrives out of turn, which would be a bug.
    """
    batch_size = spec.plan.batch_size // steps.num_ranks
    step = steps.start_step
    while step < steps.total_steps:
        arrived = shard.iter_batches(
            batch_size=batch_size, batch_format="pyarrow", prefetch_batches=1, drop_last=True
        )
        before = step
        for block in arrived:
            batch = from_block(block, spec.render, spec.vocabulary)
            if batch.step != step:
                raise RuntimeError(f"the stream delivered step {batch.step} in place of {step}")
            yield batch
            step += 1
        if step == before:
            raise RuntimeError(f"the stream ended at step {step} of {steps.total_steps}")
