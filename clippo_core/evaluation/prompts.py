"""Prompt templates for zero-shot classification."""

from __future__ import annotations

from collections.abc import Sequence

from clippo_core.errors import ConfigError

#: Template sets by name; `{}` is where the class name goes.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    "photo": ("a photo of a {}",),
    # The seven templates that CLIP's authors found best for ImageNet together (CLIP,
    # arXiv:2103.00020, and the notebook "Prompt Engineering for ImageNet" in its repository).
    "clip7": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
}


def fill(templates: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """Every template with every class name: all of the first class, then the second, and so on.

    Raises:
        ConfigError: if a template has no `{}`, or there is none.
    """
    if not templates or any("{}" not in template for template in templates):
        raise ConfigError(f"templates={templates}; expected at least one, each with {{}} in it")
    return [t.replace("{}", name) for name in class_names for t in templates]
