"""The methods. Each registers itself in Detectron2's META_ARCH_REGISTRY."""

from detectron2.modeling import META_ARCH_REGISTRY

from .dcama import DCAMA
from .few_shot import FewShotSegmentor
from .mm_former import MMFormer
from .proposal_segmenter import PotentialObjectsSegmenter
from .prototype import Prototype
from .support import SupportSet

__all__ = [
    "DCAMA",
    "FEW_SHOT_META_ARCHS",
    "FewShotSegmentor",
    "MMFormer",
    "PotentialObjectsSegmenter",
    "Prototype",
    "SupportSet",
]

# Names for MODEL.META_ARCHITECTURE, in alphabetical order.
FEW_SHOT_META_ARCHS = tuple(
    sorted(name for name, cls in META_ARCH_REGISTRY if issubclass(cls, FewShotSegmentor))
)
