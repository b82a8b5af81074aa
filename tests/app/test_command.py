"""The command ``fss-d2 app``, and demo/app.py as a program."""

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from fss_d2.app import command
from fss_d2.app.server import check_address
from fss_d2.engine.command_line import run_command

ROOT = Path(__file__).parents[2]
APP = ROOT / "demo" / "app.py"
CONFIG = ROOT / "configs/prototype/glyphs_efficientnet_lite0.yaml"


def test_arguments() -> None:
    args = command.parse(
        ["--config-file", "a.yaml", "b.yaml", "--weights", "-", "b.pth", "--max-pictures", "5"]
    )
    assert args.config_file == ["a.yaml", "b.yaml"] and args.weights == ["-", "b.pth"]
    assert args.host == "127.0.0.1" and args.port is None and args.max_upload_mb == 20
    assert args.max_pictures == 5 and args.device == ""
    assert args.max_megapixels == 96 and args.max_disk_mb == 2000


def test_without_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "gradio" else find(name, *a)
    )
    with pytest.raises(ValueError, match=r"needs the package gradio: pip install -e '\.\[app\]'"):
        command.main(["--config-file", "none.yaml"])


def test_a_missing_config_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio", reason="needs the extra app")
    assert run_command(lambda: command.main(["--config-file", "none.yaml"])) == 1
    assert capsys.readouterr().err.strip().endswith("error: config file none.yaml does not exist")


def test_addresses() -> None:
    pytest.importorskip("gradio", reason="needs the extra app")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"^cannot listen on 127\.0\.0\.1, port {port} \(.*in use\): give"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)
    check_address("localhost", None)
    for host, number in (("127.0.0.1", 99999), ("no.host.invalid", None), ("192.0.2.1", None)):
        with pytest.raises(OSError, match=rf"^cannot listen on {host}.*: give another --host or --port$"):
            check_address(host, number)


def test_as_a_program(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="needs the extra app")
    config = tmp_path / "prototype/tiny.yaml"
    config.parent.mkdir()
    config.write_text(f'_BASE_: {CONFIG}\nMODEL:\n  BACKBONE:\n    WEIGHTS: ""\n')
    env = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    words = [sys.executable, str(APP), "--config-file", str(config), "--device", "cpu"]
    process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        url = next(found.group() for line in lines if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert b"Few-shot segmentation" in answer.read()
        assert list(tmp_path.glob("fss_d2_app_*"))
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and errors.strip().endswith("stopped by SIGTERM")
    assert not list(tmp_path.glob("fss_d2_app_*"))
