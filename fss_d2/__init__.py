"""Few-shot segmentation on Detectron2. Importing this package imports neither torch nor Detectron2."""

from fss_d2 import compat

__version__ = "0.2.0"

compat.apply()
