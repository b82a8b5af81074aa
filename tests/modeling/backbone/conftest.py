"""Puts the Detectron2 bridge in place before a test module imports detectron2."""

import fss_d2  # noqa: F401
