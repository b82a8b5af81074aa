"""Every method runs on the features of a frozen pixel decoder."""

from typing import Any

import pytest
import torch
from torch import nn

from fss_d2.modeling import FEW_SHOT_META_ARCHS, FewShotSegmentor
from fss_d2.modeling.backbone import PixelDecoderBackbone
from tests.modeling.episodes import make_episode, make_model

METHODS = pytest.mark.parametrize("method", [name for name in FEW_SHOT_META_ARCHS if name != "MMFormer"])
# A stage of these features cannot run alone.
SETTINGS = ("MODEL.PFENET.MASK_BEFORE_PRIOR", False, "MODEL.DPCN.TRAIN_LAST_STAGE", False)


def on_decoded(method: str, *overrides: Any) -> FewShotSegmentor:
    return make_model(method, "MODEL.BACKBONE.FEATURES", "pixel_decoder", *SETTINGS, *overrides)


@METHODS
def test_scores_at_odd_sizes_and_depend_on_the_decoder(method: str) -> None:
    model = on_decoded(method)
    assert isinstance(model.backbone, PixelDecoderBackbone)
    episode = make_episode(0, 2, (70, 45), support_size=(37, 52))
    with torch.no_grad():
        before = model([episode])[0]["sem_seg"]
        for parameter in model.backbone.decoder.input_proj.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)
        after = model([episode])[0]["sem_seg"]
    assert before.shape == (2, 70, 45) and before.isfinite().all()
    assert not torch.equal(before, after)


@METHODS
def test_training_leaves_backbone_and_decoder_as_they_are(method: str) -> None:
    model = on_decoded(method).train()
    if not model.trainable:
        pytest.skip(f"{method} is training-free")
    frozen = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sum(model([make_episode(0), make_episode(1)]).values()).backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert any(p.grad is not None for p in model.parameters())
    optimizer.step()
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in model.backbone.state_dict().items())


@pytest.mark.parametrize(
    ("method", "key"),
    [
        ("PFENet", "MODEL.PFENET.MASK_BEFORE_PRIOR"),
        ("DPCN", "MODEL.DPCN.TRAIN_LAST_STAGE"),
        ("DPCN", "MODEL.DPCN.MASK_BEFORE_SAM"),
    ],
)
def test_settings_that_need_a_stage_alone_are_named(method: str, key: str) -> None:
    with pytest.raises(ValueError, match=f"PixelDecoderBackbone cannot run 'res5' .*: set .*{key}.* False"):
        on_decoded(method, key, True)
