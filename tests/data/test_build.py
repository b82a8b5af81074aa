"""Loaders: the same episodes for any number of workers and processes, exact resume, manifests."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from fss_d2.config import get_cfg
from fss_d2.data.build import (
    build_few_shot_test_loader,
    build_few_shot_train_loader,
    build_test_episodes,
    dataset_pairs,
)
from fss_d2.data.episode import Episode, write_manifest
from fss_d2.data.published_episodes import hsnet_pascal, mmformer_episodes

MakeRecords = Callable[..., list[dict[str, Any]]]
NAME = "tiny_for_loader_tests"
NAMES = ["cat", "dog", "owl"]


@pytest.fixture
def records(make_records: MakeRecords) -> Iterator[list[dict[str, Any]]]:
    made = make_records(count=12, classes=3)
    DatasetCatalog.register(NAME, lambda: made)
    MetadataCatalog.get(NAME).set(stuff_classes=NAMES, class_ids=[0, 1, 2], ignore_label=255)
    yield made
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture
def cfg(records: list[dict[str, Any]]) -> CfgNode:
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.INPUT.FEW_SHOT_SIZE = (24, 24)
    cfg.INPUT.TRAIN_AUGMENTATIONS = ("random_resized_crop", "flip", "color")
    cfg.FEW_SHOT.TRAIN.SHOTS = (1, 2)
    cfg.FEW_SHOT.TEST.EPISODES = 7
    return cfg


def _flat(batches: Any) -> list[tuple[Any, ...]]:
    """Everything of each episode in a form that compares bit by bit."""
    return [
        (
            item["episode_index"],
            item["class_id"],
            item["image_id"],
            item["image"].numpy().tobytes(),
            item["sem_seg"].numpy().tobytes(),
            *(
                (s["image_id"], s["image"].numpy().tobytes(), s["mask"].numpy().tobytes())
                for s in item["support"]
            ),
        )
        for batch in batches
        for item in batch
    ]


def _train(cfg: CfgNode, batches: int, start_iter: int = 0) -> list[tuple[Any, ...]]:
    return _flat(itertools.islice(build_few_shot_train_loader(cfg, start_iter=start_iter), batches))


def _on_rank(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)


def test_training_batches_have_one_number_of_shots(cfg: CfgNode) -> None:
    batches = list(itertools.islice(build_few_shot_train_loader(cfg), 10))
    assert all(len(batch) == 4 for batch in batches)
    shots = [{len(item["support"]) for item in batch} for batch in batches]
    assert all(len(s) == 1 for s in shots) and set().union(*shots) == {1, 2}


@pytest.mark.parametrize("rule", ["class", "pair", "image", "pfenet", "crop"])
def test_training_does_not_depend_on_workers_or_global_seeds(cfg: CfgNode, rule: str) -> None:
    cfg.FEW_SHOT.TRAIN.QUERY_RULE = rule
    torch.manual_seed(0)
    state = torch.get_rng_state()
    alone = _train(cfg, 3)
    cfg.DATALOADER.NUM_WORKERS = 2
    assert _train(cfg, 3) == alone
    assert torch.equal(torch.get_rng_state(), state)  # the loaders leave torch's generator alone


def test_training_resumes_exactly(cfg: CfgNode) -> None:
    assert _train(cfg, 6)[2 * 4 :] == _train(cfg, 4, start_iter=2)


def test_crop_rule_draws_the_class_and_its_supports_after_the_crop(
    cfg: CfgNode, records: list[dict[str, Any]]
) -> None:
    """MM-Former's second stage; an image shows one class or two, of which a crop may lose either."""
    cfg.FEW_SHOT.TRAIN.SHOTS, cfg.FEW_SHOT.TRAIN.QUERY_RULE = (2,), "crop"
    cfg.INPUT.AUG.CROP_AREA, cfg.INPUT.REDRAWS = (0.05, 0.3), 100
    items = [i for batch in itertools.islice(build_few_shot_train_loader(cfg), 60) for i in batch]
    shown = {record["image_id"]: record["classes"] for record in records}
    classes = {image: {i["class_id"] for i in items if i["image_id"] == image} for image in shown}
    assert classes == {image: set(own) for image, own in shown.items()}
    for item in items:
        assert (item["sem_seg"] == 1).any()  # rule "image" loses the object of some queries
        supports = [s["image_id"] for s in item["support"]]
        assert len({item["image_id"], *supports}) == 3 and supports == list(item["support_ids"])
        assert all(item["class_id"] in shown[image] for image in supports)
        assert "segments" not in item
    cfg.FEW_SHOT.TRAIN.QUERY_RULE = "image"
    plain = [i for batch in itertools.islice(build_few_shot_train_loader(cfg), 60) for i in batch]
    assert [i["image_id"] for i in plain] == [i["image_id"] for i in items]
    moved = [a for a, b in zip(items, plain, strict=True) if a["class_id"] != b["class_id"]]
    assert moved and all(len(shown[item["image_id"]]) == 2 for item in moved)


def test_training_processes_share_the_batches(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    single = _train(cfg, 3)
    shares = []
    for rank in range(2):
        _on_rank(monkeypatch, rank, 2)
        shares.append(_train(cfg, 3))
    assert [item for pair in zip(*shares, strict=True) for item in pair] == single


def test_training_needs_data_sets_and_an_even_batch(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    _on_rank(monkeypatch, 0, 3)
    with pytest.raises(ValueError, match="IMS_PER_BATCH 4 must be a multiple of the 3 processes"):
        build_few_shot_train_loader(cfg)
    cfg.SOLVER.IMS_PER_BATCH = 3
    for names, message in (((NAME, NAME), "has a set twice; name each once"), ((), "names no data set")):
        cfg.DATASETS.TRAIN = names
        with pytest.raises(ValueError, match=rf"DATASETS\.TRAIN .*{message}"):
            build_few_shot_train_loader(cfg)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_does_not_depend_on_workers_or_processes(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    single = _flat(build_few_shot_test_loader(cfg, NAME, shots=2))
    assert [row[0] for row in single] == list(range(7))
    cfg.DATALOADER.NUM_WORKERS = workers
    shares = []
    for rank in range(2):
        _on_rank(monkeypatch, rank, 2)
        loader = build_few_shot_test_loader(cfg, NAME, shots=2)
        shares.append(_flat(loader))
        assert len(loader) == len(shares[-1])
    assert [len(share) for share in shares] == [4, 3]
    assert sorted(shares[0] + shares[1]) == single


def test_training_without_supports_gives_segments_of_the_base_classes(cfg: CfgNode) -> None:
    MetadataCatalog.get(NAME).set(base_class_ids=[0, 1])  # class 2 is held out
    del MetadataCatalog.get(NAME).class_ids
    MetadataCatalog.get(NAME).set(class_ids=[0, 1])
    cfg.FEW_SHOT.TRAIN.SHOTS = (0,)
    cfg.FEW_SHOT.TRAIN.QUERY_RULE = "image"
    cfg.INPUT.SEGMENTS = "semantic"
    items = [i for batch in itertools.islice(build_few_shot_train_loader(cfg), 6) for i in batch]
    labels = set()
    for item in items:
        assert item["support"] == [] and item["segments"].shape[1:] == item["image"].shape[1:]
        labels.update(item["segment_labels"].tolist())
        mine = item["segments"][item["segment_labels"] == item["class_id"] + 1]
        assert torch.equal(mine[0], item["sem_seg"] == 1)
    assert labels == {0, 1, 2}


def test_evaluation_gives_the_objects_where_recall_is_wanted(cfg: CfgNode) -> None:
    assert all("target_segments" not in b[0] for b in build_few_shot_test_loader(cfg, NAME, shots=1))
    cfg.TEST.EVALUATORS = ("oracle", "proposal_recall")
    for batch in build_few_shot_test_loader(cfg, NAME, shots=1):
        objects = batch[0]["target_segments"]
        assert objects.dtype == torch.bool and tuple(objects.shape[1:]) == (40, 56)
        assert any(torch.equal(one, batch[0]["target"] == 1) for one in objects)


def test_number_of_test_episodes(cfg: CfgNode) -> None:
    assert len(build_test_episodes(cfg, NAME, 1)) == 7
    assert build_test_episodes(cfg, NAME, 1, episodes=3) == build_test_episodes(cfg, NAME, 1)[:3]
    every = build_test_episodes(cfg, NAME, 1, episodes=0)
    assert len(every) == len({(e.query, e.class_id) for e in every}) == 16  # 12 images, 4 of them with two
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        build_test_episodes(cfg, NAME, 1, episodes=-1)
    with pytest.raises(ValueError, match=r"FEW_SHOT\.TEST\.SHOTS must be positive numbers, got 0"):
        build_test_episodes(cfg, NAME, 0)


def test_only_the_split_s_classes_are_drawn(cfg: CfgNode) -> None:
    metadata = MetadataCatalog.get(NAME)
    del metadata.class_ids
    metadata.class_ids = [1]
    assert {e.class_id for e in build_test_episodes(cfg, NAME, 1)} == {1}


def test_repeated_supports_are_a_switch(cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match="no class has the 9 images"):
        build_test_episodes(cfg, NAME, 8)
    cfg.FEW_SHOT.REPEAT_SUPPORTS = True
    assert all(len(e.supports) == 8 for e in build_test_episodes(cfg, NAME, 8))


def test_hsnet_rules_take_the_records_order(cfg: CfgNode, records: list[dict[str, Any]]) -> None:
    cfg.FEW_SHOT.TEST.QUERY_RULE = "hsnet_pascal"
    pairs = [(r["image_id"], c) for r in records for c in r["classes"]]
    assert dataset_pairs(NAME, records) == pairs
    assert build_test_episodes(cfg, NAME, 5) == hsnet_pascal(pairs, 5, episodes=7)


def test_mmformer_rule(cfg: CfgNode, records: list[dict[str, Any]]) -> None:
    cfg.FEW_SHOT.TEST.QUERY_RULE, cfg.FEW_SHOT.TEST.SEED = "mmformer", 11
    assert build_test_episodes(cfg, NAME, 2) == mmformer_episodes(dataset_pairs(NAME, records), 2, 7, 11)


def test_unknown_rule_is_refused_with_the_choices(cfg: CfgNode) -> None:
    cfg.FEW_SHOT.TEST.QUERY_RULE = "hsnet"
    with pytest.raises(
        ValueError, match="choose one of class, pair, image, pfenet, root, crop, hsnet_pascal"
    ):
        build_test_episodes(cfg, NAME, 1)


def _manifest(tmp_path: Path, cfg: CfgNode, shots: int) -> tuple[str, list[Episode]]:
    episodes = build_test_episodes(cfg, NAME, shots)
    path = tmp_path / "manifest.jsonl"
    write_manifest(path, episodes, dataset=NAME, class_names=NAMES)
    return str(path), episodes


def test_manifest_replaces_drawing_and_lends_its_first_supports(cfg: CfgNode, tmp_path: Path) -> None:
    drawn = _flat(build_few_shot_test_loader(cfg, NAME, shots=2))
    path, episodes = _manifest(tmp_path, cfg, shots=2)
    cfg.FEW_SHOT.TEST.SEED = 1
    assert _flat(build_few_shot_test_loader(cfg, NAME, shots=2)) != drawn
    assert _flat(build_few_shot_test_loader(cfg, NAME, shots=2, manifest=path)) == drawn
    cfg.FEW_SHOT.TEST.MANIFEST = path
    one_shot = [batch[0] for batch in build_few_shot_test_loader(cfg, NAME, shots=1, episodes=3)]
    assert [item["support"][0]["image_id"] for item in one_shot] == [e.supports[0] for e in episodes[:3]]
    assert all(len(item["support"]) == 1 for item in one_shot)


def test_manifest_with_too_few_shots_is_named(cfg: CfgNode, tmp_path: Path) -> None:
    path, _ = _manifest(tmp_path, cfg, shots=1)
    with pytest.raises(
        ValueError, match=r"manifest\.jsonl: has 1 supports per episode, .*TEST\.SHOTS wants 5"
    ):
        build_few_shot_test_loader(cfg, NAME, shots=5, manifest=path)


def test_broken_image_is_named_through_the_workers(cfg: CfgNode, records: list[dict[str, Any]]) -> None:
    for record in records:
        Path(record["file_name"]).write_bytes(b"broken")
    cfg.DATALOADER.NUM_WORKERS = 1
    with pytest.raises(ValueError, match=r"image file .*image\d+\.png cannot be read"):
        next(iter(build_few_shot_train_loader(cfg)))


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize(("device", "workers"), [("cuda", 2), ("cuda", 0), ("cpu", 2)])
def test_memory_is_pinned_and_workers_persist_where_a_gpu_is_used(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch, gpu: bool, device: str, workers: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    cfg.MODEL.DEVICE, cfg.DATALOADER.NUM_WORKERS = device, workers
    for loader in (build_few_shot_train_loader(cfg), build_few_shot_test_loader(cfg, NAME, shots=1)):
        uses_gpu = gpu and device == "cuda"
        assert (loader.pin_memory, loader.persistent_workers) == (uses_gpu, uses_gpu and workers > 0)


def _with_kinds(cfg: CfgNode) -> CfgNode:
    for key in ("NEGATIVES", "REGIONS", "COMPETITION", "PASTE_OTHERS", "PASTE_COPIES"):
        cfg.FEW_SHOT.TRAIN[key] = 0.4
    return cfg


@pytest.mark.parametrize("workers", [0, 2])
def test_negative_and_pasted_episodes_resume_exactly(cfg: CfgNode, workers: int) -> None:
    cfg = _with_kinds(cfg)
    whole = _train(cfg, 6)
    cfg.DATALOADER.NUM_WORKERS = workers
    assert whole[12:] == _train(cfg, 3, start_iter=3)
    assert len({row[4] for row in whole}) > 1


def test_kinds_of_training_episodes_change_no_evaluation(cfg: CfgNode) -> None:
    plain = _flat(build_few_shot_test_loader(cfg, NAME, shots=1))
    changed = _with_kinds(cfg)
    assert _flat(build_few_shot_test_loader(changed, NAME, shots=1)) == plain
    assert not any(e.absent or e.region or e.pasted for e in build_test_episodes(changed, NAME, 1))
