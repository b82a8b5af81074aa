"""Published checkpoints to ours, tensor by tensor and by name."""

from collections.abc import Callable

from .conversion import Conversion, State, check_output, write_converted
from .convert_matching import convert_dcama, convert_hsnet, convert_pfenet
from .convert_proposals import convert_mask2former, convert_mmformer

__all__ = [
    "CONVERTERS",
    "Conversion",
    "check_output",
    "convert_dcama",
    "convert_hsnet",
    "convert_mask2former",
    "convert_mmformer",
    "convert_pfenet",
    "write_converted",
]

CONVERTERS: dict[str, Callable[[State], Conversion]] = {
    "dcama": convert_dcama,
    "hsnet": convert_hsnet,
    "mask2former": convert_mask2former,
    "mmformer": convert_mmformer,
    "pfenet": convert_pfenet,
}
"""Method -> converter; each raises ValueError for a checkpoint of another method."""
