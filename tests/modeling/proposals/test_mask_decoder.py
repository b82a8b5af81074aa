"""The masked transformer decoder: the official numbers, masked attention, sizes and modes."""

from functools import lru_cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fss_d2.modeling.proposals.mask_decoder import MaskedTransformerDecoder, MaskPredictions
from tests.golden.mmformer import load, official_mmformer_state, random

CASES = ["c_transformer_decoder", "c2_transformer_decoder"]


@lru_cache(maxsize=1)
def official() -> MaskedTransformerDecoder:
    decoder = MaskedTransformerDecoder()
    decoder.load_state_dict(official_mmformer_state(1, 1, "sem_seg_head.predictor."))
    return decoder


@lru_cache(maxsize=2)
def predict(case: str) -> MaskPredictions:
    """All ten predictions on the case's inputs."""
    levels, features = inputs(case)
    with torch.no_grad():
        return official().train()(levels, features)


def inputs(case: str) -> tuple[list[Tensor], Tensor]:
    levels = [random(f"c:x{i}", (2, 256, 4 << i, 5 << i)) for i in range(3)]
    features = random("c:mask_features", (2, 256, 32, 40))
    if case.startswith("c2"):
        features = 0.05 * features + random("c2:vec", (2, 256, 1, 1))
    return levels, features


def small(**arguments: int) -> MaskedTransformerDecoder:
    return MaskedTransformerDecoder(
        **{"dim": 16, "num_queries": 5, "num_layers": 3, "num_heads": 2, "feedforward": 24, **arguments}
    )


def maps(dim: int = 16, batch: int = 2) -> tuple[list[Tensor], Tensor]:
    """Maps of a 75 x 101 image."""
    levels = [torch.randn(batch, dim, *size) for size in ((3, 4), (5, 7), (10, 13))]
    return levels, torch.randn(batch, dim, 19, 26)


@pytest.mark.parametrize("case", CASES)
def test_official_numbers(case: str) -> None:
    golden, ours = load(case), predict(case)
    masks = torch.stack(list(ours.masks))[:, :, golden["queries"], ::2, ::2]
    torch.testing.assert_close(masks, golden["pred_masks"], rtol=0, atol=1e-3)
    torch.testing.assert_close(ours.queries[:, ::4], golden["decoder_output"], rtol=0, atol=5e-5)


@pytest.mark.parametrize("case", CASES)
def test_as_many_queries_with_every_key_blocked(case: str) -> None:
    sizes = [level.shape[-2:] for level in inputs(case)[0]]
    empty = [
        int((F.interpolate(masks, size=sizes[index % 3], mode="bilinear") < 0).flatten(2).all(dim=2).sum())
        for index, masks in enumerate(predict(case).masks)
    ]
    assert empty == load(case)["all_masked_rows"].tolist()


@pytest.mark.parametrize("case", CASES)
def test_resized_features_give_the_resized_masks(case: str) -> None:
    (levels, features), ours = inputs(case), predict(case)
    embedding = official().mask_embed(ours.queries)
    for level in levels:
        resized = F.interpolate(ours.masks[-1], size=level.shape[-2:], mode="bilinear")
        low = F.interpolate(features, size=level.shape[-2:], mode="bilinear")
        direct = torch.einsum("bnc,bchw->bnhw", embedding, low)
        torch.testing.assert_close(direct, resized, rtol=0, atol=1e-4)
        assert torch.equal(direct < 0, resized < 0)


@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_evaluation_gives_the_last_prediction_of_training(num_layers: int) -> None:
    decoder, (levels, features) = small(num_layers=num_layers), maps()
    trained = decoder.train()(levels, features)
    evaluated = decoder.eval()(levels, features)
    assert len(trained.masks) == num_layers + 1
    assert len(evaluated.masks) == 1
    assert evaluated.masks[0].shape == (2, 5, 19, 26)
    torch.testing.assert_close(evaluated.masks[0], trained.masks[-1], rtol=0, atol=0)
    torch.testing.assert_close(evaluated.queries, trained.queries, rtol=0, atol=0)
    assert all(given is kept for given, kept in zip(levels, evaluated.levels, strict=True))


def test_images_of_a_batch_do_not_meet() -> None:
    decoder, (levels, features) = small().eval(), maps()
    both = decoder(levels, features).masks[-1]
    second = decoder([level[1:] for level in levels], features[1:]).masks[-1]
    torch.testing.assert_close(both[1:], second, rtol=0, atol=1e-4)


@pytest.mark.parametrize("everything_blocked", [False, True])
def test_a_query_looks_inside_its_mask_or_everywhere(everything_blocked: bool) -> None:
    decoder, (levels, features) = small(num_layers=1, num_queries=1).eval(), maps(batch=1)
    embedding = decoder.mask_embed(decoder.decoder_norm(decoder.query_feat.weight))[0].detach()
    side = torch.ones(1, 1, 19, 26)
    side[..., 13:] = -1  # the mask is the left half
    features = embedding[None, :, None, None] * (-torch.ones_like(side) if everything_blocked else side)
    expected = decoder(levels, features).queries

    def changed(column: int) -> bool:
        other = levels[0].clone()
        other[:, :, :, column] += 1
        return not torch.equal(decoder([other, *levels[1:]], features).queries, expected)

    assert [changed(column) for column in range(4)] == [True, True, everything_blocked, everything_blocked]


def test_classifier_has_one_class_more_beside_each_mask() -> None:
    decoder, (levels, features) = small(num_classes=6), maps()
    trained = decoder(levels, features)
    assert [tuple(classes.shape) for classes in trained.classes] == [(2, 5, 7)] * 4
    expected = decoder.class_embed(trained.queries)
    torch.testing.assert_close(trained.classes[-1], expected, rtol=0, atol=0)
    assert len(decoder.eval()(levels, features).classes) == 1
    assert not small()(levels, features).classes


def test_attention_mask_has_no_gradient() -> None:
    decoder, (levels, features) = small(num_layers=1), maps()
    features.requires_grad_()
    queries = decoder(levels, features).queries
    (gradient,) = torch.autograd.grad(queries.sum(), features, allow_unused=True)
    assert gradient is None


def test_starts_from_standard_normal_embeddings() -> None:
    decoder = MaskedTransformerDecoder(num_layers=1)
    for embedding in (decoder.query_feat, decoder.query_embed, decoder.level_embed):
        assert embedding.weight.std().item() == pytest.approx(1, abs=0.1)
    assert sum(p.numel() for p in official().parameters()) == 14_458_624  # the published model's


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, "num_heads 3: change"),
        ({"num_heads": 0}, "num_heads 0: change"),
        ({"dim": 18}, "dim 18 is not a multiple of 4"),
        ({"num_queries": 0}, "num_queries is 0: give at least 1"),
        ({"num_layers": 0}, "num_layers is 0: give at least 1"),
    ],
)
def test_wrong_numbers_are_named(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_wrong_number_of_levels() -> None:
    levels, features = maps()
    with pytest.raises(ValueError, match="takes 3 levels, got 2"):
        small()(levels[:2], features)
