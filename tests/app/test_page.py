"""The page over HTTP: what it does, and what it must not do."""

import html
import json
import re
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="needs the extra app")

from fss_d2.app import server
from fss_d2.app.events import plain
from fss_d2.app.session import Session
from fss_d2.label import REVIEW_BELOW
from tests.app.client import Visitor, file_value
from tests.app.pages import SIZE, disc, disc_mask, page, save

ROOT = Path(__file__).parents[2]
SECRET = "not for visitors, in no case"
TARGETS = ("/etc/passwd", str(ROOT / "pyproject.toml"), str(ROOT / "fss_d2/app/page.py"), "pyproject.toml")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with page("Prototype", "DCAMA") as address:
        yield address.rstrip("/")


@pytest.fixture
def visitor(url: str) -> Visitor:
    return Visitor(url)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file in the system's temporary folder; Gradio serves what a program returns from there."""
    path = tmp_path / "secret.txt"
    path.write_text(SECRET)
    return path


def picture(visitor: Visitor, folder: Path, x: int, y: int) -> dict:
    return visitor.give(save(folder / f"disc{x}.png", disc(x, y)))


def show_and_ask(visitor: Visitor, folder: Path) -> None:
    """A support with its mask, a query."""
    visitor.do("add_supports", "disc", [picture(visitor, folder, 40, 40)])
    mask = visitor.give(save(folder / "mask.png", disc_mask(40, 40)))
    _, shown = visitor.do("read_mask", "disc", mask, "")
    assert shown == []
    visitor.do("add_queries", "Prototype", 0.5, [picture(visitor, folder, 75, 50)])


def test_masks(visitor: Visitor, tmp_path: Path) -> None:
    show_and_ask(visitor, tmp_path)
    (gallery, table, chosen, *_), shown = visitor.do("find", "Prototype", 0.5)
    assert shown == [] and "disc75.png" in table
    area = int(table.split('data-pixels="')[1].split('"')[0])
    assert abs(area - disc_mask(75, 50).sum()) < 0.2 * area
    status, content = visitor.get(f"/gradio_api/file={chosen['path']}")
    (tmp_path / "chosen.png").write_bytes(content)
    assert status == 200 and Image.open(tmp_path / "chosen.png").size == (120, 90)
    (_, higher, *_), _ = visitor.do("query_view", "Prototype", 0.8)
    assert 0 < int(higher.split('data-pixels="')[1].split('"')[0]) < area


def test_what_does_not_show_the_object(tmp_path: Path) -> None:
    """A negative lowers the probability in the table; with a limit above it, nothing is masked."""
    with page("Prototype", less_sure=9) as address:
        visitor = Visitor(address.rstrip("/"))
        show_and_ask(visitor, tmp_path)
        (_, table, *_), _ = visitor.do("find", "Prototype", 0.5)
        before = present(table)
        visitor.do("add_supports", "disc", [picture(visitor, tmp_path, 75, 50)])
        (gallery, *_, meaning, status), shown = visitor.do("mark_absent", "disc")
        assert shown == [] and [one["caption"] for one in gallery["value"]] == ["✓ disc", "✗ not disc"]
        assert meaning == "not the object"
        where = "is marked where it does not show disc"
        assert status == f"Picture 2 of 2, disc75.png, {where}; 2 marked in all."
        (_, table, *_), shown = visitor.do("find", "Prototype", 0.5)
        assert shown == [] and present(table) < before
        values, _ = visitor.do("set_present_above", "Prototype", 0.5, 0.9)
        assert 'data-pixels="0"' in values[1] and "<td>not found</td>" in values[1]
        sign = "⚠" if 1 - present(table) < REVIEW_BELOW else "∅"
        assert values[0]["value"][0]["caption"] == f"{sign} disc75.png"
        assert f"nothing found; probability that it is there: disc {present(table):.2f}." in values[7]
        visitor.do("set_present_above", "Prototype", 0.5, 0)
        (gallery, *_), _ = visitor.do("remove")
        assert [entry["caption"] for entry in gallery["value"]] == ["✓ disc"]
        (_, table, *_), shown = visitor.do("find", "Prototype", 0.5)
        assert shown == [] and present(table) == before


def present(table: str) -> float:
    """The probability in the first row."""
    cells = re.findall(r"<td>(.*?)</td>", table)
    return float(cells[2])


def test_corners_and_attention(visitor: Visitor, tmp_path: Path) -> None:
    show_and_ask(visitor, tmp_path)
    (*_, status), _ = visitor.do("click_corner", "disc", picked=[16, 16])
    assert status == "Now click the opposite corner of the box."
    (gallery, name, *_, status), shown = visitor.do("click_corner", "disc", picked=[64, 64])
    assert shown == [] and status == "Picture 1 of 1, disc40.png, is marked; 1 marked in all."
    (attention, said), _ = visitor.do("attend", "Prototype", picked=[75, 50])
    assert said["value"].startswith("**Prototype** cannot show") and said["visible"]
    (attention, said), shown = visitor.do("attend", "DCAMA", picked=[75, 50])
    assert shown == [] and attention["visible"] and attention["value"]["path"].endswith("jpg")


def test_other_supports_take_old_masks_away(visitor: Visitor, tmp_path: Path) -> None:
    show_and_ask(visitor, tmp_path)
    settings = ("Prototype", 0.5)
    (found, table, *_), _ = visitor.do("find", *settings)
    same, _ = visitor.do("drop_outdated", *settings)
    assert "data-pixels" in table and len(same) == 9
    assert not any({"value", "visible"} & update.keys() for update in same)
    visitor.do("add_box", "disc", 100, 70, 110, 80)
    (gallery, table, _, *hidden, compared, state, panel), shown = visitor.do("drop_outdated", *settings)
    assert shown == [] and "No masks yet" in table and len(gallery["value"]) == 1
    assert gallery["value"][0]["image"]["path"] != found["value"][0]["image"]["path"]
    assert [update["visible"] for update in hidden] == [False] * 3 and panel["visible"] is False
    assert compared is None and state == "Press **Find the object**."


def test_two_visitors_at_once(url: str, tmp_path: Path) -> None:
    visitors = [Visitor(url) for _ in range(2)]
    for number, visitor in enumerate(visitors):
        visitor.do("add_supports", f"thing {number}", [picture(visitor, tmp_path, 40, 40)])
        mask = visitor.give(save(tmp_path / f"{number}.png", disc_mask(40, 40, 8 + 8 * number)))
        visitor.do("read_mask", f"thing {number}", mask, "")
        visitor.do("add_queries", "DCAMA", 0.5, [picture(visitor, tmp_path, x, 50) for x in (50, 75)])
    with ThreadPoolExecutor() as pool:
        together = list(pool.map(lambda visitor: visitor.do("find", "DCAMA", 0.5), visitors))
    for number, (visitor, (values, shown)) in enumerate(zip(visitors, together, strict=True)):
        assert shown == [] and values[1].count(f"thing {number}") == values[1].count("thing") == 2
        visitor.do("add_box", f"thing {number}", 100, 70, 110, 80)  # the same again, now alone
        visitor.do("unmark")
        mask = visitor.give(save(tmp_path / f"{number}.png", disc_mask(40, 40, 8 + 8 * number)))
        visitor.do("read_mask", f"thing {number}", mask, "")
        assert visitor.do("find", "DCAMA", 0.5)[0][1] == values[1]


def test_visitors_are_apart(url: str, tmp_path: Path) -> None:
    one, other = Visitor(url), Visitor(url)
    show_and_ask(one, tmp_path)
    one.do("find", "Prototype", 0.5)
    (gallery, table, chosen, *_), _ = other.do("query_view", "Prototype", 0.5)
    assert gallery["value"] == [] and "No masks yet" in table and chosen is None
    _, shown = other.do("find", "Prototype", 0.5)
    assert shown == ["no picture to search yet: add some (step 2)"]
    other.do("add_queries", "Prototype", 0.5, [picture(other, tmp_path, 75, 50)])
    _, shown = other.do("find", "Prototype", 0.5)
    assert shown[0].startswith("no object is marked yet")


def fetch_paths(target: str) -> Iterator[str]:
    up = "../" * 12 + target.lstrip("/")
    for prefix in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/", "/svelte/"):
        for path in (target, up, up.replace("../", "..%2f"), up.replace("../", "%2e%2e/")):
            yield prefix + path
    yield f"/gradio_api/proxy=file://{target}"
    yield f"/gradio_api/file=file://{target}"


@pytest.mark.parametrize("target", [*TARGETS, "secret"])
def test_files_cannot_be_fetched(visitor: Visitor, target: str, secret: Path) -> None:
    target = str(secret) if target == "secret" else target
    content = (Path(target) if Path(target).is_absolute() else ROOT / target).read_bytes()
    for path in fetch_paths(target):
        status, answer = visitor.get(path)
        assert status in (400, 403, 404), path
        assert content[:20] not in answer, path


def test_files_beyond_the_uploads_cannot_be_fetched(visitor: Visitor, tmp_path: Path, secret: Path) -> None:
    uploaded = picture(visitor, tmp_path, 40, 40)["path"]
    assert visitor.get(f"/gradio_api/file={uploaded}")[0] == 200
    folder = Path(uploaded).parents[1]
    for path in (f"{folder}/../{secret.name}", f"{folder}/{'../' * 9}etc/passwd", str(folder), f"{folder}/"):
        assert visitor.get(f"/gradio_api/file={path}")[0] == 403, path
    (folder / "link").symlink_to(secret)
    assert visitor.get(f"/gradio_api/file={folder}/link")[0] == 403
    for address in ("http://127.0.0.1:1/x", "//127.0.0.1:1/x", "https:/127.0.0.1:1/x"):
        assert visitor.get(f"/gradio_api/file={address}")[0] == 403


@pytest.mark.parametrize(
    "target", [*TARGETS, "../../etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/x", "", "\0"]
)
def test_files_cannot_be_given_as_uploads(visitor: Visitor, target: str) -> None:
    fake = file_value(target)
    for name, event in visitor.events.items():
        if len(event["inputs"]) < 2:
            continue  # takes no value
        for value in (fake, [fake], {"background": fake, "layers": [fake], "composite": fake}):
            assert visitor.join(name, [value] * (len(event["inputs"]) - 1))[0] == 403, name
        body = {"data": [fake] * len(event["inputs"]), "fn_index": event["id"], "session_hash": "x"}
        for way in ("run", "api", "call"):
            assert visitor.post(f"/gradio_api/{way}/{name}", body)[0] == 404, name


def test_a_form_is_checked_too(visitor: Visitor) -> None:
    event = visitor.events["add_supports"]["id"]
    body = {"data": [None, "disc", [file_value("/etc/passwd")]], "fn_index": event, "session_hash": "x"}
    form = {"content-type": "multipart/form-data; boundary=XX"}
    for path in ("/gradio_api/queue/join", "/gradio_api/queue/join/", "//gradio_api/queue/join"):
        status, _ = visitor.request("POST", path, json.dumps(body).encode(), form)
        assert status in (403, 404), path


def test_gradio_refuses_them_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, secret: Path) -> None:
    from fss_d2.app.guard import Guard

    monkeypatch.setattr(Guard, "_holds", lambda self, path: True)
    with page("Prototype") as url:
        visitor = Visitor(url)
        for target in ("/etc/passwd", str(ROOT / "pyproject.toml"), str(secret)):
            assert visitor.get(f"/gradio_api/file={target}")[0] == 403
            values, shown = visitor.do("add_supports", "disc", [file_value(target)])
            assert values == [] and shown == ["unknown error"]


def test_an_upload_that_is_gone(visitor: Visitor, tmp_path: Path) -> None:
    given = picture(visitor, tmp_path, 40, 40)
    Path(given["path"]).unlink()
    _, shown = visitor.do("add_supports", "disc", [given])
    assert len(shown) == 1 and "Traceback" not in shown[0] and str(Path(given["path"]).parent) not in shown[0]


def test_no_event_is_an_interface_for_programs(visitor: Visitor) -> None:
    assert {event["api_visibility"] for event in visitor.events.values()} == {"private"}
    for path in ("info", "openapi.json", "runs", "deep_link", "monitoring", "vibe-code", "user", "token"):
        assert visitor.get(f"/gradio_api/{path}")[0] == 404, path
    for path in ("/docs", "/openapi.json", "/monitoring", "/gradio_api/vibe-code", "/gradio_api/mcp/"):
        assert visitor.get(path)[0] == 404, path
    assert visitor.post("/gradio_api/vibe-edit", {})[0] == 404
    assert visitor.request("PUT", "/")[0] == 404


def test_the_page_names_no_folders(visitor: Visitor) -> None:
    for path in ("/", "/config"):
        content = visitor.get(path)[1].decode()
        assert not any(folder in content for folder in (str(ROOT), str(Path.home()) + "/", "fss_d2_app_"))


def test_uploads_are_limited(visitor: Visitor, tmp_path: Path) -> None:
    assert visitor.upload("a.png", bytes(1_100_000))[0] == 413
    assert visitor.request("POST", "/gradio_api/upload", headers={"content-length": "9" * 9})[0] == 413
    assert visitor.request("POST", "/gradio_api/upload", headers={"content-length": "x"})[0] in (400, 411)
    assert visitor.post("/gradio_api/queue/join", "x" * 4_100_000)[0] in (403, 413)
    assert visitor.request("POST", "/gradio_api/queue/join", b"[" * 100_000)[0] == 400
    given = [picture(visitor, tmp_path, 40, 40)] * 4
    _, shown = visitor.do("add_queries", "Prototype", 0.5, given)
    assert shown == ["at most 3 pictures at a time: remove some first"]
    _, shown = visitor.do("add_supports", "disc", given)
    assert shown == ["at most 3 pictures can show objects: remove some first"]
    bomb = save(tmp_path / "bomb.png", np.zeros((1000, 1000), bool))
    _, shown = visitor.do("add_supports", "disc", [visitor.give(bomb)])
    assert shown == ["bomb.png has 1000x1000 pixels: at most 0.5 million are allowed"]


def paint(visitor: Visitor, index: str, content: bytes) -> tuple[list, list[str]]:
    """Send a painted layer like the page, and use it."""
    component = visitor.events["paint"]["inputs"][-1]
    fields = {"type": "layer", "index": index, "id": "one", "component_id": component}
    fields |= {"fn_name": "accept_blobs", "session_hash": visitor._session}
    head = "".join(
        f'--XX\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    )
    head += '--XX\r\ncontent-disposition: form-data; name="file"; filename="blob"\r\n\r\n'
    form = {"content-type": "multipart/form-data; boundary=XX"}
    body = head.encode() + content + b"\r\n--XX--\r\n"
    status, _ = visitor.request("POST", "/gradio_api/component_server", body, form)
    sent = {"id": "one", "background": None, "layers": [], "composite": None}
    return visitor.do("paint", "disc", sent) if status == 200 else ([], [str(status)])


def test_paintings_are_limited(visitor: Visitor, tmp_path: Path) -> None:
    visitor.do("add_supports", "disc", [picture(visitor, tmp_path, 40, 40)])
    layer = np.zeros((*SIZE, 4), np.uint8)
    layer[disc_mask(40, 40)] = 255
    good = Path(save(tmp_path / "layer.png", layer)).read_bytes()
    large = Path(save(tmp_path / "large.png", np.full((800, 800, 4), 255, np.uint8))).read_bytes()
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"  # Pillow would have Ghostscript run it
    for content in (large, script, b""):
        assert paint(visitor, "0", content) == ([], ["unknown error"])
    for index in ("99999999999", " 99999999999", "99_999_999_999", "-1", "4"):  # a list of that length
        assert paint(visitor, index, good)[1] == ["500"]
    assert paint(visitor, "0", bytes(4_100_000))[1] == ["413"]
    (*_, status), shown = paint(visitor, "0", good)
    assert (
        shown == []
        and status.startswith("Picture 1 of 1, ")
        and status.endswith(" is marked; 1 marked in all.")
    )


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pages_of_other_sites_send_nothing(visitor: Visitor, site: str) -> None:
    for path in ("upload", "queue/join", "component_server", "cancel", "reset"):
        status, answer = visitor.request("POST", f"/gradio_api/{path}", b"{}", {"sec-fetch-site": site})
        assert (status, answer) == (403, b"Not from other sites"), path


def test_errors_are_one_line(visitor: Visitor, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("no picture")
    values, shown = visitor.do("add_supports", "disc", [visitor.give(tmp_path / "no.png")])
    reason = "cannot identify image file &#x27;no.png&#x27;"
    assert shown == [f"image file no.png cannot be read ({reason}); replace it"]
    assert values[-1] is None or values[-1] == {"__type__": "update", "value": None}  # the field is emptied
    visitor.do("add_supports", "disc", [picture(visitor, tmp_path, 40, 40)])
    wrong = visitor.give(save(tmp_path / "m.png", np.ones((5, 5), bool)))
    _, shown = visitor.do("read_mask", "disc", wrong, "")
    assert len(shown) == 1 and "m.png" in shown[0] and tempfile.gettempdir() not in shown[0]
    _, shown = visitor.do("paint", "<img src=x>", None)
    assert shown == ["nothing is painted yet: draw over the object first"]


def test_mask_values_are_asked_for(visitor: Visitor, tmp_path: Path) -> None:
    pictures = [picture(visitor, tmp_path, x, 40) for x in (40, 60, 80)]
    visitor.do("add_supports", "disc", pictures)
    instances = disc_mask(40, 40) + 2 * disc_mask(90, 40).astype(np.uint8)
    mask = visitor.give(save(tmp_path / "m.png", instances))
    (*_, emptied, field), shown = visitor.do("read_mask", "disc", mask, "")
    found, asked = shown[0].split(": ")
    assert found == "mask file m.png holds the values 0, 1, 2"
    assert asked == "answer in the field below, such as 1,2, and press Enter"
    assert emptied is None and field["visible"] is True
    assert visitor.do("mask_values", "disc", "1;2")[1] == [
        "mask_values &#x27;2&#x27;: a rule for all classes is given twice; give [CLASS=]OBJECT "
        "[ignore=VALUES] [frame=upright|stored], such as 1,2,3 or &#x27;cup=15 ignore=255&#x27;"
    ]
    (*_, status, _, _), shown = visitor.do("mask_values", "disc", "1,2")
    assert shown == [] and status == "Picture 2 of 3, disc60.png, is not marked yet; 1 marked in all."
    values, shown = visitor.do("mask_values", "disc", "2")  # no mask waits
    assert shown == [] and len(values) == 8
    (*_, status, _, _), shown = visitor.do("read_mask", "disc", mask, "nonzero")
    assert shown == [] and status == "Picture 3 of 3, disc80.png, is not marked yet; 2 marked in all."


def test_names_are_no_mark_up() -> None:
    name = "__![a](b)__<i>$$x$$.png"
    shown = plain(name)
    assert re.fullmatch(r"(?:[a-z.()]|&#\d+;)+", shown) and html.unescape(shown) == name
    assert plain("dog 2, it's 5 % (left)") == "dog 2, it's 5 % (left)"


def test_messages_are_no_html(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("/etc/<b>x.png is bad")

    monkeypatch.setattr(Session, "findings", fail)
    assert visitor.do("query_view", "Prototype", 0.5)[1] == ["&lt;b&gt;x.png is bad"]


def test_bugs_are_not_shown(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise TypeError(f"{ROOT}: details")

    monkeypatch.setattr(Session, "findings", fail)
    assert visitor.do("query_view", "Prototype", 0.5) == ([], ["unknown error"])


@pytest.mark.parametrize("body", [b"1e999", b'{"fn_index": -1, "data": [], "session_hash": "a"}'])
def test_what_gradio_cannot_do_is_one_line_of_the_log(
    visitor: Visitor, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    form = {"content-type": "application/json"}
    status, answer = visitor.request("POST", "/gradio_api/queue/join", body, form)
    assert (status, answer) == (500, b"Internal Server Error")
    (line,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert line.getMessage().startswith("POST /gradio_api/queue/join failed: ") and line.exc_info is None


def test_there_is_no_websocket(visitor: Visitor) -> None:
    keys = {"sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==", "sec-websocket-version": "13"}
    upgrade = {"upgrade": "websocket", "connection": "Upgrade", **keys}
    assert visitor.request("GET", "/gradio_api/queue/join", None, upgrade)[0] in (403, 404)


def test_other_names_of_this_machine_are_refused(visitor: Visitor) -> None:
    assert visitor.get("/", host="evil.example")[0] == 400
    assert visitor.get("/", host="localhost")[0] == 200


def test_no_other_server_is_needed(visitor: Visitor) -> None:
    import http.client

    connection = http.client.HTTPConnection(visitor._address, timeout=30)
    connection.request("GET", "/")
    policy = connection.getresponse().headers["content-security-policy"]
    connection.close()
    assert "default-src 'self'" in policy and "http" not in policy


def test_files_go_with_the_server(tmp_path: Path) -> None:
    with page("Prototype") as url:
        visitor = Visitor(url)
        show_and_ask(visitor, tmp_path)
        visitor.do("find", "Prototype", 0.5)
        packed = visitor.do("pack", "Prototype", 0.5)[0][0]["value"]["path"]
        folder = Path(packed).parents[2]
        assert folder.is_dir() and folder.stat().st_mode & 0o077 == 0
        assert json.loads(visitor.get("/config")[1])["analytics_enabled"] is False
    assert not folder.exists()


def test_uploads_are_deleted_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_KEPT", 4)  # seconds
    with page("Prototype") as url:
        visitor = Visitor(url)
        given = Path(picture(visitor, tmp_path, 40, 40)["path"])
        values, _ = visitor.do("add_supports", "disc", [file_value(str(given))])
        shown = Path(values[0]["value"][0]["image"]["path"])
        assert given.exists() and shown.exists()
        deadline = time.monotonic() + 120
        while (given.exists() or shown.exists()) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not given.exists() and not shown.exists()
