"""The model: a Vision Transformer, and CLIPPO on top of it."""

from clippo_core.modeling.clippo import Clippo
from clippo_core.modeling.sizes import SIZES, vit_config
from clippo_core.modeling.vit import VisionTransformer

__all__ = ["SIZES", "Clippo", "VisionTransformer", "vit_config"]
