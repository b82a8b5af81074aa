"""Training on queries that do not show the object."""

from typing import Any

import pytest
import torch

from fss_d2.modeling import FEW_SHOT_META_ARCHS, FewShotSegmentor, Output
from fss_d2.modeling.meta_arch.contract import Target
from fss_d2.modeling.meta_arch.mm_former import contrastive_loss
from tests.modeling.episodes import make_episode, make_model

TRAINED = [name for name in FEW_SHOT_META_ARCHS if make_model(name).trainable]
NEGATIVES = ("FEW_SHOT.TRAIN.NEGATIVES", 0.3)
DICE = ("MODEL.LOSS.DICE_WEIGHT", 1.0)


def negative_episode(seed: int = 0) -> dict[str, Any]:
    episode = make_episode(seed)
    return {**episode, "sem_seg": torch.where(episode["sem_seg"] == 255, 255, 0).to(torch.uint8)}


def settings(method: str) -> tuple[Any, ...]:
    """With losses that count from the first iteration on."""
    start = ("MODEL.DENSE_CORRELATION.NEGATIVE_START", 0.0) if method == "DenseCorrelation" else ()
    return (*NEGATIVES, *start, *(() if method == "MMFormer" else DICE))


def foreground(model: FewShotSegmentor, episode: dict[str, Any]) -> float:
    model.eval()
    with torch.no_grad():
        return float(model([episode])[0]["sem_seg"].softmax(dim=0)[1].mean())


@pytest.mark.parametrize("method", TRAINED)
@pytest.mark.parametrize("others", [0, 1])
def test_losses_and_gradients_stay_finite(method: str, others: int) -> None:
    model = make_model(method, *settings(method)).train()
    losses = model([negative_episode(), *(make_episode(1 + i) for i in range(others))])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("method", TRAINED)
def test_steps_on_negative_episodes_lower_the_object(method: str) -> None:
    torch.manual_seed(0)
    model, episode = make_model(method, *settings(method)), negative_episode()
    before = foreground(model, episode)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(8):
        model.train()
        optimizer.zero_grad()
        sum(model([episode]).values()).backward()
        optimizer.step()
    assert foreground(model, episode) < before - 0.005


def dice(logits: torch.Tensor, mask: list[int], *options: Any) -> torch.Tensor:
    target = Target(torch.tensor(mask).view(1, 2, 2))
    return make_model("DCAMA", *DICE, *options).losses(Output(logits), target)["loss_dice"]


def test_the_dice_loss_of_an_empty_target() -> None:
    """Probabilities of the object 0.5 and, in one pixel, 0.8; the fourth pixel is ignored."""
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 1, 0, 0] = torch.tensor(4.0).log()
    logits.requires_grad_()
    kept = ("MODEL.DCAMA.IGNORE_AS_BACKGROUND", False)
    loss = dice(logits, [0, 0, 0, 255], *NEGATIVES, *kept)
    assert loss.item() == pytest.approx(1 - (2 * 1.2 + 1) / (1.2 + 3 + 1))
    loss.backward()
    object_gradient = logits.grad[0, 1].flatten()
    assert (object_gradient[:3] > 0.01).all() and object_gradient[3] == 0
    assert dice(logits, [0, 0, 0, 255], *kept).item() == pytest.approx(1 - 1 / (1.8 + 1))


def test_a_target_with_the_object_has_the_loss_of_before() -> None:
    logits = torch.randn(1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    for mask in ([0, 1, 0, 1], [1, 1, 1, 255]):
        assert torch.equal(dice(logits, mask, *NEGATIVES), dice(logits, mask))


def test_proposals_of_a_negative_query_are_not_contrasted() -> None:
    similarity = torch.tensor([[0.1, 0.5, 0.4], [0.3, 0.2, 0.9]])
    iou = torch.tensor([[0.2, 0.8, 0.0], [0.0, 0.0, 0.0]])
    first = contrastive_loss(similarity[:1], iou[:1])
    torch.testing.assert_close(contrastive_loss(similarity, iou, torch.tensor([True, False])), first)
    assert contrastive_loss(similarity, iou, torch.tensor([False, False])) == 0


def test_only_queries_with_the_object_return() -> None:
    """DPCN's second loss segments the supports from the query: not from one without the object."""
    model = make_model("DPCN", *NEGATIVES).train()
    assert model([negative_episode()])["loss_return"] == 0
    assert model([make_episode(1)])["loss_return"] > 0
