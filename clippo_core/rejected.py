"""`Rejected`: a sample that cannot be used, as a value with a reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RejectReason = Literal[
    "missing_image",  # null or no bytes
    "unknown_image_format",  # the bytes are no picture that is decoded here
    "corrupt_image",  # truncated, or the decoder gave up
    "too_many_pixels",  # above max_pixels: a decompression bomb, or a scan to be shrunk first
    "missing_caption",  # null, or an empty list of captions
    "missing_label",  # no class or score to train on
    "blank_caption",  # empty, white space, or characters that the font lacks: nothing to see
]


@dataclass(frozen=True)
class Rejected:
    """Why a sample cannot be used. `detail` is for a person, `reason` for counting."""

    reason: RejectReason
    detail: str = ""
