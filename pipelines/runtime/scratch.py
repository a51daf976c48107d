"""Folders for files that a command needs for a while."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX, _LOCK = "clippo-", ".lock"
#: Age from which on a folder whose lock nobody holds is left over, and not just being made.
_LEFT_OVER_AFTER_S = 60


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a folder that is removed at the end; those of processes that were killed go, too.

    A lock, which the system drops when a process dies, tells whose folder is nobody's.
    """
    remove_left_over()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_left_over() -> int:
    """Remove the folders of processes that are gone; return how many there were."""
    removed = 0
    for file in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        # Another process may remove it, or it may be another person's.
        with suppress(OSError), file.open("r+") as lock:
            if time.time() - file.stat().st_mtime < _LEFT_OVER_AFTER_S:
                continue
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(file.parent)
            removed += 1
    return removed
