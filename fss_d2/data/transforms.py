"""Deterministic transforms of an image and its 0/1/255 mask, as Detectron2 `Transform`s.

Images are (H, W, 3) uint8 or float RGB, masks (H, W) uint8. New mask pixels are 255 (ignored).
"""

from collections.abc import Sequence

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
    """A transform of pixels; few-shot episodes have no boxes or key points."""

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Raise NotImplementedError; Detectron2 calls this only for boxes and key points."""
        raise NotImplementedError(f"{type(self).__name__} transforms pixels, not coordinates")


class SquashTransform(_PixelTransform):
    """Resize to (height, width) without keeping the aspect ratio, as HSNet and DCAMA do.

    Images: Pillow's antialiased bilinear. Masks: torch "nearest", source index floor(i * in / out).
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Return the image (h, w, 3) uint8 as (height, width, 3)."""
        return np.array(Image.fromarray(img).resize((self.width, self.height), Image.Resampling.BILINEAR))

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the mask (h, w) uint8 as (height, width), with the same values."""
        mask = torch.from_numpy(np.ascontiguousarray(segmentation))[None, None]
        return F.interpolate(mask, size=(self.height, self.width), mode="nearest")[0, 0].numpy()


class ScaleTransform(_PixelTransform):
    """Scale both sides by a factor with OpenCV: images linear, masks nearest (PFENet's RandScale)."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Return the image (h, w, 3) as (round(factor h), round(factor w), 3)."""
        return cv2.resize(img, None, fx=self.factor, fy=self.factor, interpolation=cv2.INTER_LINEAR)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the mask (h, w) at the image's new size, with the same values."""
        return cv2.resize(segmentation, None, fx=self.factor, fy=self.factor, interpolation=cv2.INTER_NEAREST)


class RotateTransform(_PixelTransform):
    """Rotate counter-clockwise by `degrees` about (w / 2, h / 2) on the same canvas (PFENet's RandRotate)."""

    def __init__(self, degrees: float, fill: Sequence[float]) -> None:
        super().__init__()
        self.degrees, self.fill = degrees, tuple(fill)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Return the image (h, w, 3) at the same size; uncovered corners are filled with `fill`."""
        return self._warp(img, cv2.INTER_LINEAR, self.fill)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the mask (h, w) at the same size; uncovered corners are 255."""
        return self._warp(segmentation, cv2.INTER_NEAREST, (IGNORE,))

    def _warp(self, array: np.ndarray, interpolation: int, border: Sequence[float]) -> np.ndarray:
        height, width = array.shape[:2]
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), self.degrees, 1)
        return cv2.warpAffine(
            array,
            matrix,
            (width, height),
            flags=interpolation,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=border,
        )


class BlurTransform(_PixelTransform):
    """Gaussian blur with a 5x5 kernel; OpenCV derives its standard deviation, 1.1 pixels, from the size."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Return the image (h, w, 3) blurred, with the same type."""
        return cv2.GaussianBlur(img, (5, 5), 0)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the mask unchanged."""
        return segmentation


class ColorTransform(_PixelTransform):
    """Multiply brightness, contrast and saturation by factors, in this order (Pillow's ImageEnhance)."""

    def __init__(self, brightness: float, contrast: float, saturation: float) -> None:
        super().__init__()
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Return the image (h, w, 3) uint8 RGB with the new colours."""
        image = ImageEnhance.Brightness(Image.fromarray(img)).enhance(self.brightness)
        image = ImageEnhance.Contrast(image).enhance(self.contrast)
        return np.array(ImageEnhance.Color(image).enhance(self.saturation))

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the mask unchanged."""
        return segmentation


class PadCrop(_PixelTransform):
    """Cut out the window (height, width) at (top, left); the part outside the image is filled.

    `top` and `left` may be negative. Images are filled with `fill` (RGB, rounded for uint8), masks with 255.
    """

    def __init__(self, top: int, left: int, height: int, width: int, fill: Sequence[float]) -> None:
        super().__init__()
        self.top, self.left, self.height, self.width = top, left, height, width
        self.fill = tuple(fill)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Return the image (h, w, 3) uint8 or float as (height, width, 3)."""
        fill = np.round(self.fill) if img.dtype == np.uint8 else self.fill
        return self._cut(img, fill)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the mask (h, w) as (height, width), 255 outside the image."""
        return self._cut(segmentation, IGNORE)

    def _cut(self, array: np.ndarray, fill: object) -> np.ndarray:
        canvas = np.empty((self.height, self.width, *array.shape[2:]), array.dtype)
        canvas[...] = fill
        top, left = max(self.top, 0), max(self.left, 0)
        piece = array[top : max(self.top + self.height, 0), left : max(self.left + self.width, 0)]
        y, x = top - self.top, left - self.left
        canvas[y : y + piece.shape[0], x : x + piece.shape[1]] = piece
        return canvas


class LetterboxTransform(_PixelTransform):
    """Resize to `valid_size` with OpenCV and place it top left on a black canvas (PFENet's Resize)."""

    def __init__(self, valid_size: tuple[int, int], height: int, width: int) -> None:
        super().__init__()
        self.valid_size = valid_size
        self._pad = PadCrop(0, 0, height, width, (0, 0, 0))

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Return the image (h, w, 3) as (height, width, 3), black right of and below `valid_size`."""
        return self._pad.apply_image(cv2.resize(img, self.valid_size[::-1], interpolation=cv2.INTER_LINEAR))

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the mask (h, w) as (height, width), 255 right of and below `valid_size`."""
        small = cv2.resize(segmentation, self.valid_size[::-1], interpolation=cv2.INTER_NEAREST)
        return self._pad.apply_segmentation(small)
