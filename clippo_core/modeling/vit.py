"""The Vision Transformer, on whole canvases or on the top of them."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from clippo_core.config import VitConfig
from clippo_core.errors import ConfigError
from clippo_core.modeling.layers import (
    LAYER_NORM_EPSILON,
    AttentionPooling,
    Dense,
    Mlp,
    SelfAttention,
    lecun_normal_,
)


class PatchEmbedding(nn.Module):
    """Cut pixels into patches, scale them to [-1, 1], project them; kernel [y, x, channel, width].

    Grey pixels go in as one channel: three equal channels times a kernel are one channel times the
    kernel's sum over channels.
    """

    def __init__(self, patch_size_px: int, width: int):
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(patch_size_px, patch_size_px, 3, width))
        self.bias = nn.Parameter(torch.zeros(width))
        lecun_normal_(self.kernel.data, fan_in=3 * patch_size_px**2)

    def forward(
        self, pixels: UInt8[Tensor, "batch height_px width_px channel"]
    ) -> Float[Tensor, "batch patch width"]:
        side = self.kernel.shape[0]
        batch, height, width, channels = pixels.shape
        kernel = self.kernel if channels == 3 else self.kernel.sum(2, keepdim=True)
        grid = pixels.view(batch, height // side, side, width // side, side, channels)
        patches = grid.transpose(2, 3).flatten(3).flatten(1, 2)
        scaled = patches.to(self.kernel.dtype) / 127.5 - 1
        return scaled @ kernel.flatten(0, 2) + self.bias


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: VitConfig):
        super().__init__()
        self.norm_attention = nn.LayerNorm(config.width, eps=LAYER_NORM_EPSILON)
        self.attention = SelfAttention(config.width, config.num_heads)
        self.norm_mlp = nn.LayerNorm(config.width, eps=LAYER_NORM_EPSILON)
        self.mlp = Mlp(config.width, config.mlp_dim)

    def forward(self, x: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))


class VisionTransformer(nn.Module):
    """Pixels to embeddings: patches, learned positions, blocks, attention pooling, linear head.

    Source: big_vision `models/vit.py` at 0127fb6 with `pool_type="map"`; equality of outputs and
    gradients shown in tests/parity/test_big_vision_checkpoint.py.
    """

    def __init__(self, config: VitConfig, *, grid_size: int):
        """Make the layers, with big_vision's initialisation.

        Args:
            config: the architecture.
            grid_size: patches along one side of the canvas.
        """
        super().__init__()
        self.grid_size = grid_size
        self.patch_embedding = PatchEmbedding(config.patch_size_px, config.width)
        self.position_embedding = nn.Parameter(torch.empty(1, grid_size**2, config.width))
        nn.init.normal_(self.position_embedding, std=config.width**-0.5)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPSILON)
        self.pooling = AttentionPooling(config.width, config.mlp_dim, config.num_heads)
        self.head = Dense(config.width, config.embed_dim)
        lecun_normal_(self.head.kernel.data, fan_in=config.width)

    def encode(
        self, pixels: UInt8[Tensor, "batch height_px width_px channel"]
    ) -> Float[Tensor, "batch patch width"]:
        """Tokens after the last block, before the final norm.

        Args:
            pixels: RGB or one grey channel. As wide as the canvas; where it is less high, it is
                the top of the canvas, and the positions below take no part.

        Raises:
            ConfigError: if the pixels do not fit the canvas.
        """
        side = self.grid_size * self.patch_embedding.kernel.shape[0]
        height, width = pixels.shape[1:3]
        if width != side or height > side or height % self.patch_embedding.kernel.shape[0]:
            raise ConfigError(
                f"pixels of {height}x{width} do not fit the model's canvas of {side}x{side}; "
                "resize images to it, and render texts with its image_size_px"
            )
        tokens = self.patch_embedding(pixels)
        tokens = tokens + self.position_embedding[:, : tokens.shape[1]]
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def pool(self, tokens: Float[Tensor, "batch patch width"]) -> Float[Tensor, "batch width"]:
        """The features before the head, of tokens as `encode` gives them."""
        return self.pooling(self.norm(tokens))

    def forward(
        self, pixels: UInt8[Tensor, "batch height_px width_px channel"]
    ) -> Float[Tensor, "batch embed"]:
        """Embeddings, not normalised; see `encode` for the pixels."""
        return self.head(self.pool(self.encode(pixels)))
