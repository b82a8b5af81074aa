"""Masks brought to the outlines that colours show."""

import numpy as np
import pytest
import torch

from fss_d2.modeling import SegmentorOptions
from fss_d2.modeling.refinement import grabcut, refine
from tests.modeling.episodes import make_episode, make_model


def _disc(side: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """A reddish disc on a bluish ground, both noisy, and its mask."""
    y, x = np.mgrid[:side, :side] - side / 2
    mask = x**2 + y**2 < (side / 3) ** 2
    rng = np.random.default_rng(0)
    image = np.where(mask[..., None], (190, 70, 60), (60, 90, 180)) + rng.normal(0, 12, (side, side, 3))
    return image.clip(0, 255).astype(np.uint8), mask


def _rough(mask: np.ndarray) -> np.ndarray:
    """Probabilities of a mask that is moved and in steps of 8 pixels, as from a coarse map."""
    moved = np.roll(mask, (5, -6), axis=(0, 1))[::8, ::8]
    return np.kron(np.where(moved, 0.8, 0.2), np.ones((8, 8)))


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def test_a_rough_mask_becomes_the_objects() -> None:
    image, mask = _disc()
    probability = _rough(mask)
    assert _iou(probability > 0.5, mask) < 0.85
    refined = grabcut(image, probability)
    assert _iou(refined, mask) > 0.98
    np.testing.assert_array_equal(grabcut(image, probability), refined)  # nothing is left to chance


def test_what_is_sure_stays() -> None:
    image, mask = _disc()
    probability = _rough(mask)
    probability[:6, :6], probability[45:51, 45:51] = 0.99, 0.01  # against the colours
    refined = grabcut(image, probability)
    assert refined[:6, :6].all() and not refined[45:51, 45:51].any()


@pytest.mark.parametrize("object_pixels", [0, 40, 96 * 96 - 40, 96 * 96])
def test_with_too_little_to_go_by_the_mask_stays(object_pixels: int) -> None:
    probability = np.where(np.arange(96 * 96) < object_pixels, 0.8, 0.2).reshape(96, 96)
    np.testing.assert_array_equal(grabcut(_disc()[0], probability), probability > 0.5)


def test_scores_keep_what_was_not_changed() -> None:
    image, mask = _disc()
    probability = torch.from_numpy(_rough(mask))
    lead = probability.logit().float()
    logits = torch.stack([torch.full_like(lead, 3.0), 3.0 + lead])[None]
    picture = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    refined = refine("grabcut", picture, logits, probability[None])
    after = (refined[:, 1] - refined[:, 0])[0]
    np.testing.assert_array_equal((after > 0).numpy(), grabcut(image, _rough(mask)))
    changed = (after > 0) != (lead > 0)
    assert 0 < changed.sum() < changed.numel() / 4
    torch.testing.assert_close(after[~changed], lead[~changed])
    torch.testing.assert_close(after[changed].abs().sigmoid(), torch.full((int(changed.sum()),), 0.51))
    assert refine("", picture, logits, probability[None]) is logits


def test_a_model_refines_in_evaluation_only() -> None:
    episode = make_episode()
    outputs = {}
    for kind in ("", "grabcut"):
        model = make_model("DCAMA", "TEST.REFINEMENT", kind)
        outputs[kind] = [model.eval()([episode])[0]["sem_seg"], model.train()([episode])["loss_seg"]]
    torch.testing.assert_close(outputs["grabcut"][1], outputs[""][1])
    assert not torch.equal(outputs["grabcut"][0], outputs[""][0])


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown TEST.REFINEMENT 'crf': choose from '', grabcut"):
        make_model("DCAMA", "TEST.REFINEMENT", "crf")
    with pytest.raises(ValueError, match=r"unknown refinement 'crf': choose from '', grabcut"):
        SegmentorOptions(refinement="crf")
