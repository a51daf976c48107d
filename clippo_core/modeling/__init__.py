"""CLIPPO, its baselines, and the Vision Transformer below them."""

from clippo_core.modeling.baselines import Baseline, count_parameters
from clippo_core.modeling.clippo import Clippo
from clippo_core.modeling.factory import make_model, without_values
from clippo_core.modeling.pair_model import PairModel
from clippo_core.modeling.vit import VisionTransformer

__all__ = [
    "Baseline",
    "Clippo",
    "PairModel",
    "VisionTransformer",
    "count_parameters",
    "make_model",
    "without_values",
]
