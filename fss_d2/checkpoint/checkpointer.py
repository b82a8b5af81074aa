"""Checkpoints of models: written whole or not at all, read by name, without running pickled code."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from torch import nn

from fss_d2.io.files import atomic_path, shortened, write_atomic
from fss_d2.io.state_dict import local_file, read_content, state_dict_of
from fss_d2.io.weight_files import UnreadableError
from fss_d2.modeling.build import build_model, check_base_knowledge

from .matching import Missing, match_tensors

__all__ = ["FewShotCheckpointer", "load_model"]

logger = logging.getLogger(__name__)


_AFTER_FULL = "free space, then go on with --resume"


class FewShotCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, safe against interruption, foreign files and silent mismatch.

    A file holds tensors, numbers, strings and containers of these only, so that
    ``torch.load(file, weights_only=True)`` reads it.

    Args:
        model: the model, also inside DistributedDataParallel. A checkpoint from which training starts may
            lack the parts of the model that its ``starts_without`` names.
        cfg: decides what other checkpoints may lack (MODEL.WEIGHTS_PARTIAL, MODEL.BACKBONE.WEIGHTS).
        tag_last: whether `resume_or_load` resumes from the last file saved here.
        checkpointables: further objects with ``state_dict`` and ``load_state_dict``; a training has some.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        cfg: CfgNode | None = None,
        tag_last: bool = True,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self._cfg, self._tag_last = cfg, tag_last
        self._starts_training = False
        self._must_hold: list[str] = []

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
        write_atomic(self._tag, last_filename_basename.encode())

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint; an empty path loads nothing.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no checkpoint of plain tensors, or it is not one of this model
                (`match_tensors`).
        """
        self._starts_training = bool(self.checkpointables) and checkpointables == []
        self._must_hold = list(self.checkpointables) if checkpointables is None else checkpointables
        return super().load(path and local_file(path, "MODEL.WEIGHTS"), checkpointables)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the last checkpoint in ``save_dir`` if ``resume`` and there is one, else ``path``.

        Raises:
            ValueError, FileNotFoundError: as `load`; and to resume, there are checkpoints without a tag.
        """
        if not resume:
            return self.load(path, checkpointables=[])
        if not self.has_checkpoint():
            found = {file.name for file in Path(self.save_dir).glob("model_*.pth")} - {"model_best.pth"}
            if found:
                raise ValueError(
                    f"{self.save_dir} holds {max(found)} but no last_checkpoint: write into that file the "
                    "name of the checkpoint to resume from, or start without --resume"
                )
            return self.load(path, checkpointables=[])
        try:
            return self.load(self.get_checkpoint_file())
        except UnreadableError as error:
            raise ValueError(f"{error}, or write the name of another checkpoint into {self._tag}") from error

    @property
    def _tag(self) -> Path:
        """The file that names the checkpoint to resume from."""
        return Path(self.save_dir) / "last_checkpoint"

    def has_checkpoint(self) -> bool:
        """Whether there is a ``last_checkpoint``."""
        return bool(self.save_dir) and os.path.lexists(self._tag)

    def get_checkpoint_file(self) -> str:
        """Return the file that ``last_checkpoint`` names; FileNotFoundError if it does not exist."""
        if not self.has_checkpoint():
            return ""
        name = self._tag.read_text(errors="replace").strip()
        path = os.path.join(self.save_dir, name)
        if not name or not os.path.isfile(path):
            fault = f"names {shortened(path)}, which does not exist" if name else "is empty"
            raise FileNotFoundError(f"{self._tag} {fault}: write the name of another checkpoint into it")
        return path

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = read_content(filename, "MODEL.WEIGHTS")
        further = content if "model" in content else {}
        if lacking := [key for key in self._must_hold if key not in further]:
            raise ValueError(
                f"{filename} holds no {lacking[0]!r} to resume (iteration, optimizer): to start from its "
                "weights, give it as MODEL.WEIGHTS, without --resume"
            )
        return {**further, "model": state_dict_of(content, filename), "__file__": filename}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        filename = checkpoint.pop("__file__", "the checkpoint")
        checkpoint.pop("matching_heuristics", None)  # of Detectron2's pickles: names match, or do not
        may_lack = Missing(
            parts=getattr(self.model, "starts_without", ()) if self._starts_training else (),
            anything=self._cfg is not None and self._cfg.MODEL.WEIGHTS_PARTIAL,
            backbone=self._cfg is None or _has_backbone_weights(self._cfg),
        )
        if (presence := getattr(self.model, "presence", None)) is not None:
            presence.make_room(checkpoint["model"])
        own = self.model.state_dict()
        checkpoint["model"] = own | match_tensors(checkpoint["model"], own, filename, may_lack)
        return super()._load_model(checkpoint)


def _has_backbone_weights(cfg: CfgNode) -> bool:
    """Whether the backbone has weights of its own where MODEL.WEIGHTS is a head."""
    decoded = cfg.MODEL.BACKBONE.FEATURES == "pixel_decoder" and cfg.MODEL.BACKBONE.PIXEL_DECODER_WEIGHTS
    return bool(cfg.MODEL.BACKBONE.WEIGHTS or decoded)


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
    FewShotCheckpointer(model, cfg=cfg).resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    check_base_knowledge(model)
    return model
