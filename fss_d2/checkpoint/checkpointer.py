"""Checkpoints of models: written whole or not at all, read by name, without running pickled code."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from torch import nn

from fss_d2.files import atomic_path, write_atomic
from fss_d2.modeling.build import build_model, check_base_knowledge
from fss_d2.state_dict import is_head, read_content, state_dict_of

from .conversion import quoted

__all__ = ["FewShotCheckpointer", "load_model"]

logger = logging.getLogger(__name__)


_AFTER_FULL = "free space, then go on with --resume"


class FewShotCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, safe against interruption, foreign files and silent mismatch.

    A file holds tensors, numbers, strings and containers of these only, so that
    ``torch.load(file, weights_only=True)`` reads it.

    Args:
        model: the model, also inside DistributedDataParallel.
        tag_last: whether `resume_or_load` resumes from the last file saved here.
        checkpointables: further objects with ``state_dict`` and ``load_state_dict``.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, tag_last: bool = True, **checkpointables: Any
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self._tag_last = tag_last

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``save_dir/name.pth`` on the main process; an interruption leaves the previous file.

        Raises:
            OSError: the file cannot be written, for example on a full disk.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        content = {"model": self.model.state_dict()}
        content |= {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        path = Path(self.save_dir) / f"{name}.pth"
        logger.info("Saving checkpoint to %s", path)
        try:
            # A file of our own says why it cannot be written; torch's says "unexpected pos 704 vs 598".
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                torch.save(content | kwargs, file)
        except OSError as error:
            reason = f"{error.strerror}; it is not written, checkpoints before it are whole: {_AFTER_FULL}"
            raise OSError(error.errno, reason, str(path)) from error
        if self._tag_last:
            self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the file to resume from, once that file is complete."""
        write_atomic(Path(self.save_dir) / "last_checkpoint", last_filename_basename.encode())

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint; an empty path loads nothing.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no checkpoint of plain tensors, the model has none of its names, or a
                tensor has another shape.
        """
        if path:
            try:
                path = self.path_manager.get_local_path(path)
            except OSError as error:
                raise FileNotFoundError(
                    f"cannot download MODEL.WEIGHTS {path} ({error}): check the address"
                ) from error
            if not os.path.isfile(path):
                raise FileNotFoundError(f"checkpoint {path} does not exist: check MODEL.WEIGHTS")
        return super().load(path, *args, **kwargs)

    def get_checkpoint_file(self) -> str:
        """Return the file that ``last_checkpoint`` names; FileNotFoundError if it does not exist."""
        path = super().get_checkpoint_file()
        if path and not os.path.isfile(path):
            tag = os.path.join(self.save_dir, "last_checkpoint")
            raise FileNotFoundError(
                f"{tag} names {path}, which does not exist: write the name of another checkpoint into it"
            )
        return path

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = read_content(filename, "MODEL.WEIGHTS")
        further = content if "model" in content else {}
        return {**further, "model": state_dict_of(content, filename), "__file__": filename}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        filename = checkpoint.pop("__file__", "the checkpoint")
        own = self.model.state_dict()
        found = checkpoint["model"]
        shared = [name for name in found if name in own]
        if not shared and own:
            raise ValueError(
                f"{filename}: none of its {len(found)} names ({quoted(found)}) is one of the model's "
                f"({quoted(own)}): check MODEL.META_ARCHITECTURE and MODEL.BACKBONE.NAME, "
                "or convert it with tools/convert_checkpoint.py"
            )
        if wrong := [name for name in shared if found[name].shape != own[name].shape]:
            name = wrong[0]
            raise ValueError(
                f"{filename}: {len(wrong)} tensor(s) of another shape than the model's, the first {name} "
                f"{tuple(found[name].shape)} instead of {tuple(own[name].shape)}: check the MODEL.* keys"
            )
        if is_head(found) and (kept := {n: t for n, t in own.items() if n.startswith("backbone.")}):
            logger.info(
                "%s holds no backbone; the backbone keeps the weights of MODEL.BACKBONE.WEIGHTS", filename
            )
            checkpoint["model"] = found | kept
        return super()._load_model(checkpoint)


def load_model(cfg: CfgNode) -> nn.Module:
    """Build the method with MODEL.WEIGHTS, in eval mode on MODEL.DEVICE, for programs that only run it.

    Without weights, a method that needs training runs as it was initialised, and a warning says so.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: settings that do not go together, a checkpoint of another method, or none that has the
            prototypes of the base classes where the method needs them.
    """
    model = build_model(cfg).eval()
    if not cfg.MODEL.WEIGHTS and model.trainable:
        logger.warning("MODEL.WEIGHTS is empty: %s is untrained", cfg.MODEL.META_ARCHITECTURE)
    FewShotCheckpointer(model).resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    check_base_knowledge(model)
    return model
