"""One visitor: supports, pictures to search, and the masks found in them with one of the page's methods."""

import io
import os
import threading
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fss_d2.inference.prediction import Prediction
from fss_d2.inference.predictor import FewShotPredictor
from fss_d2.label.output import record_of
from fss_d2.label.writers import FORMATS, LabelSet, class_list, file_stems
from fss_d2.visualization.panels import class_map_png

from .drawing import Point, VisitorFiles, attention_rows, draw_prediction, on_screen
from .supports import SupportList
from .uploads import Limits, Upload, free_name, read_upload

__all__ = ["Finding", "MethodPool", "Session", "pack"]


class MethodPool:
    """Loaded methods by name, shared by all sessions. Sessions take turns with the models through `lock`.

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
        """Load a method per config; it is named by its file and folder, "dcama/pascal5i_r50".

        Args:
            config_files: YAML.
            weights: none, or one checkpoint per config; "" or "-" takes the config's MODEL.WEIGHTS.
            device: see `FewShotPredictor.from_config`.

        Raises:
            FileNotFoundError: there is no such config or checkpoint.
            ValueError: not one checkpoint per config, the same config twice, or see `from_config`.
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
        """A predictor without supports that uses the shared model.

        Raises:
            ValueError: there is no such method.
        """
        return self._get(name).another()

    def has_attention(self, name: str) -> bool:
        """Whether a method can show the attention of a pixel in the supports."""
        try:
            self._get(name).check_attention()
        except ValueError:
            return False
        return True

    def _get(self, name: str) -> FewShotPredictor:
        if name not in self._predictors:
            raise ValueError(f"no method {name!r}: choose from {', '.join(self._predictors)}")
        return self._predictors[name]


@dataclass(frozen=True)
class Finding:
    """A picture to search and what was found in it.

    Attributes:
        name: of its file.
        picture: (h, w, 3) uint8 at the size of a screen, with the masks.
        pixels: of the picture itself, height times width.
        areas: pixels of each class's mask; None before the search.
        confidence: mean probability in each class's mask; None before the search.
    """

    name: str
    picture: np.ndarray
    pixels: int
    areas: dict[str, int] | None = None
    confidence: dict[str, float] | None = None


class Session:
    """The state of one visitor; a deep copy is the state of a new visitor.

    Attributes:
        files: what the visitor's browser may fetch.
        lock: for use of the session from several threads.
        supports: the pictures that show the objects.
        queries: the pictures to search; their names differ.
        chosen: index of the query that is shown large.
    """

    def __init__(self, pool: MethodPool, limits: Limits, folder: str | os.PathLike[str]) -> None:
        """
        Args:
            pool: methods to choose from.
            limits: of what the session may hold.
            folder: gets a folder with the visitor's files.
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
        self._revision = self.supports.revision  # of the supports that the two above were made with

    def __deepcopy__(self, memo: dict[int, Any]) -> "Session":
        return Session(self.pool, self.limits, self.files.parent)

    def add_queries(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        """Add uploaded pictures to search; after an error, none is added.

        Raises:
            ValueError: too many, too large, or not pictures.
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
        """Remove all pictures to search and what was found in them."""
        self.queries, self._found, self.chosen = [], {}, 0

    def find(self, method: str, progress: Callable[[int, int], object] = lambda done, total: None) -> None:
        """Search all pictures that were not searched yet with these supports and this method.

        Args:
            method: a name of the pool.
            progress: is called with the number of searched pictures and that of all.

        Raises:
            ValueError: no picture, no support, no such method, or a support whose object is too small.
        """
        if not self.queries:
            raise ValueError("no picture to search yet: add some (step 2)")
        predictor = self._predictor(method)
        for done, query in enumerate(self.queries):
            progress(done, len(self.queries))
            if (method, query.name) not in self._found:
                with self.pool.lock:
                    self._found[method, query.name] = predictor.predict(query.pixels)

    def drop_outdated(self) -> bool:
        """Forget everything that was made with earlier supports; return whether masks were among it."""
        outdated = self._revision != self.supports.revision
        lost = outdated and bool(self._found)
        if outdated:
            self._found, self._encoded, self._revision = {}, {}, self.supports.revision
        return lost

    def findings(self, method: str, threshold: float) -> list[Finding]:
        """What to show of each picture; the network does not run.

        Raises:
            ValueError: the threshold is not from 0 to below 1.
        """
        return [self.finding(method, threshold, number) for number in range(len(self.queries))]

    def finding(self, method: str, threshold: float, number: int) -> Finding:
        """As `findings`, of the picture with an index."""
        query = self.query(number)
        pixels = query.pixels.shape[0] * query.pixels.shape[1]
        prediction = self._prediction(method, query, threshold)
        if prediction is None:
            return Finding(query.name, on_screen(query.pixels), pixels)
        areas = {name: int(mask.sum()) for name, mask in prediction.masks.items()}
        drawn = draw_prediction(query.pixels, prediction)
        return Finding(query.name, drawn, pixels, areas, prediction.confidence)

    def attention(self, method: str, number: int, point: Point) -> np.ndarray:
        """Draw the attention of a point (x, y) of a picture in the supports of each class: (H, W, 3) uint8.

        Args:
            method: a name of the pool, of a method with attention maps.
            number: index of the picture.
            point: in its pixels.

        Raises:
            ValueError: no such picture, point or method, a method without maps, or no supports yet.
        """
        pixels = self.query(number).pixels
        predictor = self._predictor(method)
        with self.pool.lock:
            maps = {name: predictor.attention(pixels, point, name=name) for name in predictor.names}
        supports = {name: pictures for name, (pictures, _) in self.supports.classes().items()}
        return attention_rows(pixels, point, supports, maps)

    def query(self, number: int) -> Upload:
        """The picture to search with an index.

        Raises:
            ValueError: there is none.
        """
        if not 0 <= number < len(self.queries):
            raise ValueError(f"there is no picture number {number + 1}: choose one of the gallery")
        return self.queries[number]

    def zip_file(self, method: str, threshold: float) -> bytes:
        """All masks that were found, see `pack`.

        Raises:
            ValueError: there are none.
        """
        pairs = [(query.name, self._prediction(method, query, threshold)) for query in self.queries]
        return pack([(name, prediction) for name, prediction in pairs if prediction])

    def _prediction(self, method: str, query: Upload, threshold: float) -> Prediction | None:
        """What was found with the present supports."""
        self.drop_outdated()
        prediction = self._found.get((method, query.name))
        return prediction and prediction.at(threshold)

    def _predictor(self, method: str) -> FewShotPredictor:
        """The method with the present supports, which are encoded once."""
        self.drop_outdated()
        if method not in self._encoded:
            classes = self.supports.classes()
            predictor = self.pool.predictor(method)
            with self.pool.lock:
                predictor.set_support_classes(classes)
            self._encoded[method] = predictor
        return self._encoded[method]


def pack(predictions: Sequence[tuple[str, Prediction]]) -> bytes:
    """Pack predictions of the same classes into a zip file.

    Args:
        predictions: file name of a picture, different for each, and what was found in it.

    Returns:
        mask/<stem>.png (0 background, i the class on line i of mask/classes.txt), and coco/annotations.json
        with an annotation per connected part, masks as RLE.

    Raises:
        ValueError: there are no predictions.
    """
    if not predictions:
        raise ValueError("no masks yet: press Find the object first (step 2)")
    class_names = predictions[0][1].names
    stems = file_stems([name for name, _ in predictions])
    files = {"mask/classes.txt": class_list(class_names)}
    files |= {f"mask/{stems[name]}.png": class_map_png(p.labels) for name, p in predictions}
    records = tuple(record_of(name, prediction, 1) for name, prediction in predictions)
    files |= dict(FORMATS["coco"](LabelSet(class_names, records, Path(), Path())))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()
