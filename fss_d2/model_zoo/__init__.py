"""What comes with the package: the trained model, its weights as ``fss_d2://NAME``, and pictures of cells."""

from pathlib import Path
from typing import Any

__all__ = [
    "CELLS",
    "DEFAULT_CONFIG",
    "DEMO_CONFIGS",
    "QUALITY_FILES",
    "QUALITY_PRIOR",
    "SMALL_CONFIG",
    "register_paths",
]

_FOLDER = Path(__file__).parent
_SCHEME = "fss_d2://"

# What programs run that are given no --config-file; MODEL_ZOO.md has its card.
DEFAULT_CONFIG = _FOLDER / "dense_correlation_efficientnet_lite2.yaml"
SMALL_CONFIG = _FOLDER / "dcama_efficientnet_lite0.yaml"  # faster, and worse
# What the demo compares: configs/<name>/glyphs_efficientnet_lite0.yaml, which are not part of the package.
DEMO_CONFIGS = {name: _FOLDER / f"demo_{name}.yaml" for name in ("prototype", "dense_correlation")}

# Pictures of cells with masks, CC0, by kind: <kind>/images and <kind>/masks.
CELLS = _FOLDER / "cells"

# Numbers of `fss_d2.inference.quality`: for weights of the package, and for all others.
QUALITY_FILES = (SMALL_CONFIG.with_suffix(".quality.json"),)
QUALITY_PRIOR = _FOLDER / "prior.quality.json"


def register_paths() -> None:
    """Let Detectron2's PathManager find ``fss_d2://NAME`` in the installed package."""
    from detectron2.utils.file_io import PathManager  # here, so that --help does not wait for torch
    from iopath.common.file_io import PathHandler

    class PackagePathHandler(PathHandler):
        def _get_supported_prefixes(self) -> list[str]:
            return [_SCHEME]

        def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
            return str(_FOLDER / path.removeprefix(_SCHEME))

        def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
            return open(self._get_local_path(path), mode, buffering=buffering)

        def _isfile(self, path: str, **kwargs: Any) -> bool:
            return Path(self._get_local_path(path)).is_file()

        def _exists(self, path: str, **kwargs: Any) -> bool:
            return Path(self._get_local_path(path)).exists()

    PathManager.register_handler(PackagePathHandler(), allow_override=True)
