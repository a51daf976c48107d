"""The memory of a training step, estimated by counting what the backward pass keeps."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from clippo_core.config import ClippoConfig, OptimConfig, Precision
from clippo_core.optim.adafactor import MAX_STACKED
from clippo_core.training.step import StepMemory

#: Pixels of the patches that a caption of 50 characters inks: 22 patches of 16 px.
_TYPICAL_INK_PX2 = 22 * 16**2
#: Copies of a block of logits: the logits, their softmax, and their gradient.
_LOGIT_COPIES = 3
#: Share of a device's memory that the estimate may fill; the rest is the driver's, the
#: communication's, and what the allocator cannot use.
USABLE_SHARE = 0.9


@dataclass(frozen=True, kw_only=True)
class StepLoad:
    """The work of a rank in a step, as far as its memory depends on it.

    Attributes:
        num_parameters: parameters of the model that this rank holds.
        pairs: pairs of pictures and texts on this rank.
        columns: pairs of the global batch.
        image_patches: encoded patches of each picture.
        text_patches: encoded patches of each text on average, or its tokens.
        longest_text: most patches that a text of the batch has; None if all have as many.
        precision: precision of the matrix products.
        memory: settings by which the step saves memory.
        recomputes_activations: True where blocks keep only their input.
    """

    num_parameters: int
    pairs: int
    columns: int
    image_patches: int
    text_patches: int
    longest_text: int | None = None
    precision: Precision = "float32"
    memory: StepMemory = field(default_factory=StepMemory)
    recomputes_activations: bool = False

    @property
    def encoded(self) -> int:
        """Number of pairs that are encoded at a time."""
        return min(self.memory.micro_batch_size or self.pairs, self.pairs)

    @property
    def product_bytes(self) -> int:
        """Bytes of a number in a matrix product."""
        return 2 if self.precision == "bfloat16" else 4


def typical_text_patches(config: ClippoConfig) -> int:
    """Return the patches, or tokens, that a caption of 50 characters gives to the encoder."""
    if config.reads_tokens:
        return config.max_tokens
    whole, patch = config.grid_size**2, config.vit.patch_size_px
    if config.text_patches == "all":
        return whole
    return min(-(-_TYPICAL_INK_PX2 // patch**2), whole)


def training_bytes(config: ClippoConfig, optim: OptimConfig, load: StepLoad) -> int:
    """Return the bytes at a step's peak: when the loss is known, or when the optimizer works.

    Args:
        config: settings of the model.
        optim: settings of its optimizer.
        load: work of the rank.
    """
    moments = 8 if optim.name == "adamw" else 2 if optim.momentum_dtype == "bfloat16" else 4
    state = load.num_parameters * (4 + moments)
    depth, width, encoded = config.vit.depth, config.vit.width, load.encoded
    kept = last_block = pooling = 0
    passing: list[int] = []
    text_channels = 0 if config.reads_tokens else 1
    for tokens, padded, channels in (
        (load.image_patches, load.image_patches, 3),
        (load.text_patches, _padded_text(load), text_channels),
    ):
        of_block = encoded * _block_bytes(config, load, tokens, padded)
        kept += encoded * tokens * load.product_bytes * channels * config.vit.patch_size_px**2
        kept += depth * (encoded * tokens * 4 * width if load.recomputes_activations else of_block)
        # One of the MLP's two gradients takes the place of what it is the gradient of.
        replaced = encoded * tokens * load.product_bytes * config.vit.mlp_dim
        last_block += of_block - replaced
        # The input and the output of the final norm, and the copy that pooling pads.
        copies = tokens + (padded if padded != tokens else 0)
        pooling += encoded * width * (tokens * 4 + copies * load.product_bytes)
        passing.append(encoded * _passing_bytes(config, load, tokens))
    # The kernels' copies for products in bfloat16 are kept like activations.
    kept += 2 * load.num_parameters if load.precision == "bfloat16" else 0
    # The logits are gone when the pooling's backward pass begins, and what the pooling kept when
    # the last block is computed again. In micro-batches nothing is kept yet when logits are formed.
    is_cached = encoded < load.pairs
    behind = max(pooling, last_block) if load.recomputes_activations else pooling
    # Two towers go back one after the other.
    going_back = max(passing) if config.text_input == "tokens_two_towers" else sum(passing)
    peak = max(
        kept + going_back + behind, _logit_bytes(load) + (0 if is_cached else kept + pooling)
    )
    # Gradients come as activations go; the optimizer meets all of them.
    gradients = 4 * load.num_parameters
    if is_cached:
        peak += gradients
    stacked = 4 * 4 * min(load.num_parameters, MAX_STACKED) if optim.name == "adafactor" else 0
    embeddings = 4 * config.vit.embed_dim * (4 * load.pairs + 2 * load.columns)
    return state + _input_bytes(config, load) + embeddings + max(peak, gradients + stacked)


def fitting_micro_batch(
    config: ClippoConfig, optim: OptimConfig, load: StepLoad, *, device_bytes: float
) -> int | None:
    """Return the largest micro-batch with which a step fits, one of equal parts of the batch.

    Args:
        config: settings of the model.
        optim: settings of its optimizer.
        load: work of the rank; its own micro-batch size is ignored.
        device_bytes: memory of the rank's device; `USABLE_SHARE` of it is used.

    Returns:
        The number of pairs: all of the rank's where the whole batch fits; None where not even one
        pair at a time fits.
    """

    def fits(size: int) -> bool:
        memory = dataclasses.replace(load.memory, micro_batch_size=size)
        of_size = dataclasses.replace(load, memory=memory)
        return training_bytes(config, optim, of_size) <= USABLE_SHARE * device_bytes

    parts = 1
    while not fits(-(-load.pairs // parts)):
        if parts >= load.pairs:
            return None
        parts += 1
    return -(-load.pairs // parts)


def _padded_text(load: StepLoad) -> int:
    """Return the places of a text in attention; in bfloat16 a GPU's kernel pads none."""
    is_padded = load.longest_text is not None and load.precision == "float32"
    return load.longest_text if is_padded and load.longest_text else load.text_patches


def _block_bytes(config: ClippoConfig, load: StepLoad, tokens: int, padded: int) -> int:
    """Return the bytes of a canvas that a block keeps for the backward pass.

    In float32 it keeps what both norms read. In the precision of the products it keeps what each of
    them reads: the normed tokens twice, queries, keys and values, the attention's result, the MLP's
    hidden features before and after their GELU. Attention over padded sets keeps padded copies of
    queries, keys, values and its result instead, beside the result without padding.
    """
    vit, size = config.vit, load.product_bytes
    attention = 4 * vit.width * padded + (vit.width * tokens if padded != tokens else 0)
    products = tokens * (2 * vit.width + 2 * vit.mlp_dim) + attention
    return tokens * 4 * 2 * vit.width + size * products


def _passing_bytes(config: ClippoConfig, load: StepLoad, tokens: int) -> int:
    """Return the bytes of a canvas' gradients in the last block's backward pass."""
    vit = config.vit
    return tokens * (4 * vit.width + load.product_bytes * (vit.width + 2 * vit.mlp_dim))


def _logit_bytes(load: StepLoad) -> int:
    rows = min(load.memory.logit_rows or load.pairs, load.pairs)
    directions = 2 if rows == load.pairs else 1
    return directions * _LOGIT_COPIES * rows * load.columns * 4


def _input_bytes(config: ClippoConfig, load: StepLoad) -> int:
    """Return the bytes of a batch and of the next one, which is copied meanwhile."""
    patch = config.vit.patch_size_px
    of_pair = 3 * config.render.image_size_px**2 + load.text_patches * patch**2
    return 2 * load.pairs * of_pair
