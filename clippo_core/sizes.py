"""The named sizes of the paper and of "Scaling Vision Transformers" (arXiv:2106.04560)."""

from __future__ import annotations

from clippo_core.config import VitConfig
from clippo_core.errors import ConfigError

#: name: width, depth, MLP features, heads. Source: big_vision `models/vit.py` decode_variant.
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
    """The architecture that a name such as "B/16" stands for.

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
