"""Requests and their limits: hosts, sizes, headers, and errors that say what to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Host names by which a browser on this machine reaches the page.
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
#: Seconds for which the rest of a body that is too large is passed over.
_PASSED_OVER_S = 2.0
#: Headers of every answer: nothing from elsewhere, nothing inline but the queries' pictures.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Another collection may be served at this address next time.
    "Cache-Control": "no-store",
}


class RequestError(HTTPException):
    """A request that cannot be answered; travels to the client as JSON."""

    def __init__(self, status: int, what: str, *, expected: str, do: str) -> None:
        """Take the HTTP status, and the words: what was wrong, what was expected, what to do."""
        super().__init__(status, what)
        self.content = {"what": what, "expected": expected, "do": do}


class Gate:
    """ASGI middleware that refuses what is foreign or too large, and sets the headers of answers.

    A page elsewhere could have its own name point to this machine (DNS rebinding) and then read
    what is served here; the browser still sends that name as the Host. Where the page listens to
    other machines, any Host is let in, since their names for it are not known.
    """

    def __init__(
        self, app: ASGIApp, *, allowed_hosts: Sequence[str] | None, max_body_bytes: int
    ) -> None:
        """Guard an application.

        Args:
            app: the application.
            allowed_hosts: names that requests may be made to; None: any.
            max_body_bytes: size of the largest body.
        """
        self._app, self._allowed, self._max_body_bytes = app, allowed_hosts, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._refuse_foreign(headers)
            body = await self._body(headers, receive)
        except RequestError as error:
            answer = await answer_error(Request(scope), error)
            await answer(scope, receive, send_with_headers)
            return
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, receive_again, send_with_headers)

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """Return the body, of which no more than the limit is kept."""
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or len(declared) > 18 or int(declared) > self._max_body_bytes:
            raise _too_large(self._max_body_bytes)
        body, is_over = bytearray(), False
        while not is_over:
            message = await receive()
            body += message.get("body", b"")
            is_over = message["type"] != "http.request" or not message.get("more_body", False)
            if len(body) > self._max_body_bytes:
                if not is_over:
                    await _pass_over(receive)
                raise _too_large(self._max_body_bytes)
        return bytes(body)

    def _refuse_foreign(self, headers: Headers) -> None:
        hosts, origin = headers.getlist("host"), headers.get("origin")
        host = hosts[0] if len(hosts) == 1 else ""
        if self._allowed is not None and _without_port(host) not in self._allowed:
            raise RequestError(
                403,
                f"requests to the host {' and '.join(hosts)[:100]!r} are not answered",
                expected=f"one of {', '.join(self._allowed)}",
                do="open the address that the command printed; to be reached by other names, "
                "start it with --host",
            )
        if origin is not None and origin.partition("://")[2] != host:
            raise RequestError(
                403,
                f"the request was made by another page: {origin[:100]!r}",
                expected="requests of this page only",
                do="open the page itself",
            )


async def _pass_over(receive: Receive) -> None:
    """Read what else a client sends, for a moment: cut off at once, it would read no answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_PASSED_OVER_S):
            while (message := await receive())["type"] == "http.request":
                if not message.get("more_body", False):
                    return


async def read_body(request: Request, *, max_bytes: int) -> bytes:
    """Return a request's body, which `Gate` has read.

    Raises:
        RequestError: if it is too large or empty.
    """
    body = await request.body()
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    if not body:
        raise RequestError(400, "the request is empty", expected="a body", do="send one")
    return body


async def read_text(request: Request, *, max_chars: int) -> str:
    """Return the query in a body of `{"text": …}`.

    Raises:
        RequestError: if it is no such body, blank, or too long.
    """
    # A character may take twelve bytes: two escapes such as \ud83d.
    body = await read_body(request, max_bytes=12 * max_chars + 64)
    try:
        text = json.loads(body)["text"]
    except (ValueError, KeyError, TypeError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise RequestError(
            422,
            "the body says no text",
            expected='JSON such as {"text": "a red car"}',
            do="send it",
        )
    if len(text) > max_chars:
        raise RequestError(
            413,
            f"the text has {len(text)} characters",
            expected=f"{max_chars} at most",
            do="shorten it; the model's canvas holds less anyway",
        )
    return text


async def answer_error(request: Request, error: Exception) -> Response:
    """Answer a request that cannot be served, for one of our reasons or one of Starlette's."""
    assert isinstance(error, HTTPException)
    if not isinstance(error, RequestError):
        error = RequestError(
            error.status_code,
            f"{request.method} {request.url.path[:100]}: {error.detail}",
            expected="a path of this page",
            do="open / and go from there",
        )
    return JSONResponse(error.content, status_code=error.status_code)


async def answer_failure(request: Request, _error: Exception) -> Response:
    """Answer after an unexpected error; its details stay in the server's log."""
    failure = RequestError(
        500, "the server failed", expected="an answer", do="look into Ray's logs"
    )
    return await answer_error(request, failure)


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(
        413,
        "the upload is too large",
        expected=f"{max_bytes:,} bytes at most",
        do="send a smaller picture, or start the page with a higher --max-upload-mb",
    )


def _without_port(host: str) -> str:
    """Return the name in a Host header."""
    name, colon, port = host.rpartition(":")
    return name.lower() if colon and port.isdecimal() else host.lower()
