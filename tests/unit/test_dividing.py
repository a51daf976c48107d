"""Weights and moments divided over ranks: here over one, which holds all parts of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from clippo_core.config import ClippoConfig, OptimConfig, RenderConfig, ScheduleConfig, VitConfig
from clippo_core.modeling import make_model
from clippo_core.training.state import TrainState
from clippo_core.training.step import PairBatch, StepMemory, StepOptions, train_step
from pipelines.training import parallel

VIT = VitConfig(width=32, depth=2, mlp_dim=64, num_heads=2, embed_dim=16)
MODEL = ClippoConfig(vit=VIT, render=RenderConfig(image_size_px=32), text_patches="occupied")


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(parallel, "is_distributed", lambda: True)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_divided_in_mid_training_a_state_goes_on_as_it_would_have(one_rank, name):
    schedule = ScheduleConfig(decay="constant", warmup_steps=0, cooldown_steps=0)
    optim = OptimConfig(name=name, schedule=schedule)
    whole, divided = (TrainState.create(make_model(MODEL, seed=0), optim) for _ in range(2))
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    texts = whole.model.renderer.render_batch([f"text {n} " * (n % 3 + 1) for n in range(6)])
    batch = PairBatch(torch.from_numpy(images), texts)
    for step in range(4):
        if step == 2:
            divided.divide(optim, parallel.divide_weights, parallel.divided_like)
            assert isinstance(divided.model.encoder.head.kernel, DTensor)
        options = None
        if step >= 2:
            memory = StepMemory(micro_batch_size=4)
            options = StepOptions(shard=parallel.this_shard(divided.model), memory=memory)
        train_step(whole, batch, optim, total_steps=9)
        train_step(divided, batch, optim, total_steps=9, options=options)
    ours = divided.snapshot(whole=parallel.whole_tensor)
    theirs = whole.snapshot()
    assert {n: t.shape for n, t in ours.saved.tensors.items()} == {
        n: t.shape for n, t in theirs.saved.tensors.items()
    }
    # Not the weights: what moves the bias of keys, which softmax does not feel, is rounding.
    np.testing.assert_allclose(
        ours.model.encode_images(images), theirs.model.encode_images(images), atol=1e-4
    )
    kernels = [state.model.encoder.head.kernel for state in (ours, theirs)]
    torch.testing.assert_close(*kernels, rtol=0, atol=1e-4)
