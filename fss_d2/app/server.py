"""Serve the page, and nothing else of Gradio's web server."""

import importlib.util
import ipaddress
import json
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .session import MethodPool
from .uploads import Limits

__all__ = ["Guard", "check_gradio", "serve"]

Scope = Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Refusal = tuple[int, str]  # HTTP status and text

_KEPT = 3600  # seconds that an uploaded file stays
_SESSIONS = 64  # visitors whose state is kept; the one who was away longest goes first
_MEGA = 1_000_000
_OFF = ("share", "show_error", "enable_monitoring", "run_history", "ssr_mode", "pwa", "mcp_server")

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
# Gradio's own scripts build functions and styles at run time. No other server is contacted.
_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' "
        "'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
        "connect-src 'self' data: blob:; frame-ancestors 'self'; form-action 'self'; base-uri 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def check_gradio() -> None:
    """Raise ValueError if Gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page needs the package gradio: pip install -e '.[app]'")


@contextmanager
def serve(
    pool: MethodPool, limits: Limits, *, host: str = "127.0.0.1", port: int | None = None
) -> Iterator[str]:
    """Serve the page while the block runs, and yield its address.

    Uploads are kept in a temporary folder that no other user can read; it is deleted at the end.

    Args:
        pool: methods to choose from.
        limits: of each visitor.
        host: address to listen on.
        port: None takes a free one from 7860 on.

    Raises:
        ValueError: Gradio is not installed.
        OSError: the port is taken.
    """
    check_gradio()
    with tempfile.TemporaryDirectory(prefix="fss_d2_app_") as name, _environment(Path(name).resolve()):
        from .page import build_page, look  # these load Gradio, which reads the environment

        folder = Path(name).resolve()
        page = build_page(pool, limits, folder, keep=_KEPT)
        where = {"server_name": host, "server_port": port}
        _, url, _ = page.launch(**where, **_closed(limits, folder, host), **look())
        try:
            yield url
        finally:
            page.close(verbose=False)


def _closed(limits: Limits, folder: Path, host: str) -> dict[str, Any]:
    """Arguments of `launch` that leave nothing open but the page."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    most = (limits.pictures * limits.upload_mb + 1) * _MEGA
    guards = [Middleware(Guard, folder=folder, most_upload=most)]
    if hosts := _own_names(host):
        guards.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=hosts))
    return {
        "app_kwargs": {"middleware": guards, "docs_url": None, "redoc_url": None, "openapi_url": None},
        "max_file_size": limits.upload_mb * _MEGA,
        "allowed_paths": [],
        "blocked_paths": [str(path) for path in (Path.cwd(), Path.home()) if path not in folder.parents],
        "state_session_capacity": _SESSIONS,
        "footer_links": [],
        "prevent_thread_lock": True,
        "quiet": True,
    } | dict.fromkeys(_OFF, False)


def _own_names(host: str) -> list[str]:
    """The host names of a page that only this machine can reach; none if others can reach it.

    Without this check, a page elsewhere could point a host name of its own to this machine.
    """
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    return ["localhost", "127.0.0.1", host] if local else []


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """Set what Gradio reads from the environment: the folder of its files, and no reports of its use."""
    wanted = {
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_EXAMPLES_CACHE": str(folder / "examples"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_RUN_HISTORY": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    before = {name: os.environ[name] for name in wanted if name in os.environ}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name in wanted.keys() - before.keys():
            os.environ.pop(name, None)
        os.environ.update(before)


class Guard:
    """ASGI middleware in front of Gradio's server.

    It answers 404 to every address that the page does not use. It answers 403 to a request that names a file
    outside of the upload folder (to fetch it, or as the value of an upload), and to what a page of another
    site sends through a visitor's browser. Gradio checks files, too; this does not rely on it. Gradio would
    also fetch web addresses for a visitor; here it cannot.
    """

    def __init__(
        self, app: Callable[..., Awaitable[None]], folder: str | os.PathLike[str], most_upload: int
    ) -> None:
        """
        Args:
            app: the server.
            folder: of uploads and of files for visitors.
            most_upload: bytes of one upload request.
        """
        self._app = app
        self._folder = Path(folder).resolve()
        self._most_upload = most_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":  # the page has no websocket
            return
        refusal = self._refuse(scope)
        if refusal is None and scope["path"] in _EVENTS and not _is_form_of_blobs(scope):
            body = await _read_body(receive)
            refusal = self._refuse_body(body)
            receive = _replay(body, receive)
        if refusal is None:
            await self._app(scope, receive, _with_headers(send))
        else:
            await _answer(send, *refusal)

    def _refuse(self, scope: Scope) -> Refusal | None:
        """What is wrong with the address or the announced size, or None."""
        path, method = scope["path"], scope["method"]
        if method == "POST" and (path == _UPLOAD or path in _EVENTS):
            if _header(scope, b"sec-fetch-site") in ("cross-site", "same-site"):  # the page is "same-origin"
                return 403, "Not from other sites"
            length = _header(scope, b"content-length")
            if not length.isdigit():
                return 411, "Length Required"
            most = self._most_upload if path == _UPLOAD else _MOST_EVENT
            return (413, "Too Large") if int(length) > most else None
        if method not in ("GET", "HEAD"):
            return 404, "Not Found"
        if path.startswith(_FILE):
            return None if self._holds(path.removeprefix(_FILE)) else (403, "File not allowed")
        readable = path in _PAGES or path.startswith(_READABLE)
        return None if readable and ".." not in path else (404, "Not Found")

    def _refuse_body(self, body: bytes) -> Refusal | None:
        """What is wrong with an event's body, or None."""
        if len(body) > _MOST_EVENT:
            return 413, "Too Large"
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


def _header(scope: Scope, name: bytes) -> str:
    """The first header with a name, which is the one that counts; "" if there is none."""
    return next((value for key, value in scope["headers"] if key == name), b"").decode("latin-1")


def _is_form_of_blobs(scope: Scope) -> bool:
    return scope["path"] == _BLOBS and _header(scope, b"content-type").startswith("multipart/form-data")


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


async def _answer(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
