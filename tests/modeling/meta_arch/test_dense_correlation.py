"""What the dense correlation compares and learns from, on numbers worked out by hand."""

import pytest
import torch

from fss_d2.io.state_dict import head_of
from fss_d2.modeling.layers import (
    FixedStandardisation,
    SkipDecoder,
    compare,
    correlation,
    region_prototypes,
)
from fss_d2.modeling.meta_arch.contract import Target
from fss_d2.modeling.meta_arch.dense_correlation import DenseOutput, _label_map
from tests.modeling.episodes import make_episode, make_model


def test_comparisons_of_two_tokens() -> None:
    """A query along the object's token, whose background is at a right angle; temperature 1."""
    tokens = torch.eye(2)[None]  # (1, 2 tokens, 2 channels)
    objects, grounds = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    prototypes = region_prototypes(tokens, objects, grounds)
    torch.testing.assert_close(prototypes, torch.eye(2)[None])
    query = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    found = compare(query, tokens, objects, grounds, prototypes, 1.0).flatten()
    vote = torch.tensor(1.0).exp() / (torch.tensor(1.0).exp() + 1) - 0.5
    relative = torch.tensor(0.5).sigmoid() - 0.5
    torch.testing.assert_close(found, torch.tensor([vote, 1.0, 1.0, 1.0, 1.0, relative]), atol=1e-5, rtol=0)


def test_a_token_of_neither_kind_counts_for_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    tokens = torch.nn.functional.normalize(torch.randn(1, 6, 8, generator=g), dim=2)
    query = torch.nn.functional.normalize(torch.randn(1, 8, 2, 3, generator=g), dim=1)
    objects, grounds = torch.tensor([[1.0, 1, 0, 0, 0, 0]]), torch.tensor([[0.0, 0, 1, 1, 0, 0]])
    whole, part = (
        compare(query, t, o, b, region_prototypes(t, o, b), 0.5)
        for t, o, b in ((tokens, objects, grounds), (tokens[:, :4], objects[:, :4], grounds[:, :4]))
    )
    torch.testing.assert_close(whole, part, atol=1e-4, rtol=0)


def test_cosines_of_some_positions_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    tokens, query = torch.randn(2, 6, 8, generator=g), torch.randn(2, 8, 5, 3, generator=g)
    objects = torch.rand(2, 6, generator=g).round()
    given = (query, tokens, objects, 1 - objects, region_prototypes(tokens, objects, 1 - objects), 0.5)
    whole = compare(*given)
    monkeypatch.setattr(correlation, "_MOST_COSINES", 12 * 4)  # four positions of two queries
    torch.testing.assert_close(compare(*given), whole, atol=1e-6, rtol=0)


def test_a_decoder_joins_further_maps_at_the_size_of_a_feature() -> None:
    decoder = SkipDecoder(6, [(5, 4), (3, 4)], joining=[0, 6], width=8, widths=(8, 8)).eval()
    g = torch.Generator().manual_seed(0)
    maps, features = torch.randn(1, 6, 2, 2, generator=g), [torch.randn(1, 5, 2, 2), torch.randn(1, 3, 4, 4)]
    fine = torch.randn(1, 6, 4, 4, generator=g)
    found = [decoder(maps, features, [None, further]) for further in (fine, fine.flip(3), fine)]
    assert found[0].shape == (1, 1, 4, 4)
    assert torch.equal(found[0], found[2]) and not torch.allclose(found[0], found[1])


def test_maps_of_the_embedding_are_left_out_of_some_episodes() -> None:
    model = make_model("DenseCorrelation", "MODEL.DENSE_CORRELATION.EMBEDDING_DROPOUT", 0.5).train()
    maps = torch.ones(200, 18, 2, 2)
    torch.manual_seed(0)
    found = model._without_some_embeddings(maps)
    assert (found[:, :12] == 1).all()
    kept = found[:, 12:].flatten(1)
    assert ((kept == 0).all(dim=1) | (kept == 1).all(dim=1)).all()
    assert 0.4 < kept.mean() < 0.6
    assert torch.equal(model.eval()._without_some_embeddings(maps), maps)


@pytest.mark.parametrize("name", ["res5", "res4"])
def test_fine_features_join_a_skip_feature_and_are_compared_once(name: str) -> None:
    with pytest.raises(ValueError, match=r"FINE_FEATURES.*of SKIP_FEATURES and not of CORRELATION_FEATURES"):
        make_model("DenseCorrelation", "MODEL.DENSE_CORRELATION.FINE_FEATURES", (name,))


def test_statistics_are_those_of_all_that_was_collected() -> None:
    layer, maps = FixedStandardisation(2).train(), torch.randn(3, 2, 4, 5) * 3 + 1
    torch.testing.assert_close(layer(maps), maps / 1.001)  # the identity before
    layer.collects = True
    for part in (maps[:1], maps[1:]):
        layer(part)
    torch.testing.assert_close(layer.mean, maps.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(layer.variance, maps.var(dim=(0, 2, 3), correction=0))
    layer.eval()(maps + 100)
    torch.testing.assert_close(layer.mean, maps.mean(dim=(0, 2, 3)))


def test_the_smallest_segment_labels_a_position() -> None:
    segments = torch.zeros(2, 4, 4, dtype=torch.bool)
    segments[0, :, :2], segments[1, :2, :2] = True, True
    found = _label_map(segments, torch.tensor([3, 7]), (2, 2))
    assert found.tolist() == [[7, -1], [3, -1]]
    assert _label_map(segments[:0], torch.zeros(0, dtype=torch.long), (1, 2)).tolist() == [[-1, -1]]


def test_losses_of_a_query_that_lacks_the_object() -> None:
    model = make_model("DenseCorrelation", "MODEL.DENSE_CORRELATION.NEGATIVE_START", 0.0).train()
    output = DenseOutput(torch.zeros(2, 2, 4, 4), own_presence=torch.zeros(2))
    mask = torch.zeros(2, 4, 4, dtype=torch.long)
    mask[0, :2] = 1
    losses, half = model.losses(output, Target(mask)), torch.tensor(2.0).log()
    torch.testing.assert_close(losses["loss_seg"], half)  # of the first alone
    torch.testing.assert_close(losses["loss_negative"], model.negative_weight * half)
    torch.testing.assert_close(losses["loss_presence"], model.presence_weight * 2 * half)


def test_classes_need_segments_and_stay_out_of_a_head() -> None:
    model = make_model("DenseCorrelation", "MODEL.DENSE_CORRELATION.CLASS_WEIGHT", 0.3)
    assert "auxiliary.vectors" in model.state_dict()
    assert not [name for name in head_of(model.state_dict()) if name.startswith("auxiliary.")]
    with pytest.raises(ValueError, match=r"no 'segments' to classify; set INPUT\.SEGMENTS"):
        model.train()([make_episode()])
