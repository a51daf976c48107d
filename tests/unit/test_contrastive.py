from __future__ import annotations

import math

import pytest
import torch

from clippo_core.contrastive import contrastive_loss
from clippo_core.modeling.pair_model import normalize


def pairs(count: int = 12, embed: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    left, right = (
        normalize(torch.randn(count, embed, generator=generator)).requires_grad_() for _ in "lr"
    )
    return left, right, torch.tensor([10.0], requires_grad=True)


def loss_slowly(left: torch.Tensor, right: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(())
    for i in range(len(left)):
        for a, b in ((left, right), (right, left)):
            logits = torch.stack([scale[0] * torch.dot(a[i], b[j]) for j in range(len(b))])
            total = total - (logits[i] - torch.logsumexp(logits, 0))
    return total / (2 * len(left))


def gradients(loss: torch.Tensor, inputs) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, inputs))


def test_it_equals_the_formula_written_out():
    inputs = pairs()
    fast, slow = contrastive_loss(*inputs), loss_slowly(*inputs)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(gradients(fast, inputs), gradients(slow, inputs))


@pytest.mark.parametrize("num_shards", [1, 2, 3, 12])
def test_shards_add_up_to_the_whole_gradients_too(num_shards: int):
    inputs = pairs()
    rows = len(inputs[0]) // num_shards
    parts = [
        contrastive_loss(*inputs, rows=slice(start, start + rows))
        for start in range(0, len(inputs[0]), rows)
    ]
    whole = contrastive_loss(*inputs)
    torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(gradients(sum(parts), inputs), gradients(whole, inputs))


@pytest.mark.parametrize("rows", [1, 5, 12, 100])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_in_blocks_of_rows_it_is_the_same_gradients_too(rows: int, num_shards: int):
    inputs = pairs()
    size = len(inputs[0]) // num_shards
    blockwise, whole = (
        sum(
            contrastive_loss(*inputs, rows=slice(start, start + size), rows_at_a_time=at_a_time)
            for start in range(0, len(inputs[0]), size)
        )
        * 3
        for at_a_time in (rows, None)
    )
    assert isinstance(blockwise, torch.Tensor)
    assert isinstance(whole, torch.Tensor)
    torch.testing.assert_close(blockwise, whole)
    torch.testing.assert_close(gradients(blockwise, inputs), gradients(whole, inputs))


def test_a_model_that_knows_nothing_scores_ln_of_the_batch():
    same = normalize(torch.ones(32, 4))
    loss = contrastive_loss(same, same, torch.tensor([10.0]))
    assert loss.item() == pytest.approx(math.log(32), abs=1e-5)


def test_bfloat16_embeddings_are_compared_in_float32():
    left, right, scale = pairs(64)
    halves = left.bfloat16(), right.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_loss(*halves, scale)
    expected = contrastive_loss(halves[0].float(), halves[1].float(), scale)
    torch.testing.assert_close(loss, expected)
