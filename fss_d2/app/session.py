"""The state of one visitor: supports, pictures to search, masks and which of them are accepted."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fss_d2.inference.prediction import Prediction
from fss_d2.inference.predictor import FewShotPredictor
from fss_d2.inference.quality import shifted

from .drawing import LARGE, Point, VisitorFiles, attention_rows, draw_prediction, edited, on_screen
from .hints import Checked, check_marks, size_hint
from .methods import MethodPool
from .results import Result, pack
from .uploads import MEGA, Filename, Limits, SupportList, Upload, check_total, free_name, read_upload

__all__ = ["Finding", "Session"]


@dataclass(frozen=True)
class Finding:
    """A picture to search and what was found in it."""

    name: str  # of its file
    picture: np.ndarray  # (h, w, 3) uint8 at the size of a screen, with the masks
    pixels: int  # of the picture itself, height times width
    areas: dict[str, int] | None = None  # pixels of each class's mask; None before the search
    expected: dict[str, float] | None = None  # see `Prediction.expected_iou`
    presence: dict[str, float] | None = None  # see `Prediction`
    needs_review: bool = False  # whether the visitor should look at it, see `Result`
    accepted: bool = False
    corrected: bool = False  # by hand
    numbers: dict[str, int] | None = None  # of the classes, from 0: their colours


@dataclass(frozen=True)
class _Accepted:
    """Masks that the visitor accepted, or corrected; they stay as they are."""

    prediction: Prediction
    corrected: bool


class Session:
    """The state of one visitor, whose files lie in a folder in ``folder``.

    A deep copy is the state of a new visitor. Input that cannot be used raises ValueError.
    """

    def __init__(self, pool: MethodPool, limits: Limits, folder: Filename) -> None:
        self.pool = pool
        self.limits = limits
        self.files = VisitorFiles(folder, limits.disk_mb * MEGA)  # what the visitor's browser may fetch
        self.lock = threading.RLock()  # for use of the session from several threads
        self.supports = SupportList(limits)
        self.queries: list[Upload] = []  # the pictures to search; their names differ
        self.chosen = 0  # index of the query that is shown large
        self.fixing = 0  # index of the query in the painter
        self.method = ""  # that is used now
        self.present_above: float | None = None  # see `Prediction`; None takes that of the method
        self._encoded: dict[str, FewShotPredictor] = {}  # by method
        self._found: dict[tuple[str, str], Prediction] = {}  # by method and name of the query
        self._accepted: dict[str, _Accepted] = {}  # by name of the query
        self._checked: dict[str, Checked] = {}  # by method
        self._revision = self.supports.revision  # of the supports that these were made with

    def __deepcopy__(self, memo: dict[int, Any]) -> "Session":
        return Session(self.pool, self.limits, self.files.parent)

    # -- pictures ----------------------------------------------------------------------------------------

    def add_supports(self, paths: Sequence[Filename], class_name: str = "object") -> None:
        """Add uploaded pictures of objects; after an error, none is added."""
        self.supports.add(paths, class_name, self.queries)

    def add_queries(self, paths: Sequence[Filename]) -> None:
        """Add uploaded pictures to search; after an error, none is added."""
        if len(self.queries) + len(paths) > self.limits.pictures:
            raise ValueError(f"at most {self.limits.pictures} pictures at a time: remove some first")
        supports = [picture.upload for picture in self.supports.pictures]
        queries = list(self.queries)
        for path in paths:
            upload = read_upload(path, self.limits)
            upload = replace(upload, name=free_name(upload.name, {query.name for query in queries}))
            queries.append(upload)
            check_total([*supports, *queries], self.limits)
        self.queries = queries

    def clear_queries(self) -> None:
        """Remove all pictures to search and what was found in them."""
        self.queries, self._found, self._accepted, self.chosen = [], {}, {}, 0

    def query(self, number: int) -> Upload:
        """The picture to search with an index."""
        if not 0 <= number < len(self.queries):
            raise ValueError(f"there is no picture number {number + 1}: choose one of the gallery")
        return self.queries[number]

    def choose(self, number: int) -> None:
        """Show a picture large."""
        self.query(number)
        self.chosen = number

    # -- search ------------------------------------------------------------------------------------------

    def find(
        self, method: str, progress: Callable[[int, int, str], object] = lambda done, total, what: None
    ) -> None:
        """Search all pictures that were not searched yet with these supports and this method.

        The supports are checked first (`hints`). ``progress`` is called with the number of steps that are
        done, that of all, and what is done next.
        """
        if not self.queries:
            raise ValueError("no picture to search yet: add some (step 2)")
        predictor = self._predictor(method)
        steps = len(self.queries) + 1
        if method not in self._checked:
            progress(0, steps, "Checking your examples")
            with self.pool.lock:
                self._checked[method] = check_marks(predictor, self.supports)
        for done, query in enumerate(self.queries, start=1):
            progress(done, steps, f"Searching {query.name}")
            if (method, query.name) not in self._found and query.name not in self._accepted:
                with self.pool.lock:
                    self._found[method, query.name] = predictor.predict(query.pixels)

    def redo(self, method: str, number: int) -> None:
        """Search a picture again with the present supports, also one that was accepted or corrected."""
        query, predictor = self.query(number), self._predictor(method)
        with self.pool.lock:
            self._found[method, query.name] = predictor.predict(query.pixels)
        self._accepted.pop(query.name, None)

    def drop_outdated(self) -> bool:
        """Remove everything that was made with earlier supports; return whether masks were removed.

        What was accepted stays.
        """
        outdated = self._revision != self.supports.revision
        lost = outdated and any(name not in self._accepted for _, name in self._found)
        if outdated:
            self._found, self._encoded, self._checked = {}, {}, {}
            self._revision = self.supports.revision
        return lost

    def hints(self, method: str) -> dict[int, str]:
        """What seems wrong with supports, by index: with their marks alone, and after `find` with all."""
        found = self._checked.get(method) if self._revision == self.supports.revision else None
        sizes = {
            i: hint
            for i, picture in enumerate(self.supports.pictures)
            if picture.shows_object and (hint := size_hint(picture.mask))
        }
        return (found.hints if found else {}) | sizes

    # -- results -----------------------------------------------------------------------------------------

    def accept(self, method: str, threshold: float, number: int) -> None:
        """Keep the masks of a picture as they are now; they count as done."""
        query = self.query(number)
        if query.name not in self._accepted:
            self._accepted[query.name] = _Accepted(self._needed(method, query, threshold), corrected=False)

    def choose_open(self) -> None:
        """Show the next picture that is not accepted, if there is one."""
        count = len(self.queries)
        for number in ((self.chosen + i) % count for i in range(1, count + 1)):
            if self.queries[number].name not in self._accepted:
                self.chosen = number
                return

    def mask_to_fix(self, method: str, threshold: float, number: int, class_name: str) -> np.ndarray:
        """The mask (H, W) bool of a class in a picture."""
        masks = self._needed(method, self.query(number), threshold).masks
        if class_name not in masks:
            raise ValueError(f"no object {class_name!r} in this picture: choose from {', '.join(masks)}")
        return masks[class_name]

    def background_to_fix(self, method: str, threshold: float, number: int, class_name: str) -> np.ndarray:
        """A picture at the size of a screen, with the masks of the other classes."""
        query = self.query(number)
        prediction = self._needed(method, query, threshold)
        own = prediction.names.index(class_name) + 1
        others = replace(prediction, labels=np.where(prediction.labels == own, 0, prediction.labels))
        return draw_prediction(query.pixels, others, self._numbers())

    def number_of(self, class_name: str) -> int:
        """The number of a class of a support or a mask, from 0: its colour."""
        return self._numbers().get(class_name, 0)

    def classes_to_fix(self, method: str, threshold: float, number: int) -> tuple[str, ...]:
        """The classes that a picture was searched for, those that were found first."""
        masks = self._needed(method, self.query(number), threshold).masks
        return tuple(sorted(masks, key=lambda name: not masks[name].any()))

    def fix(
        self,
        method: str,
        threshold: float,
        number: int,
        class_name: str,
        layers: Sequence[np.ndarray],
        *,
        as_support: bool = False,
    ) -> None:
        """Replace a mask by what a painter made of it, and accept it; on request also as a support.

        ``layers`` are the painter's, see `edited`. Other classes lose the pixels that this one gains.
        """
        query = self.query(number)
        mask = edited(self.mask_to_fix(method, threshold, number, class_name), layers)
        prediction = self._needed(method, query, threshold)
        if as_support:
            self.supports.add_marked(query, class_name, mask)
        own = prediction.names.index(class_name) + 1
        labels = np.where(prediction.labels == own, 0, prediction.labels)
        labels = np.where(mask, own, labels).astype(prediction.labels.dtype)
        known = {**prediction.iou_if_present, class_name: 1.0}
        presence = {**prediction.presence, class_name: float(mask.any())}
        corrected = replace(prediction, labels=labels, mask_iou=known, presence=presence)
        self._accepted[query.name] = _Accepted(corrected, corrected=True)

    def findings(self, method: str, threshold: float) -> list[Finding]:
        """`finding` of each picture."""
        return [self.finding(method, threshold, number) for number in range(len(self.queries))]

    def finding(self, method: str, threshold: float, number: int) -> Finding:
        """What to show of a picture at a threshold in [0, 1); the network does not run."""
        query = self.query(number)
        pixels = query.pixels.shape[0] * query.pixels.shape[1]
        prediction = self._prediction(method, query, threshold)
        if prediction is None:
            return Finding(query.name, on_screen(query.pixels), pixels)
        areas = {name: int(mask.sum()) for name, mask in prediction.masks.items()}
        numbers = self._numbers()
        drawn = draw_prediction(query.pixels, prediction, numbers)
        accepted = self._accepted.get(query.name)
        result = Result(query.name, query.pixels, prediction, accepted is not None)
        state = {"accepted": result.accepted, "corrected": accepted is not None and accepted.corrected}
        state |= {"needs_review": result.needs_review, "presence": dict(prediction.presence)}
        return Finding(query.name, drawn, pixels, areas, prediction.expected_iou, **state, numbers=numbers)

    def compared(self, method: str, threshold: float, number: int) -> tuple[np.ndarray, np.ndarray] | None:
        """A picture without and with its masks, (h, w, 3) uint8, large; None before the search."""
        query = self.query(number)
        prediction = self._prediction(method, query, threshold)
        if prediction is None:
            return None
        drawn = draw_prediction(query.pixels, prediction, self._numbers(), side=LARGE)
        return on_screen(query.pixels, side=LARGE), drawn

    def attention(self, method: str, number: int, point: Point) -> np.ndarray:
        """Draw the attention of a pixel (x, y) of a picture to the supports of each class: (H, W, 3) uint8.

        ``number`` is the index of the picture; the method must have attention maps.
        """
        pixels = self.query(number).pixels
        predictor = self._predictor(method)
        with self.pool.lock:
            maps = {name: predictor.attention(pixels, point, name=name) for name in predictor.names}
        supports = {name: pictures for name, (pictures, _) in self.supports.classes().items()}
        return attention_rows(pixels, point, supports, maps)

    def zip_file(self, method: str, threshold: float) -> bytes:
        """All masks that were found, packed by `pack`."""
        results = [
            Result(query.name, query.pixels, prediction, query.name in self._accepted)
            for query in self.queries
            if (prediction := self._prediction(method, query, threshold))
        ]
        return pack(results, list(self._numbers()))

    def _numbers(self) -> dict[str, int]:
        """The numbers of the present classes, then of those that only accepted masks have."""
        accepted = [name for done in self._accepted.values() for name in done.prediction.names]
        return {name: i for i, name in enumerate(dict.fromkeys([*self.supports.class_names, *accepted]))}

    def _needed(self, method: str, query: Upload, threshold: float) -> Prediction:
        prediction = self._prediction(method, query, threshold)
        if prediction is None:
            raise ValueError(f"no masks of {query.name} yet: press Find the object first (step 2)")
        return prediction

    def _prediction(self, method: str, query: Upload, threshold: float) -> Prediction | None:
        self.drop_outdated()
        if query.name in self._accepted:
            return self._accepted[query.name].prediction
        prediction = self._found.get((method, query.name))
        return prediction and self._with_checked(method, prediction.at(threshold, self.present_above))

    def _with_checked(self, method: str, prediction: Prediction) -> Prediction:
        """A prediction whose expected IoUs are corrected by the check of the supports, as in labelling."""
        shifts = self._checked[method].shifts if method in self._checked else {}
        known = {n: shifted(v, shifts.get(n, 0.0)) for n, v in prediction.mask_iou.items()}
        return replace(prediction, mask_iou=known)

    def _predictor(self, method: str) -> FewShotPredictor:
        """The method with the present supports, which are encoded once."""
        self.drop_outdated()
        if method not in self._encoded:
            classes = self.supports.classes()
            predictor = self.pool.predictor(method)
            with self.pool.lock:
                predictor.set_support_classes(classes, negatives=self.supports.negatives())
            self._encoded[method] = predictor
        return self._encoded[method]
