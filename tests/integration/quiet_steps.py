"""The loop of a rank on a device that is only pretended, beside a rank that is only pretended.

`python -m tests.integration.quiet_steps RUN_JSON` prints, as JSON, what each step read back from
the device and which collectives it ran; DDP's own, those of the gradients, do not pass here. In a
process of its own, since torch keeps the device.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from clippo_core.config import from_json
from clippo_core.modeling import make_model
from clippo_core.optim import adafactor, make_optimizer
from clippo_core.training.state import TrainState
from clippo_core.training.step import Shard
from pipelines.config.derived import text_lengths
from pipelines.config.resolution import resolve
from pipelines.config.settings import RunConfig
from pipelines.stream.batch import prepare_batch
from pipelines.training import exchange, gauges, parallel
from pipelines.training import rank as rank_module
from pipelines.training.feeding import DeviceFeed
from pipelines.training.trainer import RankJob
from tests.unit.pretended_accelerator import DEVICE, move

NUM_RANKS = 2


class Counter(TorchDispatchMode):
    """Notes what waits for the device: values that are read, and copies to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.read_back: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        is_there = any(isinstance(a, torch.Tensor) and a.device.type == DEVICE for a in args)
        if is_there and name == "_local_scalar_dense":
            self.read_back.append(name)
        result = func(*args, **(kwargs or {}))
        if is_there and isinstance(result, torch.Tensor) and result.device.type == "cpu":
            self.read_back.append(name)
        return result


class Collectives:
    """In the place of `torch.distributed`: two ranks that hold the same."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def __getattr__(self, name: str):
        raise AttributeError(f"a step used torch.distributed.{name}")

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def get_world_size(self) -> int:
        return NUM_RANKS

    def get_rank(self) -> int:
        return 1

    def all_gather(self, gathered: list[torch.Tensor], own: torch.Tensor) -> None:
        self.ran.append("all_gather")
        for place in gathered:
            place.copy_(own)

    def all_gather_object(self, gathered: list, own: object) -> None:
        self.ran.append("all_gather_object")
        gathered[:] = [own] * len(gathered)

    def all_reduce(self, tensor: torch.Tensor) -> None:
        self.ran.append("all_reduce")


class WatchedRank(rank_module.Rank):
    """Notes what each step did; it looks at its figures when it is told to."""

    def watch(self, counter: Counter, collectives: Collectives) -> None:
        self.counter, self.collectives = counter, collectives
        self.noted: list[dict] = []

    def _note(self, batch) -> None:
        super()._note(batch)
        read_back, ran = self.counter.read_back[:], self.collectives.ran[:]
        self.noted.append({"step": self.state.step, "read_back": read_back, "collectives": ran})
        self.counter.read_back.clear()
        self.collectives.ran.clear()

    def _look(self, batch, feed: DeviceFeed) -> exchange.Totals:
        # To read figures of a pretended device is impossible, which shows that they are read here.
        with pytest.raises(DataDependentOutputException):
            super()._look(batch, feed)
        step = self.noted[-1]
        step["read_back"] += self.counter.read_back
        step["is_looked_at"] = True
        self.counter.read_back.clear()
        self.collectives.ran.clear()
        count = len(self._window._metrics)
        self._window._clear()
        zeros = {"loss": np.zeros(count)}
        return exchange.Totals(zeros, 1e-9 * count, 0.0, 0.0, {}, {}, is_stop_wanted=False)

    def _checkpoint(self, totals: exchange.Totals) -> None:
        """Writing is no part of a step."""

    def _is_preemption_new(self, wall_s: float) -> bool:
        return False


def main(run_json: Path) -> list[dict]:
    resolved = resolve(from_json(RunConfig, run_json.read_bytes(), where=str(run_json)))
    job = RankJob(
        config=resolved.config,
        run=resolved.run,
        attempt="attempt",
        stream=resolved.stream,
        row_s=1e-3,
        max_block_bytes=1e9,
        text_lengths=text_lengths(resolved),
        device_bytes=None,
        monitor=None,
    )
    size = resolved.config.batch_size_per_rank
    batches = [
        prepare_batch(resolved.stream, resolved.stream.plan.batch(step)[:size], step=step)
        for step in range(resolved.config.train.steps)
    ]
    backend_registration._setup_privateuseone_for_python_backend(DEVICE)
    torch.get_device_module(DEVICE).get_amp_supported_dtype = lambda: [torch.bfloat16]
    # How many steps were made is a tensor on the CPU: to read it is free, and here impossible.
    adafactor.float = lambda _: 1.0
    model = make_model(resolved.config.model, seed=0)
    state = TrainState.create(model, resolved.config.optim)
    collectives, counter = Collectives(), Counter()
    with (
        mock.patch.object(parallel, "dist", collectives),
        mock.patch.object(gauges, "matmul_flop_per_s", return_value=1e9),
        # Averages gradients over ranks, on a device that DDP does not know.
        mock.patch.object(rank_module.ray.train.torch, "prepare_model", new=lambda model: model),
        mock.patch.object(
            rank_module, "this_shard", return_value=Shard(1, NUM_RANKS, parallel.gather_rows)
        ),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        move(state.model)
        state.optimizer = make_optimizer(state.model, resolved.config.optim)
        rank = WatchedRank(job, state, {}, index=1, num_ranks=NUM_RANKS)
        rank.watch(counter, collectives)
        collectives.ran.clear()
        with counter:
            rank.run(iter(batches))
    return rank.noted


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
