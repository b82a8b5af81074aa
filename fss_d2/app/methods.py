"""The methods that a page offers: one model each, which all sessions share."""

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from fss_d2.inference.predictor import FewShotPredictor

__all__ = ["MethodPool"]


class MethodPool:
    """Loaded methods by name. Sessions take turns at the models through `lock`.

    Raises:
        ValueError: there is none.
    """

    def __init__(self, predictors: Mapping[str, FewShotPredictor]) -> None:
        if not predictors:
            raise ValueError("no method to offer: give at least one config")
        self._predictors = dict(predictors)
        self.lock = threading.Lock()

    @classmethod
    def load(
        cls,
        config_files: Sequence[str | os.PathLike[str]],
        weights: Sequence[str | os.PathLike[str]] = (),
        *,
        device: str = "",
    ) -> "MethodPool":
        """Load a method for each config; its name is the file's with its folder, "dcama/pascal5i_r50".

        Args:
            config_files: YAML.
            weights: none, or one checkpoint for each config; "" or "-" takes the config's MODEL.WEIGHTS.
            device: see `FewShotPredictor.from_config`.

        Raises:
            FileNotFoundError: there is no such config or checkpoint.
            ValueError: not one checkpoint for each config, the same config twice, or see `from_config`.
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
        """Of the methods, in the order in which they were given."""
        return tuple(self._predictors)

    def predictor(self, name: str) -> FewShotPredictor:
        """A predictor without supports over the shared model.

        Raises:
            ValueError: there is no such method.
        """
        return self._get(name).another()

    def has_attention(self, name: str) -> bool:
        """Whether a method can tell where in the supports a pixel looks."""
        try:
            self._get(name).check_attention()
        except ValueError:
            return False
        return True

    def _get(self, name: str) -> FewShotPredictor:
        if name not in self._predictors:
            raise ValueError(f"no method {name!r}: choose from {', '.join(self._predictors)}")
        return self._predictors[name]
