"""A method with its supports frozen in, as a file that runs without this package."""

import copy
import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fss_d2.compat import require_onnx_translations
from fss_d2.io.files import atomic_path, expand_user, shortened, write_json
from fss_d2.modeling import FewShotSegmentor, SupportSet
from fss_d2.modeling.layers import BaseKnowledge

__all__ = ["FORMATS", "INPUT_TYPES", "TOLERANCE", "FrozenQuery", "capture", "export_query"]
__all__ += ["format_of", "load_exported"]

# The endings of each format's files; the first is the usual one.
FORMATS = {
    "torch_export": (".pt2",),
    "torchscript": (".ts", ".pt", ".torchscript"),
    "onnx": (".onnx",),
}
INPUT_TYPES = {"uint8": torch.uint8, "float32": torch.float32}
TOLERANCE = 1e-4  # largest difference from eager, as a share of the largest logit
INPUT_NAME, OUTPUT_NAME = "image", "logits"
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Run = Callable[[Tensor], Tensor]

logger = logging.getLogger(__name__)


class FrozenQuery(nn.Module):
    """A method and the encoded supports of one class: an image in, logits out.

    It contains a copy of the model, on the CPU and in evaluation mode, and the tensors of the supports as
    buffers. What follows the network (TEST.REFINEMENT) is not part of it.

    Args:
        support: of one episode; several raise ValueError.
        shots: number of support images; None takes that of ``support``, which counts each view.
    """

    def __init__(self, model: FewShotSegmentor, support: SupportSet, shots: int | None = None) -> None:
        if support.batch_size != 1:
            raise ValueError(f"a support set of {support.batch_size} episodes: export one class at a time")
        super().__init__()
        self.model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
        self.model.refinement = ""
        self.shots = support.shots if shots is None else shots
        for module in self.model.modules():
            if isinstance(module, BaseKnowledge):  # no graph can branch on a buffer
                filled = bool(module.filled)
                del module.filled
                module.filled = filled
        tensors = support.joined.flat()
        self._support, self._kind = (
            replace(support, encoded=None, joined=None, evidence=None, guide=None, negatives=None),
            type(support.joined),
        )
        self._buffer_of = {name: f"support_{name.replace('.', '__')}" for name in tensors}
        for name, buffer in self._buffer_of.items():
            self.register_buffer(buffer, tensors[name].detach().cpu().clone())

    def forward(self, image: Tensor) -> Tensor:
        """Image (1, 3, H, W), RGB, 0 to 255, uint8 or float -> logits (1, 2, H, W): background, object."""
        tensors = {name: self.get_buffer(buffer) for name, buffer in self._buffer_of.items()}
        return self.model.segment(image, replace(self._support, joined=self._kind.from_flat(tensors)))


@torch.no_grad()
def capture(module: FrozenQuery, image: Tensor) -> ExportedProgram:
    """Capture the graph for images like ``image`` (1, 3, H, W); ValueError says why it cannot be captured."""
    module(image)  # fills the caches of position codes with tensors that hold values
    try:
        return torch.export.export(module, (image,), strict=False)
    except Exception as error:  # torch has no common base class for what it cannot capture
        raise ValueError(_refusal(module, "exported", error)) from error


def format_of(path: str | os.PathLike[str], file_format: str | None = None) -> str:
    """The format of a file to write: what its ending says, or ``file_format`` if the name has no ending.

    Raises:
        ValueError: an unknown format or ending, an ending of another format, or neither format nor ending.
    """
    if file_format is not None and file_format not in FORMATS:
        raise ValueError(f"there is no format {file_format!r}: choose from {', '.join(FORMATS)}")
    ending = Path(path).suffix
    said = next((name for name, endings in FORMATS.items() if ending.lower() in endings), None)
    if said is None and (ending or file_format is None):
        known = ", ".join(f"{each} ({name})" for name, endings in FORMATS.items() for each in endings)
        what = f"{ending} is the ending of no format" if ending else "its name has no ending"
        raise ValueError(f"{shortened(path)}: {what}; end the name with {known}")
    if file_format is not None and said not in (None, file_format):
        raise ValueError(
            f"{shortened(path)}: {ending} is the ending of {said}, but the format is {file_format}: leave "
            f"the format out, or end the name with {FORMATS[file_format][0]}"
        )
    return file_format or said


def export_query(
    module: FrozenQuery,
    path: str | os.PathLike[str],
    *,
    size: Sequence[int],
    file_format: str | None = None,
    input_type: str = "uint8",
    images: Mapping[str, Tensor] | None = None,
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Export, read the file back, compare it with eager, and describe it in ``<path>.json``.

    An existing file is replaced; after an error, no new file is left.

    Args:
        size: (H, W) of the images, fixed from then on.
        file_format: a key of `FORMATS`; None takes what the ending of ``path`` says (`format_of`).
        input_type: of the images, a key of `INPUT_TYPES`; values from 0 to 255 in both.
        images: name -> (3, H, W), to compare on in addition to noise.
        details: further entries of the JSON file.

    Returns:
        The content of the JSON file.

    Raises:
        ValueError: unknown format, ending or type, an image of another size, a missing package, a method that
            cannot be exported to this format, or a file whose logits differ by more than `TOLERANCE`.
    """
    file_format = format_of(path, file_format)
    if input_type not in INPUT_TYPES:
        raise ValueError(f"there is no input type {input_type!r}: choose from {', '.join(INPUT_TYPES)}")
    if file_format == "onnx":
        require_onnx_translations()
        _need_onnx()
    inputs = _check_inputs(size, INPUT_TYPES[input_type], images or {})
    program = capture(module, inputs["noise"])
    path = Path(expand_user(path))
    with atomic_path(path) as temporary:
        try:
            _WRITERS[file_format](program, inputs["noise"], temporary)
        except Exception as error:  # as in `capture`
            raise ValueError(_refusal(module, f"written as {file_format}", error)) from error
        errors = _compare(module, load_exported(temporary, file_format), inputs)
        content = {
            "format": file_format,
            **_describe(module, inputs["noise"]),
            "max_relative_error": errors,
            "torch": torch.__version__,
            **(details or {}),
        }
        write_json(f"{path}.json", content)
    return content


def load_exported(path: str | os.PathLike[str], file_format: str) -> Run:
    """Read an exported file as a function from image (1, 3, H, W) to logits (1, 2, H, W), on the CPU."""
    path = expand_user(path)
    if file_format == "onnx":
        return _onnx_session(path)
    if file_format == "torchscript":
        return torch.jit.load(path, map_location="cpu")
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # in torch's own code
        return torch.export.load(file).module()


def _check_inputs(size: Sequence[int], dtype: torch.dtype, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Noise and the images, (1, 3, H, W) each."""
    noise = torch.randint(0, 256, (1, 3, *size), generator=torch.Generator().manual_seed(0))
    for name, image in images.items():
        if image.shape != noise.shape[1:]:
            raise ValueError(f"{name} is {tuple(image.shape)}: resize it to {tuple(noise.shape[1:])} first")
    return {"noise": noise.to(dtype)} | {name: image[None].to(dtype) for name, image in images.items()}


@torch.no_grad()
def _compare(module: FrozenQuery, run: Run, inputs: Mapping[str, Tensor]) -> dict[str, float]:
    """Largest difference from eager of each input, as a share of the largest logit."""
    errors = {}
    for name, image in inputs.items():
        expected = module(image)
        difference = (run(image) - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
        if not difference <= TOLERANCE:  # NaN, too
            raise ValueError(
                f"{type(module.model).__name__}: the exported logits of {name} differ from eager by "
                f"{difference:.1e} of the largest, {TOLERANCE:.0e} is allowed: choose another format"
            )
        errors[name] = float(difference)
    return errors


def _describe(module: FrozenQuery, image: Tensor) -> dict[str, Any]:
    model, dtype, shape = module.model, str(image.dtype).removeprefix("torch."), list(image.shape)
    mean, std = model.pixel_mean.flatten().tolist(), model.pixel_std.flatten().tolist()
    images = "batch, RGB, height, width; values 0 to 255"
    logits = "batch, (background, object), height, width; logits"
    return {
        "method": type(model).__name__,
        "shots": module.shots,
        "input": {"name": INPUT_NAME, "type": dtype, "shape": shape, "layout": images},
        "normalisation_inside": {"mean": mean, "std": std},
        "output": {"name": OUTPUT_NAME, "type": "float32", "shape": [1, 2, *shape[2:]], "layout": logits},
    }


def _refusal(module: FrozenQuery, what: str, error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    reason = str(error).strip().partition("\n")[0][:200]
    return (
        f"{type(module.model).__name__} cannot be {what} with torch {torch.__version__} "
        f"({type(error).__name__}: {reason}): choose another method, setting or format"
    )


def _write_torch_export(program: ExportedProgram, _image: Tensor, path: Path) -> None:
    with open(path, "wb") as file:
        torch.export.save(program, file)


def _write_torchscript(program: ExportedProgram, image: Tensor, path: Path) -> None:
    # The captured graph is traced, because its sizes are numbers; in the method, tracing makes them tensors.
    torch.jit.save(torch.jit.trace(program.module(), (image,), check_trace=False), path)


def _write_onnx(program: ExportedProgram, _image: Tensor, path: Path) -> None:
    from onnxscript import opset18 as op

    # Without NaN these are Max and Min; torch does not translate them yet.
    table = {
        torch.ops.prims.fmax.default: lambda a, b: op.Max(a, b),
        torch.ops.prims.fmin.default: lambda a, b: op.Min(a, b),
    }
    names = {"input_names": [INPUT_NAME], "output_names": [OUTPUT_NAME]}
    exported = torch.onnx.export(
        program, (), dynamo=True, custom_translation_table=table, verbose=False, **names
    )
    exported.save(path, external_data=False)


_WRITERS = {"torch_export": _write_torch_export, "torchscript": _write_torchscript, "onnx": _write_onnx}


def _need_onnx() -> None:
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"onnx needs the packages {', '.join(missing)}: pip install -e '.[export]'")


def _onnx_session(path: str | os.PathLike[str]) -> Run:
    _need_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {INPUT_NAME: image.numpy()})[0])
