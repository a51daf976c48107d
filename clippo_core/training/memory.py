"""How much memory a training step takes, by counting what it keeps for the backward pass."""

from __future__ import annotations

from clippo_core.config import ClippoConfig, OptimConfig, Precision
from clippo_core.modeling.layers import MAX_EXPLICIT_TOKENS
from clippo_core.training.step import StepMemory

#: Of a caption of 50 characters, in pixels: 22 patches of 16 px.
_TYPICAL_INK_PX2 = 22 * 16**2
#: Copies of a block of logits: themselves, their softmax, and its gradient.
_LOGIT_COPIES = 3


def typical_text_patches(config: ClippoConfig) -> int:
    """Patches that the encoder is given of a caption of 50 characters; or tokens."""
    if config.reads_tokens:
        return config.max_tokens
    whole, patch = config.grid_size**2, config.vit.patch_size_px
    if config.text_patches == "all":
        return whole
    return min(-(-_TYPICAL_INK_PX2 // patch**2), whole)


def block_bytes(
    config: ClippoConfig,
    precision: Precision,
    tokens: int,
    *,
    is_on_gpu: bool,
    sizes_vary: bool = False,
) -> int:
    """What a block keeps of a canvas of so many tokens for the backward pass.

    Kept in float32: what both norms read. In the precision of the products, what each of them
    reads: the normed tokens twice, queries, keys and values, the attention's weights where it is
    written out, and result, the MLP's hidden features before and after their GELU. On a CPU
    attention is in float32 where sizes vary.
    """
    vit, size = config.vit, _bytes(precision)
    products = 2 * vit.width + 3 * vit.width + vit.width + 2 * vit.mlp_dim
    if precision == "bfloat16" and not is_on_gpu:
        if sizes_vary:
            # Queries, keys and values are kept in float32 instead, the result beside its copy.
            products += 3 * vit.width + 2 * vit.width
        elif tokens <= MAX_EXPLICIT_TOKENS:
            products += vit.num_heads * tokens
    return tokens * (4 * 2 * vit.width + size * products)


def pixels_bytes(config: ClippoConfig, precision: Precision, tokens: int, channels: int) -> int:
    """The pixels that the patch embedding reads, of a canvas of so many tokens."""
    return tokens * _bytes(precision) * channels * config.vit.patch_size_px**2


def pooling_bytes(config: ClippoConfig, precision: Precision, tokens: int) -> int:
    """What the final norm reads and gives, of a canvas of so many tokens."""
    return tokens * config.vit.width * (4 + _bytes(precision))


def passing_bytes(config: ClippoConfig, precision: Precision, tokens: int) -> int:
    """Gradients that the last block's backward pass works with, of a canvas of so many tokens."""
    vit, size = config.vit, _bytes(precision)
    return tokens * (4 * vit.width + size * (vit.width + 2 * vit.mlp_dim))


def _bytes(precision: Precision) -> int:
    return 2 if precision == "bfloat16" else 4


def training_bytes(
    config: ClippoConfig,
    optim: OptimConfig,
    *,
    num_parameters: int,
    pairs: int,
    columns: int,
    precision: Precision,
    memory: StepMemory,
    image_patches: int,
    text_patches: int,
    recomputes_activations: bool = False,
    is_on_gpu: bool = False,
) -> int:
    """Bytes at a step's peak: when the loss is known, or when the optimizer works.

    Args:
        config: the model.
        optim: its optimizer.
        num_parameters: of the model, as far as this rank holds them.
        pairs: of pictures and texts, on this rank.
        columns: pairs of the global batch.
        precision: of the matrix products.
        memory: how the step saves it.
        image_patches: encoded of each picture.
        text_patches: encoded of each text; or tokens.
        recomputes_activations: whether blocks keep their input only.
        is_on_gpu: whose kernels of attention keep no weights.
    """
    moments = 8 if optim.name == "adamw" else 2 if optim.momentum_dtype == "bfloat16" else 4
    state = num_parameters * (4 + moments)
    encoded = min(memory.micro_batch_size or pairs, pairs)
    depth, width = config.vit.depth, config.vit.width
    kept = last_block = pooling = passing = 0
    text_channels = 0 if config.reads_tokens else 1
    texts_vary = config.text_patches != "all" and not config.reads_tokens
    parts = ((image_patches, 3, False), (text_patches, text_channels, texts_vary))
    for tokens, channels, sizes_vary in parts:
        of_block = encoded * block_bytes(
            config, precision, tokens, is_on_gpu=is_on_gpu, sizes_vary=sizes_vary
        )
        kept += encoded * pixels_bytes(config, precision, tokens, channels)
        kept += depth * (encoded * tokens * 4 * width if recomputes_activations else of_block)
        # One of the MLP's two gradients takes the place of what it is the gradient of.
        replaced = encoded * tokens * _bytes(precision) * config.vit.mlp_dim
        last_block += of_block - replaced
        pooling += encoded * pooling_bytes(config, precision, tokens)
        passing += encoded * passing_bytes(config, precision, tokens)
    rows = min(memory.logit_rows or pairs, pairs)
    directions = 2 if rows == pairs else 1
    logits = directions * _LOGIT_COPIES * rows * columns * 4
    pixels = encoded * 3 * config.render.image_size_px**2
    embeddings = 4 * config.vit.embed_dim * (4 * pairs + 2 * columns)
    # The kernels' copies for products in bfloat16 are kept like activations.
    kept += 2 * num_parameters if precision == "bfloat16" else 0
    # The logits are gone when the pooling's backward pass begins, and what the pooling kept when
    # the last block is computed again. In micro-batches nothing is kept yet when logits are formed.
    is_cached = encoded < pairs
    behind = max(pooling, last_block) if recomputes_activations else pooling
    peak = max(kept + passing + behind, logits + (0 if is_cached else kept + pooling))
    # Gradients come as activations go; the optimizer meets all of them, and works on one at a time.
    gradients = 4 * num_parameters
    if is_cached:
        peak += gradients
    return state + pixels + embeddings + max(peak, gradients)
