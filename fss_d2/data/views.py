"""One test episode at several sizes."""

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import transforms as T

from .samples import Sample
from .transforms import build_resize

__all__ = ["build_view_resizes", "view_frame"]


def build_view_resizes(cfg: CfgNode) -> list[T.Augmentation]:
    """Build INPUT.TEST_RESIZE at each size of TEST.SCALES, in order.

    Raises:
        ValueError: a size that is neither a side nor a height and a width, or that comes twice.
    """
    resizes = []
    for size in _sizes(cfg.TEST.SCALES):
        at_size = cfg.clone()
        at_size.defrost()
        at_size.INPUT.FEW_SHOT_SIZE = size
        resizes.append(build_resize(at_size))
    return resizes


def view_frame(frame: str, view: Sample, query: Sample, height: int, width: int) -> dict[str, Any]:
    """Say to which size the scores of a view are brought to lie on those of the episode.

    Args:
        frame: of the comparison.
        view: the query at the view's size.
        query: the query at the network's size.
        height, width: of the frame of comparison.

    Returns:
        "height", "width", and where the view has padding that is to be cut off first, "valid_size". In the
        network's frame that is the size of the query without padding, top left in the frame.
    """
    if frame == "network":
        height, width = query.valid_size or query.mask.shape
    sizes: dict[str, Any] = {"height": height, "width": width}
    if frame != "pfenet_square" and view.valid_size is not None:  # PFENet's code resizes padding and all
        sizes["valid_size"] = view.valid_size
    return sizes


def _sizes(scales: Sequence[Any]) -> list[tuple[int, int]]:
    sizes = []
    for scale in scales:
        size = tuple(scale) if isinstance(scale, (list, tuple)) else (scale, scale)
        if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
            raise ValueError(
                f"TEST.SCALES has {scale!r}; give sides in pixels, (473, 641), or heights and widths, "
                "((473, 473), (641, 641))"
            )
        sizes.append(size)
    if len(set(sizes)) < len(sizes):
        raise ValueError(f"TEST.SCALES {tuple(scales)} has a size twice; give each once")
    return sizes
