"""The Vision Transformer on sets of patches: whole canvases, or parts of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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
from clippo_core.modeling.patch_sets import PatchSets, whole_canvases
from clippo_core.modeling.token_groups import TokenGroup, even_sets


class PatchEmbedding(nn.Module):
    """Projection of patches, scaled to [-1, 1]; kernel [y, x, channel, width].

    Grey pixels go in as one channel: three equal channels times a kernel are one channel times the
    kernel's sum over channels.
    """

    def __init__(self, patch_size_px: int, width: int):
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(patch_size_px, patch_size_px, 3, width))
        self.bias = nn.Parameter(torch.zeros(width))
        lecun_normal_(self.kernel.data, fan_in=3 * patch_size_px**2)

    def forward(
        self, patches: UInt8[Tensor, "patch pixel_x_channel"]
    ) -> Float[Tensor, "patch width"]:
        is_grey = patches.shape[-1] == self.kernel.shape[0] ** 2
        kernel = self.kernel.sum(2) if is_grey else self.kernel
        scaled = patches.to(self.kernel.dtype) / 127.5 - 1
        return scaled @ kernel.flatten(0, -2) + self.bias


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: VitConfig):
        super().__init__()
        self.norm_attention = nn.LayerNorm(config.width, eps=LAYER_NORM_EPSILON)
        self.attention = SelfAttention(config.width, config.num_heads)
        self.norm_mlp = nn.LayerNorm(config.width, eps=LAYER_NORM_EPSILON)
        self.mlp = Mlp(config.width, config.mlp_dim)

    def forward(
        self, x: Float[Tensor, "token width"], groups: Sequence[TokenGroup]
    ) -> Float[Tensor, "token width"]:
        x = x + self.attention(self.norm_attention(x), groups)
        return x + self.mlp(self.norm_mlp(x))


class Transformer(nn.Module):
    """A sequence of blocks; a subclass adds what comes before and behind them."""

    blocks: nn.ModuleList
    #: True where blocks keep only their input and compute the rest again in the backward pass.
    recomputes_activations = False

    def compile_blocks(self) -> None:
        """Compile each block, for any number of tokens, when it is first used."""
        for block in self.blocks:
            block.compile(dynamic=True)

    def transform(
        self, tokens: Float[Tensor, "token width"], groups: Sequence[TokenGroup]
    ) -> Float[Tensor, "token width"]:
        """Return the tokens after the last block, before the final norm."""
        for block in self.blocks:
            if self.recomputes_activations and torch.is_grad_enabled():
                # Recomputing draws no random numbers.
                tokens = cast(
                    Tensor,
                    checkpoint(
                        block, tokens, groups, use_reentrant=False, preserve_rng_state=False
                    ),
                )
            else:
                tokens = block(tokens, groups)
        return tokens


class VisionTransformer(Transformer):
    """An encoder of patches: projection, positions, blocks, attention pooling, linear head.

    All tokens of a batch go through the dense layers as one matrix, whatever set they belong to;
    only attention and pooling look at the sets.

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
        self.patch_size_px = config.patch_size_px
        self.patch_embedding = PatchEmbedding(config.patch_size_px, config.width)
        self.position_embedding = nn.Parameter(torch.empty(1, grid_size**2, config.width))
        nn.init.normal_(self.position_embedding, std=config.width**-0.5)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPSILON)
        self.pooling = AttentionPooling(config.width, config.mlp_dim, config.num_heads)
        self.head = Dense(config.width, config.embed_dim)
        lecun_normal_(self.head.kernel.data, fan_in=config.width)

    def whole(self, pixels: UInt8[Tensor, "canvas height_px width_px channel"]) -> PatchSets:
        """Return every patch of every canvas.

        Args:
            pixels: RGB or one grey channel, as wide as the canvas; where less high, it is the
                canvas' top.

        Raises:
            ConfigError: if the pixels do not fit the canvas.
        """
        patch = self.patch_size_px
        side = self.grid_size * patch
        height, width = pixels.shape[1:3]
        if width != side or height > side or height % patch:
            raise ConfigError(
                f"pixels of {height}x{width} do not fit the model's canvas of {side}x{side}; "
                "resize images to it, and render texts with its image_size_px"
            )
        return whole_canvases(pixels, patch)

    def embed_patches(self, sets: PatchSets) -> Float[Tensor, "patch width"]:
        """Return the tokens before the first block."""
        positions = self.position_embedding[0]
        # Plain indexing would have a gradient that is many times as slow.
        return self.patch_embedding(sets.pixels) + F.embedding(sets.positions, positions)

    def encode(
        self, pixels: UInt8[Tensor, "canvas height_px width_px channel"]
    ) -> Float[Tensor, "canvas patch width"]:
        """Return the tokens of whole canvases after the last block; see `whole` for the pixels."""
        sets = self.whole(pixels)
        tokens = self.transform(self.embed_patches(sets), [sets.group])
        return tokens.unflatten(0, (len(pixels), -1))

    def pool(self, tokens: Float[Tensor, "canvas patch width"]) -> Float[Tensor, "canvas width"]:
        """Return the features before the head, of tokens as `encode` returns them."""
        group = even_sets(tokens.shape[0], tokens.shape[1])
        return self.pooling(self.norm(tokens.flatten(0, 1)), [group])

    def pooled(
        self, tokens: Float[Tensor, "token width"], groups: Sequence[TokenGroup]
    ) -> Float[Tensor, "set width"]:
        """Return the features before the head, of tokens as `embed_patches` returns them."""
        return self.pooling(self.norm(self.transform(tokens, groups)), groups)

    def embed(self, *parts: PatchSets) -> Float[Tensor, "canvas embed"]:
        """Return embeddings, not normalised, of the canvases of all parts, encoded at once."""
        return self.head(self.features(*parts))

    def features(self, *parts: PatchSets) -> Float[Tensor, "canvas width"]:
        """Return the pooled features before the head, where fine-tuning starts."""
        tokens = [self.embed_patches(part) for part in parts]
        joined = torch.cat(tokens) if len(tokens) > 1 else tokens[0]
        return self.pooled(joined, [part.group for part in parts])

    def forward(
        self, pixels: UInt8[Tensor, "canvas height_px width_px channel"]
    ) -> Float[Tensor, "canvas embed"]:
        """Return embeddings of whole canvases, not normalised; see `whole` for the pixels."""
        return self.embed(self.whole(pixels))


def resize_positions(
    positions: Float[Tensor, "1 patch width"], *, grid_size: int
) -> Float[Tensor, "1 resized_patch width"]:
    """Return a square grid of position embeddings, resized linearly with corners aligned.

    Args:
        positions: row-major grid of embeddings.
        grid_size: patches along one side of the new grid.

    Source: big_vision `models/vit.py` resample_posemb (`scipy.ndimage.zoom`, order 1) at 0127fb6;
    equality shown in tests/parity/test_position_embedding_resize.py.
    """
    old_size = math.isqrt(positions.shape[1])
    if old_size == grid_size:
        return positions
    grid = positions.unflatten(1, (old_size, old_size)).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=(grid_size,) * 2, mode="bilinear", align_corners=True)
    return resized.permute(0, 2, 3, 1).flatten(1, 2)
