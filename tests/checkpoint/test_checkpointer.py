"""Checkpoints: whole or not at all, by name, plain tensors only."""

from pathlib import Path
from typing import IO

import pytest
import torch
from torch import nn

from fss_d2.checkpoint.checkpointer import FewShotCheckpointer


def _model(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1))


def test_round_trip_reads_with_weights_only(tmp_path: Path) -> None:
    model, other = _model(), _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    FewShotCheckpointer(model, str(tmp_path), optimizer=optimizer).save("model_final", iteration=7)
    assert set(torch.load(tmp_path / "model_final.pth", weights_only=True)) == {
        "model",
        "optimizer",
        "iteration",
    }
    extra = FewShotCheckpointer(other, str(tmp_path)).resume_or_load("", resume=True)
    assert extra["iteration"] == 7
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


def test_an_interrupted_save_leaves_the_previous_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    checkpointer = FewShotCheckpointer(model, str(tmp_path))
    checkpointer.save("model")
    before = (tmp_path / "model.pth").read_bytes()

    def half(content: object, file: IO[bytes]) -> None:
        file.write(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    for name in ("model", "model_0000009"):
        with pytest.raises(KeyboardInterrupt):
            checkpointer.save(name)
    assert (tmp_path / "model.pth").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model.pth"]
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model.pth")


def test_the_best_model_is_not_where_training_resumes(tmp_path: Path) -> None:
    last, best = (
        FewShotCheckpointer(_model(), str(tmp_path)),
        FewShotCheckpointer(_model(), str(tmp_path), tag_last=False),
    )
    last.save("model_0000001")
    best.save("model_best")
    assert Path(last.get_checkpoint_file()).name == "model_0000001.pth"


@pytest.mark.parametrize("wrap", ["plain", "model", "state_dict", "module.", "net."])
def test_the_usual_layouts_load(wrap: str, tmp_path: Path) -> None:
    source, target = _model(), _model()
    weights = dict(source.state_dict())
    content = {
        "plain": weights,
        "model": {"model": weights},
        "state_dict": {"state_dict": weights, "epoch": 3},
        "module.": {f"module.{name}": tensor for name, tensor in weights.items()},
        "net.": {"state_dict": {f"net.{name}": tensor for name, tensor in weights.items()}},
    }[wrap]
    torch.save(content, tmp_path / "a.pth")
    FewShotCheckpointer(target).load(str(tmp_path / "a.pth"))
    assert torch.equal(target[1].weight, source[1].weight)


def _error(path: Path) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        FewShotCheckpointer(_model()).load(str(path))
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    return line


def test_a_file_of_another_model(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"backbone.conv1.weight": torch.zeros(1)}, path)
    assert "none of its 1 names (backbone.conv1.weight)" in _error(path)


def test_a_model_of_another_width_is_not_half_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(_model(width=4).state_dict(), path)
    assert "3 tensor(s) of another shape than the model's, the first 0.weight (4, 2) instead of (3, 2)" in (
        _error(path)
    )


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    assert "does not exist" in _error(tmp_path / "missing.pth")
    broken, code, numbers = tmp_path / "broken.pth", tmp_path / "code.pth", tmp_path / "numbers.pth"
    broken.write_bytes(b"PK not a zip file")
    torch.save(_model(), code)  # a pickled module: loading it would run code
    torch.save([1, 2], numbers)
    assert "no checkpoint of plain tensors" in _error(broken)
    assert "no checkpoint of plain tensors" in _error(code)
    assert "no state dict of named tensors" in _error(numbers)


def test_a_tag_without_its_file(tmp_path: Path) -> None:
    checkpointer = FewShotCheckpointer(_model(), str(tmp_path))
    checkpointer.save("model")
    (tmp_path / "model.pth").unlink()
    with pytest.raises(FileNotFoundError, match="last_checkpoint names"):
        checkpointer.resume_or_load("", resume=True)
