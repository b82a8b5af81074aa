"""The class-agnostic map against numbers worked out by hand."""

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fss_d2.modeling.layers import BaseKnowledge, resize


def two_classes(**settings: Any) -> BaseKnowledge:
    """Prototypes (1, 0, 2) and (3, 0, 0): their mean is (2, 0, 1)."""
    knowledge = BaseKnowledge({"a": 2, "b": 1}, 2, **settings)
    knowledge.fill(torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]]))
    return knowledge


MAPS = {
    "b": torch.tensor([[[[0.0, 1.0], [0.0, 4.0]]]]),  # (1, 1, 2, 2)
    "a": torch.tensor([[[[1.0, 0.0], [2.0, 0.0]], [[5.0, 5.0], [5.0, 5.0]]]]),  # (1, 2, 2, 2)
    "other": torch.ones(1, 7, 1, 1),
}
DOT = torch.tensor([[2.0, 1.0], [4.0, 4.0]])  # 2 * first + third channel


def test_mean_dot_product_by_hand() -> None:
    assert torch.equal(two_classes(normalization="none")(MAPS)[0, 0], DOT)
    assert torch.equal(two_classes(normalization="sigmoid")(MAPS)[0, 0], DOT.sigmoid())
    torch.testing.assert_close(two_classes()(MAPS)[0, 0], (DOT - 1) / 3)


def test_mean_cosine_by_hand() -> None:
    knowledge = two_classes(similarity="cosine", normalization="none")
    pixel = {"a": torch.tensor([3.0, 0.0]).view(1, 2, 1, 1), "b": torch.tensor([4.0]).view(1, 1, 1, 1)}
    # cosines with (1, 0, 2) / sqrt(5) and (1, 0, 0) of (3, 0, 4) / 5
    expected = (11 / (5 * 5**0.5) + 3 / 5) / 2
    assert knowledge(pixel).item() == pytest.approx(expected)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_it_is_the_mean_over_the_classes_of_each_one_alone(similarity: str) -> None:
    """Also where the maps differ in size: resizing the products is resizing the features."""
    knowledge = BaseKnowledge({"a": 3, "b": 2}, 4, similarity=similarity, normalization="none")
    prototypes = torch.rand(4, 5)
    knowledge.fill(prototypes)
    maps = {"a": torch.rand(2, 3, 6, 7), "b": torch.rand(2, 2, 3, 4)}
    joined = torch.cat([maps["a"], resize(maps["b"], (6, 7))], dim=1)
    if similarity == "cosine":
        joined, prototypes = F.normalize(joined, dim=1), F.normalize(prototypes, dim=1)
    each = torch.einsum("bchw,kc->bkhw", joined, prototypes)
    torch.testing.assert_close(knowledge(maps), each.mean(dim=1, keepdim=True))


def test_a_class_without_instances_is_left_out() -> None:
    with_zeros = BaseKnowledge({"a": 2, "b": 1}, 3, normalization="none")
    with_zeros.fill(torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0]]))
    assert torch.equal(with_zeros(MAPS)[0, 0], DOT)


def test_each_image_is_scaled_to_0_to_1_on_its_own() -> None:
    knowledge = two_classes()
    maps = {"a": torch.rand(3, 2, 5, 5), "b": torch.rand(3, 1, 5, 5)}
    together = knowledge(maps)
    assert together.amin(dim=(2, 3)).abs().max() == 0
    torch.testing.assert_close(together.amax(dim=(1, 2, 3)), torch.ones(3))
    for i in range(3):
        assert torch.equal(together[i : i + 1], knowledge({name: m[i : i + 1] for name, m in maps.items()}))
    flat = {"a": torch.ones(1, 2, 2, 2), "b": torch.ones(1, 1, 2, 2)}
    assert torch.equal(knowledge(flat), torch.zeros(1, 1, 2, 2))


def test_half_precision_does_not_overflow() -> None:
    knowledge = BaseKnowledge({"a": 1536}, 1, normalization="none")
    knowledge.fill(torch.full((1, 1536), 20.0))
    with torch.autocast("cpu", torch.float16):
        value = knowledge({"a": torch.full((1, 1536, 1, 1), 20.0, dtype=torch.float16)})
    assert value.item() == 1536 * 400
    assert value.dtype == torch.float32


def test_it_travels_in_the_state_dict_and_learns_nothing() -> None:
    knowledge, other = two_classes(), BaseKnowledge({"a": 2, "b": 1}, 2, hint="load them")
    with pytest.raises(ValueError, match=r"never built: load them"):
        other(MAPS)
    other.load_state_dict(knowledge.state_dict())
    assert torch.equal(other(MAPS), knowledge(MAPS))
    assert not list(knowledge.parameters())
    assert sorted(knowledge.state_dict()) == ["filled", "prototypes"]


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_new_prototypes_take_effect_after_a_forward_pass(similarity: str) -> None:
    """By filling again, and by loading a state; and one that was never filled is noticed again."""
    first, second = torch.rand(2, 3), torch.rand(2, 3)
    settings = {"channels": {"a": 2, "b": 1}, "num_classes": 2, "similarity": similarity}
    knowledge, other = BaseKnowledge(**settings), BaseKnowledge(**settings)
    knowledge.fill(first)
    before = knowledge(MAPS)
    copied = copy.deepcopy(knowledge)
    other.fill(second)
    knowledge.fill(second)
    assert torch.equal(knowledge(MAPS), other(MAPS)) and not torch.equal(knowledge(MAPS), before)
    assert torch.equal(copied(MAPS), before)
    copied.load_state_dict(other.state_dict())
    assert torch.equal(copied(MAPS), other(MAPS))
    copied.load_state_dict(BaseKnowledge(**settings).state_dict())
    with pytest.raises(ValueError, match="never built"):
        copied(MAPS)


@pytest.mark.parametrize(
    ("settings", "culprit"),
    [
        ({"similarity": "l2"}, "unknown similarity 'l2': choose from dot, cosine"),
        ({"normalization": "softmax"}, "unknown normalization 'softmax': choose from min_max"),
        ({"channels": {}}, r"channels \{\} must name"),
        ({"num_classes": 0}, "num_classes 0 must"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], culprit: str) -> None:
    with pytest.raises(ValueError, match=culprit):
        BaseKnowledge(**{"channels": {"a": 2}, "num_classes": 2, **settings})


@pytest.mark.parametrize(
    "prototypes",
    [torch.ones(3, 3), torch.ones(2, 4), torch.zeros(2, 3), torch.tensor([[1.0, 2.0, torch.nan]] * 2)],
)
def test_wrong_prototypes_are_refused(prototypes: torch.Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"not \(2, 3\): build them with the same number of classes and features"
    ):
        BaseKnowledge({"a": 2, "b": 1}, 2).fill(prototypes)
