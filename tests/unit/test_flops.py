"""FLOPs counted by hand are those that torch counts while it computes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clippo_core.config import ClippoConfig, RenderConfig, VitConfig
from clippo_core.contrastive import contrastive_loss
from clippo_core.modeling import Clippo, make_model
from clippo_core.modeling.flops import encoded_patches, training_flops
from clippo_core.vocabulary import TokenTexts

VIT = VitConfig(width=32, depth=2, mlp_dim=96, num_heads=2, patch_size_px=16, embed_dim=24)
CONFIG = ClippoConfig(vit=VIT, render=RenderConfig(image_size_px=64), text_patches="occupied")


@pytest.mark.parametrize("text_patches", ["occupied", "all"])
def test_a_training_step_has_the_flops_that_torch_counts(text_patches):
    config = dataclasses.replace(CONFIG, text_patches=text_patches)
    model = Clippo(config)
    texts = model.renderer.render_batch(["short", "a longer one " * 3, "b", "words " * 9, "x"])
    left_texts = model.renderer.render_batch(["left", "another text of two rows"])
    images = torch.zeros(3, 64, 64, 3, dtype=torch.uint8)
    # torch's counter does not know the fused attention of a CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        left, right, scale = model(images, texts, left_texts)
        contrastive_loss(left, right, scale).backward()
    patches = np.concatenate([encoded_patches(config, t) for t in (texts, left_texts)])
    counted = training_flops(config, num_images=3, text_patches=patches, num_pairs=5)
    # The pooling probe is projected once, to a query and then by the kernel of the keys.
    probes = 3 * 2 * 2 * VIT.width**2
    # Without a GPU's attention over packed sets, shorter ones are padded to the longest.
    of_blocks = VIT.depth * int((patches.max() ** 2 - patches**2).sum())
    of_pooling = VIT.num_heads * int((patches.max() - patches).sum())
    padding = 3 * 4 * VIT.width * (of_blocks + of_pooling)
    assert counted + probes + padding == counter.get_total_flops()


@pytest.mark.parametrize("text_input", ["tokens_one_tower", "tokens_two_towers"])
def test_a_step_of_a_baseline_has_the_flops_that_torch_counts(text_input):
    config = dataclasses.replace(CONFIG, text_input=text_input, vocabulary_size=9, max_tokens=6)
    config = dataclasses.replace(config, vocabulary_sha256="x")
    texts, left_texts = (TokenTexts(np.zeros((n, 6), np.int32), "x") for n in (5, 2))
    images = torch.zeros(3, 64, 64, 3, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        left, right, scale = make_model(config)(images, texts, left_texts)
        contrastive_loss(left, right, scale).backward()
    tokens = np.concatenate([encoded_patches(config, t) for t in (texts, left_texts)])
    counted = training_flops(config, num_images=3, text_patches=tokens, num_pairs=5)
    assert counted + 3 * 2 * 2 * VIT.width**2 == counter.get_total_flops()


def test_a_forward_pass_of_b16_is_what_the_paper_of_its_size_says():
    """35 GFLOP for a picture of 224 px (17.5 G multiply-adds), as usual for ViT-B/16."""
    from clippo_core.modeling.flops import transformer_flops

    flops = int(transformer_flops(VitConfig(), np.array([196]))[0]) + 2 * 196 * 768 * 768
    assert 34e9 < flops < 37e9


@pytest.mark.parametrize("text_patches", ["all", "occupied"])
def test_no_texts_have_no_patches(text_patches):
    config = dataclasses.replace(CONFIG, text_patches=text_patches)
    texts = Clippo(config).renderer.render_batch([])
    assert encoded_patches(config, texts).shape == (0,)
