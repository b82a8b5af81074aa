"""The pictures that show the objects, and the mask of the object in each."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from fss_d2.inference.annotations import Box, read_annotation

from .drawing import Point
from .uploads import Limits, Upload, check_upload, read_upload

__all__ = ["SupportList", "SupportPicture"]

_OPAQUE = 128  # least alpha of a painted pixel


@dataclass
class SupportPicture:
    """A picture with its class and, once it is marked, the mask (H, W) uint8 in {0, 1, 255}."""

    upload: Upload
    class_name: str = "object"
    mask: np.ndarray | None = None


class SupportList:
    """The pictures of objects; one of them is open for marking.

    Attributes:
        pictures: all, in the order of their upload.
        current: index of the open one; None if there are no pictures.
        corner: (x, y) of the first corner of a box in the open picture, in its pixels.
        revision: a number that grows with every change of the supports of any class.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.revision = 0
        self.clear()

    def clear(self) -> None:
        """Remove all pictures."""
        self.pictures: list[SupportPicture] = []
        self.current: int | None = None
        self.corner: Point | None = None
        self.revision += 1

    def add(self, paths: Sequence[str | os.PathLike[str]], class_name: str = "object") -> None:
        """Add uploaded pictures and open the first of them; after an error, none is added.

        Raises:
            ValueError: too many, too large, or not pictures.
        """
        if len(self.pictures) + len(paths) > self._limits.pictures:
            raise ValueError(f"at most {self._limits.pictures} pictures can show objects: remove some first")
        added = [SupportPicture(read_upload(path, self._limits), class_name) for path in paths]
        if added:
            self.pictures += added
            self.select(len(self.pictures) - len(added))

    def select(self, number: int) -> None:
        """Open a picture.

        Raises:
            ValueError: there is no picture with that index.
        """
        if not 0 <= number < len(self.pictures):
            raise ValueError(f"there is no picture number {number + 1}: choose one of the gallery")
        self.current, self.corner = number, None

    def select_next(self) -> None:
        """Open the first picture that still has no mask, if there is one."""
        waiting = [i for i, picture in enumerate(self.pictures) if picture.mask is None]
        if waiting:
            self.select(waiting[0])

    @property
    def open(self) -> SupportPicture:
        """The picture that is open.

        Raises:
            ValueError: there is none.
        """
        if self.current is None:
            raise ValueError("no picture of the object yet: add one first")
        return self.pictures[self.current]

    def remove(self) -> None:
        """Remove the open picture.

        Raises:
            ValueError: there is none.
        """
        removed = self.open
        self.pictures = [picture for picture in self.pictures if picture is not removed]
        self.current = min(self.current or 0, len(self.pictures) - 1) if self.pictures else None
        self.corner = None
        self.revision += 1

    def name_class(self, class_name: str) -> None:
        """Name the object of the open picture.

        Raises:
            ValueError: no name, a line break in it, or too many classes.
        """
        name = class_name.strip()
        if not name or not name.isprintable():
            raise ValueError("the object has no name: type one, like dog")
        others = {p.class_name for p in self.pictures if p is not self.open and p.mask is not None}
        if len(others | {name}) > self._limits.classes:
            raise ValueError(f"at most {self._limits.classes} kinds of object: take one of {sorted(others)}")
        if name != self.open.class_name:
            self.open.class_name = name
            self.revision += self.open.mask is not None

    def paint(self, layers: Sequence[np.ndarray]) -> None:
        """Add painted pixels to the object of the open picture; pixels that nobody marked are background.

        Args:
            layers: (h, w, 4) uint8 of any size; each covers the whole picture.

        Raises:
            ValueError: nothing is painted.
        """
        height, width = self.open.upload.pixels.shape[:2]
        painted = np.zeros((height, width), bool)
        for layer in layers:
            alpha = np.ascontiguousarray(layer[:, :, 3])
            painted |= cv2.resize(alpha, (width, height), interpolation=cv2.INTER_NEAREST) >= _OPAQUE
        if not painted.any():
            raise ValueError("nothing is painted yet: draw over the object first")
        self._add(painted)

    def click(self, point: Point) -> None:
        """Set a corner (x, y) of a box in the open picture; the second corner completes the box.

        Raises:
            ValueError: the box has no area.
        """
        if self.corner is None:
            self.corner = point
            return
        (x0, y0), (x1, y1) = self.corner, point
        self.corner = None
        self.add_box(Box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)))

    def add_box(self, box: Box) -> None:
        """Add a box to the object of the open picture.

        Raises:
            ValueError: it lies outside.
        """
        self._add(self._read(box) == 1)

    def read_mask(self, path: str | os.PathLike[str]) -> None:
        """Read an uploaded mask of the open picture; it replaces all earlier marks.

        Raises:
            ValueError: it is not a mask, or has another size.
        """
        check_upload(path, self._limits)
        self._set_mask(self._read(path))

    def unmark(self) -> None:
        """Remove the mask of the open picture."""
        self._set_mask(None)

    def classes(self) -> dict[str, tuple[list[np.ndarray], list[np.ndarray]]]:
        """Pictures and masks of each class; pictures without a mask are left out.

        Raises:
            ValueError: no picture has a mask.
        """
        found: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {}
        for picture in self.pictures:
            if picture.mask is not None:
                pictures, masks = found.setdefault(picture.class_name, ([], []))
                pictures.append(picture.upload.pixels)
                masks.append(picture.mask)
        if not found:
            raise ValueError("no object is marked yet: add a picture and mark the object in it (step 1)")
        return found

    def _read(self, annotation: Box | str | os.PathLike[str]) -> np.ndarray:
        upload = self.open.upload
        return read_annotation(
            annotation,
            upload.pixels,
            orientation=upload.orientation,
            name=f"box in {upload.name}",
            image_name=upload.name,
        )

    def _add(self, marked: np.ndarray) -> None:
        """Mark pixels (H, W) bool of the open picture, in addition to earlier marks."""
        before = self.open.mask
        self._set_mask(np.where(marked, 1, 0 if before is None else before).astype(np.uint8))

    def _set_mask(self, mask: np.ndarray | None) -> None:
        self.open.mask, self.corner = mask, None
        self.revision += 1
