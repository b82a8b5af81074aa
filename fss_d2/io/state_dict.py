"""State dicts of models: read from weight files, unwrapped, and what they consist of."""

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager
from torch import Tensor

from fss_d2.io.files import expand_user, shortened
from fss_d2.io.network import check_address
from fss_d2.io.weight_files import UNREADABLE, ForbiddenPickle, UnreadableError, describe, load_plain
from fss_d2.model_zoo import register_paths

__all__ = [
    "AUXILIARY",
    "UNREADABLE",
    "ForbiddenPickle",
    "bare_name",
    "check_values",
    "head_of",
    "is_head",
    "is_head_file",
    "load_plain",
    "local_file",
    "not_finite",
    "quoted",
    "read_content",
    "read_state_dict",
    "state_dict_of",
    "tensors_digest",
]

logger = logging.getLogger(__name__)

register_paths()

# Names under which files keep a state dict; those of the second row hold another copy of the same model.
_WRAPPERS = ("state_dict", "model")
_COPIES = (
    *("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "teacher", "student"),
    *("model_state_dict", "model_state", "net", "network", "params", "params_ema", "weights", "module"),
)
# What DistributedDataParallel, torch.compile, FSDP and activation checkpointing put into names.
_ADDED = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_BACKBONE = "backbone."
AUXILIARY = "auxiliary."  # names of what a model has for its training alone


def local_file(path: str, key: str) -> str:
    """The file on this machine that ``fss_d2://NAME``, ``~`` or an address means.

    Raises:
        ValueError: an address, and the environment does not allow downloads (`fss_d2.io.network`).
        FileNotFoundError: there is no such file, or it cannot be downloaded. ``key`` names it.
    """
    check_address(path, key)
    try:
        local = PathManager.get_local_path(expand_user(path))
    except (OSError, ValueError, RuntimeError) as error:
        fault = f"cannot download {key} {shortened(path)} ({shortened(error)})"
        raise FileNotFoundError(f"{fault}: check the address") from error
    if not os.path.isfile(local):
        raise FileNotFoundError(f"checkpoint {shortened(local)} does not exist: check {key}")
    return local


def read_state_dict(path: str | os.PathLike[str], key: str = "the path") -> dict[str, Tensor]:
    """Read the named tensors of a file that `load_plain` can read; `key` is its config key, for the errors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken, carries code, or holds no state dict.
    """
    return state_dict_of(read_content(path, key), path)


def read_content(path: str | os.PathLike[str], key: str = "the path") -> Any:
    """Read everything that a checkpoint holds; arguments and errors as `read_state_dict`."""
    if not Path(path).is_file():
        check_address(os.fspath(path), key)
        raise FileNotFoundError(f"checkpoint {shortened(path)} does not exist: check {key}")
    try:
        return load_plain(path)
    except UnreadableError:
        raise
    except UNREADABLE as error:
        raise ValueError(
            f"{path} is no checkpoint of plain tensors: {describe(path)}; check {key}, or save the model's "
            "state dict alone"
        ) from error


def bare_name(name: str) -> str:
    """The name of a tensor without what DistributedDataParallel, torch.compile and the like add to it."""
    return _ADDED.sub("", name)


def state_dict_of(content: Any, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Take the named tensors out of the content of the file `path`.

    Wrappers such as "state_dict", "model" and "ema" are opened; which copy of a model is taken is logged
    where there are several. Names lose what wrappers of modules add (`bare_name`). Entries that are no
    tensors are left out.

    Raises:
        ValueError: there are none, there are several copies of which none is called "state_dict" or "model",
            or two names become the same.
    """
    content, place = _unwrapped(content, path)
    state: dict[str, Tensor] = {}
    for name, tensor in _named_tensors(content):
        bare = bare_name(name)
        if bare in state:
            raise ValueError(f"{path} holds {bare} twice, once as {name}: save one state dict alone")
        state[bare] = tensor
    if not isinstance(content, Mapping) or (content and not state):
        raise ValueError(f"{path} holds no state dict of named tensors: save the model's state dict")
    if nested := [name for name, value in content.items() if state and any(_named_tensors(value))]:
        raise ValueError(
            f"{path} holds tensors both in {place or 'its state dict'} and one level below, in "
            f"{quoted(nested)}: save one state dict with full names"
        )
    return state


def _named_tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Mapping):
        yield from ((n, t) for n, t in content.items() if isinstance(n, str) and isinstance(t, Tensor))


def _holds_tensors(content: Any) -> bool:
    """Whether something is a state dict, or a wrapper of one."""
    return any(_named_tensors(content)) or (
        isinstance(content, Mapping) and any(_holds_tensors(content.get(w)) for w in (*_WRAPPERS, *_COPIES))
    )


def _unwrapped(content: Any, path: str | os.PathLike[str]) -> tuple[Any, str]:
    """Open wrappers; return what is in them, and where that was, "model" for example."""
    place = ""
    while isinstance(content, Mapping):
        held = [name for name in (*_WRAPPERS, *_COPIES) if _holds_tensors(content.get(name))]
        usual = [name for name in held if name in _WRAPPERS]
        copies = [name for name in held if name in _COPIES]
        if not usual and any(_named_tensors(content)):
            break
        if len(usual or copies) > 1:
            raise ValueError(
                f"{path} holds several state dicts ({quoted(usual or copies)}): save the one to load alone"
            )
        if not held:
            break
        taken = (usual or copies)[0]
        if others := [name for name in held if name != taken]:
            logger.info("%s: the state dict %r is taken, not %s", path, taken, quoted(others))
        elif not usual:
            logger.info("%s: the state dict is taken from %r", path, taken)
        content, place = content[taken], f"{place}.{taken}".removeprefix(".")
    return content, place


def quoted(names: Iterable[str]) -> str:
    """Return the first three names, for a message."""
    names = list(names)
    return ", ".join(shortened(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")


def check_values(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str | os.PathLike[str]
) -> None:
    """Refuse values that the model cannot take as they are.

    Args:
        state, own: tensors of the file and the model's of the same names and shapes.
        path: the file, for the message.

    Raises:
        ValueError: a tensor is complex, holds integers in place of real numbers or the reverse, or holds NaN
            or infinite values, also those that become infinite in the model's number type.
    """
    for name, tensor in state.items():
        target = own[name].dtype
        if tensor.is_complex() or tensor.is_floating_point() != target.is_floating_point:
            if name.endswith("num_batches_tracked") and not tensor.is_complex():
                continue
            raise ValueError(
                f"{path}: tensor {name} is {tensor.dtype} and the model's is {target}: save the weights as "
                "they were trained, not quantized or transformed"
            )
        if not tensor.is_floating_point():
            continue
        fault = (~tensor.to(target).isfinite()).sum().item()
        if fault:
            raise ValueError(
                f"{path}: tensor {name} holds {fault} values that are NaN or infinite, of {tensor.numel()}: "
                "take a checkpoint from before the training diverged"
            )


def not_finite(content: Any, name: str = "") -> Iterator[str]:
    """The full names of the tensors in nested containers that hold NaN or infinite values."""
    if isinstance(content, Mapping | list | tuple):
        items = content.items() if isinstance(content, Mapping) else enumerate(content)
        for key, value in items:
            yield from not_finite(value, f"{name}.{key}".removeprefix("."))
    elif isinstance(content, Tensor) and not content.isfinite().all():
        yield name


def head_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's tensors without those of its backbone and those that only a training needs.

    ValueError if there are no others.
    """
    head = {n: tensor for n, tensor in weights.items() if not n.startswith((_BACKBONE, AUXILIARY))}
    if not head:
        raise ValueError("the checkpoint holds a backbone only: give the checkpoint of a trained method")
    return head


def is_head(weights: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has tensors, none of them of a backbone."""
    return bool(weights) and not any(name.startswith(_BACKBONE) for name in weights)


def is_head_file(path: str) -> bool:
    """Whether a file is a checkpoint without a backbone; False if it cannot be read.

    The values of the tensors stay on the disk.
    """
    if not path:
        return False
    check_address(path, "MODEL.WEIGHTS")
    try:
        local = PathManager.get_local_path(expand_user(path))
        return os.path.isfile(local) and is_head(state_dict_of(load_plain(local, values=False), path))
    except (*UNREADABLE, OSError):
        return False


def tensors_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of the names and values of tensors, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
