"""An S3 server on loopback that can be told to misbehave."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server

Mood = Literal["well", "busy", "slow"]
BUCKET = "clippo-test"
KEY_ID = "clippo-key"
_BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate</Message></Error>"
_WRONG_KEY = (
    b"<Error><Code>InvalidAccessKeyId</Code><Message>There is no such key</Message></Error>"
)


class S3Server:
    """moto's S3 behind a door that answers 503 to a third, waits, or knows only one key."""

    def __init__(self) -> None:
        self.mood: Mood = "well"
        self.requests: list[tuple[str, str]] = []
        self._counter = itertools.count()
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server: BaseWSGIServer | None = None
        self.port = 0
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, after `stop` on the same port again."""
        self._server = make_server("127.0.0.1", self.port, self._answer, threaded=True)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Hang up; what is stored stays."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    def die_for(self, seconds: float) -> threading.Thread:
        """Stop now, and be back after a while."""
        self.stop()

        def revive() -> None:
            time.sleep(seconds)
            self.start()

        thread = threading.Thread(target=revive)
        thread.start()
        return thread

    def _answer(self, environ: dict[str, Any], respond: Callable[..., Any]) -> Iterable[bytes]:
        self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        if f"Credential={KEY_ID}/" not in environ.get("HTTP_AUTHORIZATION", ""):
            return _refuse(environ, respond, "403 Forbidden", _WRONG_KEY)
        if self.mood == "busy" and next(self._counter) % 3 == 0:
            return _refuse(environ, respond, "503 Slow Down", _BUSY)
        if self.mood == "slow":
            time.sleep(0.3)
        return self._app(environ, respond)


def _refuse(
    environ: dict[str, Any], respond: Callable[..., Any], status: str, body: bytes
) -> Iterable[bytes]:
    respond(status, [("Content-Type", "application/xml")])
    # With a body, the answer to HEAD is a broken one, if the client comes to see it.
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
