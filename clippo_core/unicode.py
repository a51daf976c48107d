"""Texts out of files whose bytes are not what they should be.

Bytes that are not UTF-8, and JSON's escapes of halves of a pair, become lone surrogates in a `str`,
which cannot be written anywhere.
"""

from __future__ import annotations

import re

_SURROGATE = re.compile("[\ud800-\udfff]")


def is_unicode(text: str) -> bool:
    """Return True if a text has no lone surrogates."""
    return text.isascii() or _SURROGATE.search(text) is None


def readable(text: str) -> str:
    """Return a text with U+FFFD for each lone surrogate, as a name for people."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)
