"""Is the object there? Signals by hand, numbers in checkpoints, and the negatives of every method."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fss_d2.checkpoint.checkpointer import FewShotCheckpointer, load_model
from fss_d2.inference.support_file import weights_digest
from fss_d2.modeling import FEW_SHOT_META_ARCHS, FewShotSegmentor, SupportSet
from fss_d2.modeling.evidence import Evidence, evidence_of
from fss_d2.modeling.logistic import Logistic
from fss_d2.modeling.meta_arch.contract import NegativeSet, stack_supports
from fss_d2.modeling.presence import SIGNALS, Presence, guide_of
from tests.modeling.episodes import make_cfg, make_episode, make_model

METHODS = pytest.mark.parametrize("method", FEW_SHOT_META_ARCHS)
N = len(SIGNALS)
OBJECT, GROUND, OTHER = torch.eye(4)[:3]  # features of three things


def picture(*cells: Tensor) -> dict[str, Tensor]:
    """A map (1, 4, 2, 2) of four cells, the block "b"."""
    return {"b": torch.stack(cells, dim=1).unflatten(1, (2, 2))[None]}


def evidence(*cells: Tensor, shown: tuple[int, ...] = (), value: int = 1) -> Evidence:
    """The evidence of a picture; of a support where some cells are ``shown``."""
    if not shown:
        return evidence_of(picture(*cells), ["b"], ["b"])
    mask = torch.full((4,), 0 if value == 1 else 255)
    mask[list(shown)] = value
    return evidence_of(picture(*cells), ["b"], ["b"], mask.view(1, 1, 2, 2))


def signals(query: Evidence, guide: Any, probability: Tensor | None = None) -> dict[str, float]:
    found = torch.zeros(1, 2, 2) if probability is None else probability
    values = Presence().signals(query, guide, found)
    assert values.shape == (1, len(SIGNALS)) and torch.isfinite(values).all()
    return dict(zip(SIGNALS, values[0].tolist(), strict=True))


def test_signals_by_hand() -> None:
    support = evidence(OBJECT, GROUND, GROUND, GROUND, shown=(0,))
    probability = torch.tensor([[[0.75, 0.25], [0.0, 0.0]]])
    there = signals(evidence(OBJECT, GROUND, GROUND, OTHER), guide_of(support), probability)
    assert (there["nearest"], there["unity"], there["contrast"], there["in_mask"]) == (1, 1, 1, 1)
    assert there["whole"] == pytest.approx(1 / 6**0.5)  # mean of the cells: (1, 2, 1, 0) / 4
    assert (there["highest"], there["mean"], there["sharpness"]) == (0.75, 0.25, 0.75)
    absent = signals(evidence(GROUND, GROUND, OTHER, OTHER), guide_of(support))
    assert (absent["nearest"], absent["whole"], absent["contrast"], absent["in_mask"]) == (0, 0, 0, 0)
    model = Presence()
    logits = [
        model(evidence(*cells), guide_of(support), probability)
        for cells in ((OBJECT,) * 4, (GROUND, GROUND, OTHER, OTHER))
    ]
    assert logits[0] > 0 > logits[1]


def test_supports_that_differ_have_less_unity() -> None:
    one = evidence(OBJECT, GROUND, GROUND, GROUND, shown=(0,))
    other = evidence(OTHER, GROUND, GROUND, GROUND, shown=(0,))
    found = signals(evidence(OBJECT, GROUND, GROUND, GROUND), guide_of(Evidence.concatenate([one, other])))
    assert found["unity"] == pytest.approx(0.5**0.5) and found["nearest"] == pytest.approx(0.5**0.5)


def test_a_support_without_background() -> None:
    found = signals(evidence(*[OBJECT] * 4), guide_of(evidence(*[OBJECT] * 4, shown=(0, 1, 2, 3))))
    assert (found["nearest"], found["contrast"]) == (1, 1)


def test_what_all_pictures_share_says_nothing() -> None:
    shared = 5 * torch.eye(4)[3]
    support = guide_of(
        evidence(*[F.normalize(x + shared, dim=0) for x in (OBJECT, *[GROUND] * 3)], shown=(0,))
    )
    query = evidence(*[F.normalize(x + shared, dim=0) for x in [GROUND] * 4])
    model = Presence()
    assert model.signals(query, support, torch.zeros(1, 2, 2))[0, 0] > 0.95
    model.fill(
        F.normalize(OBJECT + GROUND + 2 * shared, dim=0), torch.ones(4), Logistic(0, *[(1.0,) * N] * 3)
    )
    assert model.signals(query, support, torch.zeros(1, 2, 2))[0, 0] < 0


def test_numbers_of_another_backbone_are_refused() -> None:
    model, support = Presence(), guide_of(evidence(OBJECT, GROUND, GROUND, GROUND, shown=(0,)))
    model.fill(torch.zeros(7), torch.ones(7))
    with pytest.raises(ValueError, match=r"fitted to 7 channels, MODEL\.PRESENCE\.BLOCKS give 4"):
        model.signals(evidence(*[OBJECT] * 4), support, torch.zeros(1, 2, 2))


# -- checkpoints -----------------------------------------------------------------------------------------


@METHODS
def test_a_checkpoint_holds_the_numbers_once_they_are_fitted(method: str, tmp_path: Path) -> None:
    model, episode = make_model(method), make_episode(0)
    plain = model([episode])[0]["presence"]
    assert plain.shape == () and plain.dtype == torch.float32
    assert not any(name.startswith("presence.") for name in model.state_dict())
    digest = weights_digest(model)
    grid = model.encode_query(episode["image"][None]).evidence.maps["deep"]
    numbers = Logistic(0.5, (0.1,) * N, (2.0,) * N, tuple(np.linspace(-1, 1, N)))
    model.presence.fill(grid.mean(dim=(0, 2, 3)), torch.full((grid.shape[1],), 0.5), numbers)
    fitted = model([episode])[0]["presence"]
    assert fitted != plain and weights_digest(model) == digest
    FewShotCheckpointer(model, str(tmp_path)).save("fitted")
    loaded = load_model(make_cfg(method, "MODEL.WEIGHTS", str(tmp_path / "fitted.pth")))
    assert torch.equal(loaded([episode])[0]["presence"], fitted)
    unfitted = {name: t for name, t in loaded.state_dict().items() if not name.startswith("presence.")}
    torch.save({"model": unfitted}, tmp_path / "published.pth")
    published = load_model(make_cfg(method, "MODEL.WEIGHTS", str(tmp_path / "published.pth")))
    assert torch.equal(published([episode])[0]["presence"], plain)


@METHODS
def test_blocks_are_a_choice(method: str) -> None:
    default, deeper, stage = (
        make_model(method, *(("MODEL.PRESENCE.BLOCKS", blocks) if blocks else ()))
        for blocks in ((), ("res2.0", "res5.0"), ("res5",))
    )
    assert deeper.presence_blocks == ("res2.0", "res5.0") and stage.presence_blocks == ("res5.0", "res5.1")
    episode = make_episode(0, 2)
    results = [model([episode])[0] for model in (default, deeper)]
    assert torch.equal(results[0]["sem_seg"], results[1]["sem_seg"])
    assert results[0]["presence"] != results[1]["presence"]
    with pytest.raises(KeyError, match=r"MODEL\.PRESENCE\.BLOCKS: no feature 'res9'"):
        make_model(method, "MODEL.PRESENCE.BLOCKS", ("res9",))


@METHODS
def test_training_computes_no_presence(method: str) -> None:
    model = make_model(method).train()
    images, masks = stack_supports([make_episode(0), make_episode(1)])
    assert model.encode_support(images, masks).evidence is None
    assert model.encode_query(images[:, 0]).evidence is None


# -- negatives -------------------------------------------------------------------------------------------


def encoded(model: FewShotSegmentor, *, negatives: int = 1) -> tuple[SupportSet, NegativeSet]:
    support = model.encode_support(*stack_supports([make_episode(0, 2)]))
    images, _ = stack_supports([make_episode(5, negatives)])
    return support, model.encode_negatives(images, torch.zeros_like(images[:, :, 0]))


def test_what_resembles_a_negative_counts_less() -> None:
    support = evidence(OBJECT, GROUND, GROUND, GROUND, shown=(0,))
    alike = F.normalize(OBJECT + OTHER, dim=0)
    negative = evidence(alike, GROUND, OTHER, OTHER, shown=(0, 1, 2, 3), value=0)
    query = evidence(alike, GROUND, GROUND, GROUND)
    plain, warned = (signals(query, guide_of(support, n)) for n in (None, _as_regions(negative)))
    assert warned["nearest"] < plain["nearest"] - 0.2
    lead = Presence().negative_lead(query, guide_of(support, _as_regions(negative)))
    assert lead[0, 0, 0] > 0.2 and lead[0, 0, 0] == lead.max()
    still = signals(evidence(*[OBJECT] * 4), guide_of(support, _as_regions(negative)))
    assert still["nearest"] == 1  # the object itself is not lowered


def _as_regions(negative: Evidence) -> Evidence:
    """The evidence in which the regions are "objects", as in a `NegativeSet`."""
    return Evidence(negative.maps, dict.fromkeys(negative.maps, negative.ground), negative.ground)


@METHODS
@torch.no_grad()
def test_negatives_change_scores_and_can_be_taken_back(method: str) -> None:
    model = make_model(method)
    # The scores of an untrained decoder say nothing, nor do those of an empty mask.
    if method in ("DenseCorrelation", "INSID3"):
        model.presence.weights[SIGNALS.index("in_mask") :] = 0
    support, negatives = encoded(model, negatives=2)
    query = model.encode_query(make_episode(5)["image"][None])
    plain = model.match(query, support)
    warned_set = model.with_negatives(support, negatives)
    warned = model.match(query, warned_set)
    assert not torch.equal(warned.logits, plain.logits) and warned.presence < plain.presence
    again = model.match(query, model.with_negatives(warned_set, None))
    assert torch.equal(again.logits, plain.logits) and torch.equal(again.presence, plain.presence)
    fewer = model.match(query, model.with_negatives(support, negatives.select([0])))
    assert not torch.equal(fewer.presence, warned.presence) or not torch.equal(fewer.logits, warned.logits)


@METHODS
@torch.no_grad()
def test_negatives_stay_when_supports_are_saved_merged_and_selected(method: str) -> None:
    model = make_model(method)
    support, negatives = encoded(model, negatives=2)
    query = model.encode_query(make_episode(5)["image"][None])
    whole = model.with_negatives(support, negatives)
    expected = model.match(query, whole)
    parts = [model.with_negatives(model.select_supports(whole, [k]), negatives.select([k])) for k in range(2)]
    for other in (model.restore_support(whole.state()), model.merge_supports(parts)):
        found = model.match(query, other)
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.presence, expected.presence, rtol=1e-5, atol=1e-5)
    assert len(model.select_supports(whole, [1]).negatives) == len(negatives) == 2
    assert whole.to("meta").negatives.evidence.maps["deep"].is_meta


@METHODS
@torch.no_grad()
def test_what_is_not_in_the_region_does_not_count(method: str) -> None:
    """In the left half; the grids of the fake backbone look at their own cells alone."""
    # Features of one size, so that no map is enlarged across the border of the region.
    one = ("MODEL.DENSE_CORRELATION.EMBEDDING_FEATURES", ("res4",)) if method == "DenseCorrelation" else ()
    model = make_model(method, *one)
    support = model.encode_support(*stack_supports([make_episode(0, 2, (64, 64))]))
    images, _ = stack_supports([make_episode(5, 1, (64, 64))])
    changed = images.clone()
    changed[..., 32:] = 255 - changed[..., 32:]
    mask = torch.zeros_like(images[:, :, 0])
    mask[..., 32:] = 255
    query = model.encode_query(make_episode(5, 1, (64, 64))["image"][None])
    outputs = [
        model.match(query, model.with_negatives(support, model.encode_negatives(each, mask)))
        for each in (images, changed)
    ]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs[0].presence, outputs[1].presence, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_negatives_that_are_refused() -> None:
    model = make_model("Prototype")
    support, negatives = encoded(model)
    images, masks = stack_supports([make_episode(5)])
    for mask in (masks, torch.full_like(masks, 255)):
        with pytest.raises(ValueError, match="is 0 where the region is, at one pixel at least, else 255"):
            model.encode_negatives(images, mask)
    with pytest.raises(ValueError, match=r"negative masks .* do not fit images"):
        model.encode_negatives(images, masks[..., 1:])
    with pytest.raises(ValueError, match=r"negatives \[1\] of 1: give some of 0 to N - 1"):
        negatives.select([1])
    pair = model.encode_support(*stack_supports([make_episode(0), make_episode(1)]))
    with pytest.raises(ValueError, match="negatives of 1 episodes for supports of 2"):
        model.with_negatives(pair, negatives)
    with pytest.raises(ValueError, match="negatives of DCAMA given to Prototype: encode it again"):
        model.with_negatives(support, encoded(make_model("DCAMA"))[1])


@torch.no_grad()
def test_attention_maps_are_those_of_the_supports() -> None:
    model = make_model("DCAMA")
    support, negatives = encoded(model)
    image = make_episode(5)["image"][None]
    plain = model.attention_map(image, support, (0.5, 0.5))
    assert torch.equal(
        model.attention_map(image, model.with_negatives(support, negatives), (0.5, 0.5)), plain
    )
