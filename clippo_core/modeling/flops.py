"""FLOPs of the model's matrix products: the arithmetic that a step cannot do without.

A product of [m, k] and [k, n] counts 2 m k n. Norms, activations and the softmax are left out, as
is usual in model FLOPs utilisation (PaLM, arXiv:2204.02311, appendix B); so is whatever is computed
twice to save memory.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from clippo_core.config import ClippoConfig, VitConfig
from clippo_core.modeling.patch_sets import kept_patches
from clippo_core.vocabulary import PreparedTexts, TokenTexts

_RGB, _GREY, _TOKEN = 3, 1, 0


def encoded_patches(config: ClippoConfig, texts: PreparedTexts) -> Int64[np.ndarray, " text"]:
    """Return how many patches, or tokens, of each text the encoder is given."""
    if isinstance(texts, TokenTexts):
        return np.full(len(texts), config.max_tokens, np.int64)
    return kept_patches(texts, config.text_patches, config.vit.patch_size_px).sum(1)


def training_flops(
    config: ClippoConfig,
    *,
    num_images: int,
    text_patches: Int64[np.ndarray, " text"],
    num_pairs: int,
    num_columns: int | None = None,
    image_patches: int | None = None,
) -> int:
    """Return the FLOPs of a forward and backward pass over a batch, or a shard, with its loss.

    Args:
        config: settings of the model.
        num_images: number of pictures that are encoded.
        text_patches: number of patches, or tokens, of each encoded text, on either side of the
            pairs.
        num_pairs: number of rows of the loss in the shard.
        num_columns: number of pairs of the global batch; None if as many as rows.
        image_patches: number of encoded patches of each picture; None for the whole canvas.
    """
    of_image = config.grid_size**2 if image_patches is None else image_patches
    patches = np.append(text_patches, np.full(num_images, of_image))
    text_channels = _TOKEN if config.reads_tokens else _GREY
    channels = np.append(np.full(len(text_patches), text_channels), np.full(num_images, _RGB))
    embedding = 2 * patches * channels * config.vit.patch_size_px**2 * config.vit.width
    # A product has two gradients, each as dear as itself; pixels need none.
    transforming = transformer_flops(config.vit, patches)
    if config.text_input == "tokens_two_towers":
        transforming[: len(text_patches)] = text_tower_flops(config.vit, text_patches)
    encoding = int((2 * embedding + 3 * transforming).sum())
    columns = num_pairs if num_columns is None else num_columns
    # Rows against all columns, once for each direction.
    logits = 2 * 2 * num_pairs * columns * config.vit.embed_dim
    return encoding + 3 * logits


def transformer_flops(
    config: VitConfig, patches: Int64[np.ndarray, " canvas"]
) -> Int64[np.ndarray, " canvas"]:
    """Return the forward FLOPs behind the patch embedding, for canvases of so many patches.

    The pooling probe's own products are left out: they are computed once for all canvases.
    """
    width, mlp = config.width, config.mlp_dim
    patches = patches.astype(np.int64)
    # Scores and weighted means of all tokens, for each head; the rest for the one pooled token.
    pooling = 4 * patches * width * config.num_heads
    head = 2 * width * (2 * width) + 4 * width * mlp + 2 * width * config.embed_dim
    return config.depth * _block_flops(config, patches) + pooling + head


def text_tower_flops(
    config: VitConfig, tokens: Int64[np.ndarray, " text"]
) -> Int64[np.ndarray, " text"]:
    """Return the forward FLOPs of CLIP*'s text tower, whose last token is pooled as it is."""
    return config.depth * _block_flops(config, tokens) + 2 * config.width * config.embed_dim


def _block_flops(config: VitConfig, tokens: Int64[np.ndarray, " set"]) -> Int64[np.ndarray, " set"]:
    """Count queries, keys, values, output; scores and weighted values; both MLP layers."""
    width, mlp = config.width, config.mlp_dim
    return 2 * tokens * width * (4 * width) + 4 * tokens**2 * width + 4 * tokens * width * mlp
