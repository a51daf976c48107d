"""Folders for files that a command needs for a while."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


def left_over() -> list[Path]:
    """Return the folders of processes that are gone."""
    locks = Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}")
    return [lock.parent for lock in locks if _is_nobodys(lock.parent)]


def remove_left_over() -> int:
    """Remove the folders of processes that are gone; return how many there were."""
    found = left_over()
    for folder in found:
        # Another process may remove it at the same time.
        shutil.rmtree(folder, ignore_errors=True)
    return len(found)


def _is_nobodys(folder: Path) -> bool:
    try:
        with (folder / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return time.time() - os.fstat(lock.fileno()).st_mtime >= _LEFT_OVER_AFTER_S
    except OSError:
        # Locked, gone, or another person's.
        return False
