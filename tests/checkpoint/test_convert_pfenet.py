"""PFENet checkpoints of every published backbone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fss_d2.checkpoint.convert import CONVERTERS, convert_pfenet
from fss_d2.config import get_cfg
from fss_d2.io.state_dict import read_state_dict
from tests.checkpoint.official import on_no_device
from tests.golden.pfenet import published

State = dict[str, Tensor]
RESNET = ("MODEL.RESNETS.STEM deep", "MODEL.RESNETS.DILATION pspnet")


def official(backbone: str, prefix: str = "module.") -> State:
    return on_no_device(published(backbone)["keys"], prefix)


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize(
    ("backbone", "name", "settings"),
    [
        ("r50", "ResNet-50", ("MODEL.RESNETS.DEPTH 50", *RESNET)),
        ("r101", "ResNet-101", ("MODEL.RESNETS.DEPTH 101", *RESNET)),
        ("vgg", "VGG-16-bn", ("MODEL.BACKBONE.NAME build_vgg_backbone",)),
    ],
)
def test_every_published_layout(backbone: str, name: str, settings: tuple[str, ...], prefix: str) -> None:
    state = official(backbone, prefix)
    conversion = CONVERTERS["pfenet"](state)
    assert conversion.architecture == f"PFENet {name}"
    assert conversion.settings == settings
    get_cfg().merge_from_list(" ".join(settings).split())  # KeyError for a key that there is not
    assert (conversion.dropped, conversion.missing) == ((), ())
    assert len(conversion.model) == len(state)
    learnt = [t for n, t in conversion.model.items() if not n.startswith("backbone.")]
    assert sum(t.numel() for t in learnt) == published(backbone)["parameters_learnt"]


@pytest.mark.parametrize(
    ("backbone", "ours", "theirs"),
    [
        ("r50", "reduce_query.0.weight", "down_query.0.weight"),
        ("r50", "reduce_support.0.weight", "down_supp.0.weight"),
        ("r50", "enrichment.merge.2.0.weight", "init_merge.2.0.weight"),
        ("r50", "enrichment.hand_on.1.0.weight", "alpha_conv.1.0.weight"),
        ("r50", "enrichment.refine.3.2.weight", "beta_conv.3.2.weight"),
        ("r50", "enrichment.classifiers.0.3.bias", "inner_cls.0.3.bias"),
        ("r50", "enrichment.join.0.0.weight", "res1.0.weight"),
        ("r50", "enrichment.join.1.2.weight", "res2.2.weight"),
        ("r50", "classifier.0.weight", "cls.0.weight"),
        ("r50", "backbone.conv3.weight", "layer0.6.weight"),
        ("r50", "backbone.bn2.running_var", "layer0.4.running_var"),
        ("r50", "backbone.layer4.0.downsample.1.bias", "layer4.0.downsample.1.bias"),
        ("vgg", "backbone.features.0.bias", "layer0.0.bias"),
        ("vgg", "backbone.features.8.running_mean", "layer1.1.running_mean"),
        ("vgg", "backbone.features.20.weight", "layer2.6.weight"),
        ("vgg", "backbone.features.41.weight", "layer4.7.weight"),
    ],
)
def test_tensors_go_to_their_places(backbone: str, ours: str, theirs: str) -> None:
    state = official(backbone)
    assert convert_pfenet(state).model[ours] is state[f"module.{theirs}"]


def test_batch_counters_may_be_missing() -> None:
    state = {n: t for n, t in official("vgg").items() if not n.endswith("num_batches_tracked")}
    assert len(convert_pfenet(state).missing) == 13


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {}, "no PFENet checkpoint: none of its 0 names is like down_query.0.weight"),
        (
            lambda s: {n: t for n, t in s.items() if ".layer0." not in n},
            "no PFENet checkpoint: none of its .* names is like layer0.0.weight",
        ),
        (lambda s: {n: t for n, t in s.items() if ".res2." not in n}, "2 tensors missing .enrichment.join.1"),
        (lambda s: s | {"module.ema.weight": torch.ones(1)}, "1 tensors unknown .backbone.ema.weight"),
        (
            lambda s: s | {"module.init_merge.0.0.weight": torch.empty(256, 514, 1, 1)},
            r"enrichment.merge.0.0.weight is \(256, 514, 1, 1\) instead of \(256, 513, 1, 1\)",
        ),
    ],
)
def test_other_files_are_refused(change: Callable[[State], State], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert_pfenet(change(official("r50")))


def test_the_published_file_is_read(tmp_path: Path) -> None:
    """{'epoch', 'state_dict', 'optimizer'}, as PFENet saves it."""
    path = tmp_path / "train_epoch_200_0.6.pth"
    torch.save({"epoch": 200, "state_dict": {"module.a": torch.ones(2)}, "optimizer": {"state": {}}}, path)
    assert list(read_state_dict(path)) == ["a"]
