"""Ray's workers as forks of one process that has imported what they need.

A run starts some ten processes, one after another, and each would spend seconds importing Ray,
pandas and torch. `server.py` imports them once; `setup_worker.py` is what Ray starts in place of
its script of that name, and asks the server for a fork. Whatever prevents that, a worker starts as
Ray would start it.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

#: In the runtime environment of a job: the server's socket.
ADDRESS = "CLIPPO_FORK_SERVER"
#: "0": workers start as Ray starts them.
SWITCH = "CLIPPO_FORK_WORKERS"
#: Ray's C++ part reads these when it is imported, so the server must have what a worker will have.
#: The first job of a Ray has this id; a Ray that is started here wants a token by default.
_JOB_ID, _AUTH_MODE = "01000000", "token"
_logger = logging.getLogger(__name__)


@contextmanager
def forked_workers() -> Iterator[dict[str, Any]]:
    """For the Ray that this process starts meanwhile, and shuts down before the end.

    Yields:
        The runtime environment to start it with.
    """
    if os.environ.get(SWITCH) == "0":
        yield {}
        return
    # Here, since the server, which imports this module too, must not import Ray at once.
    from ray._private import ray_constants

    here = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory(prefix="clippo-fork-") as folder:
        address = f"{folder}/socket"
        server = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.server", address],
            cwd=here.parents[1],
            env={"RAY_AUTH_MODE": _AUTH_MODE} | os.environ | {"RAY_JOB_ID": _JOB_ID},
            # It ends with this process, whatever ends that.
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # Ray joins its own folder and this name; its C++ part knows the file by that name, too.
        script = str(here / "setup_worker.py")
        try:
            with mock.patch.object(ray_constants, "SETUP_WORKER_FILENAME", script):
                # Without a runtime environment Ray starts workers without that script.
                yield {"env_vars": {ADDRESS: address}}
            if server.poll() is not None:
                _logger.warning(
                    "workers started slowly, each with imports of its own, since the process that "
                    "forks them ended; `%s -m pipelines.forking.server SOCKET` shows why",
                    sys.executable,
                )
        finally:
            server.kill()
            server.communicate()
