"""What the three parts promise together: backbone passes, supports that come and go, files, threads."""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fss_d2.modeling import FEW_SHOT_META_ARCHS, FewShotSegmentor, Output, SupportSet
from fss_d2.modeling.meta_arch.contract import Encoding, stack_supports
from fss_d2.modeling.meta_arch.training_free import CHOICES
from tests.modeling.episodes import make_episode, make_model

METHODS = pytest.mark.parametrize("method", FEW_SHOT_META_ARCHS)
TRAINING_FREE = ("FROST", "INSID3", "Prototype")
# Settings in which a method keeps other things of its supports than by default.
VARIANTS = [
    *((method,) for method in FEW_SHOT_META_ARCHS),
    *((method, "TEST.KSHOT", "cross_guided") for method in FEW_SHOT_META_ARCHS),
    ("DCAMA", "TEST.KSHOT", "average"),
    ("DCAMA", "MODEL.DCAMA.REGION_PIXELS", 10, "MODEL.DCAMA.REGION_MEANS", True),
    ("DANet", "MODEL.DANET.USE_PRIOR", True, "MODEL.DANET.CKMM", True),
    ("DPCN", "MODEL.DPCN.KERNEL_GENERATION", "parallel"),
    ("PFENet", "MODEL.PFENET.PLUG_INS", ("dcm", "ckmm")),
    ("MMFormer", "MODEL.MM_FORMER.FEATURES", "pixel_decoder"),
    ("MMFormer", "MODEL.MM_FORMER.CROSS_ALIGNMENT", "none"),
    ("PFENet", "MODEL.BASELINE.SCALE", 20.0),
    ("DCAMA", "MODEL.BASELINE.SCALE", 20.0),  # whose encodings hold dicts
    ("Prototype", "MODEL.PROTOTYPE.OBJECT_PROTOTYPES", 3, "MODEL.PROTOTYPE.BACKWARD_VOTES", True),
    ("FROST", "MODEL.FROST.MIRRORED", True, "MODEL.FROST.POSITIONAL_RANK", 8),
    *((method, "MODEL.TRAINING_FREE.LEAVE_ONE_OUT", CHOICES) for method in TRAINING_FREE),
]
ALL_VARIANTS = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v)))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def same(a: Encoding, b: Encoding, tolerance: float = 1e-5) -> None:
    ours, theirs = a.flat(), b.flat()
    assert type(a) is type(b) and list(ours) == list(theirs)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=tolerance, atol=tolerance, msg=name)


def encode(model: FewShotSegmentor, *episodes: dict[str, Any]) -> SupportSet:
    return model.encode_support(*stack_supports(episodes))


@contextmanager
def backbone_passes(model: FewShotSegmentor) -> Iterator[list[int]]:
    """Lists the number of images of every call of the backbone."""
    passes: list[int] = []
    forward = model.backbone.forward
    model.backbone.forward = lambda x, *args: passes.append(len(x)) or forward(x, *args)
    try:
        yield passes
    finally:
        model.backbone.forward = forward


# -- passes of the backbone ------------------------------------------------------------------------------


@METHODS
@torch.no_grad()
def test_one_query_and_five_classes_take_one_pass(method: str) -> None:
    model = make_model(method)
    query = make_episode(9)["image"]
    classes = [make_episode(seed, shots=1 + seed % 2) for seed in range(5)]
    supports = [encode(model, episode) for episode in classes]
    with backbone_passes(model) as passes:
        encoded = model.encode_query(query[None])
        outputs = [model.match(encoded, support) for support in supports]
    assert passes == [1]
    for output, episode in zip(outputs, classes, strict=True):
        close(output.logits[0], model([{**episode, "image": query}])[0]["sem_seg"])


@METHODS
@torch.no_grad()
def test_one_support_set_serves_every_query_of_a_batch(method: str) -> None:
    model = make_model(method)
    support = encode(model, make_episode(0, shots=2))
    queries = torch.stack([make_episode(seed)["image"] for seed in (3, 4, 5)])
    together = model.match(model.encode_query(queries), support)
    for row, image in enumerate(queries):
        alone = model.match(model.encode_query(image[None]), support)
        close(together.logits[row], alone.logits[0], 1e-4)
        assert together.maps.keys() == alone.maps.keys()


@METHODS
@torch.no_grad()
def test_leave_one_out_takes_one_pass_per_support(method: str) -> None:
    model = make_model(method)
    K = 4
    shots = make_episode(0, shots=K)["support"]
    with backbone_passes(model) as passes:
        sets, queries = [], []
        for shot in shots:
            features = model.extract(model.normalise(shot["image"][None]))
            images, masks = shot["image"][None, None], shot["mask"][None, None]
            sets.append(model.encode_support(images, masks, features=features))
            queries.append(model.encode_query(shot["image"][None], features=features))
        outputs = [model.match(queries[k], model.merge_supports(sets[:k] + sets[k + 1 :])) for k in range(K)]
    assert passes == [1] * K
    for k, output in enumerate(outputs):
        others = {"image": shots[k]["image"], "support": shots[:k] + shots[k + 1 :]}
        close(output.logits[0], model([others])[0]["sem_seg"])


@METHODS
@torch.no_grad()
def test_features_of_several_supports_at_once(method: str) -> None:
    model = make_model(method)
    images, masks = stack_supports([make_episode(seed, shots=3) for seed in (0, 1)])
    features = model.extract(model.normalise(images.flatten(0, 1)))
    given, own = model.encode_support(images, masks, features=features), model.encode_support(images, masks)
    same(given.encoded, own.encoded)
    same(given.joined, own.joined)


# -- supports are added and removed ----------------------------------------------------------------------


@ALL_VARIANTS
@torch.no_grad()
def test_supports_added_and_removed_one_by_one(variant: Sequence[Any]) -> None:
    model = make_model(*variant)
    episodes = [make_episode(seed, shots=4) for seed in (0, 1)]
    images, masks = stack_supports(episodes)
    each = [model.encode_support(images[:, k : k + 1], masks[:, k : k + 1]) for k in range(4)]
    with backbone_passes(model) as passes:
        added = each[0]
        for support in each[1:]:
            added = model.merge_supports([added, support])
        removed = model.select_supports(model.select_supports(added, [0, 2, 3]), [1, 2])
        turned = model.select_supports(added, [3, 2])
    assert passes == []
    together, last = model.encode_support(images, masks), model.encode_support(images[:, 2:], masks[:, 2:])
    assert (added.shots, removed.shots, added.batch_size) == (4, 2, 2)
    for ours, theirs in ((added, together), (removed, last)):
        same(ours.encoded, theirs.encoded)
        same(ours.joined, theirs.joined)
    reverse = model.encode_support(images[:, [3, 2]], masks[:, [3, 2]])
    same(turned.joined, reverse.joined)


@METHODS
@torch.no_grad()
def test_supports_that_cannot_be_merged_or_selected(method: str) -> None:
    model = make_model(method)
    one, larger = encode(model, make_episode(0)), encode(model, make_episode(0, support_size=(48, 64)))
    with pytest.raises(ValueError, match=r"sizes \(48, 48\), \(48, 64\).*encode them at one size"):
        model.merge_supports([one, larger])
    with pytest.raises(ValueError, match=r"1, 2 episodes to merge: .*same episodes"):
        model.merge_supports([one, encode(model, make_episode(0), make_episode(1))])
    with pytest.raises(ValueError, match=f"support set of Other given to {method}: encode it again"):
        model.merge_supports([one, replace(one, method="Other")])
    with pytest.raises(ValueError, match="no support sets to merge"):
        model.merge_supports([])
    for indices in ([1], [-1], []):
        with pytest.raises(
            ValueError, match=rf"supports \[{indices[0] if indices else ''}\] of 1: give some"
        ):
            model.select_supports(one, indices)
    with pytest.raises(ValueError, match=f"support set of Other given to {method}: encode it again"):
        model.select_supports(replace(one, method="Other"), [0])


# -- files -----------------------------------------------------------------------------------------------


@ALL_VARIANTS
@torch.no_grad()
def test_a_saved_support_set_is_the_same_set(variant: Sequence[Any]) -> None:
    model = make_model(*variant)
    support = encode(model, make_episode(0, shots=3))
    file = io.BytesIO()
    parts = {"method", "shots", "size", "encoded", "evidence", "negatives"}
    parts |= {"queries", "masks"} if "cross_guided" in variant else set()
    assert set(support.state()) == parts  # and nothing made from them
    torch.save(support.state(), file)
    file.seek(0)
    loaded = model.restore_support(torch.load(file, weights_only=True))
    assert (loaded.method, loaded.shots, loaded.size) == (support.method, 3, (48, 48))
    same(loaded.encoded, support.encoded, 0)
    same(loaded.joined, support.joined, 0)
    # It can still be changed: what is kept of each support has come back too.
    fewer = model.select_supports(loaded, [2, 0])
    same(fewer.joined, model.select_supports(support, [2, 0]).joined, 0)


@METHODS
@torch.no_grad()
def test_a_set_moves_with_both_parts(method: str) -> None:
    support = encode(make_model(method), make_episode(0, shots=2))
    moved = support.to("meta")
    for part, original in ((moved.encoded, support.encoded), (moved.joined, support.joined)):
        assert type(part) is type(original) and part.flat().keys() == original.flat().keys()
        assert all(tensor.is_meta for tensor in part.flat().values())
    assert (moved.joined is moved.encoded) == (support.joined is support.encoded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoded": ["dcama.Gloop", {}]}, "dcama.Gloop"),
        ({"encoded": ["dcama.ShotEncoding", {"keyz": torch.zeros(1)}]}, "keyz"),
        ({"encoded": ["dcama.ShotEncoding", {}]}, "keys"),
        ({"encoded": "text"}, "encode it again"),
        ({"encoded": None}, "encode it again"),
        ({"size": [48]}, "encode it again"),
    ],
)
def test_states_that_are_not_ours(change: dict[str, Any], message: str) -> None:
    model = make_model("DCAMA")
    with torch.no_grad():
        state = encode(model, make_episode()).state()
    with pytest.raises(ValueError, match=message):
        model.restore_support(state | change)


# -- errors of match -------------------------------------------------------------------------------------


@METHODS
@torch.no_grad()
def test_what_match_refuses(method: str) -> None:
    model = make_model(method)
    support, query = encode(model, make_episode(0)), model.encode_query(make_episode(1)["image"][None])
    with pytest.raises(ValueError, match=f"support set of Other given to {method}: encode it again"):
        model.match(query, replace(support, method="Other"))
    with pytest.raises(ValueError, match=f"query of Other given to {method}: encode it again"):
        model.match(replace(query, method="Other"), support)
    pair = encode(model, make_episode(0), make_episode(1))
    with pytest.raises(ValueError, match="2 episodes cannot serve 1 queries"):
        model.match(query, pair)


# -- threads ---------------------------------------------------------------------------------------------


@METHODS
def test_four_threads_on_one_model_give_what_one_gives(method: str) -> None:
    model = make_model(method)
    episodes = [make_episode(seed, 1 + seed % 3, (48 + 8 * (seed % 4), 56)) for seed in range(12)]

    @torch.no_grad()
    def run(episode: dict[str, Any]) -> Output:
        support = encode(model, episode)
        output = model.match(model.encode_query(episode["image"][None]), support)
        assert torch.equal(model.segment(episode["image"][None], support), output.logits)
        return output

    expected = [run(episode) for episode in episodes]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(run, episodes * 2))
    for output, serial in zip(found, expected * 2, strict=True):
        assert torch.equal(output.logits, serial.logits)
        for name, tensor in serial.maps.items():
            assert torch.equal(output.maps[name], tensor), name
