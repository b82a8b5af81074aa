"""What stands in front of Gradio's web server, and lets through what the page needs."""

import json
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from starlette.formparsers import MultiPartException

from fss_d2.io.files import shortened

from .origin import Scope, header, is_foreign, own_names, to_known_host
from .patience import Message, PacedBody, Receive, TooSlowError
from .uploads import MEGA, Limits

__all__ = ["Guard", "UploadQuota"]

logger = logging.getLogger(__name__)

Send = Callable[[Message], Awaitable[None]]
Refusal = tuple[int, str]  # HTTP status and text

# The addresses that the page uses.
_API = "/gradio_api/"
_PAGES = ("/", "/config", "/config/", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json")
_FOLDERS = ("/assets/", "/static/", "/svelte/")
_READ = ("startup-events", "queue/data", "upload_progress", "theme.css", "app_id", "heartbeat/")
_READABLE = (*_FOLDERS, *(_API + name for name in _READ))
_FILE = f"{_API}file="
_UPLOAD = f"{_API}upload"
_BLOBS = f"{_API}component_server"  # gets what was painted, as a form or as JSON
_EVENTS = (_BLOBS, *(_API + name for name in ("queue/join", "cancel", "reset")))
_MOST_EVENT = 4_000_000  # bytes; pictures are uploaded before, and a painting has the size of a screen
_SLOW = "The request was not finished in time"
# Gradio's own scripts build functions and styles at run time. No other server is contacted.
_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' "
        "'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
        "connect-src 'self' data: blob:; frame-ancestors 'self'; form-action 'self'; base-uri 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with "no-referrer", browsers may hide the origin
}


class UploadQuota:
    """How many bytes each visitor may upload within the time for which uploads are kept.

    A visitor is a network address. The bytes that a request announces count from its start, so that requests
    at the same time do not pass together.
    """

    def __init__(self, most: int, keep: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._keep, self._clock = most, keep, clock
        self._taken: dict[str, deque[tuple[float, int]]] = {}  # by visitor: when, bytes

    def take(self, visitor: str, size: int) -> bool:
        """Count bytes, if they still fit."""
        end = self._clock() - self._keep
        for name, taken in list(self._taken.items()):
            while taken and taken[0][0] <= end:
                taken.popleft()
            if not taken:
                del self._taken[name]
        fits = size + sum(bytes_ for _, bytes_ in self._taken.get(visitor, ())) <= self._most
        if fits:
            self._taken.setdefault(visitor, deque()).append((self._clock(), size))
        return fits

    def give_back(self, visitor: str, size: int) -> None:
        """Bytes that were announced did not come."""
        if size > 0 and visitor in self._taken:
            self._taken[visitor].append((self._clock(), -size))


class Guard:
    """ASGI middleware in front of Gradio's server.

    It answers 404 to every address that the page does not use, 403 to a request that names a file outside of
    the folder of uploads and visitors' files (to fetch it, or as the value of an upload) or comes from a page
    of another site (`is_foreign`), 400 to another host name than its own, 408 to a request whose body does
    not come in time (`PacedBody`), 413 to one that is too large, and 500 to one at which Gradio fails. Gradio
    checks files, too; this does not rely on it. Gradio would also fetch web addresses for a visitor; here it
    cannot.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        folder: str | os.PathLike[str],
        limits: Limits,
        host: str,
        keep: float,
    ) -> None:
        """Guard ``app``, which listens on ``host`` and keeps uploads in ``folder`` for ``keep`` seconds."""
        self._app = app
        self._folder = Path(folder).resolve()
        self._limits = limits
        self._most_upload = (limits.pictures * limits.upload_mb + 1) * MEGA
        self._hosts = own_names(host)
        self._quota = UploadQuota(limits.disk_mb * MEGA, keep)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":  # the page has none
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            await self._survive(scope, receive, send)

    async def _survive(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; what Gradio cannot do with it is one line of the log."""
        started: list[str] = []

        async def send_on(message: Message) -> None:
            started.append(message["type"])
            await send(message)

        try:
            await self._handle(scope, receive, send_on)
        except Exception as error:  # no page sends such a request, or that of an earlier server does
            what = shortened(" ".join(f"{type(error).__name__}: {error}".split()))
            logger.error("%s %s failed: %s", scope["method"], shortened(scope["path"]), what)
            logger.debug("The traceback:", exc_info=True)
            if not started:
                await _answer(send, 500, "Internal Server Error")

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (refusal := self._refuse(scope)) is not None:
            await _answer(send, *refusal)
        elif scope["path"] == _UPLOAD or _is_form_of_blobs(scope):
            await self._pass_form(scope, receive, send)
        elif scope["path"] in _EVENTS:
            await self._pass_event(scope, receive, send)
        else:
            await self._app(scope, receive, _with_headers(send))

    async def _pass_form(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass files on while they come."""
        visitor = (scope.get("client") or ("",))[0]
        size = int(header(scope, b"content-length"))
        if scope["path"] == _UPLOAD and not self._quota.take(visitor, size):
            await _answer(send, 413, self._disk_full())
            return
        body = PacedBody(receive, MultiPartException)  # after this, Gradio deletes what had come
        try:
            await self._app(scope, body, _late_as_408(_with_headers(send), body))
        except MultiPartException:
            await _answer(send, 408, _SLOW)
        finally:
            if scope["path"] == _UPLOAD:
                self._quota.give_back(visitor, size - body.received)

    async def _pass_event(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass JSON on once it is whole and checked."""
        try:
            body = await _read_body(PacedBody(receive))
        except TooSlowError:
            await _answer(send, 408, _SLOW)
            return
        refusal = self._refuse_body(body)
        if refusal is None:
            await self._app(scope, _replay(body, receive), _with_headers(send))
        else:
            await _answer(send, *refusal)

    def _disk_full(self) -> str:
        most = self._limits.disk_mb
        return (
            f"You gave more than {most} MB of files within an hour (--max-disk-mb): wait, or restart the page"
        )

    def _refuse(self, scope: Scope) -> Refusal | None:
        """What is wrong with the sender, the address or the announced size, or None."""
        path, method = scope["path"], scope["method"]
        if not to_known_host(scope, self._hosts):
            return 400, "Invalid host header"
        if is_foreign(scope):
            return 403, "Not from other sites"
        if method == "POST" and (path == _UPLOAD or path in _EVENTS):
            length = header(scope, b"content-length")
            if not (length.isascii() and length.isdigit()):
                return 411, "Length Required"
            most = self._most_upload if path == _UPLOAD else _MOST_EVENT
            return (413, f"Too Large: at most {most // MEGA} MB") if int(length) > most else None
        if method not in ("GET", "HEAD"):
            return 404, "Not Found"
        if path.startswith(_FILE):
            return None if self._holds(path.removeprefix(_FILE)) else (403, "File not allowed")
        readable = path in _PAGES or path.startswith(_READABLE)
        return None if readable and ".." not in path else (404, "Not Found")

    def _refuse_body(self, body: bytes) -> Refusal | None:
        """What is wrong with an event's body, or None."""
        if len(body) > _MOST_EVENT:
            return 413, f"Too Large: at most {_MOST_EVENT // MEGA} MB"
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            return 400, "Not JSON"
        return None if all(self._holds(path) for path in _paths(content)) else (403, "File not allowed")

    def _holds(self, path: str) -> bool:
        """Whether a file lies in the upload folder, links followed."""
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


def _is_form_of_blobs(scope: Scope) -> bool:
    return scope["path"] == _BLOBS and header(scope, b"content-type").startswith("multipart/form-data")


async def _read_body(receive: Receive) -> bytes:
    """The body of a request; the rest of one that is too long is not read."""
    body, more = b"", True
    while more and len(body) <= _MOST_EVENT:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give a body that was read already, then whatever comes after it."""
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


def _late_as_408(send: Send, body: PacedBody) -> Send:
    """Gradio answers 400 to a form that breaks off; the connection cannot be used again."""

    async def send_late(message: Message) -> None:
        if message["type"] == "http.response.start" and body.late:
            headers = [*message.get("headers", ()), (b"connection", b"close")]
            message = {**message, "status": 408, "headers": headers}
        await send(message)

    return send_late


async def _answer(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
    if status == 408:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
