"""Serve the page, and nothing else of Gradio's web server."""

import importlib.util
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fss_d2.io.files import shortened

from .methods import MethodPool
from .uploads import MEGA, Limits

__all__ = ["check_address", "check_gradio", "serve"]

_KEPT = 3600  # seconds that an uploaded file stays
_SESSIONS = 64  # visitors whose state is kept; the one who was away longest goes first
_CONNECTIONS = 500  # at a time
_OFF = ("share", "show_error", "enable_monitoring", "run_history", "ssr_mode", "pwa", "mcp_server")


def check_gradio() -> None:
    """Raise ValueError if Gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page needs the package gradio: pip install -e '.[app]'")


def check_address(host: str, port: int | None) -> None:
    """Raise OSError if the page cannot listen there; Gradio itself would wait for ever."""
    try:
        family, *_, address = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address[0], port or 0, *address[2:]))
    except (OSError, OverflowError, UnicodeError) as error:
        reason = str(getattr(error, "strerror", None) or error).removeprefix("bind(): ").rstrip(".")
        where = shortened(host) if port is None else f"{shortened(host)}, port {port}"
        raise OSError(f"cannot listen on {where} ({reason}): give another --host or --port") from error


@contextmanager
def serve(
    pool: MethodPool, limits: Limits, *, host: str = "127.0.0.1", port: int | None = None
) -> Iterator[str]:
    """Serve the page while the block runs, and yield its address.

    Uploads are kept in a temporary folder that no other user can read; it is deleted at the end.

    Args:
        host: address to listen on.
        port: None takes a free one from 7860 on; one that is taken raises OSError.
    """
    check_gradio()
    check_address(host, port)
    with tempfile.TemporaryDirectory(prefix="fss_d2_app_") as name, _environment(Path(name).resolve()):
        from .page import build_page, look  # these load Gradio, which reads the environment

        folder = Path(name).resolve()
        page = build_page(pool, limits, folder, keep=_KEPT)
        where = {"server_name": host, "server_port": port}
        _, url, _ = page.launch(**where, **_closed(limits, folder, host), **look())
        _limit_connections(page.server.config)
        try:
            yield url
        finally:
            page.close(verbose=False)


def _closed(limits: Limits, folder: Path, host: str) -> dict[str, Any]:
    """Arguments of `launch` that leave nothing open but the page."""
    from starlette.middleware import Middleware

    from .guard import Guard

    guard = Middleware(Guard, folder=folder, limits=limits, host=host, keep=_KEPT)
    return {
        "app_kwargs": {"middleware": [guard], "docs_url": None, "redoc_url": None, "openapi_url": None},
        "max_file_size": limits.upload_mb * MEGA,
        "allowed_paths": [],
        "blocked_paths": [str(path) for path in (Path.cwd(), Path.home()) if path not in folder.parents],
        "state_session_capacity": _SESSIONS,
        "footer_links": [],
        "prevent_thread_lock": True,
        "quiet": True,
    } | dict.fromkeys(_OFF, False)


def _limit_connections(config: Any) -> None:
    """Change the configuration of the running uvicorn, which reads it at each new connection."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    from .patience import impatient

    config.http_protocol_class = impatient(H11Protocol)
    config.limit_concurrency = _CONNECTIONS


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
