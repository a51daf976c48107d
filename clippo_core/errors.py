"""The exception tree, and `Rejected`, the value for a sample that cannot be used.

    ClippoError               anything this project raises on purpose
    ├── ConfigError           a setting is wrong or contradicts another      (exit code 2)
    │   └── RenderError       a text, a font or a raster cannot be used as asked
    ├── SampleError           data is missing, malformed, or rejected too often  (exit code 3)
    ├── StorageError          a cluster, bucket or tracking server cannot be used (exit code 4)
    ├── CheckpointError       a checkpoint is damaged, foreign, or does not fit  (exit code 2)
    └── DivergedError         the loss is no longer a number                     (exit code 5)

A message says what was wrong, what was expected, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


class ClippoError(Exception):
    """Base class of errors raised on purpose; `exit_code` is what a command returns for it."""

    exit_code = 2


class ConfigError(ClippoError):
    """Raised when a setting is wrong, unknown, or contradicts another one."""


class RenderError(ConfigError):
    """Raised when a text, a font or a raster cannot be used as asked."""


class SampleError(ClippoError):
    """Raised when training or evaluation data is missing, malformed, or rejected too often."""

    exit_code = 3


class StorageError(ClippoError):
    """Raised when a cluster, a bucket or a tracking server cannot be used."""

    exit_code = 4


class CheckpointError(ClippoError):
    """Raised when a checkpoint is damaged, of another format, or does not fit the request."""


class DivergedError(ClippoError):
    """Raised when the loss is no longer a finite number."""

    exit_code = 5


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: the nearest one, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


RejectReason = Literal[
    "missing_image",  # null or no bytes
    "unknown_image_format",  # the bytes are no picture that is decoded here
    "corrupt_image",  # truncated, or the decoder gave up
    "too_many_pixels",  # above max_pixels: a decompression bomb, or a scan to be shrunk first
    "missing_caption",  # null, or an empty list of captions
    "missing_label",  # no class or score to train on
    "invalid_unicode",  # a text has bytes that are not UTF-8
    "blank_caption",  # empty, white space, or characters that the font lacks: nothing to see
]


@dataclass(frozen=True)
class Rejected:
    """The reason why a sample cannot be used. `detail` is for a person, `reason` for counting."""

    reason: RejectReason
    detail: str = ""
