"""The feature cache in training and evaluation, of every method; and what it refuses."""

import itertools
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode

from fss_d2.data.build import build_few_shot_test_loader, build_few_shot_train_loader
from fss_d2.engine import feature_cache
from fss_d2.engine.feature_cache import open_features, with_features
from fss_d2.evaluation import read_rows
from fss_d2.evaluation.bootstrap import stack_rows
from fss_d2.modeling import FEW_SHOT_META_ARCHS, FewShotSegmentor
from fss_d2.modeling.backbone.base import FeatureBackbone
from tests.modeling.episodes import make_cfg, make_model
from tests.tiny_training import ROOT, command_line, episodes, tiny_glyphs, train

# Settings under which a method reads more of an image than the backbone's maps of it.
VARIANTS: list[tuple[Any, ...]] = [
    *((method,) for method in FEW_SHOT_META_ARCHS),
    ("FROST", "MODEL.FROST.MIRRORED", True),
    ("FROST", "MODEL.TRAINING_FREE.LEAVE_ONE_OUT", ("threshold",)),
    ("INSID3", "MODEL.TRAINING_FREE.LEAVE_ONE_OUT", ("threshold",)),
]
_CONFIG = """
MODEL:
  META_ARCHITECTURE: DCAMA
INPUT:
  TRAIN_AUGMENTATIONS: ("flip",)
FEW_SHOT:
  TEST:
    EPISODES: 6
SOLVER:
  MAX_ITER: 4
  BASE_LR: 0.01
  LOG_PERIOD: 1
TEST:
  EVAL_PERIOD: 3
  PERIODIC_EPISODES: 2
  PICTURES: 1
"""
_KEY = "DATALOADER.FEATURE_CACHE"
_OPTS = (
    *("DATASETS.TRAIN", ("glyphs_fold0_train",), "DATASETS.TEST", ("glyphs_fold0_val",)),
    *("INPUT.FEW_SHOT_SIZE", (64, 64), "INPUT.TRAIN_AUGMENTATIONS", ("flip",), "SOLVER.IMS_PER_BATCH", 2),
    *("DATALOADER.NUM_WORKERS", 0, "TEST.PICTURES", 0, "FEW_SHOT.TRAIN.SHOTS", (2,)),
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with tiny_glyphs(tmp_path_factory.mktemp("datasets"), _CONFIG, images_per_class=3) as path:
        yield path


def _losses(cfg: CfgNode, model: FewShotSegmentor, iterations: int = 4) -> torch.Tensor:
    """The losses of a training, (iterations,)."""
    store = open_features(cfg, model, training=True)
    optimizer = torch.optim.SGD([p for p in model.train().parameters() if p.requires_grad], lr=1e-4)
    losses = []
    with with_features(model, store):
        for i, batch in enumerate(
            itertools.islice(build_few_shot_train_loader(cfg, features=store), iterations)
        ):
            torch.manual_seed(i)  # of dropout
            loss = sum(model(batch).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return torch.stack(losses)


@torch.no_grad()
def _scores(cfg: CfgNode, model: FewShotSegmentor) -> list[torch.Tensor]:
    store = open_features(cfg, model)
    loader = build_few_shot_test_loader(cfg, "glyphs_fold0_val", shots=2, episodes=3, features=store)
    with with_features(model.eval(), store):
        return [model(batch)[0]["sem_seg"] for batch in loader]


@pytest.fixture
def forbid_backbone(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, a pass through a backbone is an error."""

    def passed(*args: object) -> None:
        raise AssertionError("an image passed the backbone")

    return lambda: monkeypatch.setattr(FeatureBackbone, "forward", passed)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v)))
def test_training_and_evaluation_from_the_cache(
    config: Path, variant: tuple[Any, ...], tmp_path: Path, forbid_backbone: Callable[[], None]
) -> None:
    method, *keys = variant
    opts = (*_OPTS, *keys)
    plain = make_cfg(method, *opts)
    cached = make_cfg(method, *opts, _KEY, str(tmp_path))
    trainable = make_model(method).trainable
    if trainable:
        expected = _losses(plain, make_model(method, *opts))
        first = _losses(cached, make_model(method, *opts))
        torch.testing.assert_close(first, expected, rtol=5e-3, atol=2e-3)
    scores = _scores(plain, make_model(method, *opts))
    first_scores = _scores(cached, make_model(method, *opts))
    for a, b in zip(first_scores, scores, strict=True):
        assert (a.argmax(dim=0) != b.argmax(dim=0)).float().mean() < 0.005
    forbid_backbone()
    if trainable:
        assert torch.equal(_losses(cached, make_model(method, *opts)), first)
    for a, b in zip(_scores(cached, make_model(method, *opts)), first_scores, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("features", ["backbone", "pixel_decoder"])
def test_proposals_that_are_not_trained_are_kept_too(
    config: Path, tmp_path: Path, features: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ("MODEL.MM_FORMER.FEATURES", features)
    cfg = make_cfg("MMFormer", *_OPTS, *keys, _KEY, str(tmp_path))
    model = make_model("MMFormer", *_OPTS, *keys)
    plain = _scores(make_cfg("MMFormer", *_OPTS, *keys), model)
    first = _scores(cfg, model)
    monkeypatch.delattr(type(model.proposals), "forward")
    monkeypatch.delattr(type(model.proposals), "decode_pixels")
    for a, b, c in zip(_scores(cfg, model), first, plain, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=5e-3, atol=5e-3)


def test_proposals_that_are_trained_are_not_kept(config: Path, tmp_path: Path) -> None:
    keys = ("MODEL.MM_FORMER.TRAIN_PROPOSALS", True, "INPUT.SEGMENTS", "semantic")
    cached = (*keys, _KEY, str(tmp_path))
    expected, losses = (
        _losses(make_cfg("MMFormer", *_OPTS, *o), make_model("MMFormer", *_OPTS, *o)) for o in (keys, cached)
    )
    torch.testing.assert_close(losses, expected, rtol=5e-3, atol=2e-3)


def test_images_without_entry_are_computed_and_not_kept(config: Path, tmp_path: Path) -> None:
    cfg = make_cfg("DCAMA", *_OPTS, _KEY, str(tmp_path))
    model = make_model("DCAMA", *_OPTS).train()
    store = open_features(cfg, model, training=True)
    (batch,) = itertools.islice(build_few_shot_train_loader(cfg, features=store), 1)
    bare = [{name: value for name, value in one.items() if name != "entry"} for one in batch[0]["support"]]
    mixed = [{**batch[0], "support": [*bare[:1], *batch[0]["support"][1:]]}, *batch[1:]]
    with with_features(model, store):
        torch.manual_seed(0)
        loss = model(mixed)["loss_seg"]
        entries = {image["entry"] for e in mixed for image in (e, *e["support"]) if "entry" in image}
        assert store.usage()[0] == len(entries) > 0
        torch.manual_seed(0)
        assert torch.equal(model(batch)["loss_seg"], loss)


def test_the_folder_is_named_after_the_backbone(config: Path, tmp_path: Path) -> None:
    cfg = make_cfg("DCAMA", *_OPTS, _KEY, str(tmp_path))

    def folder(method: str = "DCAMA", *overrides: Any, change: str = "") -> str:
        model = make_model(method, *_OPTS, *overrides)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if change and name.startswith(change):
                    tensor.add_(1)
        changed = make_cfg(method, *_OPTS, *overrides, _KEY, str(tmp_path))
        return open_features(changed, model).folder.name

    first = open_features(cfg, make_model("DCAMA", *_OPTS)).folder.name
    assert first.startswith("FakeBackbone_")
    assert folder() == folder("DCAMA", "MODEL.DCAMA.TEMPERATURE", 0.2, change="head.") == first
    others = [
        *(folder(change="backbone.layers.res4_0"), folder("DCAMA", "MODEL.PIXEL_STD", [2.0, 2.0, 2.0])),
        *(folder("DCAMA", "MODEL.DCAMA.SKIP_LEVELS", ("res2",)), folder("Prototype")),
        *(folder("FROST"), folder("FROST", "MODEL.FROST.MIRRORED", True)),
    ]
    assert len({first, *others}) == 7
    assert "MODEL.BACKBONE.NAME" in json.loads((tmp_path / first / "about.json").read_text())


def test_a_stage_that_is_trained_does_not_count(config: Path, tmp_path: Path) -> None:
    keys = (
        "MODEL.BACKBONE.NAME",
        "build_timm_backbone",
        "MODEL.DPCN.TRAIN_LAST_STAGE",
        True,
        _KEY,
        str(tmp_path),
    )
    cfg, model = make_cfg("DPCN", *_OPTS, *keys), make_model("DPCN", *_OPTS, *keys)
    before = open_features(cfg, model, training=True).folder
    _losses(cfg, model, 1)
    assert open_features(cfg, model).folder == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("method", "keys", "message"),
    [
        ("DCAMA", ("MODEL.BACKBONE.FREEZE", False), "set MODEL.BACKBONE.FREEZE True and"),
        ("DCAMA", ("MODEL.BACKBONE.BN_TRAIN_STATS", True), "MODEL.BACKBONE.BN_TRAIN_STATS False, or DATA"),
        (
            "DCAMA",
            ("INPUT.TRAIN_AUGMENTATIONS", ("flip", "color")),
            "'color' draws .*: set DATALOADER.FEATURE_CACHE_VARIANTS to",
        ),
        (
            "DCAMA",
            ("INPUT.TRAIN_AUGMENTATIONS", ("ssd_color",), f"{_KEY}_VARIANTS", 2),
            "cannot keep what INPUT.TRAIN_AUGMENTATIONS 'ssd_color'",
        ),
        ("DCAMA", ("INPUT.TEST_RESIZE", "shortest_edge"), "INPUT.TEST_RESIZE .*'squash' or 'letterbox'"),
        ("PotentialObjectsSegmenter", (), "is for few-shot methods, not PotentialObjectsSegmenter"),
    ],
)
def test_what_cannot_be_kept_is_refused(
    config: Path, tmp_path: Path, method: str, keys: tuple[Any, ...], message: str
) -> None:
    model = make_model(method, *_OPTS, *keys)
    cfg = make_cfg(method, *_OPTS, *keys, _KEY, str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=f"(?s)^DATALOADER.FEATURE_CACHE .*{message}") as error:
        open_features(cfg, model, training=True)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "cache").exists()


def test_maps_beyond_float16_keep_their_precision(config: Path, tmp_path: Path) -> None:
    keys = ("MODEL.PIXEL_STD", [1e-6, 1e-6, 1e-6])
    cfg, model = (
        make_cfg("Prototype", *_OPTS, *keys, _KEY, str(tmp_path)),
        make_model("Prototype", *_OPTS, *keys),
    )
    assert all(scores.isfinite().all() for scores in _scores(cfg, model))


# -- whole programs ----------------------------------------------------------------------------------------


def _written_losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [line["total_loss"] for line in lines if "total_loss" in line]


@pytest.fixture(scope="module")
def cache(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training, "out", and of its features, "cache"."""
    folder = tmp_path_factory.mktemp("cached")
    train(config, folder / "out", _KEY, str(folder / "cache"))
    return folder


def test_another_training_finds_everything(
    config: Path,
    cache: Path,
    tmp_path: Path,
    forbid_backbone: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "fss_d2")
    monkeypatch.setattr(feature_cache, "_usage", {})
    train(config, tmp_path / "plain")
    forbid_backbone()
    train(config, tmp_path / "again", _KEY, str(cache / "cache"), "DATALOADER.NUM_WORKERS", "2")
    assert _written_losses(tmp_path / "again") == _written_losses(cache / "out")
    assert _written_losses(tmp_path / "again") == pytest.approx(_written_losses(tmp_path / "plain"), rel=1e-3)
    assert episodes(tmp_path / "again") == episodes(cache / "out")
    pictures = [
        f / "inference" / "glyphs_fold0_val_1shot" / "pictures" / "0000.png"
        for f in (cache / "out", tmp_path / "again")
    ]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert sum("entries" in record.message for record in caplog.records) == 1


def test_an_evaluation_counts_nearly_the_same_pixels(
    config: Path, tmp_path: Path, forbid_backbone: Callable[[], None]
) -> None:
    words = ("--eval-only", "MODEL.META_ARCHITECTURE", "Prototype")
    cached = (*words, _KEY, str(tmp_path / "cache"))
    train(config, tmp_path / "plain", *words)
    train(config, tmp_path / "first", *cached)
    forbid_backbone()
    train(config, tmp_path / "again", *cached)
    assert episodes(tmp_path / "again") == episodes(tmp_path / "first")
    file = "inference/glyphs_fold0_val_1shot/episodes.jsonl"
    a, b = (stack_rows(read_rows(tmp_path / name / file)) for name in ("plain", "first"))
    assert a[1].min() > 0  # each episode has hits
    for one, other in zip(a, b, strict=True):
        assert abs(one - other).max() <= 8


def test_two_processes_share_a_cache(
    config: Path, tmp_path: Path, forbid_backbone: Callable[[], None]
) -> None:
    command = [sys.executable, str(ROOT / "train_net.py"), *command_line(config, tmp_path / "two")]
    keys = ["DATALOADER.NUM_WORKERS", "1", _KEY, str(tmp_path / "cache"), "TEST.EVAL_PERIOD", "0"]
    done = subprocess.run(
        [*command, "--num-processes", "2", *keys], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "cache").iterdir()
    assert not list(folder.glob(".*"))
    weights = str(tmp_path / "two" / "model_final.pth")
    forbid_backbone()
    train(config, tmp_path / "one", "--eval-only", "MODEL.WEIGHTS", weights, *keys)
    assert episodes(tmp_path / "one") == episodes(tmp_path / "two")
