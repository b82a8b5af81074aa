"""What one visitor of the page has: supports, pictures to look through, and what was found in them."""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fss_d2.inference.predictor import FewShotPredictor, Prediction

from .archive import pack
from .drawing import Point, attention_rows, draw_prediction, on_screen
from .limits import Limits, Upload, free_name, read_upload
from .methods import MethodPool
from .supports import SupportList
from .visitor_files import VisitorFiles

__all__ = ["Finding", "Session"]


@dataclass(frozen=True)
class Finding:
    """What there is to show of a picture.

    Attributes:
        name: of its file.
        picture: (h, w, 3) uint8, masks drawn, at the size of a screen.
        pixels: of the picture itself, height times width.
        areas: pixels of each class's mask; None before the picture was looked through.
        confidence: mean probability in each class's mask.
    """

    name: str
    picture: np.ndarray
    pixels: int
    areas: dict[str, int] | None = None
    confidence: dict[str, float] | None = None


class Session:
    """The state of one visitor; a deep copy is a new visitor's.

    Attributes:
        files: what the visitor's browser may fetch.
        lock: for whoever uses the session from several threads.
        supports: the pictures that show objects.
        queries: the pictures to look through; no two have one name.
        chosen: number of the query that is looked at closely.
    """

    def __init__(self, pool: MethodPool, limits: Limits, folder: str | os.PathLike[str]) -> None:
        """
        Args:
            pool: methods to choose from.
            limits: of what the session may hold.
            folder: takes a folder of the visitor's files.
        """
        self.pool = pool
        self.limits = limits
        self.files = VisitorFiles(folder)
        self.lock = threading.RLock()
        self.supports = SupportList(limits)
        self.queries: list[Upload] = []
        self.chosen = 0
        self._encoded: dict[str, FewShotPredictor] = {}  # by method
        self._found: dict[tuple[str, str], Prediction] = {}  # by method and name of the query
        self._revision = self.supports.revision  # of the supports that both come from

    def __deepcopy__(self, memo: dict[int, Any]) -> "Session":
        return Session(self.pool, self.limits, self.files.parent)

    def add_queries(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        """Add uploaded pictures to look through; all or, after an error, none.

        Raises:
            ValueError: too many, too large, or no pictures.
        """
        if len(self.queries) + len(paths) > self.limits.pictures:
            raise ValueError(f"at most {self.limits.pictures} pictures at a time: remove some first")
        queries = list(self.queries)
        for path in paths:
            upload = read_upload(path, self.limits)
            upload = replace(upload, name=free_name(upload.name, {query.name for query in queries}))
            queries.append(upload)
            if sum(query.megapixels for query in queries) > self.limits.total_megapixels:
                most = self.limits.total_megapixels
                raise ValueError(f"the pictures have more than {most:g} million pixels together: give fewer")
        self.queries = queries

    def clear_queries(self) -> None:
        """Forget all pictures to look through, and what was found in them."""
        self.queries, self._found, self.chosen = [], {}, 0

    def find(self, method: str, progress: Callable[[int, int], object] = lambda done, total: None) -> None:
        """Look through all pictures that were not looked through with these supports and this method.

        Args:
            method: one of the pool's.
            progress: is told how many of how many are done.

        Raises:
            ValueError: no picture, no support, no such method, or a support whose object is too small.
        """
        if not self.queries:
            raise ValueError("no picture to look through yet: add some (step 2)")
        predictor = self._predictor(method)
        for done, query in enumerate(self.queries):
            progress(done, len(self.queries))
            if (method, query.name) not in self._found:
                with self.pool.lock:
                    self._found[method, query.name] = predictor.predict(query.pixels)

    def drop_outdated(self) -> bool:
        """Forget what comes from other supports than those of now; whether masks were among it."""
        outdated = self._revision != self.supports.revision
        lost = outdated and bool(self._found)
        if outdated:
            self._found, self._encoded, self._revision = {}, {}, self.supports.revision
        return lost

    def findings(self, method: str, threshold: float) -> list[Finding]:
        """What to show of each picture; the network does not run.

        Raises:
            ValueError: not a threshold from 0 to below 1.
        """
        return [self.finding(method, threshold, number) for number in range(len(self.queries))]

    def finding(self, method: str, threshold: float, number: int) -> Finding:
        """What to show of the picture of a number; otherwise as `findings`."""
        query = self.query(number)
        pixels = query.pixels.shape[0] * query.pixels.shape[1]
        prediction = self._prediction(method, query, threshold)
        if prediction is None:
            return Finding(query.name, on_screen(query.pixels), pixels)
        areas = {name: int(mask.sum()) for name, mask in prediction.masks.items()}
        drawn = draw_prediction(query.pixels, prediction)
        return Finding(query.name, drawn, pixels, areas, prediction.confidence)

    def attention(self, method: str, number: int, point: Point) -> np.ndarray:
        """Draw where in the supports of each class a point (x, y) of a picture looks.

        Args:
            method: one of the pool's that has such maps.
            number: of the picture, from 0.
            point: in its pixels.

        Raises:
            ValueError: no such picture, point, method, maps, or no supports yet.
        """
        pixels = self.query(number).pixels
        predictor = self._predictor(method)
        with self.pool.lock:
            maps = {name: predictor.attention(pixels, point, name=name) for name in predictor.names}
        supports = {name: pictures for name, (pictures, _) in self.supports.classes().items()}
        return attention_rows(pixels, point, supports, maps)

    def query(self, number: int) -> Upload:
        """A picture to look through, by number from 0.

        Raises:
            ValueError: there is no such picture.
        """
        if not 0 <= number < len(self.queries):
            raise ValueError(f"there is no picture number {number + 1}: choose one of the gallery")
        return self.queries[number]

    def zip_file(self, method: str, threshold: float) -> bytes:
        """All masks that are there, see `pack`.

        Raises:
            ValueError: there are none.
        """
        pairs = [(query.name, self._prediction(method, query, threshold)) for query in self.queries]
        return pack([(name, prediction) for name, prediction in pairs if prediction])

    def _prediction(self, method: str, query: Upload, threshold: float) -> Prediction | None:
        """What was found with the supports as they are now."""
        self.drop_outdated()
        prediction = self._found.get((method, query.name))
        return prediction and prediction.at(threshold)

    def _predictor(self, method: str) -> FewShotPredictor:
        """The method with the supports as they are now; they are encoded once."""
        self.drop_outdated()
        if method not in self._encoded:
            classes = self.supports.classes()
            predictor = self.pool.predictor(method)
            with self.pool.lock:
                predictor.set_support_classes(classes)
            self._encoded[method] = predictor
        return self._encoded[method]
