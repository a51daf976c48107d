"""A model so small that it costs nothing, with random weights."""

from __future__ import annotations

import pytest
import torch

from clippo_core.config import ClippoConfig, RenderConfig, VitConfig
from clippo_core.modeling import Clippo


@pytest.fixture(scope="session")
def tiny_model() -> Clippo:
    torch.manual_seed(0)
    vit = VitConfig(width=32, depth=1, mlp_dim=64, num_heads=2, patch_size_px=16, embed_dim=16)
    config = ClippoConfig(vit=vit, render=RenderConfig(image_size_px=64), text_patches="occupied")
    return Clippo(config).eval()
