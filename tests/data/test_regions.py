"""Episodes whose object is a region of similar colours in one picture."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from fss_d2.config import get_cfg
from fss_d2.data.episode import Episode
from fss_d2.data.feature_store import FeatureStore
from fss_d2.data.mapper import EpisodeMapper
from fss_d2.data.regions import appearance_regions
from tests.data.conftest import MakeRecords

KEYS = ("INPUT.TRAIN_AUGMENTATIONS", ("flip",))
VARIANTS = (
    *("INPUT.TRAIN_AUGMENTATIONS", ("object_crop", "flip", "color")),
    *("DATALOADER.FEATURE_CACHE_VARIANTS", 5),
)
EPISODES = [Episode(i, 0, "image0", ("image0", "image0"), seed=i, region=True) for i in range(12)]


def _three_colors(side: int = 64) -> np.ndarray:
    """An image of red and green above blue and red."""
    image, half = np.full((side, side, 3), 20, np.uint8), side // 2
    image[:half, :half, 0] = image[half:, half:, 0] = image[:half, half:, 1] = image[half:, :half, 2] = 220
    return image


def _mapper(records: list[dict[str, Any]], *keys: Any, features: FeatureStore | None = None) -> EpisodeMapper:
    cfg = get_cfg()
    cfg.INPUT.FEW_SHOT_SIZE = (48, 64)
    cfg.merge_from_list(list(keys))
    return EpisodeMapper(cfg, True, records, features=features)


def test_regions_are_the_colours_of_the_picture() -> None:
    image, apart = _three_colors(), 0
    for seed in range(20):
        regions = appearance_regions(image, np.random.default_rng(seed))
        assert regions.shape == (64, 64) and regions.dtype == np.uint8
        assert (regions == appearance_regions(image, np.random.default_rng(seed))).all()
        corners = [regions[y : y + 24, x : x + 24] for y in (4, 36) for x in (4, 36)]
        red, green, blue, again = (int(corner[0, 0]) for corner in corners)
        assert all((corner == corner[0, 0]).all() for corner in corners)
        assert red == again and regions.max() <= 5
        apart += len({red, green, blue}) == 3
    assert apart > 14  # k-means does not always find all three


@pytest.mark.parametrize("keys", [KEYS, VARIANTS, ()])
def test_query_and_supports_are_forms_of_one_picture(
    make_records: MakeRecords, keys: tuple[Any, ...]
) -> None:
    """The mask is on the same colours in all of them."""
    records = make_records()
    _repaint(records[0]["file_name"])
    mapper, differs = _mapper(records, *keys), 0
    for episode in EPISODES:
        mapped = mapper(episode)
        assert mapped["support_ids"] == ("image0", "image0") and mapped["image_id"] == "image0"
        forms = [(mapped["image"], mapped["sem_seg"]), *((s["image"], s["mask"]) for s in mapped["support"])]
        assert len(forms) == 3
        shares = [(mask == 1).float().mean() for _, mask in forms]
        if keys:
            assert min(shares) >= 0.02 and shares[0] <= 0.8 and max(shares[1:]) <= 0.7
        hues = [_hue(image, mask) for image, mask in forms]
        assert all(hue == hues[0] for hue in hues)
        differs += not torch.equal(forms[0][0], forms[1][0])
    assert differs > 3 or not keys


def _repaint(file: str) -> None:
    height, width = cv2.imread(file).shape[:2]
    cv2.imwrite(file, cv2.resize(_three_colors()[..., ::-1], (width, height)))


def _hue(image: torch.Tensor, mask: torch.Tensor) -> int:
    """The brightest channel of the median colour where the mask is 1."""
    return int(image[:, mask == 1].median(dim=1).values.argmax())


def test_an_episode_gives_the_same_pixels_each_time(make_records: MakeRecords) -> None:
    records = make_records()
    for one, other in zip(
        *([_mapper(records, *VARIANTS)(e) for e in EPISODES] for _ in range(2)), strict=True
    ):
        assert torch.equal(one["image"], other["image"]) and torch.equal(one["sem_seg"], other["sem_seg"])
        for a, b in zip(one["support"], other["support"], strict=True):
            assert torch.equal(a["image"], b["image"]) and torch.equal(a["mask"], b["mask"])


def test_forms_are_cached_variants(make_records: MakeRecords, tmp_path: Path) -> None:
    """The variants are those of plain episodes, and query and supports are different ones."""
    records, store = make_records(), FeatureStore(tmp_path / "store")
    stored, plain = _mapper(records, *VARIANTS, features=store), _mapper(records, *VARIANTS)
    entries = set()
    for episode in EPISODES:
        mapped, pixels = stored(episode), plain(episode)
        names = [mapped["entry"], *(s["entry"] for s in mapped["support"])]
        entries.update(names)
        assert torch.equal(mapped["image"], pixels["image"])
        assert torch.equal(mapped["sem_seg"], pixels["sem_seg"])
        for a, b in zip(mapped["support"], pixels["support"], strict=True):
            assert torch.equal(a["image"], b["image"]) and torch.equal(a["mask"], b["mask"])
        assert len(set(names)) == 3 or len(set(names)) == 1  # 1: the resized picture, if no region fits
    usual = {stored(Episode(i, 0, "image0", ("image3",), seed=i))["entry"] for i in range(60)}
    assert len(entries - usual) <= 1 and len(entries) <= 6


def test_segments_are_those_of_the_query(make_records: MakeRecords) -> None:
    mapped = _mapper(make_records(), *KEYS, "INPUT.SEGMENTS", "semantic")(EPISODES[0])
    assert sorted(mapped["segment_labels"].tolist()) == [0, 1]
    assert (mapped["segments"].sum(dim=0) <= 1).all()


def test_a_picture_of_one_colour(make_records: MakeRecords) -> None:
    """No region is small enough: the picture is its own region."""
    records = make_records()
    cv2.imwrite(records[0]["file_name"], np.full_like(cv2.imread(records[0]["file_name"]), 90))
    mapped = _mapper(records, *KEYS)(EPISODES[0])
    assert (mapped["sem_seg"] == 1).all() and all((s["mask"] == 1).all() for s in mapped["support"])
