"""Requests of other sites, too large ones, and those that are never finished, as the server takes them."""

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("gradio", reason="needs the extra app")

from fss_d2.app import patience
from fss_d2.app.guard import UploadQuota
from fss_d2.app.uploads import Limits
from tests.app.client import Visitor
from tests.app.pages import disc, page, save

POSTS = ("upload", "queue/join", "component_server", "cancel", "reset")


class TestQuota:
    """Bytes of a visitor within the time for which they are kept."""

    def test_old_bytes_do_not_count(self) -> None:
        now = [0.0]
        quota = UploadQuota(100, 60, lambda: now[0])
        assert quota.take("a", 60) and not quota.take("a", 41) and quota.take("a", 40)
        assert quota.take("b", 100)  # another visitor
        now[0] = 59.9
        assert not quota.take("a", 1)
        now[0] = 60
        assert quota.take("a", 100) and not quota.take("a", 1)

    def test_bytes_that_did_not_come_are_given_back(self) -> None:
        quota = UploadQuota(100, 60, lambda: 0.0)
        assert quota.take("a", 100)
        quota.give_back("a", 70)
        assert not quota.take("a", 71) and quota.take("a", 70)


class TestPacedBody:
    """Bodies that come, and bodies that do not."""

    @staticmethod
    def receive(parts: list[tuple[float, dict[str, Any]]]) -> Callable[[], Awaitable[dict[str, Any]]]:
        left = iter(parts)

        async def next_part() -> dict[str, Any]:
            wait, message = next(left)
            await asyncio.sleep(wait)
            return message

        return next_part

    @staticmethod
    async def read(body: patience.PacedBody) -> bytes:
        content, more = b"", True
        while more:
            message = await body()
            content += message["body"]
            more = message["more_body"]
        return content

    @pytest.fixture(autouse=True)
    def short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(patience, "_PATIENCE", 0.3)
        monkeypatch.setattr(patience, "_LEAST_RATE", 1000)

    def test_in_time(self) -> None:
        part = {"type": "http.request", "body": b"x" * 200, "more_body": True}
        parts = [(0.1, part)] * 6 + [(0.0, {"type": "http.request", "body": b"y", "more_body": False})]
        body = patience.PacedBody(self.receive([*parts, (0.5, {"type": "http.disconnect"})]))

        async def run() -> None:  # 0.6 s are more than 0.3, but the bytes come at 2000 per second
            assert await self.read(body) == b"x" * 1200 + b"y"
            assert (await body())["type"] == "http.disconnect"  # whenever it comes

        asyncio.run(run())
        assert body.received == 1201 and not body.late

    def test_a_byte_now_and_then(self) -> None:
        drop = {"type": "http.request", "body": b"x", "more_body": True}
        body = patience.PacedBody(self.receive([(0.1, drop)] * 99))
        with pytest.raises(patience.TooSlowError, match="not finished in time"):
            asyncio.run(self.read(body))
        assert body.late and body.received <= 4

    def test_cut_off(self) -> None:
        part = {"type": "http.request", "body": b"x", "more_body": True}
        body = patience.PacedBody(self.receive([(0, part), (0, {"type": "http.disconnect"})]), ValueError)
        with pytest.raises(ValueError, match="the request was not finished"):
            asyncio.run(self.read(body))
        assert not body.late

    def test_only_waiting_counts(self) -> None:
        part = {"type": "http.request", "body": b"x", "more_body": True}
        body = patience.PacedBody(self.receive([(0, part)] * 3))

        async def run() -> None:
            for _ in range(3):
                await body()
                await asyncio.sleep(0.2)  # the server is busy

        asyncio.run(run())


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patience, "_PATIENCE", 1.5)
        patch.setattr(patience, "_LEAST_RATE", 1_000_000)
        with page("Prototype", limits=Limits(upload_mb=1, pictures=3, disk_mb=2)) as address:
            yield address.rstrip("/")


@pytest.fixture
def visitor(url: str) -> Visitor:
    return Visitor(url)


def folder_of(visitor: Visitor, tmp_path: Path) -> Path:
    return Path(visitor.give(save(tmp_path / "a.png", disc(40, 40)))["path"]).parents[1]


@pytest.mark.parametrize("path", POSTS)
def test_the_server_checks_the_origin(visitor: Visitor, path: str) -> None:
    own = f"http://{visitor._address}"
    for headers in (
        {"origin": "http://evil.example", "sec-fetch-site": "same-origin"},
        {"Origin": "http://EVIL.example", "Sec-Fetch-Site": "Same-Origin"},
        {"origin": "null"},
        {"origin": own.replace(":78", ":79")},
        {"origin": own, "sec-fetch-site": "Cross-Site"},
        {"user-agent": "Mozilla/5.0"},
    ):
        status, answer = visitor.request("POST", f"/gradio_api/{path}", b"{}", headers)
        assert (status, answer) == (403, b"Not from other sites"), headers
    for headers in ({"origin": own}, {"origin": own.upper(), "sec-fetch-site": "same-origin"}, {}):
        assert visitor.request("POST", f"/gradio_api/{path}", b"{}", headers)[0] not in (403, 404), headers


def test_other_sites_read_nothing(visitor: Visitor) -> None:
    for path in ("/", "/config", "/gradio_api/queue/data?session_hash=x", "/gradio_api/heartbeat/x"):
        assert visitor.get(path, origin="http://localhost:3000") == (403, b"Not from other sites")
    assert visitor.get("/", **{"sec-fetch-site": "cross-site"})[0] == 200  # a link


def test_names_are_compared_without_case(visitor: Visitor) -> None:
    port = urlsplit(f"http://{visitor._address}").port
    assert visitor.get("/", host=f"LOCALHOST:{port}")[0] == 200
    assert visitor.get("/", host=f"localhost.evil.example:{port}")[0] == 400


def slow(visitor: Visitor, data: bytes, drops: bytes = b"", pause: float = 0.2) -> tuple[bytes, float]:
    """Send data, then byte by byte; what is answered, and the seconds until the server hangs up."""
    host, port = visitor._address.split(":")
    start = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(data)
        connection.settimeout(pause)
        answer = b""
        for position in range(200):
            try:
                part = connection.recv(9999)
                if not part:
                    break
                answer += part
            except TimeoutError:
                try:
                    connection.sendall(drops[position : position + 1])
                except OSError:
                    break
            except OSError:
                break
    return answer, time.monotonic() - start


@pytest.mark.parametrize(
    ("begun", "drops"),
    [
        (b"", b""),  # a connection without a word
        (b"GET / HTTP/1.1\r\n", b""),
        (b"GET / HTTP/1.1\r\n", b"X-Long: " + b"x" * 150),
        (b"POST /gradio_api/upload HTTP/1.1\r\nhost: localhost\r\n", b""),
    ],
)
def test_heads_that_are_never_finished(visitor: Visitor, begun: bytes, drops: bytes) -> None:
    answer, seconds = slow(visitor, begun, drops)
    assert answer == b"" and 1 < seconds < 10


def test_a_second_head_on_a_connection(visitor: Visitor) -> None:
    first = b"GET /robots.txt HTTP/1.1\r\nhost: localhost\r\n\r\n"
    answer, seconds = slow(visitor, first + b"GET /robots.txt HTTP/1.1\r\n", b"X-Long: " + b"x" * 150)
    assert answer.count(b"200 OK") == 1 and seconds < 15


FORM = "multipart/form-data; boundary=XX"
PART = b'--XX\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + b"x" * 1000


@pytest.mark.parametrize(
    ("path", "kind", "begun", "drops"),
    [
        ("upload", FORM, PART, b""),
        ("upload", FORM, PART, b"x" * 150),
        ("upload", FORM, b"", b""),
        ("component_server", FORM, PART, b""),
        ("component_server", FORM, PART, b"x" * 150),
        ("component_server", "application/json", b'{"data": [', b" " * 150),
        ("queue/join", "application/json", b"", b""),
        ("queue/join", "application/json", b'{"data": [', b" " * 150),
    ],
)
def test_bodies_that_are_never_finished(
    visitor: Visitor, tmp_path: Path, path: str, kind: str, begun: bytes, drops: bytes
) -> None:
    folder = folder_of(visitor, tmp_path)
    before = sorted(folder.iterdir())
    head = f"POST /gradio_api/{path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\n"
    answer, seconds = slow(visitor, f"{head}content-length: 100000\r\n\r\n".encode() + begun, drops)
    assert answer.startswith(b"HTTP/1.1 408") and b"not finished in time" in answer.lower()
    assert seconds < 10 and sorted(folder.iterdir()) == before  # nothing is left of it


def test_a_visitor_who_goes_leaves_nothing(visitor: Visitor, tmp_path: Path) -> None:
    folder = folder_of(visitor, tmp_path)
    before = sorted(folder.iterdir())
    host, port = visitor._address.split(":")
    head = f"POST /gradio_api/upload HTTP/1.1\r\nhost: localhost\r\ncontent-type: {FORM}\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}content-length: 100000\r\n\r\n".encode() + PART)
        time.sleep(0.3)
    deadline = time.monotonic() + 10
    while sorted(folder.iterdir()) != before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert sorted(folder.iterdir()) == before


def test_an_event_may_take_longer(visitor: Visitor) -> None:
    """The time limit is for requests: a stream of answers stays open."""
    host, port = visitor._address.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"GET /gradio_api/heartbeat/abc HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert connection.recv(9999).startswith(b"HTTP/1.1 200")
        connection.settimeout(3)
        try:
            while part := connection.recv(9999):
                assert part
            ended = True
        except TimeoutError:
            ended = False
    assert not ended


@pytest.mark.parametrize(
    "name",
    ["../../evil.png", "..\\..\\evil.png", "/etc/evil.png", "%2e%2e%2fevil.png", "C:\\evil.png", "..", "."],
)
def test_uploads_stay_in_their_folder(visitor: Visitor, tmp_path: Path, name: str) -> None:
    folder = folder_of(visitor, tmp_path)
    status, answer = visitor.upload(name, (tmp_path / "a.png").read_bytes())
    assert status in (200, 400)
    if status == 200:
        assert folder in Path(json.loads(answer)[0]).resolve().parents


def test_disk_is_limited() -> None:
    limits = Limits(upload_mb=1, pictures=3, disk_mb=2)
    with page("Prototype", limits=limits) as url:
        visitor = Visitor(url.rstrip("/"))
        for number in range(2):
            assert visitor.upload(f"{number}.png", bytes([number]) * 900_000)[0] == 200
        status, answer = visitor.upload("3.png", b"3" * 900_000)
        message = (
            b"You gave more than 2 MB of files within an hour (--max-disk-mb): wait, or restart the page"
        )
        assert (status, answer) == (413, message)
        assert visitor.upload("4.png", b"4" * 100_000)[0] == 200  # this one fits
