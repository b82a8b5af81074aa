"""Config keys are checked where they are read, and named; leaf modules name their arguments."""

import ast
from pathlib import Path
from typing import Any

import pytest

import fss_d2.modeling
from tests.modeling.episodes import make_model

PACKAGE = Path(fss_d2.modeling.__file__).parent


@pytest.mark.parametrize(
    ("method", "key", "value", "more"),
    [
        ("DPCN", "MODEL.DPCN.KERNEL_SIZE", 4, ()),
        ("DPCN", "MODEL.DPCN.KERNELS", ("square", "round"), ()),
        ("DPCN", "MODEL.DPCN.KERNEL_GENERATION", "both", ()),
        ("DPCN", "MODEL.DPCN.KERNELS", ("square",), ("MODEL.DPCN.KERNEL_GENERATION", "serial_kernels")),
        ("PFENet", "MODEL.DPCN.KERNEL_SIZE", 0, ("MODEL.PFENET.PLUG_INS", ("dcm",))),
        ("JC2A", "MODEL.BASE_KNOWLEDGE.SIMILARITY", "l2", ()),
        ("JC2A", "MODEL.BASE_KNOWLEDGE.NORMALIZATION", "softmax", ()),
        ("JC2A", "MODEL.BASE_KNOWLEDGE.NUM_CLASSES", 0, ()),
        ("JC2A", "MODEL.BASE_KNOWLEDGE.IN_FEATURES", (), ()),
        ("JC2A", "MODEL.JC2A.ATTENTION", "flash", ()),
        ("JC2A", "MODEL.JC2A.ATTENTION_MERGE", "max", ()),
        ("JC2A", "MODEL.JC2A.BINS", (6, 4, 2), ()),
        ("DANet", "MODEL.DANET.PCA_RATIO", 33, ()),
        ("DANet", "MODEL.DANET.PPM_BINS", (0, 1), ()),
        ("MMFormer", "MODEL.MM_FORMER.NUM_HEADS", 5, ()),
        ("MMFormer", "MODEL.MM_FORMER.NUM_HEADS", 0, ()),
        ("MMFormer", "MODEL.PROPOSALS.SAMPLING", "cuda", ()),
        ("PotentialObjectsSegmenter", "MODEL.PROPOSALS.DIM", 48, ()),
        ("PotentialObjectsSegmenter", "MODEL.PROPOSALS.NUM_HEADS", 0, ()),
        ("PotentialObjectsSegmenter", "MODEL.PROPOSALS.NUM_HEADS", 5, ()),
        ("MMFormer", "MODEL.PROPOSALS.NUM_QUERIES", 0, ()),
        ("PotentialObjectsSegmenter", "MODEL.PROPOSALS.DECODER_LAYERS", 0, ()),
        ("Prototype", "MODEL.PROPOSALS.DIM", 48, ("MODEL.BACKBONE.FEATURES", "pixel_decoder")),
    ],
)
def test_wrong_values_are_refused_with_their_key(
    method: str, key: str, value: Any, more: tuple[Any, ...]
) -> None:
    with pytest.raises(ValueError, match=key.replace(".", r"\.")) as error:
        make_model(method, key, value, *more)
    assert "\n" not in str(error.value)


def keys_in_errors(source: str) -> list[str]:
    """Strings within raise statements that name a config key."""
    raises = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Raise))
    parts = (part for node in raises for part in ast.walk(node) if isinstance(part, ast.Constant))
    keys = ("MODEL.", "INPUT.", "DATASETS.", "SOLVER.", "TEST.")
    return [
        part.value for part in parts if isinstance(part.value, str) and any(k in part.value for k in keys)
    ]


@pytest.mark.parametrize("folder", ["layers", "proposals"])
def test_leaf_modules_name_no_key_in_their_errors(folder: str) -> None:
    found = {path.name: keys_in_errors(path.read_text()) for path in (PACKAGE / folder).glob("*.py")}
    assert found and {name: keys for name, keys in found.items() if keys} == {}


def test_a_key_in_an_error_is_found() -> None:
    source = 'def f(x):\n    """MODEL.X."""\n    raise ValueError(f"set MODEL.X to {x}")\n'
    assert keys_in_errors(source) == ["set MODEL.X to "]
