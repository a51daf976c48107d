"""The Vision Transformer, on sets of patches: whole canvases, or parts of them."""

# torch and numba leave types unknown that these files use.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
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
    TokenGroup,
    lecun_normal_,
)
from clippo_core.modeling.patch_sets import PatchSets, whole_canvases

#: Tokens are padded to a multiple of the power of two that is at most so small a part of them.
PRODUCT_SIZES = 128


class PatchEmbedding(nn.Module):
    """Scale the pixels of patches to [-1, 1], project them; kernel [y, x, channel, width].

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
    """Blocks; what comes before and behind them is a subclass's."""

    blocks: nn.ModuleList
    #: Whether blocks keep their input only, and compute the rest again in the backward pass.
    recomputes_activations = False

    def compile_blocks(self) -> None:
        """Compile each block's dense part, for any number of tokens, when it is first used."""
        for block in self.blocks:
            cast(Block, block).attention.do_not_compile_attention()
            block.compile(dynamic=True)

    def transform(
        self, tokens: Float[Tensor, "token width"], groups: Sequence[TokenGroup]
    ) -> Float[Tensor, "token width"]:
        """Tokens after the last block, before the final norm."""
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
    """Patches to embeddings: projection, learned positions, blocks, attention pooling, linear head.

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
        """Every patch of every canvas.

        Args:
            pixels: RGB or one grey channel. As wide as the canvas; where it is less high, it is
                the top of the canvas.

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

    def embed_patches(
        self, pixels: UInt8[Tensor, "patch pixel_x_channel"], positions: Int64[Tensor, " patch"]
    ) -> Float[Tensor, "patch width"]:
        """Tokens before the first block."""
        # Not indexed: the gradient of that is many times as slow.
        return self.patch_embedding(pixels) + F.embedding(positions, self.position_embedding[0])

    def encode(
        self, pixels: UInt8[Tensor, "canvas height_px width_px channel"]
    ) -> Float[Tensor, "canvas patch width"]:
        """Tokens of whole canvases after the last block; see `whole` for the pixels."""
        sets = self.whole(pixels)
        tokens = self.transform(self.embed_patches(sets.pixels, sets.positions), sets.groups)
        return tokens.unflatten(0, (len(pixels), -1))

    def pool(self, tokens: Float[Tensor, "canvas patch width"]) -> Float[Tensor, "canvas width"]:
        """The features before the head, of tokens as `encode` gives them."""
        group = TokenGroup(tokens.shape[0], tokens.shape[1])
        return self.pooling(self.norm(tokens.flatten(0, 1)), [group])

    def pooled(
        self, tokens: Float[Tensor, "token width"], groups: Sequence[TokenGroup]
    ) -> Float[Tensor, "set width"]:
        """The features before the head, of tokens as `embed_patches` gives them."""
        return self.pooling(self.norm(self.transform(tokens, groups)), groups)

    def embed(self, *parts: PatchSets) -> tuple[Float[Tensor, "canvas embed"], ...]:
        """Embeddings, not normalised, of each part's canvases; all parts are encoded at once."""
        counts = [sum(group.num_sets for group in part.groups) for part in parts]
        of_parts = self.head(self._pooled_parts(parts)).split(counts)
        return tuple(part.in_order(rows) for part, rows in zip(parts, of_parts, strict=True))

    def features(self, part: PatchSets) -> Float[Tensor, "canvas width"]:
        """What pooling gives, before the head: where fine-tuning starts from."""
        return part.in_order(self._pooled_parts([part]))

    def _pooled_parts(self, parts: Sequence[PatchSets]) -> Float[Tensor, "canvas width"]:
        tokens = [self.embed_patches(part.pixels, part.positions) for part in parts]
        padding = _padding_rows(sum(map(len, tokens)), tokens[0].device)
        tokens = torch.cat([*tokens, tokens[0].new_zeros(padding, tokens[0].shape[1])])
        groups = [group for part in parts for group in part.groups]
        return self.pooled(tokens, groups)

    def forward(
        self, pixels: UInt8[Tensor, "canvas height_px width_px channel"]
    ) -> Float[Tensor, "canvas embed"]:
        """Embeddings of whole canvases, not normalised; see `whole` for the pixels."""
        (embeddings,) = self.embed(self.whole(pixels))
        return embeddings


def _padding_rows(num_tokens: int, device: torch.device) -> int:
    """How many rows to put behind a batch's tokens, which no token looks at.

    torch's products in bfloat16 on a CPU are compiled for each size that occurs, and what was
    compiled is kept; hardly two batches of texts have equally many tokens. To 8,000 at most 31
    are added.
    """
    if device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return 0
    multiple = 1 << max((num_tokens // PRODUCT_SIZES).bit_length() - 1, 0)
    return -num_tokens % multiple
