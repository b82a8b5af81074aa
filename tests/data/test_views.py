"""Test episodes at several sizes: what a view holds, and the frame that its scores are brought to."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode

from fss_d2.config import get_cfg
from fss_d2.data.episode import Episode
from fss_d2.data.mapper import EpisodeMapper
from fss_d2.data.views import build_view_resizes

MakeRecords = Callable[..., list[dict[str, Any]]]
EPISODE = Episode(4, 0, "image0", ("image3", "image6"), seed=5)


def _cfg(*overrides: Any) -> CfgNode:
    cfg = get_cfg()
    cfg.INPUT.FEW_SHOT_SIZE = (64, 64)
    cfg.merge_from_list(list(overrides))
    return cfg


def _mapped(records: list[dict[str, Any]], *overrides: Any, is_train: bool = False) -> dict[str, Any]:
    return EpisodeMapper(_cfg(*overrides), is_train=is_train, records=records)(EPISODE)


def test_off_by_default_and_in_training(make_records: MakeRecords) -> None:
    assert "views" not in _mapped(make_records())
    assert "views" not in _mapped(make_records(), "TEST.SCALES", (32, 48), is_train=True)


@pytest.mark.parametrize("resize", ["squash", "letterbox", "shortest_edge"])
def test_a_view_is_the_episode_mapped_at_its_size(make_records: MakeRecords, resize: str) -> None:
    records = make_records()
    both = ("INPUT.TEST_RESIZE", resize, "FEW_SHOT.TEST.SUPPORT_ANNOTATION", "scribble")
    mapped = _mapped(records, *both, "TEST.SCALES", (64, (48, 80)))
    assert len(mapped["views"]) == 2
    for view, size in zip(mapped["views"], [(64, 64), (48, 80)], strict=True):
        alone = _mapped(records, *both, "INPUT.FEW_SHOT_SIZE", size)
        assert torch.equal(view["image"], alone["image"])
        assert (view["height"], view["width"], view.get("valid_size")) == (
            *(mapped[key] for key in ("height", "width")),
            alone.get("valid_size"),
        )
        assert (view["image_id"], view["episode_index"]) == ("image0", 4)
        for support, expected in zip(view["support"], alone["support"], strict=True):
            assert support["image_id"] == expected["image_id"]
            assert torch.equal(support["image"], expected["image"])
            assert torch.equal(support["mask"], expected["mask"])  # one scribble, at several sizes
    plain = _mapped(records, *both)
    assert torch.equal(mapped["image"], plain["image"]) and torch.equal(mapped["target"], plain["target"])


def _frame(records: list[dict[str, Any]], frame: str, resize: str) -> tuple[Any, ...]:
    mapped = _mapped(records, "TEST.FRAME", frame, "INPUT.TEST_RESIZE", resize, "TEST.SCALES", (96,))
    (view,) = mapped["views"]
    return (mapped["height"], mapped["width"]), (view["height"], view["width"]), view.get("valid_size")


def test_frames_of_images_of_40_by_56_pixels(make_records: MakeRecords) -> None:
    records = make_records()
    # 56 -> 64 and 40 -> 45 -> 40 at 64; 56 -> 96 and 40 -> 68 -> 64 at 96.
    assert _frame(records, "original", "letterbox") == ((40, 56), (40, 56), (64, 96))
    assert _frame(records, "pfenet_square", "letterbox") == ((56, 56), (56, 56), None)
    assert _frame(records, "network", "letterbox") == ((64, 64), (40, 64), (64, 96))
    assert _frame(records, "network", "squash") == ((64, 64), (64, 64), None)
    assert _frame(records, "network", "shortest_edge") == ((64, 90), (64, 90), None)


@pytest.mark.parametrize(
    "wrong", [(0,), (-3, 473), (473.5,), ((473,),), ((1, 2, 3),), ("a",), (True,), ((),)]
)
def test_wrong_sizes_are_named(wrong: tuple[Any, ...]) -> None:
    cfg = _cfg()
    cfg.TEST.SCALES = wrong
    with pytest.raises(ValueError, match=r"TEST\.SCALES has .*give sides in pixels"):
        build_view_resizes(cfg)


def test_a_size_twice_is_refused_before_any_training(make_records: MakeRecords) -> None:
    with pytest.raises(ValueError, match=r"TEST\.SCALES \(48, \(48, 48\)\) has a size twice"):
        _mapped(make_records(), "TEST.SCALES", (48, (48, 48)), is_train=True)


def test_sizes_from_yaml_are_lists(make_records: MakeRecords) -> None:
    views = _mapped(make_records(), "TEST.SCALES", [32, [40, 48]])["views"]
    assert [tuple(view["image"].shape[1:]) for view in views] == [(32, 32), (40, 48)]
