"""Twelve updates of the paper's optimizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from clippo_core.config import OptimConfig, ScheduleConfig
from clippo_core.optim import clip_gradients, make_optimizer, schedule_multiplier, set_multiplier

REFERENCE = Path(__file__).parent / "reference"
STEPS = 12
SCHEDULE = ScheduleConfig(warmup_steps=3, cooldown_steps=4, timescale=10)


class Leaves(nn.Module):
    """Parameters under the reference's names, which are no Python names."""

    def __init__(self, leaves: dict[str, np.ndarray]):
        super().__init__()
        self.leaves = {name: nn.Parameter(torch.tensor(values)) for name, values in leaves.items()}

    def named_parameters(self, *args, **kwargs):
        return iter(self.leaves.items())


@pytest.mark.parametrize(
    ("file", "momentum_dtype", "tolerance"),
    [
        ("adafactor_trajectory.npz", "float32", 1e-6),
        ("adafactor_bf16_momentum_trajectory.npz", "bfloat16", 1e-5),
    ],
)
def test_trajectory_agrees(file: str, momentum_dtype, tolerance: float):
    reference = np.load(REFERENCE / file)
    names = [key.removeprefix("param/0/") for key in reference if key.startswith("param/0/")]
    assert names
    model = Leaves({name: reference[f"param/0/{name}"] for name in names})
    config = OptimConfig(schedule=SCHEDULE, momentum_dtype=momentum_dtype)
    optimizer = make_optimizer(model, config)
    for step in range(STEPS):
        for name, param in model.leaves.items():
            param.grad = torch.tensor(reference[f"grad/{step}/{name}"])
        clip_gradients(model.leaves.values(), config.gradient_clip_norm)
        set_multiplier(optimizer, config, schedule_multiplier(SCHEDULE, step, total_steps=STEPS))
        optimizer.step()
        for name, param in model.leaves.items():
            difference = np.abs(param.detach().numpy() - reference[f"param/{step + 1}/{name}"])
            assert difference.max() < tolerance, (step, name)
