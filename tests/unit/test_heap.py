from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the options are those of glibc"
)
#: Faults of pages while a thread takes and leaves 100 MB, five times, after two others.
COUNT = """
import resource, sys, threading
import torch
from pipelines import heap
if "one" in sys.argv:
    heap.use_one_heap()
def work():
    if "keep" in sys.argv:
        heap.keep_freed_memory()
    for _ in range(2):
        torch.ones(25_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(25_000_000)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def page_faults(*options: str) -> int:
    command = [sys.executable, "-c", COUNT, *options]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def test_a_threads_large_tensors_are_new_to_the_system_once():
    pages = 5 * 25_000_000 * 4 // 4096
    assert page_faults() > pages // 2
    assert page_faults("one", "keep") < pages // 20
