"""Schedule multipliers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clippo_core.config import ScheduleConfig
from clippo_core.optim import schedule_multiplier

SCHEDULES = json.loads((Path(__file__).parent / "reference" / "schedules.json").read_text())


@pytest.mark.parametrize("name", ["paper", "coco", "cosine", "linear"])
def test_multipliers_agree_to_1e_6(name: str):
    reference = SCHEDULES[name]
    config = ScheduleConfig(
        decay=reference["decay_type"],
        warmup_steps=reference["warmup_steps"],
        cooldown_steps=reference.get("cooldown_steps", 0),
        timescale=reference.get("timescale", 10_000),
    )
    for step, expected in zip(reference["steps"], reference["multipliers"], strict=True):
        ours = schedule_multiplier(config, step, total_steps=reference["total_steps"])
        assert abs(ours - expected) < 1e-6, step
