"""Supports in several views: what each shows, and that an evaluation gets them as shots."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fss_d2.config import get_cfg
from fss_d2.data.episode import Episode
from fss_d2.data.mapper import EpisodeMapper
from fss_d2.data.support_views import check_support_views, support_views

MakeRecords = Callable[..., list[dict[str, Any]]]
EPISODE = Episode(4, 0, "image0", ("image3", "image6"), seed=5)


def test_what_each_view_shows() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (300, 400, 3), np.uint8)
    mask = np.zeros((300, 400), np.uint8)
    mask[110:190, 150:250], mask[0] = 1, 255
    whole, flip, cut, cut_flip = support_views(("whole", "flip", "cut", "cut_flip"), image, mask)
    assert np.array_equal(whole.image, image) and np.array_equal(whole.mask, mask)
    assert np.array_equal(flip.image, image[:, ::-1]) and np.array_equal(flip.mask, mask[:, ::-1])
    assert np.array_equal(cut.image, image[90:210, 125:275]) and cut.mask.sum() == 8000
    assert np.array_equal(cut_flip.image, cut.image[:, ::-1]) and cut_flip.window == cut.window
    assert [view.mirrored for view in (whole, flip, cut, cut_flip)] == [False, True, False, True]


@pytest.mark.parametrize("kinds", [(), ("whole", "whole"), ("zoom",)])
def test_wrong_views_are_named(kinds: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"SUPPORT_VIEWS .*: give one or more of whole, flip"):
        check_support_views(kinds)


def _mapped(records: list[dict[str, Any]], kinds: tuple[str, ...], **train: bool) -> dict[str, Any]:
    cfg = get_cfg()
    cfg.INPUT.FEW_SHOT_SIZE = (64, 64)
    cfg.FEW_SHOT.TEST.SUPPORT_VIEWS = kinds
    cfg.TEST.SCALES = (32,)
    return EpisodeMapper(cfg, is_train=train.get("is_train", False), records=records)(EPISODE)


def test_views_are_shots_of_an_evaluation_at_every_size(make_records: MakeRecords) -> None:
    records = make_records()
    plain, viewed = (_mapped(records, kinds) for kinds in (("whole",), ("whole", "flip")))
    assert [shot["image_id"] for shot in viewed["support"]] == ["image3", "image3", "image6", "image6"]
    assert torch.equal(viewed["image"], plain["image"]) and torch.equal(viewed["target"], plain["target"])
    for before, after in ((plain, viewed), (plain["views"][0], viewed["views"][0])):
        assert torch.equal(after["support"][2]["image"], before["support"][1]["image"])
        mirrored, image = after["support"][3]["image"], before["support"][1]["image"]
        assert (mirrored.int() - image.flip(-1).int()).abs().max() <= 1  # rounding of the resize


def test_training_has_none(make_records: MakeRecords) -> None:
    assert len(_mapped(make_records(), ("whole", "flip"), is_train=True)["support"]) == 2
