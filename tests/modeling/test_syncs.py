"""No training step waits for the GPU: what would read a number back from it is counted, on the CPU."""

from collections import Counter
from typing import Any

import pytest
import torch

from tests.modeling.episodes import make_episode, make_model
from tests.modeling.waiting import HostTensors, ReadBacks


def waits(method: str, *settings: Any) -> Counter[str]:
    """What a training step waits for, forward and backward, after a first one that may fill caches."""
    model = make_model(method, *settings).train()
    episodes = [make_episode(seed, shots=2) for seed in (0, 1)]
    for episode in episodes:
        mask = episode["sem_seg"] == 1
        episode |= {"segments": torch.stack([~mask, mask]), "segment_labels": torch.arange(2)}
    sum(model(episodes).values()).backward()
    with HostTensors() as tensors, ReadBacks() as reads:
        sum(model(episodes).values()).backward()
    return tensors.found + reads.found


@pytest.mark.parametrize(
    "variant",
    [
        ("DANet",),
        ("DANet", "MODEL.DANET.USE_PRIOR", True, "MODEL.DANET.PCA_MASKED", True, "MODEL.DANET.CKMM", True),
        ("DCAMA",),
        ("DCAMA", "MODEL.DCAMA.CKMM", True, "MODEL.DCAMA.IGNORE_AS_BACKGROUND", False),
        ("DCAMA", "MODEL.DCAMA.REGION_MEANS", True, "MODEL.DCAMA.REGION_PIXELS", 10),
        ("DenseCorrelation", "MODEL.LOSS.DICE_WEIGHT", 1.0),
        ("DPCN", "MODEL.DPCN.DCM", False),
        ("HSNet",),
        ("JC2A",),
        ("JC2A", "MODEL.JC2A.ATTENTION", "softmax", "MODEL.LOSS.DICE_WEIGHT", 1.0),
        ("MMFormer",),
        ("PFENet",),
        ("PFENet", "MODEL.LOSS.FOREGROUND_WEIGHT", 2.0, "MODEL.PFENET.PLUG_INS", ("ckmm",)),
    ],
    ids=lambda v: "-".join(map(str, v)),
)
def test_a_training_step_waits_for_nothing(variant: tuple[Any, ...]) -> None:
    assert not waits(*variant)


@pytest.mark.parametrize(
    ("variant", "why"),
    [
        # The object's vectors are as many as its mask has cells (DPCN, Sec. 3.5).
        (("DPCN",), {"aten.index", "aten.index_put", "aten.nonzero", "aten._local_scalar_dense"}),
        # scipy assigns proposals to segments on the CPU.
        (
            ("PotentialObjectsSegmenter",),
            {"cpu", "numpy", "aten._local_scalar_dense", "tensor", "new_tensor"},
        ),
    ],
    ids=["DPCN", "PotentialObjectsSegmenter"],
)
def test_what_waits_by_its_nature(variant: tuple[Any, ...], why: set[str]) -> None:
    assert set(waits(*variant)) <= why
