"""Which requests come from the page itself, and not from a page of another site in a visitor's browser."""

import ipaddress
import re
from typing import Any

__all__ = ["Scope", "header", "is_foreign", "own_names", "to_known_host"]

Scope = dict[str, Any]  # of ASGI
_SAFE = ("GET", "HEAD")  # change nothing
_ORIGIN = re.compile(r"(https?)://([^/?#@\s]+)")
_ADDRESS = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]/?#@\s]+)(?::(\d{0,5}))?")
_PORTS = {"http": 80, "https": 443}
# Headers that browsers send and programs do not. Browsers also name the origin of what changes something.
_OF_BROWSERS = (b"sec-fetch-", b"sec-ch-", b"referer")


def is_foreign(scope: Scope) -> bool:
    """Whether a request was sent by a page of another origin (scheme, host and port), or hides its origin.

    The header Origin must name the address in the header Host, without regard to case; a port that is left
    out is the scheme's. What a browser sends to change something needs an Origin; other programs need none.
    """
    origins, hosts = _all(scope, b"origin"), _all(scope, b"host")
    if len(hosts) != 1 or len(origins) > 1:
        return True
    if header(scope, b"sec-fetch-site") not in ("", "same-origin", "none") and scope["method"] not in _SAFE:
        return True
    if origins:
        return not _same(origins[0], hosts[0], scope.get("scheme", "http"))
    return scope["method"] not in _SAFE and _is_browser(scope)


def own_names(host: str) -> frozenset[str] | None:
    """The host names of a page that only this machine can reach; None if others can reach it.

    Without this check, a page elsewhere could point a host name of its own to this machine.
    """
    host = host.strip("[]").lower()
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return frozenset(("localhost", "127.0.0.1", "[::1]")) if host == "localhost" else None
    own = f"[{host}]" if address.version == 6 else host
    return frozenset(("localhost", "127.0.0.1", own)) if address.is_loopback else None


def to_known_host(scope: Scope, names: frozenset[str] | None) -> bool:
    """Whether a request is addressed to one of some hosts; None are all."""
    address = _address(header(scope, b"host"), 80)
    return names is None or (address is not None and address[0] in names)


def header(scope: Scope, name: bytes) -> str:
    """The first header with a name, in small letters; "" if there is none."""
    return next(iter(_all(scope, name)), "")


def _all(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip().lower() for key, value in scope["headers"] if key == name]


def _same(origin: str, host: str, scheme: str) -> bool:
    found = _ORIGIN.fullmatch(origin)  # "null" is none
    if found is None or (found[1] == "http" and scheme == "https"):
        return False
    port = _PORTS[found[1]]  # also of the host: a proxy may take https and pass on http
    address = _address(found[2], port)
    return address is not None and address == _address(host, port)


def _address(text: str, port: int) -> tuple[str, int] | None:
    found = _ADDRESS.fullmatch(text)
    return (found[1], int(found[2] or port)) if found else None


def _is_browser(scope: Scope) -> bool:
    named = any(key.startswith(_OF_BROWSERS) for key, _ in scope["headers"])
    return named or "mozilla" in header(scope, b"user-agent")
