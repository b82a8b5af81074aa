"""A predictor without a network, and small coloured pictures for it."""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.utils import comm
from PIL import Image

from fss_d2.inference.competition import share_out
from fss_d2.inference.prediction import Prediction
from fss_d2.inference.quality import prior_quality

COLOURS = {"red": (230, 20, 20), "blue": (20, 20, 230)}
GREY = (120, 120, 120)
_REACH = 60.0  # colour difference, summed over the channels, at which the probability is one half


class ColourPredictor:
    """An object is whatever has the mean colour of the supports' objects; probability falls with distance.

    The presence of a class is its largest probability, and half of that where a negative has its colour.

    Attributes:
        encoded: the number of supports of each class, for each call that sets supports.
        passes: pictures that were encoded as supports, all calls together.
        left_out: the groups of all calls of `leave_out`.
        predicted: images that were labelled.
    """

    def __init__(self, stop_after: int | None = None, present_above: float = 0.0) -> None:
        """
        Args:
            stop_after: images that are labelled; the next one takes for ever.
        """
        self.stop_after, self.present_above = stop_after, present_above
        self.quality = prior_quality()
        self.encoded: list[dict[str, int]] = []
        self.passes = 0
        self.left_out: list[tuple[int, ...]] = []
        self.predicted = 0
        self._colours: dict[str, np.ndarray] = {}

    def set_support_classes(
        self,
        classes: Mapping[str, tuple[Sequence[np.ndarray], Sequence[np.ndarray]]],
        *,
        negatives: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]] | None = None,
    ) -> None:
        self.encoded.append({name: len(images) for name, (images, _) in classes.items()})
        self.passes += sum(self.encoded[-1].values())
        self._colours = {
            name: np.concatenate([i[m == 1] for i, m in zip(*pair, strict=True)]).mean(axis=0)
            for name, pair in classes.items()
        }
        given = {name: _of_class(negatives or {}, name) for name in classes}
        self._refused = {name for name, pairs in given.items() if _meets(self._colours[name], pairs)}

    def predict(self, image: np.ndarray) -> Prediction:
        while self.predicted == self.stop_after:
            time.sleep(1)
        self.predicted += 1
        return _prediction(image, self._colours, self.present_above, self._refused)

    def leave_out(
        self,
        images: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
        left_out: Sequence[tuple[int, ...]],
        negatives: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    ) -> Iterator[tuple[Prediction, ...]]:
        self.passes += len(images)
        pixels = [image[mask == 1] for image, mask in zip(images, masks, strict=True)]
        for out in left_out:
            self.left_out.append(out)
            colour = np.concatenate([p for i, p in enumerate(pixels) if i not in out]).mean(axis=0)
            refused = {"object"} if _meets(colour, negatives) else set()
            yield tuple(_prediction(images[i], {"object": colour}, self.present_above, refused) for i in out)


def _of_class(
    negatives: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]], name: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    return [pair for key in ("", name) for pair in negatives.get(key, ())]


def _meets(colour: np.ndarray, negatives: Sequence[tuple[np.ndarray, np.ndarray]]) -> bool:
    """Whether a region of a negative has a pixel of that colour."""
    return any((_probability(image, colour)[region == 1] > 0.5).any() for image, region in negatives)


def _prediction(
    image: np.ndarray, colours: Mapping[str, np.ndarray], present_above: float, refused: Collection[str]
) -> Prediction:
    """The expected IoU of a class is its mean probability in its mask."""
    probability = np.stack([_probability(image, colour) for colour in colours.values()])
    best = {name: float(p.max()) for name, p in zip(colours, probability, strict=True)}
    presence = {name: value / 2 if name in refused else value for name, value in best.items()}
    present = [value >= present_above for value in presence.values()]
    labels = share_out(probability, present)
    found = Prediction(tuple(colours), probability, labels, {}, presence, present_above)
    return replace(found, mask_iou=found.confidence)


def _probability(image: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """(H, W) float32."""
    return (1 / (1 + np.exp((np.abs(image - colour).sum(axis=2) - _REACH) / 20))).astype(np.float32)


class Ranks:
    """Processes that are threads: takes the place of Detectron2's `comm` in a test.

    ``Ranks(2).run(monkeypatch, function)`` calls ``function(rank)`` in two threads at once and returns what
    both return. A rank that waits for another one that never comes fails after a minute.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._here = threading.local()
        self._barrier = threading.Barrier(count)
        self._given: list[Any] = [None] * count

    def run(self, monkeypatch: pytest.MonkeyPatch, function: Callable[[int], Any]) -> list[Any]:
        def call(rank: int) -> Any:
            self._here.rank = rank
            try:
                return function(rank)
            except BaseException:
                self._barrier.abort()
                raise

        with monkeypatch.context() as patch, ThreadPoolExecutor(self.count) as pool:
            patch.setattr(comm, "get_world_size", lambda: self.count)
            patch.setattr(comm, "get_rank", lambda: self._here.rank)
            patch.setattr(comm, "is_main_process", lambda: self._here.rank == 0)
            patch.setattr(comm, "synchronize", lambda: self._barrier.wait(60))
            patch.setattr(comm, "all_gather", self._all_gather)
            patch.setattr(comm, "gather", self._gather)
            return list(pool.map(call, range(self.count)))

    def _gather(self, data: Any) -> list[Any]:
        given = self._all_gather(data)
        return given if self._here.rank == 0 else []

    def _all_gather(self, data: Any) -> list[Any]:
        self._given[self._here.rank] = data
        self._barrier.wait(60)
        given = list(self._given)
        self._barrier.wait(60)  # the next gather starts after all ranks have read this one
        return given


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
    """PNG images, in the second half with a blue disc next to the red one, the first without any."""
    for i in range(count):
        regions = {"red": disc((40, 50), (20, 10 + i % 5), 6)} if i else {}
        if i >= count // 2:
            regions["blue"] = disc((40, 50), (20, 36), 5)
        save(root / f"photo {i:03}.png", picture(regions, seed=1000 + i))
    return root
