"""Which tensors of a checkpoint are loaded, and which may be absent."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fss_d2.io.files import shortened
from fss_d2.io.state_dict import AUXILIARY, check_values, is_head, quoted

__all__ = ["Missing", "match_tensors"]

logger = logging.getLogger(__name__)

_BACKBONE = "backbone."
# Prototypes of base classes: all or none. Who needs them checks that they are there, or builds them.
_PROTOTYPES = "knowledge."
_COUNTER = "num_batches_tracked"  # of batch norm; no output depends on it


@dataclass(frozen=True)
class Missing:
    """What a checkpoint may lack; it then keeps the value that it has in the model."""

    parts: tuple[str, ...] = ()  # beginnings of names; a part is there or not, never by half
    backbone: bool = True  # the whole backbone, which has weights of its own
    anything: bool = False


def match_tensors(
    found: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str, may_lack: Missing
) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint that the model has.

    Tensors that have no place in the model are named in a warning.

    Args:
        found, own: state dicts of the file and of the model.
        path: the file, for messages.

    Raises:
        ValueError: none fits, one has another shape or values that the model cannot take (`check_values`), or
            one is missing that must be there.
    """
    found = _without_prefix(found, own, path)
    shared = {name: tensor for name, tensor in found.items() if name in own}
    if not shared and own:
        raise ValueError(
            f"{path}: none of its {len(found)} names ({quoted(found)}) is one of the model's "
            f"({quoted(own)}): check MODEL.META_ARCHITECTURE and MODEL.BACKBONE.NAME, "
            "or convert it with tools/convert_checkpoint.py"
        )
    if wrong := [name for name in shared if found[name].shape != own[name].shape]:
        name = wrong[0]
        raise ValueError(
            f"{path}: {len(wrong)} tensor(s) of another shape than the model's, the first {name} "
            f"{tuple(found[name].shape)} instead of {tuple(own[name].shape)}: check the MODEL.* keys"
        )
    _check_missing(found, own, path, may_lack)
    check_values(shared, own, path)
    silent = (*shared, *(name for name in found if name.startswith(AUXILIARY) or name.endswith(_COUNTER)))
    if unknown := [name for name in found if name not in silent]:
        logger.warning(
            "%s: %d of its %d tensors have no place in the model and are not used, the first %s: check "
            "MODEL.META_ARCHITECTURE and the MODEL.* keys",
            *(path, len(unknown), len(found), quoted(unknown)),
        )
    return shared


def _without_prefix(
    found: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str
) -> Mapping[str, Tensor]:
    """The tensors by the model's names, where an outer module (Lightning's "model.") is in front of each."""
    prefix = next(iter(found), "").partition(".")[0] + "."
    bare = {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
    if found.keys() & own.keys() or len(bare) < len(found) or not bare.keys() & own.keys():
        return found
    logger.info("%s: all names begin with %s, which is left out", path, shortened(prefix))
    return bare


def _check_missing(
    found: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str, may_lack: Missing
) -> None:
    optional = [part for part in (_PROTOTYPES, AUXILIARY, *may_lack.parts) if not _has(found, part)]
    if is_head(found) and _has(own, _BACKBONE):
        optional.append(_BACKBONE)
        if may_lack.backbone:
            logger.info(
                "%s holds no backbone; the backbone keeps the weights of MODEL.BACKBONE.WEIGHTS", path
            )
        elif not may_lack.anything:
            raise ValueError(
                f"{path} holds no backbone, and MODEL.BACKBONE.WEIGHTS is empty: set that key to the weights "
                "on which the head was trained"
            )
    missing = [name for name in own if name not in found and not name.endswith(_COUNTER)]
    if started := [part for part in may_lack.parts if part in optional and _has(own, part)]:
        logger.info("%s holds nothing of %s, which starts from its initial values", path, quoted(started))
    if not (missing := [name for name in missing if not name.startswith(tuple(optional))]):
        return
    what = f"{path} lacks {len(missing)} of the model's {len(own)} tensors, the first {quoted(missing)}"
    if may_lack.anything:
        logger.warning("%s; they keep their initial values, as MODEL.WEIGHTS_PARTIAL allows", what)
        return
    fix = "give a whole checkpoint"
    if any(name not in own and not name.endswith(_COUNTER) for name in found):
        fix = "check MODEL.META_ARCHITECTURE and the MODEL.* keys, give a whole checkpoint of this method"
    if all(name.startswith(_BACKBONE) for name in found):
        fix = "it is a backbone alone, for MODEL.BACKBONE.WEIGHTS; give MODEL.WEIGHTS a whole checkpoint"
    raise ValueError(
        f"{what}: {fix}, or set MODEL.WEIGHTS_PARTIAL True to keep initial values in their place"
    )


def _has(state: Mapping[str, Tensor], part: str) -> bool:
    return any(name.startswith(part) for name in state)
