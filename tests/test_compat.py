"""Detectron2 0.6 works on today's packages, whatever the import order; a compiled one is left alone."""

import importlib
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer

from fss_d2 import compat
from fss_d2.modeling.backbone.weights import load_backbone_weights

PURE = compat.operator_state() == "absent"


def run_python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that sees this project's root and, before all else, `path`."""
    root = Path(compat.__file__).parents[1]
    setup = f"import sys; sys.path[:0] = {[str(entry) for entry in (*path, root)]!r}\n"
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", setup + code], capture_output=True, text=True
    )


def fake_detectron2(folder: Path, operators: str | None) -> None:
    """Write a package `detectron2`; `operators` is the source of its `_C` module, None for no such module."""
    (folder / "detectron2").mkdir()
    (folder / "detectron2" / "__init__.py").write_text("__version__ = '0.6'\n")
    if operators is not None:
        (folder / "detectron2" / "_C.py").write_text(operators)


@pytest.mark.parametrize("order", ["import detectron2, fss_d2", "import fss_d2, detectron2"])
def test_import_order_does_not_matter(order: str) -> None:
    result = run_python(f"{order}\nimport detectron2.data, detectron2.modeling\nprint('fine')")
    assert result.stdout.endswith("fine\n"), result.stderr


def test_names_dropped_by_pillow_and_numpy_are_back() -> None:
    assert PIL.Image.LINEAR == PIL.Image.BILINEAR
    assert np.zeros(2, dtype=np.int).dtype == np.int64
    assert np.zeros(2, dtype=np.float).dtype == np.float64
    assert np.zeros(2, dtype=np.bool).dtype == np.bool_


def test_existing_names_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIL.Image, "LINEAR", "theirs")
    compat.apply()
    assert PIL.Image.LINEAR == "theirs"


@pytest.mark.skipif(not PURE, reason="this Detectron2 has compiled operators")
def test_stand_in_names_the_operator_and_the_fix() -> None:
    operators = importlib.import_module("detectron2._C")
    assert operators.has_cuda() is False
    assert not hasattr(operators, "deform_conv_forward")
    with pytest.raises(AttributeError, match=r"detectron2\._C\.nms_rotated .*INSTALL\.md"):
        operators.nms_rotated(torch.zeros(1, 5))


@pytest.mark.skipif(not PURE, reason="this Detectron2 has compiled operators")
def test_environment_report_and_second_call_survive_the_stand_in() -> None:
    from detectron2.utils.collect_env import collect_env_info

    compat.apply()
    assert importlib.util.find_spec("detectron2._C") is not None
    assert "not compiled" in collect_env_info()


def test_compiled_operators_are_left_alone(tmp_path: Path) -> None:
    fake_detectron2(tmp_path, "def nms_rotated(): return 'compiled'")
    code = "import fss_d2; from detectron2 import _C; print(_C.nms_rotated(), fss_d2.compat.operator_state())"
    assert run_python(code, tmp_path).stdout == "compiled compiled\n"


def test_operators_built_for_another_torch_are_replaced_with_a_warning(tmp_path: Path) -> None:
    fake_detectron2(tmp_path, "raise ImportError('undefined symbol: _ZN3c10')")
    code = "import fss_d2; from detectron2 import _C; print(fss_d2.compat.operator_state(), _C.has_cuda())"
    result = run_python(code, tmp_path)
    assert result.stdout == "broken False\n"
    assert "rebuild Detectron2" in result.stderr and "_ZN3c10" in result.stderr


@pytest.mark.parametrize("operators", [None, "import torch"])
def test_import_fss_d2_imports_no_detectron2(operators: str | None, tmp_path: Path) -> None:
    fake_detectron2(tmp_path, operators)
    result = run_python("import fss_d2; print({'detectron2', 'torch'} & sys.modules.keys())", tmp_path)
    assert result.stdout == "set()\n"


def test_missing_detectron2_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="run `make setup`") as caught:
        compat.apply()
    assert caught.value.name == "detectron2"
    assert "\n" not in str(caught.value)


def test_check_env_goes_on_without_detectron2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-m", "fss_d2.check_env"])
    compat.apply()


def test_checkpoint_round_trip_with_current_torch(tmp_path: Path) -> None:
    model, twin = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer).save("last", iteration=7)
    rest = DetectionCheckpointer(twin, str(tmp_path)).load(str(tmp_path / "last.pth"))
    assert torch.equal(twin.weight, model.weight)
    assert rest["iteration"] == 7 and "momentum_buffer" in rest["optimizer"]["state"][0]


def test_stand_in_is_an_ordinary_module() -> None:
    stand_in = compat._NoOperators("absent")
    assert isinstance(stand_in, types.ModuleType)
    assert not hasattr(stand_in, "__file__")  # as tools that walk sys.modules ask


@pytest.mark.parametrize("version", ["2.4.1+cu121", "2.5.1", "1.13.0"])
def test_an_old_torch_reads_no_pickles_of_other_libraries(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    for spec in ("timm://resnet50.a1h_in1k", "torchvision://resnet50"):
        with pytest.raises(ValueError) as caught:
            load_backbone_weights(torch.nn.Identity(), spec)
        assert str(caught.value) == (
            f"{spec} may be a pickle, which torch {version} reads unsafely: install torch 2.6 or newer, or "
            "download the file and set the key to its path"
        )


@pytest.mark.parametrize("version", ["2.6.0", "2.12.1+cu130", "3.0.0a0+git"])
def test_a_newer_torch_reads_them(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    compat.require_safe_torch_load("timm://a")
