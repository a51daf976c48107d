from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from clippo_core.threads import MIN_PART, in_parts, share_out


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


def test_every_item_is_worked_on_once_by_several_threads():
    meeting, seen = threading.Barrier(3, timeout=30), list[tuple[int, int]]()

    def work(item: int) -> None:
        if item < 3:
            # Nobody leaves before three are at work.
            meeting.wait()
        seen.append((item, threading.get_ident()))

    share_out(work, range(20))
    assert sorted(item for item, _ in seen) == list(range(20))
    assert len({thread for _, thread in seen}) == 3


@pytest.mark.parametrize("size", [0, 1, MIN_PART, 2 * MIN_PART + 1, 5 * MIN_PART - 1])
def test_parts_cover_arrays_once(size: int):
    lengths, counts, values = list[int](), np.zeros(size, np.int64), np.arange(size)

    def loop(counts: np.ndarray, values: np.ndarray) -> None:
        lengths.append(len(values))
        counts += values

    in_parts(loop, counts, values)
    np.testing.assert_array_equal(counts, values)
    assert len(lengths) == max(1, min(3, size // MIN_PART))


def test_what_is_raised_in_any_thread_arrives():
    def work(item: int) -> None:
        if item == 7:
            raise ValueError("seven")

    with pytest.raises(ValueError, match="seven"):
        share_out(work, range(20))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_has_threads_of_its_own():
    meeting = threading.Barrier(3, timeout=30)
    share_out(lambda _: meeting.wait(), range(3))
    # Both helpers wait for work now: a fork that took them for its own would start none.
    time.sleep(0.2)
    child = os.fork()
    if child == 0:
        # Whatever happens, the child must not go on as pytest, nor for ever.
        signal.alarm(20)
        try:
            share_out(abs, range(20))
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
