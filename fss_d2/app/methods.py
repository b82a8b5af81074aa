"""The methods that the page offers, shared by all visitors."""

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from fss_d2.inference.predictor import FewShotPredictor

from .uploads import Filename

__all__ = ["MethodPool"]


class MethodPool:
    """One or more loaded methods by name, shared by all sessions, which take turns through `lock`."""

    def __init__(self, predictors: Mapping[str, FewShotPredictor]) -> None:
        if not predictors:
            raise ValueError("no method to offer: give at least one config")
        self._predictors = dict(predictors)
        self.lock = threading.Lock()

    @classmethod
    def load(
        cls, config_files: Sequence[Filename], weights: Sequence[Filename] = (), *, device: str = ""
    ) -> "MethodPool":
        """Load a method per config; its name is that of the folder and file, "dcama/pascal5i_r50".

        Args:
            config_files: YAML, each once.
            weights: none, or one checkpoint per config; "" or "-" takes the config's MODEL.WEIGHTS.
            device: as for `FewShotPredictor.from_config`, which also has the other errors.
        """
        if weights and len(weights) != len(config_files):
            raise ValueError(f"{len(config_files)} configs and {len(weights)} weights: give '-' for none")
        predictors: dict[str, FewShotPredictor] = {}
        for i, config_file in enumerate(config_files):
            path = Path(config_file)
            name = f"{path.resolve().parent.name}/{path.stem}"
            if name in predictors:
                raise ValueError(f"config {name} is given twice: leave one out, or rename its file")
            chosen = os.fspath(weights[i]) if weights else ""
            predictors[name] = FewShotPredictor.from_config(
                config_file, weights="" if chosen == "-" else chosen, device=device
            )
        return cls(predictors)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the methods, in the order of their configs."""
        return tuple(self._predictors)

    def predictor(self, name: str) -> FewShotPredictor:
        """A predictor without supports that uses the shared model."""
        return self._get(name).another()

    def present_above(self, name: str) -> float:
        """The presence from which on a method takes an object for present."""
        return self._get(name).present_above

    def has_attention(self, name: str) -> bool:
        """Whether a method can show the attention of a pixel to the supports."""
        try:
            self._get(name).check_attention()
        except ValueError:
            return False
        return True

    def _get(self, name: str) -> FewShotPredictor:
        if name not in self._predictors:
            raise ValueError(f"no method {name!r}: choose from {', '.join(self._predictors)}")
        return self._predictors[name]
