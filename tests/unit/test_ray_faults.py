"""What Ray says of its failures, told in a line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from pipelines.runtime.ray_session import telling_line

PAGES = """Training failed due to worker errors:
[Rank 0 Error Snippet]:
Traceback (most recent call last):
  File "native.py", line 3, in save
OSError: [Errno 28] No space left on device

The above exception was the direct cause of the following exception:
pipelines.errors.StorageError: [Errno 28] No space left on device: '/full/x'
[Rank 1]:
"""


def test_of_pages_the_first_line_and_the_last_exception_are_told():
    assert telling_line(RuntimeError(PAGES)) == (
        "RuntimeError: Training failed due to worker errors: pipelines.errors.StorageError: "
        "[Errno 28] No space left on device: '/full/x'"
    )
    assert telling_line(RuntimeError("one")) == "RuntimeError: one"
    assert telling_line(ValueError()) == "ValueError"


WATCHED = """
import sys, time
from types import SimpleNamespace
import ray
from pipelines.runtime import ray_session

ray_session._LOOK_EVERY_S, ray_session._HEAD_MAY_BE_AWAY_S = 0.1, 0.3
ray_session._NODE_MAY_BE_AWAY_S = 0.3
node = {"NodeID": "n", "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": int(sys.argv[2])}
ray.nodes = lambda: [node]
ray.get_runtime_context = lambda: SimpleNamespace(
    gcs_address=f"127.0.0.1:{sys.argv[1]}", get_node_id=lambda: "n"
)
ray_session._Watch("go on with\\n  resume x")
time.sleep(float(sys.argv[3]))
"""


@pytest.mark.parametrize("dead", [None, "head", "process on this node"])
def test_a_process_of_ray_that_is_gone_ends_the_command_in_a_line(dead: str | None):
    with socket.create_server(("127.0.0.1", 0)) as alive, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        ports = [alive.getsockname()[1]] * 2
        if dead is not None:
            ports[dead != "head"] = closed.getsockname()[1]
        words = [*map(str, ports), "30" if dead else "2"]
        ended = subprocess.run(
            [sys.executable, "-c", WATCHED, *words],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            timeout=60,
        )
    if dead is None:
        assert (ended.returncode, ended.stderr) == (0, "")
        return
    assert ended.returncode == 4, ended.stderr
    line, *rest = ended.stderr.strip().splitlines()
    assert line.startswith(f"StorageError: Ray's {dead} (127.0.0.1:")
    assert rest == ["go on with", "  resume x"]
