from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clippo_core.checkpoints import load_checkpoint
from clippo_core.checkpoints.big_vision import write_big_vision
from clippo_core.config import ClippoConfig, OptimConfig, RenderConfig, ScheduleConfig, VitConfig
from clippo_core.contrastive import contrastive_loss
from clippo_core.errors import CheckpointError
from clippo_core.modeling import make_model
from clippo_core.modeling.pair_model import INITIAL_LOGIT_BIAS
from clippo_core.training.patch_dropping import draw_kept_patches
from clippo_core.training.state import TrainState
from clippo_core.training.step import (
    PairBatch,
    Shard,
    StepMemory,
    StepOptions,
    accumulate_gradients,
    train_step,
)

VIT = VitConfig(width=32, depth=1, mlp_dim=64, num_heads=2, embed_dim=16)
CONFIG = ClippoConfig(vit=VIT, render=RenderConfig(image_size_px=64), text_patches="occupied")
OPTIM = OptimConfig(schedule=ScheduleConfig(decay="constant", warmup_steps=0, cooldown_steps=0))


def make_state() -> TrainState:
    return TrainState.create(make_model(CONFIG, seed=0), OPTIM)


@pytest.fixture(scope="module")
def state() -> TrainState:
    return make_state()


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
    model = (state := make_state()).model
    batch = make_batch(state)
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(8, 16, generator=generator).requires_grad_() for _ in "lr"]
    scale = torch.tensor([3.0], requires_grad=True)
    leaves = (*sides, scale)
    whole = contrastive_loss(*sides, scale)
    expected = torch.autograd.grad(whole, leaves)
    rows, losses = 8 // num_shards, []
    for index in range(num_shards):
        part = slice(index * rows, (index + 1) * rows)
        everything = iter(sides)
        losses.append(
            accumulate_gradients(
                model,
                batch.part(part.start, part.stop),
                StepOptions(
                    forward=lambda *_, part=part: (sides[0][part], sides[1][part], scale),
                    shard=Shard(index, num_shards, gather=lambda _, e=everything: next(e)),
                ),
            )
        )
    torch.testing.assert_close(sum(losses), whole.detach())
    for leaf, theirs in zip(leaves, expected, strict=True):
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad / num_shards, theirs)


@settings(max_examples=12, deadline=None)
@given(
    count=st.integers(1, 7),
    num_texts=st.integers(0, 7),
    micro_batch_size=st.integers(1, 8),
    logit_rows=st.none() | st.integers(1, 8),
    drop=st.sampled_from([0.0, 0.5]),
)
def test_micro_batches_give_the_loss_and_gradients_of_the_plain_step(
    state: TrainState,
    count: int,
    num_texts: int,
    micro_batch_size: int,
    logit_rows: int | None,
    drop: float,
):
    batch = with_texts_and_drop(state, make_batch(state, count), min(num_texts, count), drop)
    memories = (
        StepMemory(),
        StepMemory(micro_batch_size=micro_batch_size, logit_rows=logit_rows),
    )
    losses, gradients = [], []
    for memory in memories:
        state.model.zero_grad()
        losses.append(accumulate_gradients(state.model, batch, StepOptions(memory=memory)))
        gradients.append({name: p.grad for name, p in state.model.named_parameters()})
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    for name, gradient in gradients[0].items():
        assert gradient is not None
        # Relative to the terms of the sums, whose order differs: for the logit scale, which is one
        # number, these are similarities, and mostly cancel.
        largest = 1.0 if name == "log_logit_scale" else float(gradient.abs().max())
        tolerance = 1e-5 * largest + 1e-7
        torch.testing.assert_close(
            gradients[1][name], gradient, rtol=1e-5, atol=tolerance, msg=name
        )


def with_texts_and_drop(
    state: TrainState, batch: PairBatch, num_texts: int, drop: float
) -> PairBatch:
    """The batch with its last pictures replaced by texts, and some patches of the others kept."""
    images = batch.images[: len(batch) - num_texts]
    left = state.model.renderer.render_batch([f"left {i} " * (i % 3) for i in range(num_texts)])
    kept = draw_kept_patches(
        drop, seed=0, step=0, first_image=0, num_images=len(images), num_patches=16
    )
    return PairBatch(images, batch.texts, left, torch.from_numpy(kept) if drop else None)


def test_kept_patches_depend_on_nothing_but_seed_step_and_place():
    def draw(first_image: int, num_images: int, step: int = 7) -> np.ndarray:
        return draw_kept_patches(
            0.5,
            seed=3,
            step=step,
            first_image=first_image,
            num_images=num_images,
            num_patches=196,
        )

    whole = draw(0, 64)
    assert whole.shape == (64, 98)
    assert (np.diff(whole, axis=1) > 0).all()
    np.testing.assert_array_equal(np.concatenate([draw(0, 24), draw(24, 40)]), whole)
    assert (draw(0, 64, step=8) != whole).any(1).all()
    # Every patch is kept about half of the time; five deviations.
    often = np.bincount(draw(0, 1000).ravel(), minlength=196)
    assert np.abs(often - 500).max() < 5 * np.sqrt(250)


def test_dropped_patches_take_no_part():
    state = make_state()
    batch = make_batch(state, 4)
    kept = torch.arange(8).repeat(4, 1)
    changed = batch.images.clone()
    changed[:, 32:] = 0
    embeddings = [
        state.model(images, batch.texts, None, kept)[0] for images in (batch.images, changed)
    ]
    torch.testing.assert_close(*embeddings)
    assert not torch.allclose(embeddings[0], state.model(batch.images, batch.texts)[0])


def test_recomputed_activations_give_the_same_gradients():
    state = make_state()
    batch = make_batch(state)
    gradients = []
    for recomputes in (False, True):
        state.model.encoder.recomputes_activations = recomputes
        state.model.zero_grad()
        accumulate_gradients(state.model, batch, StepOptions())
        gradients.append([p.grad for p in state.model.parameters()])
    torch.testing.assert_close(*gradients)


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
    state = TrainState.create(make_model(larger, seed=1), OPTIM, init_from=tmp_path / "source")
    assert state.step == 0
    assert torch.equal(state.model.encoder.head.kernel.data, source.model.encoder.head.kernel.data)
    wider = ClippoConfig(vit=VitConfig(**{**vars(VIT), "embed_dim": 8}), render=larger.render)
    with pytest.raises(CheckpointError, match="do not fit the model"):
        TrainState.create(make_model(wider, seed=1), OPTIM, init_from=tmp_path / "source")


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


def test_the_sigmoid_loss_trains_in_micro_batches_too_and_its_bias_travels(tmp_path):
    config = dataclasses.replace(CONFIG, has_logit_bias=True)
    states = [TrainState.create(make_model(config, seed=0), OPTIM) for _ in range(2)]
    batch = dataclasses.replace(make_batch(states[0]), groups=torch.arange(8) // 2)
    small = StepOptions(memory=StepMemory(micro_batch_size=3, logit_rows=2))
    losses = []
    for _ in range(20):
        one = train_step(states[0], batch, OPTIM, total_steps=99)
        other = train_step(states[1], batch, OPTIM, total_steps=99, options=small)
        torch.testing.assert_close(other["loss"], one["loss"], rtol=1e-3, atol=1e-3)
        losses.append(float(one["loss"]))
    assert losses[-1] < losses[0] / 2
    bias = states[0].model.logit_bias
    assert bias is not None
    assert bias.item() != INITIAL_LOGIT_BIAS
    states[0].save(tmp_path / "native")
    write_big_vision(tmp_path / "b.npz", states[0].model.state_dict())
    for place in ("native", "b.npz"):
        again = load_checkpoint(tmp_path / place)
        assert again.config.has_logit_bias
        assert torch.equal(again.logit_bias.data, bias.data)  # pyright: ignore
    # The other loss starts from the same weights: the bias is left out, or fresh.
    plain = TrainState.create(make_model(CONFIG, seed=1), OPTIM, init_from=tmp_path / "native")
    assert plain.model.logit_bias is None
    plain.save(tmp_path / "plain")
    fresh = TrainState.create(make_model(config, seed=1), OPTIM, init_from=tmp_path / "plain")
    assert fresh.model.logit_bias is not None
    assert fresh.model.logit_bias.item() == INITIAL_LOGIT_BIAS


@pytest.mark.parametrize("size", [None, 3])
def test_groups_reach_the_loss_of_whole_batches_and_micro_batches(state: TrainState, size):
    groups = torch.tensor([0, 1, 0, 2, 2, 2, 3, 0])
    batch = dataclasses.replace(make_batch(state), groups=groups)
    memory = StepMemory(micro_batch_size=size)
    state.model.zero_grad()
    loss = accumulate_gradients(state.model, batch, StepOptions(memory=memory))
    found = [p.grad.clone() for p in state.model.parameters() if p.grad is not None]
    state.model.zero_grad()
    embeddings = state.model(batch.images, batch.texts)
    expected = contrastive_loss(*embeddings, groups=groups)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    assert loss < contrastive_loss(*(tensor.detach() for tensor in embeddings))
    theirs = [p.grad for p in state.model.parameters() if p.grad is not None]
    torch.testing.assert_close(found, theirs, rtol=1e-3, atol=1e-5)
