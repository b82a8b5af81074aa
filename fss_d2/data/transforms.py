"""Deterministic transforms of an image and its 0/1/255 mask, as Detectron2 `Transform`s.

Images are (H, W, 3) uint8 or float RGB, masks (H, W) uint8. New mask pixels are 255 (ignored).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data.transforms import Transform
from PIL import Image, ImageEnhance

from .masks import IGNORE

__all__ = [
    "BlurTransform",
    "ColorTransform",
    "LetterboxTransform",
    "PadCrop",
    "RotateTransform",
    "ScaleTransform",
    "SquashTransform",
]


class _PixelTransform(Transform):
    """A transform of pixels, of the image's alone by default; episodes have no boxes or key points."""

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        raise NotImplementedError(f"{type(self).__name__} transforms pixels, not coordinates")


@dataclass(eq=False)
class SquashTransform(_PixelTransform):
    """Resize to (height, width) without keeping the aspect ratio, as HSNet and DCAMA do.

    Images: Pillow's antialiased bilinear. Masks: torch "nearest", source index floor(i * in / out).
    """

    height: int
    width: int

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return np.array(Image.fromarray(img).resize((self.width, self.height), Image.Resampling.BILINEAR))

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        mask = torch.from_numpy(np.ascontiguousarray(segmentation))[None, None]
        return F.interpolate(mask, size=(self.height, self.width), mode="nearest")[0, 0].numpy()


@dataclass(eq=False)
class ScaleTransform(_PixelTransform):
    """Scale both sides by a factor with OpenCV: images linear, masks nearest (PFENet's RandScale)."""

    factor: float

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return cv2.resize(img, None, fx=self.factor, fy=self.factor, interpolation=cv2.INTER_LINEAR)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return cv2.resize(segmentation, None, fx=self.factor, fy=self.factor, interpolation=cv2.INTER_NEAREST)


@dataclass(eq=False)
class RotateTransform(_PixelTransform):
    """Rotate counter-clockwise by `degrees` about (w / 2, h / 2) on the same canvas (PFENet's RandRotate).

    Uncovered corners of images are filled with `fill`.
    """

    degrees: float
    fill: Sequence[float]

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self._warp(img, cv2.INTER_LINEAR, self.fill)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self._warp(segmentation, cv2.INTER_NEAREST, (IGNORE,))

    def _warp(self, array: np.ndarray, interpolation: int, border: Sequence[float]) -> np.ndarray:
        height, width = array.shape[:2]
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), self.degrees, 1)
        edge = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": border}
        return cv2.warpAffine(array, matrix, (width, height), flags=interpolation, **edge)


class BlurTransform(_PixelTransform):
    """Gaussian blur with a 5x5 kernel; OpenCV derives its standard deviation, 1.1 pixels, from the size."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(img, (5, 5), 0)


@dataclass(eq=False)
class ColorTransform(_PixelTransform):
    """Multiply brightness, contrast and saturation by factors, in this order (Pillow's ImageEnhance)."""

    brightness: float
    contrast: float
    saturation: float

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        image = ImageEnhance.Brightness(Image.fromarray(img)).enhance(self.brightness)
        image = ImageEnhance.Contrast(image).enhance(self.contrast)
        return np.array(ImageEnhance.Color(image).enhance(self.saturation))


@dataclass(eq=False)
class PadCrop(_PixelTransform):
    """Cut out the window (height, width) at (top, left); the part outside the image is filled.

    `top` and `left` may be negative. Images are filled with `fill` (RGB, rounded for uint8), masks with 255.
    """

    top: int
    left: int
    height: int
    width: int
    fill: Sequence[float]

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self._cut(img, np.round(self.fill) if img.dtype == np.uint8 else self.fill)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self._cut(segmentation, IGNORE)

    def _cut(self, array: np.ndarray, fill: object) -> np.ndarray:
        canvas = np.empty((self.height, self.width, *array.shape[2:]), array.dtype)
        canvas[...] = fill
        top, left = max(self.top, 0), max(self.left, 0)
        piece = array[top : max(self.top + self.height, 0), left : max(self.left + self.width, 0)]
        y, x = top - self.top, left - self.left
        canvas[y : y + piece.shape[0], x : x + piece.shape[1]] = piece
        return canvas


@dataclass(eq=False)
class LetterboxTransform(_PixelTransform):
    """Resize to `valid_size` with OpenCV and place it top left on a black canvas (PFENet's Resize)."""

    valid_size: tuple[int, int]
    height: int
    width: int

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self._pad.apply_image(cv2.resize(img, self.valid_size[::-1], interpolation=cv2.INTER_LINEAR))

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        small = cv2.resize(segmentation, self.valid_size[::-1], interpolation=cv2.INTER_NEAREST)
        return self._pad.apply_segmentation(small)

    @property
    def _pad(self) -> PadCrop:
        return PadCrop(0, 0, self.height, self.width, (0, 0, 0))
