"""When ranks look at their figures, what they see then, and which micro-batch fits a device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clippo_core.errors import ConfigError
from clippo_core.training.memory import USABLE_SHARE, training_bytes
from pipelines.config.derived import TextLengths, check_memory, micro_batch_size, step_load
from pipelines.config.presets import PRESETS
from pipelines.config.settings import RunConfig, TrainConfig
from pipelines.stream.batch import Effort, RejectedRow
from pipelines.training.exchange import LOOK_EVERY_S, StepWindow, Totals, next_look
from pipelines.training.feeding import FedBatch

CPU = torch.device("cpu")


def totals(num_steps: int, elapsed_s: float) -> Totals:
    metrics = {"loss": np.zeros(num_steps)}
    return Totals(metrics, elapsed_s, 0.0, 0.0, {}, {}, is_stop_wanted=False)


@given(
    step=st.integers(1, 99),
    log_every=st.integers(1, 60),
    num_steps=st.integers(1, 50),
    step_s=st.floats(1e-5, 100),
)
def test_ranks_look_at_every_logged_step_and_at_least_every_two_seconds(
    step: int, log_every: int, num_steps: int, step_s: float
):
    train = TrainConfig(steps=100, log_every=log_every)
    found = next_look(step, train, totals(num_steps, num_steps * step_s))
    assert step < found <= 100
    assert not any(train.is_logged(passed) for passed in range(step + 1, found))
    assert found == step + 1 or (found - step) * step_s <= LOOK_EVERY_S * 1.001
    # Not more often than that either.
    assert train.is_logged(found) or (found + 1 - step) * step_s > LOOK_EVERY_S * 0.999


def fed(rejected: list[RejectedRow]) -> FedBatch:
    effort = Effort({"read": 1.0, "decode": 2.0, "render": 3.0}, {"decode": 0.5}, finished_at=90.0)
    batch: Any = SimpleNamespace(effort=effort, rejected=rejected)
    return FedBatch(batch, on_device=SimpleNamespace(), arrived_at=100.0)


def test_a_window_gives_each_step_and_its_sums_once():
    window = StepWindow(["photos"], {"photos/missing_image": 2}, num_ranks=1)
    feed: Any = SimpleNamespace(take_wait_s=lambda: 0.25)
    row = RejectedRow("key", "photos", "missing_image", "", step=5, row=0)
    losses = [3.0, 2.0, 1.0]
    for loss in losses:
        window.add(fed([row]), {"loss": torch.tensor(loss), "gradient_norm": torch.tensor(0.5)})
    found = window.exchange(feed, CPU, is_stop_wanted=True)
    np.testing.assert_array_equal(found.metrics["loss"], losses)
    np.testing.assert_array_equal(found.metrics["gradient_norm"], [0.5] * 3)
    assert found.rejected == {"photos/missing_image": 5}
    assert found.effort["render_s"] == 9.0
    assert found.effort["ready_s"] == 30.0
    assert (found.wait_s, found.is_stop_wanted, found.num_steps) == (0.25, True, 3)
    window.add(fed([]), {"loss": torch.tensor(9.0), "gradient_norm": torch.tensor(0.5)})
    again = window.exchange(feed, CPU, is_stop_wanted=False)
    np.testing.assert_array_equal(again.metrics["loss"], [9.0])
    # Rejects count from the beginning of the run, everything else from the last time.
    assert again.rejected == {"photos/missing_image": 5}
    assert again.effort["render_s"] == 3.0


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("paper_")])
def test_the_papers_presets_fit_80_gb_by_micro_batches_of_equal_parts(name: str):
    config: RunConfig = PRESETS[name]()
    size = micro_batch_size(config, None, device_bytes=80e9)
    load = step_load(config, micro_batch_size=size)
    assert training_bytes(config.model, config.optim, load) <= USABLE_SHARE * 80e9
    # The next larger parts would not fit.
    if size is not None and size < config.batch_size_per_rank:
        parts = -(-config.batch_size_per_rank // size)
        larger = step_load(config, micro_batch_size=-(-config.batch_size_per_rank // (parts - 1)))
        assert training_bytes(config.model, config.optim, larger) > USABLE_SHARE * 80e9


def test_a_model_that_does_not_fit_a_device_is_refused_with_what_to_change():
    config = PRESETS["paper_l16"]()
    with pytest.raises(ConfigError, match="scaling"):
        check_memory(config, TextLengths(50, 100), device_bytes=2e9)
    check_memory(config, TextLengths(50, 100), device_bytes=None)
