"""A predictor without a network, and small coloured pictures for it."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fss_d2.inference.prediction import Prediction

COLOURS = {"red": (230, 20, 20), "blue": (20, 20, 230)}
GREY = (120, 120, 120)
_REACH = 60.0  # sum of the differences of the three channels at which a pixel is as likely as not


class ColourPredictor:
    """An object is what has the mean colour of the supports' objects; the probability falls with distance."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.encoded: list[dict[str, int]] = []  # supports of each class, at each call
        self.predicted = 0
        self._colours: dict[str, np.ndarray] = {}

    def set_support_classes(
        self, classes: Mapping[str, tuple[Sequence[np.ndarray], Sequence[np.ndarray]]]
    ) -> None:
        self.encoded.append({name: len(images) for name, (images, _) in classes.items()})
        self._colours = {
            name: np.concatenate([i[m == 1] for i, m in zip(*pair, strict=True)]).mean(axis=0)
            for name, pair in classes.items()
        }

    def predict(self, image: np.ndarray) -> Prediction:
        time.sleep(self.seconds)
        self.predicted += 1
        distance = [np.abs(image - colour).sum(axis=2) for colour in self._colours.values()]
        probability = (1 / (1 + np.exp((np.stack(distance) - _REACH) / 20))).astype(np.float32)
        labels = np.where(probability.max(axis=0) > 0.5, 1 + probability.argmax(axis=0), 0)
        return Prediction(tuple(self._colours), probability, labels.astype(np.uint8))


def disc(size: tuple[int, int], centre: tuple[int, int], radius: int) -> np.ndarray:
    """(H, W) bool; size is (H, W), centre (y, x)."""
    y, x = np.ogrid[: size[0], : size[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def picture(regions: Mapping[str, np.ndarray], size: tuple[int, int] = (40, 50), seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: coloured regions on grey, with a little noise so that no two seeds look the same."""
    image = np.zeros((*size, 3)) + GREY
    for name, region in regions.items():
        image[region] = COLOURS[name]
    return (image + np.random.default_rng(seed).integers(-3, 4, image.shape)).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    """Write an image; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def annotated_folder(root: Path, classes: Sequence[str] = ("red",), count: int = 2) -> Path:
    """`<class>/images/<i>.png` and masks, a disc of the class's colour in each."""
    for number, name in enumerate(classes):
        for i in range(count):
            mask = disc((40, 50), (15 + 5 * i, 20), 8)
            save(root / name / "images" / f"{i}.png", picture({name: mask}, seed=100 * number + i))
            save(root / name / "masks" / f"{i}.png", mask.astype(np.uint8) * 255)
    return root


def image_folder(root: Path, count: int) -> Path:
    """PNG images, in the second half with a blue disc beside the red one, the first without any."""
    for i in range(count):
        regions = {"red": disc((40, 50), (20, 10 + i % 5), 6)} if i else {}
        if i >= count // 2:
            regions["blue"] = disc((40, 50), (20, 36), 5)
        save(root / f"photo {i:03}.png", picture(regions, seed=1000 + i))
    return root
