"""Settings of the core: frozen, checked when they are made, with a docstring under every field.

`ClippoConfig` says everything that decides what a checkpoint computes; the other classes say how it
is trained. `to_json` and `from_json` write and read them, strictly.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from clippo_core.errors import ConfigError

TextPatches = Literal["all", "occupied"]
TextInput = Literal["pixels", "tokens_one_tower", "tokens_two_towers"]
Precision = Literal["float32", "bfloat16"]
PrecisionSetting = Literal["auto", "float32", "bfloat16"]
#: Most patches along a side of the canvas: those of 16 px on the largest one.
_MAX_GRID = 256
FineTuningTask = Literal["text_classification", "glue", "vqa"]


class Config:
    """Base class of all settings; reading refuses unknown keys and values of another type."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}


def require(claim: bool, message: str) -> None:
    """Raise a `ConfigError` unless `claim` holds."""
    if not claim:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class RenderConfig(Config):
    """Settings of how text is drawn, and the canvas size that texts and photographs share.

    The defaults are the paper's. Source: big_vision `pp_render_unifont` at 0127fb6.
    """

    image_size_px: int = 224
    """Side of the square canvas; photographs are resized to it. A multiple of the patch size."""
    lowercase: bool = True
    """Draw A-Z as a-z; other letters keep their case, as in the reference."""
    monospace: bool = False
    """Give every glyph its full 16 columns instead of its inked ones."""
    spacing_px: int = 1
    """Blank columns before a glyph, where its bitmap has them. No effect with monospace."""
    min_width_px: int = 4
    """Least advance of a glyph, blanks included. No effect with monospace."""
    max_chars: int | None = 768
    """Characters past this number are ignored; None draws all that fit."""
    background: int = 127
    """Grey level of the canvas, 0 to 255."""
    ink: int = 0
    """Grey level of the letters, 0 to 255."""
    font: str | None = None
    """Font file (.hex, .hex.gz, .glyphs.xz); None is the bundled GNU Unifont 15.1.01."""
    font_sha256: str | None = None
    """Digest of the glyphs; filled in when the font is loaded, and checked from then on."""

    def __post_init__(self) -> None:
        size = self.image_size_px
        require(32 <= size <= 4096, f"image_size_px={size}; expected 32 to 4096 pixels")
        require(self.spacing_px >= 0, f"spacing_px={self.spacing_px}; expected 0 or more")
        width = self.min_width_px
        require(1 <= width <= 16, f"min_width_px={width}; expected 1 to 16, the width of a glyph")
        chars = self.max_chars
        require(chars is None or chars > 0, f"max_chars={chars}; expected None or 1 and more")
        for name in ("background", "ink"):
            level = getattr(self, name)
            require(0 <= level <= 255, f"{name}={level}; expected a grey level from 0 to 255")


@dataclass(frozen=True, kw_only=True)
class ImageConfig(Config):
    """Settings of how an encoded picture becomes pixels."""

    resize: Literal["bilinear", "bilinear_antialias", "scaled_decode"] = "scaled_decode"
    """"bilinear" is the published checkpoints' way, bit for bit: no antialiasing, so fine detail
    aliases when shrinking. "bilinear_antialias" (Pillow's bilinear) averages what it shrinks.
    "scaled_decode" is the same, but decodes a JPEG at 1/2, 1/4 or 1/8 of its size where that still
    covers the canvas: twice as fast, and off by less than half a grey level on average."""
    max_pixels: int = 89_478_485
    """Larger pictures are rejected before they are decoded; the default is Pillow's own limit."""
    max_decoded_mb: int = 512
    """Pictures that take more memory while they are decoded are rejected before that."""

    def __post_init__(self) -> None:
        require(self.max_pixels > 0, f"max_pixels={self.max_pixels}; expected 1 or more")
        require(
            self.max_decoded_mb > 0, f"max_decoded_mb={self.max_decoded_mb}; expected 1 or more"
        )


@dataclass(frozen=True, kw_only=True)
class VitConfig(Config):
    """The Vision Transformer: pre-norm blocks, attention pooling, a linear head."""

    width: int = 768
    """Features of a token."""
    depth: int = 12
    """Number of blocks."""
    mlp_dim: int = 3072
    """Hidden features of each MLP, that of the pooling head included."""
    num_heads: int = 12
    """Number of attention heads; must divide `width`."""
    patch_size_px: int = 16
    """Side of a patch; must divide the canvas. A text row is 16 px high."""
    embed_dim: int = 768
    """Features of the final embedding."""

    def __post_init__(self) -> None:
        # Far beyond any model: a damaged config must not ask for memory that no machine has.
        limits = {"depth": 1024, "patch_size_px": 4096}
        for name in ("width", "depth", "mlp_dim", "num_heads", "patch_size_px", "embed_dim"):
            value, most = getattr(self, name), limits.get(name, 2**17)
            require(1 <= value <= most, f"{name}={value}; expected 1 to {most}")
        heads = self.num_heads
        require(self.width % heads == 0, f"num_heads={heads} does not divide width={self.width}")


#: Width, depth, MLP features and heads of each ViT size. Source: big_vision `models/vit.py`
#: decode_variant.
SIZES = {
    "mu": (32, 1, 128, 2),
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "M": (512, 12, 2048, 8),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),
}


def vit_config(name: str, *, embed_dim: int = 768) -> VitConfig:
    """Return the architecture that a name such as "B/16" stands for.

    Raises:
        ConfigError: if the size is unknown or the patch size is not a number.
    """
    size, _, patch = name.partition("/")
    if size not in SIZES or not patch.isdigit():
        raise ConfigError(f"no ViT is called {name!r}; expected SIZE/PATCH, SIZE of {list(SIZES)}")
    width, depth, mlp_dim, num_heads = SIZES[size]
    return VitConfig(
        width=width,
        depth=depth,
        mlp_dim=mlp_dim,
        num_heads=num_heads,
        patch_size_px=int(patch),
        embed_dim=embed_dim,
    )


@dataclass(frozen=True, kw_only=True)
class ClippoConfig(Config):
    """Everything that decides what a checkpoint computes; it travels with the weights."""

    vit: VitConfig = field(default_factory=VitConfig)
    """The one tower that encodes photographs and rendered text alike; in CLIP*, each of its two
    towers."""
    render: RenderConfig = field(default_factory=RenderConfig)
    """Settings of the drawing of text, the canvas size included."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """Settings by which pictures are brought onto the canvas."""
    text_patches: TextPatches = "all"
    """The patches of a text that are encoded. "all" is the whole canvas, the paper's way;
    "occupied" leaves out every patch without ink: cheaper, and it learns as well
    (EXPERIMENTS.md)."""
    text_input: TextInput = "pixels"
    """The form in which the model reads a text. "pixels" is CLIPPO. "tokens_two_towers" is the
    paper's CLIP*: text has a transformer of its own, as large as the pictures'. "tokens_one_tower"
    is its 1T-CLIP: the transformer is shared, embeddings and heads are not. A run trains the
    vocabulary on its own texts."""
    vocabulary_size: int = 32_000
    """Rows of the token embedding; the vocabulary may have fewer tokens. No effect with pixels."""
    max_tokens: int = 64
    """Length of every text in tokens; shorter ones are filled with end tokens. No effect with
    pixels."""
    has_logit_bias: bool = False
    """Learn a summand of the logits beside their scale, as the sigmoid loss needs; filled in from
    train.loss."""
    vocabulary_sha256: str | None = None
    """Digest of the vocabulary; filled in when it is trained, and checked from then on."""

    def __post_init__(self) -> None:
        require(self.max_tokens >= 2, f"max_tokens={self.max_tokens}; expected 2 or more")
        tokens = self.vocabulary_size
        require(tokens >= 2, f"vocabulary_size={tokens}; expected 2 or more, some 32,000")
        size, patch = self.render.image_size_px, self.vit.patch_size_px
        require(
            size // patch <= _MAX_GRID,
            f"patch_size_px={patch} makes {size // patch} patches on each side of the canvas; "
            f"expected {_MAX_GRID} or fewer",
        )
        nearest = size // patch * patch
        require(
            size % patch == 0,
            f"patch_size_px={patch} does not divide image_size_px={size}; "
            f"the nearest canvases are {nearest} and {nearest + patch}",
        )

    @property
    def grid_size(self) -> int:
        """Number of patches along one side of the canvas."""
        return self.render.image_size_px // self.vit.patch_size_px

    @property
    def reads_tokens(self) -> bool:
        """True for a baseline, whose texts become tokens instead of pixels."""
        return self.text_input != "pixels"


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Config):
    """Settings of the learning-rate multiplier (source: big_vision `utils.py` at 0127fb6)."""

    decay: Literal["rsqrt", "cosine", "linear", "constant"] = "rsqrt"
    """Shape of the decay. "rsqrt" is the paper's: 1 / sqrt(1 + (step - warmup) / timescale)."""
    warmup_steps: int | None = 10_000
    """Steps of the linear increase from 0 at the start; None is a tenth of the run."""
    cooldown_steps: int | None = 10_000
    """Steps of the linear decrease to 0 at the end, on top of the decay; None is a tenth of the
    run."""
    timescale: int = 10_000
    """Steps that the rsqrt decay is scaled by; no effect on the other decays."""

    def __post_init__(self) -> None:
        for name in ("warmup_steps", "cooldown_steps"):
            steps = getattr(self, name)
            require(steps is None or steps >= 0, f"{name}={steps}; expected None, 0 or more")
        require(self.timescale >= 1, f"timescale={self.timescale}; expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Config):
    """Settings of the optimizer. The defaults are the paper's."""

    name: Literal["adafactor", "adamw"] = "adafactor"
    """The optimizer; "adafactor" is that of "Scaling Vision Transformers" (arXiv:2106.04560,
    section 3.4)."""
    learning_rate: float = 1e-3
    """Peak learning rate, reached where the schedule's multiplier is 1."""
    weight_decay: float = 1e-4
    """Decoupled weight decay, on kernels only, multiplied by the schedule but not by the learning
    rate: what torch's and open_clip's AdamW call 0.2 at learning rate 5e-4 is 1e-4 here."""
    gradient_clip_norm: float | None = 1.0
    """Largest global gradient norm; larger gradients are scaled down to it. None does not clip."""
    beta1: float = 0.9
    """Decay rate of the momentum."""
    beta2: float = 0.95
    """Decay rate of AdamW's second moment; no effect on adafactor, whose own rises to 0.999."""
    momentum_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number type in which adafactor stores its momentum; no effect on adamw."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """The multiplier on learning rate and weight decay."""

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, f"learning_rate={self.learning_rate}; expected above 0")
        require(self.weight_decay >= 0, f"weight_decay={self.weight_decay}; expected 0 or more")
        for name in ("beta1", "beta2"):
            beta = getattr(self, name)
            require(0 <= beta < 1, f"{name}={beta}; expected a number in [0, 1)")
        clip = self.gradient_clip_norm
        require(clip is None or clip > 0, f"gradient_clip_norm={clip}; expected None or above 0")


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(Config):
    """The head that a fine-tuned checkpoint adds to CLIPPO, and the meaning of its outputs."""

    task: FineTuningTask
    """Task that the head was trained for; the checkpoint is evaluated on that alone."""
    labels: tuple[str, ...] = ()
    """Name of each output; empty where the one output is a score."""
    hidden_dim: int | None = None
    """Hidden features of the head where it is an MLP; None is a linear head."""
    glue_task: str = ""
    """Name of the GLUE task ("sst-2"); "" for a task outside GLUE."""
    score_mean: float = 0.0
    """Mean of the training scores, which an output of 0 stands for."""
    score_deviation: float = 1.0
    """Standard deviation of the training scores, by which an output of 1 lies above the mean."""

    def __post_init__(self) -> None:
        require(len(self.labels) != 1, f"labels={self.labels}; expected two or more, or none")
        require(len(set(self.labels)) == len(self.labels), "labels holds a name twice")
        require(
            bool(self.labels) or self.task == "glue",
            f"a classifier for {self.task} needs labels; only glue has scores",
        )
        hidden = self.hidden_dim
        require(hidden is None or hidden >= 1, f"hidden_dim={hidden}; expected None, or 1 or more")
        deviation = self.score_deviation
        require(deviation > 0, f"score_deviation={deviation}; expected above 0")

    @property
    def num_outputs(self) -> int:
        """Numbers that the head returns for a sample."""
        return len(self.labels) or 1

    @property
    def is_regression(self) -> bool:
        """True where the head returns a score instead of classes."""
        return not self.labels


C = TypeVar("C", bound=Config)


def to_dict(config: Config) -> dict[str, Any]:
    """Return settings as nested dicts and lists that JSON can hold."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def to_json(config: Config) -> str:
    """Return settings as indented JSON, keys in the order of the fields."""
    return json.dumps(to_dict(config), indent=2, ensure_ascii=False) + "\n"


def from_json(kind: type[C], text: str | bytes, *, where: str) -> C:
    """Return the settings that a JSON text holds.

    Args:
        kind: the class to make.
        text: a JSON object; missing keys take their defaults.
        where: name of the text in errors, a file name for instance.

    Raises:
        ConfigError: naming each key that is unknown or holds something unexpected.
    """
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        problems = [f"  {_path(e)}: {e['msg']}" for e in error.errors(include_url=False)]
        raise ConfigError(
            f"{where} is not a valid {kind.__name__}:\n" + "\n".join(problems)
        ) from None


def _path(error: Any) -> str:
    return ".".join(str(part) for part in error["loc"]) or "the file"
