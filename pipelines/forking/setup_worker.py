"""What Ray starts for a worker in place of its own script of this name: asks for a fork, and waits.

Nothing but the standard library, and little of it: this process is in the way of each worker.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress

#: As in the package, which this process does not import.
ADDRESS = "CLIPPO_FORK_SERVER"
CONTEXT = "--serialized-runtime-env-context="


def main() -> None:
    """Wait for the end of the worker; without a fork, become Ray's own script."""
    arguments = sys.argv[1:]
    with suppress(OSError, LookupError, ValueError):
        # The worker's end, and Ray's: this process is Ray's child, as the worker would be.
        ends = [os.pidfd_open(os.getppid()), ask(arguments)]
        select.select(ends, [], [])
        return
    worker = next(one for one in arguments if one.endswith("/default_worker.py"))
    script = worker.replace("/default_worker.py", "/setup_worker.py")
    os.execv(sys.executable, [sys.executable, script, *arguments])


def ask(arguments: list[str]) -> int:
    """Have the server fork a worker; the answer can be read once that has ended.

    Raises:
        OSError, LookupError, ValueError: if there is no server, or it does not.
    """
    (context,) = (one for one in arguments if one.startswith(CONTEXT))
    address = json.loads(context.removeprefix(CONTEXT))["env_vars"][ADDRESS]
    request = {
        "arguments": arguments,
        "environ": dict(os.environ),
        "folder": os.getcwd(),  # noqa: PTH109 - pathlib takes a while to import
        "group": os.getpgrp(),
        "blocked_signals": [int(one) for one in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
    }
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.connect(address)
    # The worker is killed as soon as nobody holds the other end of the pipe: with this process.
    worker_end, _ = os.pipe()
    socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2, worker_end])
    os.close(worker_end)
    if not server.recv(1):
        raise ConnectionError("the server forks no such worker")
    return server.detach()


if __name__ == "__main__":
    main()
