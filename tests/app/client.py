"""A visitor without a browser, who may be an attacker."""

import http.client
import itertools
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_sessions = itertools.count()


class Visitor:
    """Sends requests to a page exactly as they are given."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url).netloc
        self._session = f"visitor{next(_sessions)}"
        config = json.loads(self.get("/config")[1])
        self.events = {event["api_name"]: event for event in config["dependencies"]}

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of the answer; the path is sent as it is."""
        connection = http.client.HTTPConnection(self._address, timeout=120)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        """Status and body."""
        return self.request("GET", path, headers=headers)

    def post(self, path: str, content: Any) -> tuple[int, bytes]:
        """Send JSON."""
        return self.request("POST", path, json.dumps(content).encode(), {"content-type": "application/json"})

    def upload(self, name: str, content: bytes) -> tuple[int, bytes]:
        """Upload a file like the page."""
        head = f'--XX\r\ncontent-disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + b"\r\n--XX--\r\n"
        form = {"content-type": "multipart/form-data; boundary=XX"}
        return self.request("POST", "/gradio_api/upload", body, form)

    def give(self, path: str | Path) -> dict[str, Any]:
        """Upload a file; return its value in an event."""
        status, answer = self.upload(Path(path).name, Path(path).read_bytes())
        assert status == 200, answer
        return file_value(json.loads(answer)[0])

    def join(self, event: str, data: list[Any], picked: Any = None) -> tuple[int, bytes]:
        """Trigger an event with the values of its components, without the session."""
        body = {
            "data": [None, *data],
            "event_data": None if picked is None else {"index": picked, "value": None},
            "fn_index": self.events[event]["id"],
            "session_hash": self._session,
        }
        return self.post("/gradio_api/queue/join", body)

    def do(self, event: str, *data: Any, picked: Any = None) -> tuple[list[Any], list[str]]:
        """Trigger an event and wait for it; values of its outputs, and the messages that are shown."""
        status, answer = self.join(event, list(data), picked)
        assert status == 200, answer
        status, stream = self.get(f"/gradio_api/queue/data?session_hash={self._session}")
        messages = [json.loads(line[6:]) for line in stream.decode().splitlines() if line.startswith("data:")]
        shown = [message["log"] for message in messages if message["msg"] == "log"]
        (done,) = (message["output"] for message in messages if message["msg"] == "process_completed")
        shown += [done["error"] or "unknown error"] if "error" in done else []
        return done.get("data", []), shown


def file_value(path: str) -> dict[str, Any]:
    """The value of a file in an event."""
    return {"path": path, "orig_name": Path(path).name, "meta": {"_type": "gradio.FileData"}}
