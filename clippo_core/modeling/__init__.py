"""CLIPPO, its baselines, and the Vision Transformer below them."""

from clippo_core.modeling.baselines import Baseline
from clippo_core.modeling.clippo import Clippo
from clippo_core.modeling.factory import make_model, without_values
from clippo_core.modeling.pair_model import PairModel
from clippo_core.modeling.vit import VisionTransformer

__all__ = [
    "Baseline",
    "Clippo",
    "PairModel",
    "VisionTransformer",
    "make_model",
    "without_values",
]
