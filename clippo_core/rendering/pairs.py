"""The joining of two texts, to be rendered in one image."""

from __future__ import annotations

from collections.abc import Sequence

from clippo_core.errors import ConfigError

#: A glyph full of ink between the sentences: no text has it, and one patch of it looks like
#: PIXEL's separator (arXiv:2207.06991, section 3.1), a black patch. The paper's own is not known.
PAIR_SEPARATOR = " █ "


def join_pairs(
    firsts: Sequence[str], seconds: Sequence[str], *, separator: str = PAIR_SEPARATOR
) -> list[str]:
    """Return each pair as one text, as CLIPPO reads both sentences of a GLUE task at once.

    Raises:
        ConfigError: if there are not as many first as second sentences.
    """
    if len(firsts) != len(seconds):
        raise ConfigError(f"{len(firsts)} first sentences, but {len(seconds)} second ones")
    return [f"{one}{separator}{other}" for one, other in zip(firsts, seconds, strict=True)]
