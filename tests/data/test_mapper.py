"""From episodes to model inputs: contract, frames, seeding, redraws and errors."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from PIL import Image

from fss_d2.config import get_cfg
from fss_d2.data.augmentations import Letterbox, RandomKeepCrop, RandomResizedCrop, Squash
from fss_d2.data.episode import Episode
from fss_d2.data.mapper import EpisodeMapper, ForeignSupportMapper
from fss_d2.data.masks import load_sample
from fss_d2.data.transforms import SquashTransform

Record = dict[str, Any]
MakeRecords = Callable[..., list[Record]]
EPISODE = Episode(11, 0, "image0", ("image3", "image6", "image3"), seed=5)


def _equal(first: Any, second: Any) -> bool:
    """Whether two mapped episodes hold the same values and tensors."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_equal(first[k], second[k]) for k in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(_equal, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def test_evaluation_dict_follows_the_contract(make_records: MakeRecords) -> None:
    records = make_records()
    out = EpisodeMapper(records=records, resize=Squash((32, 48)))(EPISODE)
    image, mask = load_sample(records[0], 0)
    resize = SquashTransform(32, 48)
    assert out["image"].dtype == out["sem_seg"].dtype == out["target"].dtype == torch.uint8
    np.testing.assert_array_equal(out["image"].permute(1, 2, 0), resize.apply_image(image))
    np.testing.assert_array_equal(out["sem_seg"], resize.apply_segmentation(mask))
    np.testing.assert_array_equal(out["target"], mask)
    assert (out["height"], out["width"]) == (40, 56)
    assert (out["class_id"], out["image_id"], out["episode_index"]) == (0, "image0", 11)
    assert [s["image_id"] for s in out["support"]] == ["image3", "image6", "image3"]
    assert all(set(s) == {"image", "mask", "image_id"} for s in out["support"])
    assert _equal(out["support"][0], out["support"][2])
    assert "valid_size" not in out


def test_every_class_of_an_image_has_its_own_mask(make_records: MakeRecords) -> None:
    mapper = EpisodeMapper(records=make_records(), resize=Squash((40, 56)))
    first = mapper(Episode(0, 0, "image0", ("image3",)))["target"]
    second = mapper(Episode(0, 1, "image0", ("image1",)))["target"]
    assert (first[4:20, 4:30] == 1).all() and (second[22:36, 20:50] == 1).all()
    assert not ((first == 1) & (second == 1)).any()
    assert (first[0] == 255).all()


@pytest.mark.parametrize("frame", ["original", "network", "pfenet_square"])
def test_frames(make_records: MakeRecords, frame: str) -> None:
    records = make_records()
    out = EpisodeMapper(records=records, resize=Letterbox((64, 64)), frame=frame)(EPISODE)
    _, mask = load_sample(records[0], 0)
    assert tuple(out["target"].shape) == (out["height"], out["width"])
    if frame == "original":
        assert (out["height"], out["width"]) == (40, 56)
        assert out["valid_size"] == (40, 64)  # 56 -> 64, 40 -> 45 -> 40
        return
    assert "valid_size" not in out
    if frame == "network":
        assert torch.equal(out["target"], out["sem_seg"]) and out["height"] == out["width"] == 64
    else:
        assert out["height"] == out["width"] == 56
        np.testing.assert_array_equal(out["target"][:40], mask)
        assert (out["target"][40:] == 255).all()


def _training_mapper(records: list[Record], *augmentations: T.Augmentation, **kwargs: Any) -> EpisodeMapper:
    chosen = augmentations or (T.RandomFlip(0.5), RandomResizedCrop((24, 24), (0.3, 1.0)))
    return EpisodeMapper(
        records=records, resize=Squash((24, 24)), augmentations=chosen, is_train=True, **kwargs
    )


def test_augmentation_depends_on_the_episode_seed_alone(make_records: MakeRecords) -> None:
    mapper = _training_mapper(make_records())
    first = mapper(EPISODE)
    np.random.seed(99)
    random.seed(99)
    before = np.random.get_state()[1].copy(), random.getstate()
    again = mapper(EPISODE)
    assert _equal(first, again)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])
    assert random.getstate() == before[1]
    other = mapper(Episode(11, 0, "image0", EPISODE.supports, seed=6))
    assert not torch.equal(first["image"], other["image"])
    assert "target" not in first and (first["height"], first["width"]) == (24, 24)


def test_query_and_supports_are_augmented_independently(make_records: MakeRecords) -> None:
    out = _training_mapper(make_records())(Episode(0, 0, "image0", ("image3", "image3"), seed=1))
    assert not torch.equal(out["support"][0]["image"], out["support"][1]["image"])
    one_shot = _training_mapper(make_records())(Episode(0, 0, "image0", ("image3",), seed=1))
    assert torch.equal(out["image"], one_shot["image"])  # another support does not move the query's draw
    assert _equal(out["support"][0], one_shot["support"][0])


def test_supports_can_be_left_unaugmented(make_records: MakeRecords) -> None:
    records = make_records()
    out = _training_mapper(records, augment_supports=False)(EPISODE)
    plain = EpisodeMapper(records=records, resize=Squash((24, 24)))(EPISODE)
    assert _equal(out["support"], plain["support"])
    assert not torch.equal(out["image"], plain["image"])


def test_evaluation_ignores_augmentations(make_records: MakeRecords) -> None:
    records = make_records()
    plain = EpisodeMapper(records=records, resize=Squash((24, 24)))
    given = EpisodeMapper(records=records, resize=Squash((24, 24)), augmentations=[T.RandomFlip(1.0)])
    assert _equal(plain(EPISODE), given(EPISODE))


def test_support_that_loses_its_object_is_drawn_anew(make_records: MakeRecords) -> None:
    records = make_records()
    mapper = _training_mapper(records, RandomKeepCrop((6, 6), 0, (0, 0, 0)))  # most windows miss the object
    outs = [mapper(Episode(i, 0, "image0", ("image3",), seed=i)) for i in range(30)]
    assert all((out["support"][0]["mask"] == 1).any() for out in outs)
    assert any(not (out["sem_seg"] == 1).any() for out in outs)  # a query may lose it


def test_support_that_no_draw_can_keep_is_resized_only(make_records: MakeRecords) -> None:
    records = make_records()
    gone = T.CropTransform(0, 38, 10, 2)  # two rows without the object
    out = _training_mapper(records, gone, T.RandomFlip(0.5))(EPISODE)  # type: ignore[arg-type]
    plain = EpisodeMapper(records=records, resize=Squash((24, 24)))(EPISODE)
    assert _equal(out["support"], plain["support"])


def _pixels(mask: torch.Tensor) -> int:
    return int((mask == 1).sum())


def test_queries_and_supports_keep_as_many_pixels_as_asked_for(make_records: MakeRecords) -> None:
    records = make_records()
    window = RandomKeepCrop((12, 12), 0, (0, 0, 0))  # 144 pixels
    limits = {"query_min_pixels": 60, "support_min_pixels": 100, "redraws": 200}
    mapper = _training_mapper(records, window, **limits)
    outs = [mapper(Episode(i, 0, "image0", ("image3",), seed=i)) for i in range(20)]
    assert min(_pixels(out["sem_seg"]) for out in outs) >= 60
    assert min(_pixels(out["support"][0]["mask"]) for out in outs) >= 100
    hopeless = _training_mapper(records, window, query_min_pixels=145, redraws=2)(EPISODE)
    plain = EpisodeMapper(records=records, resize=Squash((24, 24)))(EPISODE)
    assert torch.equal(hopeless["image"], plain["image"])


def test_zero_redraws_are_one_draw(make_records: MakeRecords) -> None:
    records = make_records()
    window = RandomKeepCrop((6, 6), 0, (0, 0, 0))
    mapper = _training_mapper(records, window, redraws=0)
    masks = [mapper(Episode(i, 0, "image0", ("image3",), seed=i))["support"][0]["mask"] for i in range(20)]
    assert {tuple(mask.shape) for mask in masks} == {(6, 6), (24, 24)}  # kept, or resized only
    assert all((mask == 1).any() for mask in masks)


def _segment_mapper(records: list[Record], *augmentations: T.Augmentation, **kwargs: Any) -> EpisodeMapper:
    return _training_mapper(
        records, *augmentations, **{"segments": "semantic", "class_ids": (0, 1, 2), **kwargs}
    )


def test_segments_move_with_the_image(make_records: MakeRecords) -> None:
    """The image is painted by its class map, so that every augmented pixel tells its segment."""
    records = make_records()
    values = np.asarray(Image.open(records[0]["sem_seg_file_name"]))
    colour = np.select([values == 1, values == 2, values == 255], [50, 100, 250], 0).astype(np.uint8)
    Image.fromarray(np.repeat(colour[..., None], 3, 2)).save(records[0]["file_name"])
    crop = RandomKeepCrop((30, 44), 0, (150, 150, 150))
    mapper = _segment_mapper(records, T.RandomFlip(0.5), crop)
    for seed in range(10):
        out = mapper(Episode(0, 0, "image0", (), seed=seed))
        shown = dict(zip(out["segment_labels"].tolist(), out["segments"], strict=True))
        assert out["segments"].dtype == torch.bool and out["segment_labels"].dtype == torch.int64
        for label, value in {0: 0, 1: 50, 2: 100}.items():
            expected = out["image"][0] == value
            assert torch.equal(shown.get(label, torch.zeros_like(expected)), expected)
        assert torch.equal(out["sem_seg"] == 255, out["image"][0] >= 150)


def test_without_supports_the_class_is_drawn_among_those_in_the_crop(make_records: MakeRecords) -> None:
    records = make_records()
    mapper = _segment_mapper(records, RandomKeepCrop((12, 16), 0, (0, 0, 0)), redraws=100)
    drawn = {0: 0, 1: 0}
    for seed in range(150):
        out = mapper(Episode(seed, 0, "image0", (), seed=seed))
        shown = [int(label) - 1 for label in out["segment_labels"] if label > 0]
        assert out["support"] == [] and out["class_id"] in shown
        place = (out["segment_labels"] == out["class_id"] + 1).nonzero()[0, 0]
        assert torch.equal(out["segments"][place], out["sem_seg"] == 1)
        if len(shown) == 2:
            drawn[out["class_id"]] += 1
    both = sum(drawn.values())
    assert both > 20 and abs(drawn[0] - both / 2) < 2 * both**0.5  # 4 standard deviations
    assert _equal(out, mapper(Episode(149, 1, "image0", (), seed=149)))  # whatever class the sampler named


def test_with_supports_the_class_stays(make_records: MakeRecords) -> None:
    mapper = _segment_mapper(make_records())
    outs = [mapper(Episode(i, 1, "image0", ("image1",), seed=i)) for i in range(20)]
    assert {out["class_id"] for out in outs} == {1}
    assert all("segments" in out and len(out["support"]) == 1 for out in outs)


def test_held_out_classes_are_in_no_segment_and_no_class_of_a_crop(make_records: MakeRecords) -> None:
    mapper = _segment_mapper(make_records(), Squash((40, 56)), class_ids=(0,))
    out = mapper(Episode(0, 0, "image0", (), seed=0))
    assert out["segment_labels"].tolist() == [0, 1] and out["class_id"] == 0
    assert not out["segments"][:, 22:36, 20:50].any()  # class 1
    assert not out["segments"][:, 0].any() and (out["sem_seg"][0] == 255).all()
    assert not out["sem_seg"][22:36, 20:50].any()  # rest, not ignored


def test_crop_that_never_shows_a_class_falls_back_to_the_resize(make_records: MakeRecords) -> None:
    records = make_records()
    gone = T.CropTransform(0, 38, 10, 2)
    out = _segment_mapper(records, gone, redraws=3)(Episode(0, 0, "image0", (), seed=0))  # type: ignore[arg-type]
    assert out["image"].shape == (3, 24, 24) and out["segment_labels"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("frame", ["original", "network", "pfenet_square"])
def test_target_segments_are_in_the_frame_of_the_target(make_records: MakeRecords, frame: str) -> None:
    mapper = EpisodeMapper(
        records=make_records(), resize=Squash((32, 48)), frame=frame, target_segments=True, class_ids=(0, 1)
    )
    first, second = (mapper(Episode(0, c, "image0", ("image3",))) for c in (0, 1))
    assert "segments" not in first
    assert first["target_segments"].shape == (2, first["height"], first["width"])
    assert torch.equal(first["target_segments"][0], first["target"] == 1)
    assert torch.equal(first["target_segments"][1], second["target"] == 1)


def test_object_that_the_resize_loses_gives_a_background_mask(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[63, 63] = 1
    Image.fromarray(mask).save(tmp_path / "m.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "i.png")
    record = {"file_name": str(tmp_path / "i.png"), "sem_seg_file_name": str(tmp_path / "m.png")}
    records = [{**record, "mask_encoding": "trimap", "image_id": i, "classes": [0]} for i in range(2)]
    out = EpisodeMapper(records=records, resize=Squash((16, 16)))(Episode(0, 0, 0, (1,)))
    assert not out["support"][0]["mask"].any()
    assert out["target"].sum() == 1


def test_constructed_from_cfg(make_records: MakeRecords) -> None:
    cfg = get_cfg()
    cfg.INPUT.FEW_SHOT_SIZE = (32, 32)
    cfg.INPUT.TRAIN_AUGMENTATIONS = ("scale", "rotate", "blur", "flip", "crop")
    cfg.TEST.FRAME = "pfenet_square"
    records = make_records()
    train = EpisodeMapper(cfg, is_train=True, records=records)(EPISODE)
    test = EpisodeMapper(cfg, is_train=False, records=records)(EPISODE)
    assert train["image"].shape == test["image"].shape == (3, 32, 32)
    assert "target" not in train and test["target"].shape == (56, 56)


def test_wrong_arguments_and_ids_are_named(make_records: MakeRecords) -> None:
    records = make_records()
    with pytest.raises(ValueError, match=r"unknown TEST.FRAME 'whole'; choose one of original"):
        EpisodeMapper(records=records, resize=Squash((8, 8)), frame="whole")
    with pytest.raises(ValueError, match=r"unknown INPUT.SEGMENTS 'panoptic'; use '', 'semantic' or"):
        EpisodeMapper(records=records, resize=Squash((8, 8)), segments="panoptic")
    with pytest.raises(ValueError, match="1 image ids occur twice"):
        EpisodeMapper(records=[*records, records[0]], resize=Squash((8, 8)))
    mapper = EpisodeMapper(records=records, resize=Squash((8, 8)))
    with pytest.raises(KeyError, match="image 'image99' of an episode is not in the dataset"):
        mapper(Episode(0, 0, "image0", ("image99",)))


def test_support_without_its_class_is_named(make_records: MakeRecords) -> None:
    records = make_records()
    with pytest.raises(ValueError, match=r"mask1\.png: no pixel shows class 0"):
        EpisodeMapper(records=records, resize=Squash((8, 8)))(Episode(0, 0, "image0", ("image1",)))


def test_query_and_truth_stay_and_the_supports_change(
    make_records: MakeRecords,
) -> None:
    mapper = EpisodeMapper(records=make_records(), resize=T.Resize((40, 56)))
    episodes = [
        Episode(4, 1, "image1", ("image4", "image0")),
        Episode(7, 2, "image2", ("image5", "image8")),
    ]
    foreign = ForeignSupportMapper(mapper, episodes)
    own, other, mixed = mapper(episodes[0]), mapper(episodes[1]), foreign(episodes[0])
    assert mixed.keys() == own.keys()
    for key in own.keys() - {"support", "support_ids"}:
        same = torch.equal(mixed[key], own[key]) if torch.is_tensor(own[key]) else mixed[key] == own[key]
        assert same, key
    assert [support["image_id"] for support in mixed["support"]] == ["image5", "image8"]
    assert mixed["support_ids"] == ("image5", "image8")
    for ours, theirs in zip(mixed["support"], other["support"], strict=True):
        assert torch.equal(ours["mask"], theirs["mask"]) and (ours["mask"] == 1).any()
        assert torch.equal(ours["image"], theirs["image"])
    assert [support["image_id"] for support in foreign(episodes[1])["support"]] == ["image4", "image0"]


def test_supports_of_other_sizes_change_as_well(
    make_records: MakeRecords,
) -> None:
    mapper = EpisodeMapper(records=make_records(), resize=T.Resize((40, 56)), views=[T.Resize((20, 28))])
    episodes = [Episode(0, 1, "image1", ("image4",)), Episode(1, 2, "image2", ("image5",))]
    (own,), (other,) = (mapper(episode)["views"] for episode in episodes)
    (mixed,) = ForeignSupportMapper(mapper, episodes)(episodes[0])["views"]
    assert torch.equal(mixed["image"], own["image"]) and mixed["image"].shape == (3, 20, 28)
    (ours,), (theirs,) = mixed["support"], other["support"]
    assert torch.equal(ours["image"], theirs["image"]) and torch.equal(ours["mask"], theirs["mask"])
