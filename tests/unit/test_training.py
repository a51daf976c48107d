from __future__ import annotations

import numpy as np
import pytest
import torch

from clippo_core.config import ClippoConfig, OptimConfig, RenderConfig, ScheduleConfig, VitConfig
from clippo_core.errors import CheckpointError
from clippo_core.training.state import TrainState
from clippo_core.training.step import PairBatch, Shard, shard_loss, train_step

VIT = VitConfig(width=32, depth=1, mlp_dim=64, num_heads=2, embed_dim=16)
CONFIG = ClippoConfig(vit=VIT, render=RenderConfig(image_size_px=64), text_patches="occupied")
OPTIM = OptimConfig(schedule=ScheduleConfig(decay="constant", warmup_steps=0, cooldown_steps=0))


def make_state() -> TrainState:
    return TrainState.create(CONFIG, OPTIM, seed=0)


def make_batch(state: TrainState, count: int = 8) -> PairBatch:
    generator = np.random.default_rng(0)
    images = torch.from_numpy(generator.integers(0, 256, (count, 64, 64, 3), np.uint8))
    texts = state.model.renderer.render_batch([f"number {i} " * (i % 4 + 1) for i in range(count)])
    return PairBatch(images, texts)


def test_fitting_one_batch_brings_the_loss_down():
    state = make_state()
    batch = make_batch(state)
    losses = [float(train_step(state, batch, OPTIM, total_steps=99)["loss"]) for _ in range(40)]
    assert losses[-1] < losses[0] / 4
    assert (state.step, state.samples_seen) == (40, 320)


@pytest.mark.parametrize("num_shards", [2, 4])
def test_shards_with_gathered_embeddings_have_the_gradients_of_the_whole(num_shards: int):
    """What two or four ranks compute, in one process: the gather shows each of them all rows."""
    state = make_state()
    batch = make_batch(state)
    whole = shard_loss(state.model, batch, precision="float32", shard=Shard())
    names = [name for name, _ in state.model.named_parameters()]
    params = list(state.model.parameters())
    expected = torch.autograd.grad(whole, params)
    left, right, _ = state.model(batch.images, batch.texts)
    rows, losses = len(batch.images) // num_shards, []
    for index in range(num_shards):
        part = slice(index * rows, (index + 1) * rows)
        everything = iter((left, right))
        shard = Shard(index, num_shards, gather=lambda _, e=everything: next(e))
        texts = batch.texts.take(np.arange(len(batch.texts))[part])
        piece = PairBatch(batch.images[part], texts)
        losses.append(shard_loss(state.model, piece, precision="float32", shard=shard))
    torch.testing.assert_close(sum(losses), whole)
    for name, ours, theirs in zip(
        names, torch.autograd.grad(sum(losses), params), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)


def test_a_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    one, other = make_state(), make_state()
    assert torch.equal(before, torch.rand(1))
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_can_start_from_another_checkpoints_weights_at_another_resolution(tmp_path):
    source = make_state()
    source.save(tmp_path / "source")
    larger = ClippoConfig(vit=VIT, render=RenderConfig(image_size_px=96))
    state = TrainState.create(larger, OPTIM, seed=1, init_from=tmp_path / "source")
    assert state.step == 0
    assert torch.equal(state.model.encoder.head.kernel.data, source.model.encoder.head.kernel.data)
    wider = ClippoConfig(vit=VitConfig(**{**vars(VIT), "embed_dim": 8}), render=larger.render)
    with pytest.raises(CheckpointError, match="do not fit the model"):
        TrainState.create(wider, OPTIM, seed=1, init_from=tmp_path / "source")


def test_a_snapshot_does_not_change_with_the_state(tmp_path):
    state = make_state()
    batch = make_batch(state)
    train_step(state, batch, OPTIM, total_steps=99)
    snapshot = state.snapshot()
    before = {name: tensor.clone() for name, tensor in snapshot.saved.tensors.items()}
    weights = snapshot.model.encoder.head.kernel.clone()
    train_step(state, batch, OPTIM, total_steps=99)
    assert torch.equal(snapshot.model.encoder.head.kernel, weights)
    for name, tensor in snapshot.saved.tensors.items():
        assert torch.equal(tensor, before[name]), name
