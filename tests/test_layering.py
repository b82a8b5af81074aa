"""Imports run one way, so packages have no cycles; evaluation imports no models, leaf modules no config."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fss_d2"
# The packages and top modules of fss_d2: each imports those below it only.
ROOMS = (
    *("cli", "app", "label", "inference", "engine", "visualization", "evaluation", "checkpoint", "config"),
    *("modeling", "data", "soft_masks", "check_env", "io", "model_zoo", "__init__", "compat"),
)


def imported(path: Path) -> Iterator[str]:
    """Full names of all modules and names that a file imports, at any depth of its code."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def breaches(folder: str, *forbidden: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((PACKAGE / folder).rglob("*.py"))
        for name in imported(path)
        if any(f"{name}.".startswith(f"fss_d2.{package}.") for package in forbidden)
    ]


def room_imports() -> dict[tuple[str, str], list[str]]:
    """Which files of a room import from another, by (importing room, imported room)."""
    edges: dict[tuple[str, str], list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for name in imported(path):
            top, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if top == PACKAGE.name and other not in ("", room):
                edges.setdefault((room, other), []).append(str(path.relative_to(PACKAGE)))
    return edges


def test_every_room_imports_only_rooms_below_it() -> None:
    edges = room_imports()
    assert {room for edge in edges for room in edge} <= set(ROOMS)
    assert {
        edge: files for edge, files in edges.items() if ROOMS.index(edge[0]) >= ROOMS.index(edge[1])
    } == {}


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("evaluation", ("modeling", "checkpoint", "engine")),
        ("visualization", ("modeling", "checkpoint", "engine")),
        ("modeling/layers", ("modeling.backbone", "modeling.meta_arch", "data", "config")),
        ("modeling/backbone", ("modeling.meta_arch", "modeling.proposals", "data", "evaluation", "engine")),
        ("modeling/proposals", ("modeling.meta_arch", "data", "evaluation", "engine")),
    ],
)
def test_imports_run_one_way(folder: str, forbidden: tuple[str, ...]) -> None:
    assert breaches(folder, *forbidden) == []


def reads_config(path: Path) -> bool:
    """Whether a file names a cfg or Detectron2's configs."""
    tree = ast.parse(path.read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    return bool(names & {"cfg", "CfgNode", "configurable"}) or any(
        name.startswith("detectron2.config") for name in imported(path)
    )


@pytest.mark.parametrize("folder", ["modeling/layers", "modeling/proposals"])
def test_leaf_modules_read_no_config(folder: str) -> None:
    readers = [path.name for path in sorted((PACKAGE / folder).glob("*.py")) if reads_config(path)]
    assert readers == []


def test_a_breach_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative imports and those inside functions count; a name that merely begins alike does not."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "fss_d2")
    folder = tmp_path / "fss_d2" / "evaluation"
    folder.mkdir(parents=True)
    (folder / "far.py").write_text("def f():\n    from ..modeling.layers import resize\n")
    (folder / "near.py").write_text("from .. import modeling\nimport fss_d2.modeling.fusion as k\n")
    (folder / "good.py").write_text("import fss_d2.modeling_notes\nfrom .metrics import modeling\n")
    assert breaches("evaluation", "modeling") == [
        "fss_d2/evaluation/far.py: fss_d2.modeling.layers.resize",
        "fss_d2/evaluation/near.py: fss_d2.modeling",
        "fss_d2/evaluation/near.py: fss_d2.modeling.fusion",
    ]
    (tmp_path / "fss_d2" / "files.py").write_text("from .evaluation import far\nfrom . import cli, files\n")
    assert room_imports() == {
        ("evaluation", "modeling"): ["evaluation/far.py", "evaluation/near.py", "evaluation/near.py"],
        ("evaluation", "modeling_notes"): ["evaluation/good.py"],
        ("files", "evaluation"): ["files.py"],
        ("files", "cli"): ["files.py"],
    }
    (folder / "reader.py").write_text("def build(cfg):\n    return cfg.MODEL\n")
    assert [path.name for path in sorted(folder.iterdir()) if reads_config(path)] == ["reader.py"]
