"""Which requests come from the page, by their headers alone."""

from typing import Any

import pytest

from fss_d2.app.origin import is_foreign, own_names, to_known_host


def scope(method: str = "POST", scheme: str = "http", **headers: str) -> dict[str, Any]:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"method": method, "scheme": scheme, "headers": named}


class TestOrigin:
    """The header Origin against the header Host."""

    @pytest.mark.parametrize(
        ("origin", "host"),
        [
            ("http://localhost:7860", "localhost:7860"),
            ("HTTP://LocalHost:7860", "localhost:7860"),
            ("http://localhost:7860", "LOCALHOST:7860"),
            ("http://example.org", "example.org"),
            ("http://example.org:80", "example.org"),
            ("http://example.org", "example.org:80"),
            ("https://example.org", "example.org"),  # a proxy takes https and passes on http
            ("https://example.org", "example.org:443"),
            ("http://[::1]:7860", "[::1]:7860"),
        ],
    )
    @pytest.mark.parametrize("site", ["same-origin", "Same-Origin", ""])
    def test_of_the_page(self, origin: str, host: str, site: str) -> None:
        headers = {"sec_fetch_site": site} if site else {}
        assert not is_foreign(scope(origin=origin, host=host, **headers))
        assert not is_foreign(scope("GET", origin=origin, host=host, **headers))

    @pytest.mark.parametrize(
        ("origin", "host"),
        [
            ("http://evil.example", "localhost:7860"),
            ("http://localhost:3000", "localhost:7860"),  # another program on this machine
            ("http://localhost", "localhost:7860"),
            ("http://localhost:7860", "localhost"),
            ("http://127.0.0.1:7860", "localhost:7860"),
            ("http://localhost.evil.example:7860", "localhost:7860"),
            ("http://evil.example:7860", "localhost:7860"),
            ("http://localhost:7860@evil.example", "localhost:7860"),
            ("http://example.org:443", "example.org"),
            ("https://example.org:80", "example.org"),
            ("http://localhost:7860/", "localhost:7860"),
            ("http://localhost:7860 ", "localhost:7861"),
            ("file://", "localhost:7860"),
            ("chrome-extension://localhost:7860", "localhost:7860"),
            ("null", "localhost:7860"),
            ("NULL", "null"),
            ("", "localhost:7860"),
            ("http://[::1]:7860", "[::2]:7860"),
        ],
    )
    @pytest.mark.parametrize("site", ["same-origin", "none", ""])
    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_of_others(self, origin: str, host: str, site: str, method: str) -> None:
        headers = {"sec_fetch_site": site} if site else {}
        assert is_foreign(scope(method, origin=origin, host=host, **headers))

    def test_http_is_not_the_origin_of_https(self) -> None:
        assert is_foreign(scope(scheme="https", origin="http://example.org", host="example.org"))
        assert not is_foreign(scope(scheme="https", origin="https://example.org", host="example.org"))

    def test_headers_given_twice(self) -> None:
        own = scope(origin="http://localhost", host="localhost")
        assert not is_foreign(own)
        for name, value in ((b"origin", b"http://localhost"), (b"host", b"localhost")):
            assert is_foreign({**own, "headers": [*own["headers"], (name, value)]})
        assert is_foreign(scope(origin="http://localhost"))

    @pytest.mark.parametrize(
        "headers",
        [
            {"user_agent": "Mozilla/5.0 (X11; Linux x86_64)"},
            {"sec_fetch_site": "same-origin"},
            {"sec_fetch_mode": "cors"},
            {"referer": "http://localhost/"},
            {"sec_ch_ua": "Chromium"},
        ],
    )
    def test_browsers_name_the_origin_of_what_changes_something(self, headers: dict[str, str]) -> None:
        assert is_foreign(scope(host="localhost", **headers))
        assert not is_foreign(scope("GET", host="localhost", **headers))

    def test_other_programs_need_no_origin(self) -> None:
        assert not is_foreign(scope(host="localhost", user_agent="curl/8.5.0"))
        assert not is_foreign(scope(host="localhost"))

    @pytest.mark.parametrize("site", ["cross-site", "same-site", "Cross-Site", "SAME-SITE", "new-kind"])
    def test_what_the_browser_says_counts_too(self, site: str) -> None:
        assert is_foreign(scope(origin="http://localhost", host="localhost", sec_fetch_site=site))
        assert not is_foreign(scope("GET", host="localhost", sec_fetch_site=site))  # a link to the page

    def test_names_of_this_machine(self) -> None:
        names = own_names("127.0.0.1")
        assert names == {"127.0.0.1", "localhost"} and own_names("::1") == {*names, "[::1]"}
        assert own_names("0.0.0.0") is None and own_names("example.org") is None
        assert own_names("localhost") == {"127.0.0.1", "localhost", "[::1]"}
        for host in ("localhost", "LocalHost:7860", "127.0.0.1:1"):
            assert to_known_host(scope(host=host), names)
        for host in (
            "evil.example",
            "localhost.evil.example",
            "",
            "[::1]:7860",
            "localhost:1:2",
            "a/localhost",
        ):
            assert not to_known_host(scope(host=host), names)
            assert to_known_host(scope(host=host), None)
        assert to_known_host(scope(host="[::1]:7860"), own_names("::1"))
