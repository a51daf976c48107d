from __future__ import annotations

import math

import pytest
import torch

from clippo_core.contrastive import contrastive_loss, sigmoid_loss
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


def dense_loss(left, right, scale, groups) -> torch.Tensor:
    """UniCL's loss in float64, one row at a time."""
    left, right, scale = left.double(), right.double(), scale.double()
    total = torch.zeros((), dtype=torch.float64)
    for a, b in ((left, right), (right, left)):
        for i in range(len(a)):
            logits = torch.stack([scale[0] * torch.dot(a[i], b[j]) for j in range(len(b))])
            positives = [j for j in range(len(b)) if groups[j] == groups[i]]
            total = total - (logits[positives] - torch.logsumexp(logits, 0)).mean()
    return total / (2 * len(left))


def dense_sigmoid_loss(left, right, scale, bias, groups) -> torch.Tensor:
    """SigLIP's loss in float64, one pairing at a time."""
    left, right, scale, bias = (tensor.double() for tensor in (left, right, scale, bias))
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(left)):
        for j in range(len(right)):
            sign = 1 if groups[i] == groups[j] else -1
            logit = scale[0] * torch.dot(left[i], right[j]) + bias[0]
            total = total - torch.nn.functional.logsigmoid(sign * logit)
    return total / len(left)


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


GROUPS = {
    "distinct": torch.arange(12) * 7 - 3,
    "some equal": torch.tensor([5, 1, 5, 2, 3, 1, 5, 8, 9, 9, 4, 7]),
    "one": torch.full((12,), -(2**62)),
}


@pytest.mark.parametrize("rows", [None, 1, 5, 12])
@pytest.mark.parametrize("num_shards", [1, 2, 4])
@pytest.mark.parametrize("name", GROUPS)
def test_equal_pairs_are_positives_over_shards_and_blocks(name: str, num_shards: int, rows):
    groups, size = GROUPS[name], 12 // num_shards
    inputs, bias = pairs(), torch.tensor([-3.0], requires_grad=True)
    parts = [slice(start, start + size) for start in range(0, 12, size)]
    options = {"groups": groups, "rows_at_a_time": rows}
    for loss, dense, learned in (
        (contrastive_loss, dense_loss, inputs),
        (sigmoid_loss, dense_sigmoid_loss, (*inputs, bias)),
    ):
        found = sum(loss(*learned, rows=part, **options) for part in parts)
        expected = dense(*learned, groups)
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
        for ours, theirs in zip(
            gradients(found, learned), gradients(expected, learned), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_without_equal_pairs_groups_change_nothing():
    inputs = pairs()
    plain, grouped = contrastive_loss(*inputs), contrastive_loss(*inputs, groups=GROUPS["distinct"])
    torch.testing.assert_close(grouped, plain, rtol=0, atol=1e-6)
    slow = sigmoid_loss(*inputs, torch.tensor([-2.0]), groups=GROUPS["distinct"])
    torch.testing.assert_close(sigmoid_loss(*inputs, torch.tensor([-2.0])), slow)


@pytest.mark.parametrize("name", GROUPS)
def test_with_groups_too_a_model_that_knows_nothing_scores_ln_of_the_batch(name: str):
    same = normalize(torch.ones(12, 4))
    loss = contrastive_loss(same, same, torch.tensor([10.0]), groups=GROUPS[name])
    assert loss.item() == pytest.approx(math.log(12), abs=1e-5)
