"""Progress bars for a terminal or a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(
    what: str, *, unit: str, total: int | None = None, iterable: Iterable[Any] | None = None
) -> Any:
    """Return a progress bar on standard error; a log file gets a line every ten seconds."""
    interval_s = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(
        iterable, desc=what, unit=unit, total=total, mininterval=interval_s, dynamic_ncols=True
    )
