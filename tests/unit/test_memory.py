"""The memory estimate against a measured peak."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.memory_probe import TIGHT_MEMORY

ROOT = Path(__file__).parents[2]
PROBE = """
import json, sys, torch
from clippo_core.config import ClippoConfig, RenderConfig, VitConfig
from clippo_core.training.step import StepMemory
from tests.benchmarks.memory_probe import probe
torch.set_num_threads(1)
vit = VitConfig(width=64, depth=4, mlp_dim=256, num_heads=4, embed_dim=32)
settings, memory, options = map(json.loads, sys.argv[1:])
model = ClippoConfig(vit=vit, render=RenderConfig(image_size_px=64), **settings)
print(json.dumps(probe(model, 2048, StepMemory(**memory), steps=1, **options)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "memory", "options"),
    [
        ({"text_patches": "occupied"}, {}, {"precision": "float32"}),
        ({"text_patches": "occupied"}, {"micro_batch_size": 1024, "logit_rows": 128}, {}),
        ({"text_patches": "occupied"}, {}, {"recomputes_activations": True}),
        ({"text_input": "tokens_two_towers", "max_tokens": 24}, {}, {}),
    ],
)
def test_the_memory_estimate_is_within_15_percent_of_the_peak(
    model: dict, memory: dict, options: dict
):
    """In a process of its own, whose resident set no other test has grown."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *map(json.dumps, (model, memory, options))],
        cwd=ROOT,
        env=os.environ | TIGHT_MEMORY,
        check=True,
        capture_output=True,
        text=True,
    )
    figures = json.loads(done.stdout)
    assert figures["estimated_bytes"] == pytest.approx(figures["peak_bytes"], rel=0.15)
