"""Prompt templates for zero-shot classification."""

from __future__ import annotations

from collections.abc import Sequence

from clippo_core.errors import ConfigError

_MADE_OF = (
    *("a bad photo", "a blurry photo", "a bright photo", "a dark photo", "a good photo", "a photo"),
    *("a black and white photo", "a close-up photo", "a cropped photo", "a jpeg corrupted photo"),
    *("a low resolution photo", "a pixelated photo", "a doodle", "a drawing", "a painting"),
    *("a rendering", "a rendition", "a sculpture", "a sketch", "a tattoo", "art", "graffiti"),
    "itap",
)
_LOOKS = ("clean", "cool", "dirty", "hard to see", "large", "nice", "small", "weird")
_MADE_AS = ("cartoon", "embroidered", "origami", "plastic", "plushie", "toy")
_EIGHTY = (
    *(f"{kind} of {article} {{}}." for kind in _MADE_OF for article in ("a", "the")),
    *(f"a photo of {article} {look} {{}}." for look in _LOOKS for article in ("a", "the")),
    *(f"{article} {material} {{}}." for material in _MADE_AS for article in ("a", "the")),
    *(f"{article} {{}} in a video game." for article in ("a", "the")),
    *("a photo of many {}.", "a photo of my {}.", "a photo of one {}.", "itap of my {}."),
)

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
    # All templates of that notebook, in an order of our own; "itap" is "I took a picture".
    "clip80": _EIGHTY,
    # For class names such as "positive" and "negative".
    "sentiment5": (
        "{}",
        "a {} review",
        "the review is {}",
        "the sentiment of this text is {}",
        "i found it {}",
    ),
}


def named_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """The templates, with those of a set in the place of its name in `TEMPLATES`."""
    return tuple(one for name in templates for one in TEMPLATES.get(name, (name,)))


def fill(templates: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """Every template with every class name: all of the first class, then the second, and so on.

    Args:
        templates: with `{}` for the class name, or names of sets in `TEMPLATES`.
        class_names: what goes into them.

    Raises:
        ConfigError: if a template has no `{}`, or there is none.
    """
    templates = named_templates(templates)
    if not templates or any("{}" not in template for template in templates):
        raise ConfigError(
            f"templates={templates}; expected at least one, each with {{}} in it, "
            f"or one of {sorted(TEMPLATES)}"
        )
    return [t.replace("{}", name) for name in class_names for t in templates]
