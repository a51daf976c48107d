"""A stand-in for Ray's dashboard, that answers as Ray does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import ray

TOKEN = "the-token-of-the-cluster"
HEAD = {
    "node_ip": "127.0.0.1",
    "is_head_node": True,
    "state": "ALIVE",
    "labels": {},
    "resources_total": {"CPU": 2.0, "object_store_memory": 2e9},
}


def node(role: str, ip: str = "198.51.100.9", **labels: str) -> dict[str, Any]:
    """Return a worker of a role."""
    resources = {"CPU": 8.0, "object_store_memory": 2e9}
    return HEAD | {
        "node_ip": ip,
        "is_head_node": False,
        "labels": {"clippo.role": role} | {k.replace("_", "-"): v for k, v in labels.items()},
        "resources_total": resources,
    }


@contextmanager
def dashboard(
    nodes: list[dict[str, Any]], *, release: str = ray.__version__, python: str = "3.11.9"
) -> Iterator[str]:
    """Yield its address, while it runs."""
    answers = {
        "/api/version": {"ray_version": release},
        "/api/v0/cluster_metadata": {"data": {"pythonVersion": python}},
        "/api/v0/nodes": {"data": {"result": {"result": nodes}}},
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said = self.headers.get("Authorization")
            status = 401 if said is None else 200 if said == f"Bearer {TOKEN}" else 403
            body = json.dumps(answers[self.path.partition("?")[0]]).encode()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body if status == 200 else b"")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
