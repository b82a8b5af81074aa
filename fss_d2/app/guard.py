"""What of Gradio's web server can be reached from outside: what the page needs, nothing else."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard"]

_API = "/gradio_api/"
_PAGES = ("/", "/config", "/config/", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json")
_FOLDERS = ("/assets/", "/static/", "/svelte/")
_READ = ("startup-events", "queue/data", "upload_progress", "theme.css", "app_id", "heartbeat/")
_FILE = f"{_API}file="
_UPLOAD = f"{_API}upload"
_BLOBS = f"{_API}component_server"  # what was painted comes by it, as a form or not
_EVENTS = (_BLOBS, *(_API + name for name in ("queue/join", "cancel", "reset")))
_MOST_EVENT = 4_000_000  # bytes; pictures come as uploads beforehand, what was painted is of a screen's size
# Gradio's own scripts build functions and styles at run time. No other server is asked for anything.
_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' "
        "'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
        "connect-src 'self' data: blob:; frame-ancestors 'self'; form-action 'self'; base-uri 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Guard:
    """ASGI middleware before Gradio's server.

    It answers 404 to all addresses but those that the page uses, and 403 to each that names a file outside
    the folder of uploads, be it to fetch it or as the value of an upload, and to what a page of another site
    sends through a visitor's browser. Gradio checks files as well; this does not rely on it. Gradio would
    also fetch web addresses for a visitor; here it does not.
    """

    def __init__(self, app: ASGIApp, folder: str | os.PathLike[str], most_upload: int) -> None:
        """
        Args:
            app: the server.
            folder: of uploads and of files for visitors.
            most_upload: bytes of one request that uploads.
        """
        self._app = app
        self._folder = Path(folder).resolve()
        self._most_upload = most_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a websocket, which the page has none of
            return
        refusal = self._refuse(scope)
        if refusal is None and scope["path"] in _EVENTS and not _is_blob(scope):
            body = await _read_body(receive)
            refusal = self._refuse_body(body)
            receive = _replay(body or b"", receive)
        if refusal is not None:
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, _with_headers(send))

    def _refuse(self, scope: Scope) -> PlainTextResponse | None:
        """What is wrong with the address or the announced size, or None."""
        path, method = scope["path"], scope["method"]
        if method == "POST" and (path == _UPLOAD or path in _EVENTS):
            if _header(scope, b"sec-fetch-site") in ("cross-site", "same-site"):  # "same-origin" is the page
                return PlainTextResponse("Not from other sites", 403)
            length = _header(scope, b"content-length")
            if not length.isdigit():
                return PlainTextResponse("Length Required", 411)
            most = self._most_upload if path == _UPLOAD else _MOST_EVENT
            return PlainTextResponse("Too Large", 413) if int(length) > most else None
        if method not in ("GET", "HEAD"):
            return PlainTextResponse("Not Found", 404)
        if path.startswith(_FILE):
            allowed = self._holds(path.removeprefix(_FILE))
            return None if allowed else PlainTextResponse("File not allowed", 403)
        readable = path in _PAGES or path.startswith((*_FOLDERS, *(_API + name for name in _READ)))
        return None if readable and ".." not in path else PlainTextResponse("Not Found", 404)

    def _refuse_body(self, body: bytes | None) -> PlainTextResponse | None:
        """What is wrong with an event's body, or None."""
        if body is None:
            return PlainTextResponse("Too Large", 413)
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            return PlainTextResponse("Not JSON", 400)
        if not all(self._holds(path) for path in _paths(content)):
            return PlainTextResponse("File not allowed", 403)
        return None

    def _holds(self, path: str) -> bool:
        """Whether a file lies in the folder of uploads, links followed."""
        try:
            return os.path.isabs(path) and self._folder in Path(path).resolve().parents
        except (ValueError, OSError, RuntimeError):  # a null byte, a name too long, a ring of links
            return False


def _paths(content: Any) -> Iterator[str]:
    """The paths of all files that a JSON value names."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(path := value.get("path"), str):
                yield path
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _header(scope: Scope, name: bytes) -> str:
    """The first header of a name, which is the one that counts; "" if there is none."""
    return next((value for key, value in scope["headers"] if key == name), b"").decode("latin-1")


def _is_blob(scope: Scope) -> bool:
    return scope["path"] == _BLOBS and _header(scope, b"content-type").startswith("multipart/form-data")


async def _read_body(receive: Receive) -> bytes | None:
    """The whole body of a request; None where it is too long."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > _MOST_EVENT:
            return None
    return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give a body that was read once more, then whatever comes after it."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


def _with_headers(send: Send) -> Send:
    extra = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]

    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await send(message)

    return send_more
