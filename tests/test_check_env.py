"""The report says what is wrong, and only then ends with exit code 1."""

import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fss_d2 import check_env, compat
from fss_d2.check_env import Finding


def levels(findings: Iterator[Finding]) -> list[str]:
    """The levels of a report, in order."""
    return [finding.level for finding in findings]


def fake_versions(installed: dict[str, str]) -> Callable[[str], str]:
    """Stand-in for importlib.metadata.version over a dict of what is installed."""

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    return version


@pytest.mark.parametrize(
    ("version", "level"),
    [((3, 9, 18), "WRONG"), ((3, 10, 0), "ok"), ((3, 12, 9), "ok"), ((3, 14, 1), "note")],
)
def test_python_range(version: tuple[int, int, int], level: str) -> None:
    assert levels(check_env.check_python(version)) == [level]


def test_requirements_are_compared_with_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = ["torch>=2.4", "numpy>=1.24", "scipy>=1.10", 'ruff>=0.9; extra == "dev"']
    installed = {"torch": "2.12.1+cu130", "numpy": "1.20.0"}
    monkeypatch.setattr(importlib.metadata, "requires", lambda package: requirements)
    monkeypatch.setattr(importlib.metadata, "version", fake_versions(installed))
    lines = [str(finding) for finding in check_env.check_requirements()]
    assert lines == [
        "ok     torch 2.12.1+cu130",
        "WRONG  numpy 1.20.0 is not >=1.24  ->  pip install 'numpy>=1.24'",
        "WRONG  scipy is not installed  ->  pip install 'scipy>=1.10'",
    ]


def test_package_that_is_not_installed() -> None:
    (finding,) = check_env.check_requirements("fss_d2_of_another_planet")
    assert finding.level == "WRONG" and "pip install -e ." in finding.mend


def test_import_that_fails_names_module_and_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    lines = [str(finding) for finding in check_env.check_imports()]
    assert len(lines) == 1
    assert lines[0].startswith("WRONG  import cv2 fails: ModuleNotFoundError")
    assert lines[0].endswith("->  pip install opencv-python-headless")


@pytest.mark.parametrize(
    ("state", "level", "words"),
    [
        ("compiled", "ok", "with compiled"),
        ("absent", "ok", "without compiled"),
        ("broken", "note", "do not load"),
    ],
)
def test_detectron2_flavours(monkeypatch: pytest.MonkeyPatch, state: str, level: str, words: str) -> None:
    monkeypatch.setattr(compat, "operator_state", lambda: state)
    (finding,) = check_env.check_detectron2()
    assert finding.level == level and words in finding.text


def test_missing_detectron2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_env.importlib.util, "find_spec", lambda name: None)
    (finding,) = check_env.check_detectron2()
    assert finding.level == "WRONG" and "install_detectron2.py" in finding.mend


def test_missing_weights_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", fake_versions({}))
    (finding,) = check_env.check_weights()
    assert finding.level == "note" and check_env.WEIGHTS_PACKAGE in finding.mend


def test_datasets_prepared_found_and_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    (tmp_path / "fss_d2" / "pascal5i").mkdir(parents=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    prepared, found, missing = (str(finding) for finding in check_env.check_datasets())
    assert prepared == f"ok     PASCAL-5i: prepared in {tmp_path}"
    assert found == f"note   COCO-20i: found in {tmp_path}  ->  python datasets/prepare_coco20i.py"
    assert missing.startswith(f"note   not in {tmp_path}: FSS-1000, glyphs  ->  ")


def test_scripts_named_in_the_report_exist() -> None:
    scripts = Path(check_env.__file__).parents[1] / "datasets"
    assert all((scripts / f"prepare_{script}.py").is_file() for _, _, script in check_env.DATASETS.values())


def test_dataset_root_not_set_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)
    (finding,) = check_env.check_datasets()
    assert "DETECTRON2_DATASETS is not set" in finding.text


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("note", 0), ("WRONG", 1)])
def test_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], level: str, code: int
) -> None:
    monkeypatch.setattr(check_env, "find_all", lambda: iter([Finding("ok", "a"), Finding(level, "b", "c")]))
    assert check_env.main() == code
    printed = capsys.readouterr().out.splitlines()
    assert printed[1] == f"{level:<5}  b  ->  c"
    assert printed[2] == ("1 thing(s) to mend" if code else "everything that is needed is there")


def test_this_environment_has_no_broken_imports() -> None:
    assert "WRONG" not in levels(check_env.check_imports())
    assert "WRONG" not in levels(check_env.check_gpu())
