"""The page on a port of this machine."""

import importlib.util
import ipaddress
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .limits import Limits
from .methods import MethodPool

__all__ = ["check_gradio", "serve"]

_KEPT = 3600  # seconds that an uploaded file stays
_MEGA = 1_000_000
_OFF = ("share", "show_error", "enable_monitoring", "run_history", "ssr_mode", "pwa", "mcp_server")
_SESSIONS = 64  # visitors whose state is kept; the one who was away longest goes first


def check_gradio() -> None:
    """Raise ValueError where Gradio is missing."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page needs the package gradio: pip install -e '.[app]'")


@contextmanager
def serve(
    pool: MethodPool, limits: Limits, *, host: str = "127.0.0.1", port: int | None = None
) -> Iterator[str]:
    """Serve the page while the block runs, and yield its address.

    Uploads lie in a folder of their own that nobody else can read, and go with it at the end.

    Args:
        pool: methods to choose from.
        limits: of each visitor.
        host: address to listen on.
        port: None takes a free one from 7860 on.

    Raises:
        ValueError: Gradio is missing.
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

    from .guard import Guard

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


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """What Gradio reads from the environment: where files go, and that nobody is told of the page's use."""
    wanted = {
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_EXAMPLES_CACHE": str(folder / "examples"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_RUN_HISTORY": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _own_names(host: str) -> list[str]:
    """Under which names a browser may ask for the page; all if others may reach this machine.

    Otherwise a page from elsewhere could have its own name lead here.
    """
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    return ["localhost", "127.0.0.1", host] if local else []
