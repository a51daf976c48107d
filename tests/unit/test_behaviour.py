"""What must and what must not change the behaviour of a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clippo_core.config import ClippoConfig, RenderConfig, VitConfig
from clippo_core.contrastive import contrastive_loss
from clippo_core.errors import ConfigError
from clippo_core.evaluation.behaviour import (
    changed_captions,
    upside_down,
    with_typos,
)
from clippo_core.modeling import Clippo

WORDS = ["red car", "blue boat", "green tree", "old house", "grey cat", "white dog", "sun", "moon"]


def test_upside_down_turns_each_text_within_its_rows(tiny_model: Clippo):
    texts = ["one", "", "two rows of words here", "x"]
    rasters = tiny_model.renderer.render_batch(texts)
    turned = upside_down(rasters)
    pixels, found = rasters.to_pixels(), turned.to_pixels()
    for before, after, rows in zip(pixels, found, rasters.occupied_rows, strict=True):
        height = int(rows) * 16
        np.testing.assert_array_equal(after[:height], before[:height][::-1, ::-1])
        assert (after[height:] == rasters.config.background).all()
    np.testing.assert_array_equal(upside_down(turned).columns, rasters.columns)


def test_a_typo_changes_one_place_and_is_the_same_again():
    text = "a photo of a sneaker"
    changed = {with_typos(text, seed=seed) for seed in range(40)}
    assert len(changed) > 20
    assert all(abs(len(one) - len(text)) <= 1 for one in changed)
    assert with_typos(text, num_typos=3, seed=5) == with_typos(text, num_typos=3, seed=5)
    assert with_typos("a") == "a"
    assert with_typos(text, num_typos=0) == text


@pytest.fixture(scope="module")
def trained() -> tuple[Clippo, np.ndarray]:
    """A model that has learned eight captions of eight pictures by heart, and the pictures."""
    torch.manual_seed(0)
    vit = VitConfig(width=32, depth=1, mlp_dim=64, num_heads=2, patch_size_px=16, embed_dim=16)
    render = RenderConfig(image_size_px=64)
    model = Clippo(ClippoConfig(vit=vit, render=render, text_patches="occupied"))
    images = torch.randint(0, 256, (len(WORDS), 64, 64, 3), dtype=torch.uint8)
    rasters = model.renderer.render_batch(WORDS)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        left, right, scale = model(images, rasters)
        loss = contrastive_loss(left, right, scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), images.numpy()


def test_a_trained_model_ignores_capitals_and_needs_the_text(trained):
    model, images = trained
    found = changed_captions(model, model.encode_images(images), WORDS)
    assert found["none"].recall == found["upper_case"].recall == 1
    assert found["none"].accuracy == found["upper_case"].accuracy == 1
    assert found["upper_case"].similarity == pytest.approx(1, abs=1e-5)
    assert found["typos"].recall >= 0.5
    for change in ("upside_down", "blank"):
        assert found[change].recall < found["typos"].recall
    assert found["swapped"].recall == found["swapped"].accuracy == 0
    assert found["blank"].accuracy < found["typos"].accuracy
    assert found["swapped"].similarity < found["typos"].similarity
    with pytest.raises(ConfigError, match="8 images"):
        changed_captions(model, model.encode_images(images), WORDS[:2])


def test_images_may_share_a_caption(trained):
    model, images = trained
    twice = np.concatenate([images, images])
    found = changed_captions(model, model.encode_images(twice), WORDS * 2)
    alone = changed_captions(model, model.encode_images(images), WORDS)
    for change in ("none", "upper_case", "typos", "swapped"):
        assert found[change].accuracy == alone[change].accuracy
        assert found[change].recall == alone[change].recall
    with pytest.raises(ConfigError, match="1 of them different"):
        changed_captions(model, model.encode_images(images), WORDS[:1] * len(images))
