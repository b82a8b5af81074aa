"""Prototypes of base classes: what they are, what never enters them, the file that keeps them."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torch import Tensor

from fss_d2.data.augmentations import build_resize
from fss_d2.data.samples import BaseInstances
from fss_d2.engine import base_prototypes
from fss_d2.engine.base_prototypes import (
    build_base_prototypes,
    fill_base_knowledge,
)
from fss_d2.modeling.build import check_base_knowledge, has_base_knowledge
from fss_d2.modeling.layers import resize
from fss_d2.modeling.meta_arch import JC2A
from tests.modeling.episodes import make_cfg, make_model

BASE, NOVEL = (0, 1, 3), 2
SETTINGS = (
    *("MODEL.BASE_KNOWLEDGE.NUM_CLASSES", 3),
    *("MODEL.BASE_KNOWLEDGE.MIN_PIXELS", 20),
    *("INPUT.FEW_SHOT_SIZE", (64, 64)),
    *("DATALOADER.NUM_WORKERS", 0),
)


def write_records(folder: Path) -> list[dict[str, Any]]:
    """Ten images of 64 x 64 pixels; image i shows class BASE[i % 3], every other the novel one as well."""
    records = []
    for i in range(10):
        rng = np.random.default_rng(i)
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((64, 64)).save(folder / f"{i}.png")
        labels = np.zeros((64, 64), np.uint8)
        labels[8 : 24 + 3 * i, 8:40] = BASE[i % 3] + 1
        shown = [BASE[i % 3]]
        if i % 2:
            labels[30:60, 30:60] = NOVEL + 1
            shown.append(NOVEL)
        labels[-1] = 255
        Image.fromarray(labels).save(folder / f"{i}_mask.png")
        paths = {"file_name": str(folder / f"{i}.png"), "sem_seg_file_name": str(folder / f"{i}_mask.png")}
        records.append({**paths, "image_id": i, "height": 64, "width": 64, "classes": shown})
    return records


@pytest.fixture
def records(tmp_path: Path) -> list[dict[str, Any]]:
    return write_records(tmp_path)


@pytest.fixture
def cfg(records: list[dict[str, Any]], tmp_path: Path) -> CfgNode:
    """A JC2A to be trained on the records, with a cache of its own."""
    name = f"base_prototypes_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(base_class_ids=list(BASE), novel_class_ids=[NOVEL], class_ids=list(BASE))
    overrides = ["DATASETS.TRAIN", (name,), "MODEL.BASE_KNOWLEDGE.CACHE_DIR", str(tmp_path / "cache")]
    yield make_cfg("JC2A", *SETTINGS, *overrides)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def empty_model() -> JC2A:
    """The same weights each time, prototypes not built."""
    model = make_model("JC2A", *SETTINGS)
    model.knowledge.prototypes.zero_()
    model.knowledge.filled.fill_(False)
    return model


def build(cfg: CfgNode, records: list[dict[str, Any]], **changes: Any) -> Tensor:
    settings = {"class_ids": BASE, "min_pixels": 20, **changes}
    return build_base_prototypes(empty_model(), BaseInstances(records, resize=build_resize(cfg), **settings))


@torch.no_grad()
def test_the_mean_over_the_instances_of_their_means(cfg: CfgNode, records: list[dict[str, Any]]) -> None:
    """By hand: not the mean over all pixels, which large instances would rule."""
    model = empty_model()
    means: dict[int, list[Tensor]] = {c: [] for c in BASE}
    for i, record in enumerate(records):
        image = torch.from_numpy(np.array(Image.open(record["file_name"]))).permute(2, 0, 1)
        maps = model.backbone(model.normalise(image[None]))
        features = torch.cat([maps["res4"], resize(maps["res3"], maps["res4"].shape[-2:])], dim=1)[0]
        labels = torch.from_numpy(np.array(Image.open(record["sem_seg_file_name"])))
        mask = resize((labels == BASE[i % 3] + 1)[None, None].float(), features.shape[-2:])[0, 0]
        means[BASE[i % 3]].append((features * mask).sum(dim=(1, 2)) / mask.sum())
    expected = torch.stack([torch.stack(means[c]).mean(dim=0) for c in BASE])
    torch.testing.assert_close(build(cfg, records), expected)


def test_novel_classes_leave_no_trace(cfg: CfgNode, records: list[dict[str, Any]], tmp_path: Path) -> None:
    """Their labels may change or vanish, and their images' list of classes with them: equal to the bit."""
    before = build(cfg, records)
    for value in (0, NOVEL + 1, 77):
        changed = []
        for i, record in enumerate(records):
            labels = np.array(Image.open(record["sem_seg_file_name"]))
            labels[labels == NOVEL + 1] = value
            path = tmp_path / f"{i}_{value}.png"
            Image.fromarray(labels).save(path)
            shown = [c for c in record["classes"] if c != NOVEL]
            changed.append({**record, "sem_seg_file_name": str(path), "classes": shown})
        assert torch.equal(build(cfg, changed), before)
    only_novel = {**records[1], "image_id": 99, "classes": [NOVEL]}
    assert torch.equal(build(cfg, [*records, only_novel]), before)
    assert before.shape[0] == len(BASE)


def test_base_classes_do_enter(cfg: CfgNode, records: list[dict[str, Any]]) -> None:
    """The counterpart: without an image of class 1 its prototype alone changes."""
    before, after = build(cfg, records), build(cfg, [r for r in records if r["image_id"] != 4])
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_small_instances_and_classes_without_any(
    cfg: CfgNode, records: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """Largest are the instances of images 8 (class 3), 9 (class 0), 7 (class 1): 1280, 1166, 1034 pixels."""
    with caplog.at_level(logging.INFO, logger="fss_d2"):
        prototypes = build(cfg, records, min_pixels=1100)
    assert [bool(p.any()) for p in prototypes] == [True, False, True]
    assert "No instance of at least 1100 pixels" in caplog.text and "ids [1]" in caplog.text
    assert "Prototypes of the base classes: 10 of 10 in" in caplog.text
    with pytest.raises(ValueError, match=r"at least 2000 pixels .*MIN_PIXELS.*lower it"):
        build(cfg, records, min_pixels=2000)


def test_two_processes_share_the_images(
    cfg: CfgNode, records: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, shares = build(cfg, records), []
    comm = base_prototypes.comm
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "all_gather", lambda data: shares.append(data) or [data])
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        build(cfg, records)
    (sums, counts), (more, others) = shares
    torch.testing.assert_close(((sums + more) / (counts + others)[:, None]).float(), whole)
    assert (int(counts.sum()), int(others.sum())) == (5, 5)


def test_a_model_is_left_as_it_was(cfg: CfgNode) -> None:
    model = empty_model().train()
    model.backbone.select(["res5", "res4", "res3"])
    state = torch.get_rng_state()
    fill_base_knowledge(cfg, model)
    assert model.training and not model.backbone.training
    assert model.backbone.selected == ("res5", "res4", "res3")
    assert torch.equal(torch.get_rng_state(), state)


def test_they_are_built_once_and_read_again(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = empty_model(), empty_model()
    fill_base_knowledge(cfg, first)
    (file,) = Path(cfg.MODEL.BASE_KNOWLEDGE.CACHE_DIR).iterdir()
    assert file.name.startswith(cfg.DATASETS.TRAIN[0])
    monkeypatch.setattr(base_prototypes, "build_base_prototypes", None)  # calling it would fail
    fill_base_knowledge(cfg, second)
    assert torch.equal(first.knowledge.prototypes, second.knowledge.prototypes)
    assert has_base_knowledge(second)


def _other_weights(cfg: CfgNode, model: JC2A, records: list[dict[str, Any]]) -> None:
    next(model.backbone.parameters()).data.view(-1)[0] += 1


def _other_stride(cfg: CfgNode, model: JC2A, records: list[dict[str, Any]]) -> None:
    model.backbone.layers["res4_0"][0].dilation = (2, 2)


def _other_size(cfg: CfgNode, model: JC2A, records: list[dict[str, Any]]) -> None:
    cfg.INPUT.FEW_SHOT_SIZE = (72, 72)


def _other_pixels(cfg: CfgNode, model: JC2A, records: list[dict[str, Any]]) -> None:
    Image.new("RGB", (64, 64), "red").save(records[0]["file_name"])


def _fewer_records(cfg: CfgNode, model: JC2A, records: list[dict[str, Any]]) -> None:
    records.pop()
    base_prototypes.get_records.__globals__["_remembered"].cache_clear()


def _other_classes(cfg: CfgNode, model: JC2A, records: list[dict[str, Any]]) -> None:
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    metadata.__dict__["base_class_ids"] = [0, 1, 2]


def _other_threshold(cfg: CfgNode, model: JC2A, records: list[dict[str, Any]]) -> None:
    cfg.MODEL.BASE_KNOWLEDGE.MIN_PIXELS = 700


@pytest.mark.parametrize(
    "change",
    [
        _other_weights,
        _other_stride,
        _other_size,
        _other_pixels,
        _fewer_records,
        _other_classes,
        _other_threshold,
    ],
)
def test_what_they_depend_on_names_the_file(cfg: CfgNode, records: list[dict[str, Any]], change: Any) -> None:
    folder = Path(cfg.MODEL.BASE_KNOWLEDGE.CACHE_DIR)
    fill_base_knowledge(cfg, empty_model())
    model = empty_model()
    change(cfg, model, records)
    fill_base_knowledge(cfg, model)
    assert len(list(folder.iterdir())) == 2


def test_a_broken_file_is_replaced(cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    model = empty_model()
    fill_base_knowledge(cfg, model)
    (file,) = Path(cfg.MODEL.BASE_KNOWLEDGE.CACHE_DIR).iterdir()
    good = model.knowledge.prototypes.clone()
    spoilt = file.with_suffix(".nan")
    torch.save({"prototypes": torch.full_like(good, float("nan"))}, spoilt)
    for content in (b"a text", file.read_bytes()[:100], b"", spoilt.read_bytes()):
        file.write_bytes(content)
        fill_base_knowledge(cfg, model)
        assert torch.equal(model.knowledge.prototypes, good)
        assert torch.equal(torch.load(file, weights_only=True)["prototypes"], good)
    assert f"{file} is broken" in caplog.text
    assert f"{file} is broken (tensor prototypes holds NaN or infinite values)" in caplog.text


def test_no_folder_keeps_no_file(cfg: CfgNode, tmp_path: Path) -> None:
    cfg.MODEL.BASE_KNOWLEDGE.CACHE_DIR = ""
    model = empty_model()
    fill_base_knowledge(cfg, model)
    assert has_base_knowledge(model) and not (tmp_path / "cache").exists()


def test_another_number_of_classes_is_an_error(cfg: CfgNode) -> None:
    model = make_model("JC2A")  # 15 classes
    with pytest.raises(ValueError, match=r"NUM_CLASSES is 15 but .* has 3 base classes: set it to 3"):
        fill_base_knowledge(cfg, model)


def test_models_without_knowledge_need_none(cfg: CfgNode) -> None:
    for model in (make_model("Prototype"), make_model("JC2A", "MODEL.JC2A.CKMM", False)):
        fill_base_knowledge(cfg, model)
        check_base_knowledge(model)
    assert not Path(cfg.MODEL.BASE_KNOWLEDGE.CACHE_DIR).exists()


def test_an_evaluation_without_prototypes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"are missing: set MODEL\.WEIGHTS"):
        check_base_knowledge(empty_model())
