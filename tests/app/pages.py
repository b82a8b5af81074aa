"""Pictures with a known answer, and a page that gets them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from fss_d2.app.methods import MethodPool
from fss_d2.app.server import serve
from fss_d2.app.uploads import Limits
from tests.inference.predictors import make_predictor

SIZE = (90, 120)  # height and width
LIMITS = Limits(upload_mb=1, pictures=3, megapixels=0.5, total_megapixels=1, classes=2)
SIDE = (96, 128)  # at which the models run


def disc(x: int, y: int, radius: int = 24, color: tuple[int, int, int] = (240, 220, 40)) -> np.ndarray:
    """A picture (90, 120, 3) uint8 of a bright disc on a dark ground."""
    picture = np.full((*SIZE, 3), 20, np.uint8)
    picture[disc_mask(x, y, radius)] = color
    return picture


def disc_mask(x: int, y: int, radius: int = 24) -> np.ndarray:
    """The mask (90, 120) bool of `disc`."""
    rows, columns = np.ogrid[: SIZE[0], : SIZE[1]]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def save(path: Path, picture: np.ndarray) -> str:
    """Write a picture; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return str(path)


def make_pool(*methods: str, less_sure: float = 0) -> MethodPool:
    """Methods with random weights on the fake backbone; the logits of presence are less by ``less_sure``.

    That of the disc is about 10 without.
    """
    options = ("INPUT.FEW_SHOT_SIZE", SIDE, "INPUT.MAX_SIZE_TEST", max(SIDE))
    predictors = {name: make_predictor(name, *options) for name in methods}
    for predictor in predictors.values():
        predictor.model.presence.bias -= less_sure
    return MethodPool(predictors)


@contextmanager
def page(*methods: str, limits: Limits = LIMITS, less_sure: float = 0) -> Iterator[str]:
    """Serve a page, and yield its address."""
    with serve(make_pool(*methods, less_sure=less_sure), limits) as url:
        yield url
