"""The methods. Each registers itself in Detectron2's META_ARCH_REGISTRY; every file here is imported."""

from importlib import import_module
from pkgutil import iter_modules

from detectron2.modeling import META_ARCH_REGISTRY

from .contract import Output, QueryFeatures, SupportSet
from .danet import DANet
from .dcama import DCAMA
from .dense_correlation import DenseCorrelation
from .dpcn import DPCN
from .few_shot import FewShotSegmentor, SegmentorOptions
from .frost import FROST
from .hsnet import HSNet
from .insid3 import INSID3
from .jc2a import JC2A
from .mm_former import MMFormer
from .pfenet import PFENet
from .proposal_segmenter import PotentialObjectsSegmenter
from .prototype import Prototype

__all__ = [
    "DCAMA",
    "DPCN",
    "FEW_SHOT_META_ARCHS",
    "FROST",
    "INSID3",
    "JC2A",
    "DANet",
    "DenseCorrelation",
    "FewShotSegmentor",
    "HSNet",
    "MMFormer",
    "Output",
    "PFENet",
    "PotentialObjectsSegmenter",
    "Prototype",
    "QueryFeatures",
    "SegmentorOptions",
    "SupportSet",
]

for _module in iter_modules(__path__):  # also those of methods that were added
    import_module(f"{__name__}.{_module.name}")

# Names for MODEL.META_ARCHITECTURE, in alphabetical order.
FEW_SHOT_META_ARCHS = tuple(sorted(n for n, cls in META_ARCH_REGISTRY if issubclass(cls, FewShotSegmentor)))
