"""A checkpoint is whole, or it is refused; what may be missing is named."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fss_d2.checkpoint.checkpointer import FewShotCheckpointer, load_model
from fss_d2.config import get_cfg
from fss_d2.inference.predictor import FewShotPredictor
from fss_d2.io.state_dict import head_of, state_dict_of
from tests.modeling.episodes import TINY, make_cfg, make_model

State = dict[str, Tensor]


def write(path: Path, state: State) -> str:
    torch.save({"model": state}, path)
    return str(path)


def backbone_of(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name.startswith("backbone.")}


@pytest.mark.parametrize(
    ("cut", "lacks"),
    [
        (backbone_of, "it is a backbone alone, for MODEL.BACKBONE.WEIGHTS; give MODEL.WEIGHTS a whole"),
        (lambda s: dict(list(s.items())[:-1]), "lacks 1 of the model's"),
        (lambda s: dict(list(head_of(s).items())[:-1]), "lacks 1 of the model's"),
        (lambda s: head_of(s) | dict(list(backbone_of(s).items())[:1]), "the first backbone."),
    ],
    ids=["backbone", "one missing", "part of the head", "part of the backbone"],
)
def test_a_part_of_a_model_is_refused(tmp_path: Path, cut: Callable[[State], State], lacks: str) -> None:
    path = write(tmp_path / "w.pth", cut(make_model("DCAMA").state_dict()))
    with pytest.raises(ValueError) as caught:
        FewShotCheckpointer(make_model("DCAMA")).load(path)
    line = str(caught.value)
    assert line.startswith(path) and lacks in line and "\n" not in line
    assert line.endswith("or set MODEL.WEIGHTS_PARTIAL True to keep initial values in their place")


def test_a_key_allows_a_part_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved = make_model("DCAMA").state_dict()
    path = write(tmp_path / "w.pth", backbone_of(saved))
    with caplog.at_level(logging.WARNING, "fss_d2"):
        model = load_model(make_cfg("DCAMA", "MODEL.WEIGHTS", path, "MODEL.WEIGHTS_PARTIAL", True))
    assert f"{path} lacks {len(head_of(saved))} of the model's {len(saved)} tensors" in caplog.text
    assert "they keep their initial values, as MODEL.WEIGHTS_PARTIAL allows" in caplog.text
    assert all(torch.equal(model.state_dict()[name], t) for name, t in backbone_of(saved).items())


def test_the_predictor_refuses_a_backbone(tmp_path: Path) -> None:
    whole = FewShotPredictor.from_config(device="cpu").model.state_dict()
    path = write(tmp_path / "w.pth", backbone_of(whole))
    with pytest.raises(ValueError, match=rf"{path} lacks \d+ of the model's \d+ tensors, the first log_temp"):
        FewShotPredictor.from_config(weights=path, device="cpu")


def test_batch_counters_may_be_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    model.running_mean.fill_(3)
    state = {n: t for n, t in model.state_dict().items() if n != "num_batches_tracked"}
    with caplog.at_level(logging.WARNING):
        FewShotCheckpointer(other).load(write(tmp_path / "w.pth", state))
    assert other.running_mean.tolist() == [3, 3] and not caplog.records


@pytest.mark.parametrize("part", ["prototypes", "filled"])
def test_prototypes_are_there_or_not(tmp_path: Path, part: str) -> None:
    """Half of them would be zeros that count as built."""
    state = make_model("JC2A").state_dict()
    without = {name: t for name, t in state.items() if not name.startswith("knowledge.")}
    path = write(tmp_path / "w.pth", without)
    with pytest.raises(ValueError, match=r"base classes .* are missing"):
        load_model(make_cfg("JC2A", "MODEL.WEIGHTS", path))
    write(tmp_path / "w.pth", without | {f"knowledge.{part}": state[f"knowledge.{part}"]})
    with pytest.raises(ValueError, match=r"lacks 1 of the model's"):
        load_model(make_cfg("JC2A", "MODEL.WEIGHTS", path))


def _stage(method: str) -> nn.Module:
    return make_model(method, *TINY)


def test_stage_2_of_mmformer_starts_from_stage_1_in_training_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage1, stage2 = _stage("PotentialObjectsSegmenter"), _stage("MMFormer")
    path = write(tmp_path / "w.pth", stage1.state_dict())
    optimizer = torch.optim.SGD(stage2.parameters(), lr=0.1)
    training = FewShotCheckpointer(stage2, str(tmp_path / "out"), trainer=optimizer)
    with caplog.at_level(logging.INFO, "fss_d2"):
        training.resume_or_load(path, resume=False)
    assert f"{path} holds nothing of matching., which starts from its initial values" in caplog.text
    assert all(torch.equal(stage2.state_dict()[name], t) for name, t in stage1.state_dict().items())
    with pytest.raises(ValueError, match="the first matching"):
        load_model(make_cfg("MMFormer", "MODEL.WEIGHTS", path))
    resumed = {"model": stage1.state_dict(), "trainer": optimizer.state_dict()}
    torch.save(resumed, tmp_path / "resumed.pth")
    with pytest.raises(ValueError, match="the first matching"):
        training.load(str(tmp_path / "resumed.pth"))
    with pytest.raises(ValueError, match=r"holds no 'trainer' to resume \(iteration, optimizer\)"):
        training.load(path)
    half = dict(list(stage2.state_dict().items())[:-1])
    with pytest.raises(ValueError, match=r"lacks 1 of .* the first matching\."):
        training.resume_or_load(write(tmp_path / "half.pth", half), resume=False)


def test_a_head_needs_a_backbone_with_weights(tmp_path: Path) -> None:
    keys = ("MODEL.META_ARCHITECTURE", "DCAMA", "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.WEIGHTS", "")
    backbone = ("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "test_resnet")
    cfg = get_cfg()
    cfg.merge_from_list([*keys, *backbone])
    cfg.MODEL.WEIGHTS = write(tmp_path / "w.pth", head_of(load_model(cfg).state_dict()))
    with pytest.raises(ValueError, match=r"w\.pth holds no backbone, and MODEL\.BACKBONE\.WEIGHTS is empty"):
        load_model(cfg)


def test_a_head_that_is_not_wrapped_gets_the_weights_of_its_backbone(tmp_path: Path) -> None:
    """{"head.a": tensor} without "model", and with a prefix: the backbone must not stay random."""
    keys = ("MODEL.META_ARCHITECTURE", "DCAMA", "MODEL.DEVICE", "cpu")
    backbone = ("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "test_resnet")
    cfg = get_cfg()
    cfg.merge_from_list([*keys, *backbone])
    whole = load_model(cfg)
    torch.save(whole.backbone.state_dict(), tmp_path / "b.pth")
    head = {f"module.{name}": tensor for name, tensor in head_of(whole.state_dict()).items()}
    torch.save(head, tmp_path / "h.pth")
    cfg.MODEL.WEIGHTS, cfg.MODEL.BACKBONE.WEIGHTS = str(tmp_path / "h.pth"), str(tmp_path / "b.pth")
    again = load_model(cfg).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.state_dict().items())


def test_tensors_without_a_place_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = nn.Linear(2, 1).state_dict() | {
        "ema.decay": torch.ones(1),
        "n.num_batches_tracked": torch.ones(1),
    }
    with caplog.at_level(logging.WARNING, "fss_d2"):
        FewShotCheckpointer(nn.Linear(2, 1)).load(write(tmp_path / "w.pth", state))
    (record,) = caplog.records
    assert "w.pth: 1 of its 4 tensors have no place in the model and are not used, the first ema.decay" in (
        record.getMessage()
    )


def test_a_head_of_another_number_of_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pth", nn.Linear(2, 5).state_dict())
    with pytest.raises(ValueError, match=r"another shape than the model's, the first weight \(5, 2\)"):
        FewShotCheckpointer(nn.Linear(2, 3)).load(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_not_finite(tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    state = {n: t.to(dtype) if t.is_floating_point() else t.clone() for n, t in model.state_dict().items()}
    FewShotCheckpointer(model).load(write(tmp_path / "w.pth", state))
    state["1.running_var"][1] = bad
    with pytest.raises(
        ValueError, match=r"w\.pth: tensor 1\.running_var holds 1 values .* NaN or infinite, of 2"
    ):
        FewShotCheckpointer(model).load(write(tmp_path / "w.pth", state))


def test_numbers_that_become_infinite_in_the_model(tmp_path: Path) -> None:
    state = {"weight": torch.tensor([[1e39]], dtype=torch.float64), "bias": torch.zeros(1)}
    with pytest.raises(ValueError, match="tensor weight holds 1 values that are NaN or infinite"):
        FewShotCheckpointer(nn.Linear(1, 1)).load(write(tmp_path / "w.pth", state))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_numbers_of_another_kind(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {"weight": torch.ones(1, 1).to(dtype), "bias": torch.zeros(1)}
    with pytest.raises(ValueError, match=rf"tensor weight is {dtype} and the model's is torch\.float32"):
        FewShotCheckpointer(nn.Linear(1, 1)).load(write(tmp_path / "w.pth", state))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load_as_they_are(tmp_path: Path, dtype: torch.dtype) -> None:
    model = nn.Linear(1, 1)
    state = {"weight": torch.tensor([[0.1]], dtype=dtype), "bias": torch.tensor([3.0], dtype=dtype)}
    FewShotCheckpointer(model).load(write(tmp_path / "w.pth", state))
    assert model.weight.dtype == torch.float32
    assert model.weight.item() == state["weight"].float().item()


@pytest.mark.parametrize(
    "renamed",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace("backbone.", "backbone._orig_mod."),
        lambda name: name.replace("backbone.", "backbone.module."),
        lambda name: f"module.{name}" if name.startswith("backbone.") else name,
        lambda name: name.replace("head.", "_orig_mod.head."),
    ],
)
def test_names_that_compile_and_ddp_add(tmp_path: Path, renamed: Callable[[str], str]) -> None:
    saved = make_model("DCAMA").state_dict()
    path = write(tmp_path / "w.pth", {renamed(name): tensor for name, tensor in saved.items()})
    torch.manual_seed(5)
    loaded = load_model(make_cfg("DCAMA", "MODEL.WEIGHTS", path)).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())


def test_a_name_that_is_there_twice() -> None:
    with pytest.raises(ValueError, match=r"w\.pth holds a twice, once as module\.a"):
        state_dict_of({"a": torch.ones(1), "module.a": torch.zeros(1)}, "w.pth")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"ema": {"a": 1}}, "the state dict is taken from 'ema'"),
        ({"teacher": {"state_dict": {"a": 1}}}, "the state dict is taken from 'teacher'"),
        ({"model": {"a": 1}, "ema": {"a": 2}}, "the state dict 'model' is taken, not ema"),
        ({"state_dict": {"a": 1}, "model": {"width": "8"}, "hyper_parameters": {}}, ""),
        ({"model": {"state_dict": {"a": 1}}}, ""),
    ],
)
def test_wrappers_are_opened_and_said(content: dict, said: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fss_d2"):
        assert state_dict_of(_tensors(content), "w.pth")["a"].item() == 1
    assert caplog.messages == ([f"w.pth: {said}"] if said else [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"teacher": {"a": 1}, "student": {"a": 2}}, "several state dicts (teacher, student)"),
        ({"model": {"a": 1}, "state_dict": {"a": 2}}, "several state dicts (state_dict, model)"),
        ({"backbone": {"a": 1}, "head": {"b": 2}}, "holds no state dict of named tensors"),
        (
            {"head.a": 1, "backbone": {"a": 1}},
            "both in its state dict and one level below, in backbone",
        ),
        ({"model": {}}, "holds no state dict of named tensors"),
    ],
)
def test_what_could_mean_several_things_is_refused(content: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        state_dict_of(_tensors(content), "w.pth")
    assert str(caught.value).startswith("w.pth holds") and message in str(caught.value)


def _tensors(content: object) -> object:
    if isinstance(content, dict):
        return {name: _tensors(value) for name, value in content.items()}
    return torch.tensor(content) if isinstance(content, int) else content
