"""From a few annotated pictures to masks of many: supports once, then image after image."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from torch import Tensor

from fss_d2.config import load_config
from fss_d2.data.samples import Sample, transform_sample
from fss_d2.data.support_views import check_support_views, support_views
from fss_d2.data.transforms import build_resize
from fss_d2.data.views import build_view_resizes
from fss_d2.engine.loading import load_model
from fss_d2.inference.annotations import Annotation, Picture, read_picture, read_support, support_pairs
from fss_d2.inference.prediction import Prediction
from fss_d2.inference.support_file import ClassSupport, Frame, encoding_settings, load_classes, save_classes
from fss_d2.model_zoo import DEFAULT_CONFIG
from fss_d2.modeling import FewShotSegmentor
from fss_d2.modeling.kshot import mean_log_probability
from fss_d2.modeling.meta_arch.support import stack_supports

__all__ = ["FewShotPredictor", "Prediction"]


class FewShotPredictor:
    """Segment images with supports that are encoded once.

    Images go through the same steps as in an evaluation with TEST.FRAME "original", TEST.SCALES included.
    Several classes compete by score; each costs a pass of its own through the network.

    Attributes:
        model: the method, in evaluation mode.

    Example:
        >>> from fss_d2.inference.annotations import Box
        >>> predictor = FewShotPredictor.from_config()
        >>> predictor.set_support(["a.jpg", "b.jpg"], ["a.png", Box(10, 20, 200, 180)], name="dog")
        >>> prediction = predictor.predict("photo.jpg")
        >>> prediction.masks["dog"], prediction.confidence["dog"]  # (H, W) bool, a float
    """

    def __init__(
        self,
        model: FewShotSegmentor,
        resizes: Sequence[T.Augmentation],
        *,
        support_views: Sequence[str] = ("whole",),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            model: is put into evaluation mode.
            resizes: bring an image to the size or the sizes at which the model runs.
            support_views: in which each support is shown (`fss_d2.data.support_views`).
            settings: what encoded supports depend on besides the weights, for files of supports.

        Raises:
            ValueError: a model that takes no supports, or no resize.
        """
        if not isinstance(model, FewShotSegmentor):
            raise ValueError(f"{type(model).__name__} takes no supports: choose a few-shot method's config")
        if not resizes:
            raise ValueError("a predictor needs at least one resize: give build_resize(cfg)")
        self.model = model.eval()
        self._resizes = tuple(resizes)
        self._support_views = check_support_views(support_views)
        self._settings = dict(settings or {})
        self._classes: dict[str, ClassSupport] = {}

    @classmethod
    def from_config(
        cls,
        config_file: str | os.PathLike[str] = DEFAULT_CONFIG,
        *,
        weights: str | os.PathLike[str] = "",
        opts: Sequence[Any] = (),
        device: str = "",
    ) -> "FewShotPredictor":
        """Build a predictor from a config file.

        Args:
            config_file: YAML; the trained model that comes with the package if there is none.
            weights: checkpoint; "" takes the config's MODEL.WEIGHTS.
            opts: further config keys and values, in turn.
            device: "cpu", "cuda", "cuda:1"; "" takes a GPU where there is one.

        Raises:
            FileNotFoundError: there is no such config or checkpoint.
            ValueError: settings that do not go together, a method that takes no supports, or no such device.
        """
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device {device}: this machine has no usable GPU; give 'cpu' or nothing")
        chosen = ["MODEL.WEIGHTS", os.fspath(weights)] if weights else []
        chosen += ["MODEL.DEVICE", device] if device else []
        cfg = load_config(os.fspath(config_file), [*opts, *chosen], num_gpus=0 if device == "cpu" else None)
        return cls.from_cfg(cfg)

    @classmethod
    def from_cfg(cls, cfg: CfgNode) -> "FewShotPredictor":
        """Build a predictor from a config that is loaded already; MODEL.WEIGHTS and MODEL.DEVICE count."""
        resizes = build_view_resizes(cfg) or [build_resize(cfg)]
        views = cfg.FEW_SHOT.TEST.SUPPORT_VIEWS
        return cls(load_model(cfg), resizes, support_views=views, settings=encoding_settings(cfg))

    def another(self) -> "FewShotPredictor":
        """A predictor over the same model at the same sizes, without supports."""
        views, settings = self._support_views, self._settings
        return FewShotPredictor(self.model, self._resizes, support_views=views, settings=settings)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes that there are supports of; none before `set_support`."""
        return tuple(self._classes)

    def set_support(
        self,
        images: Picture | Sequence[Picture],
        masks: Annotation | Sequence[Annotation],
        *,
        name: str = "object",
    ) -> None:
        """Encode the supports of one class, which replaces all that were there.

        Args:
            images: one or K; `fss_d2.inference.annotations.read_picture` says what may be given.
            masks: one for each image; see `fss_d2.inference.annotations.read_annotation`.
            name: of the class.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: images and masks that do not go together, or cannot be read, or show no object. What
                was there before then stays.
        """
        self.set_support_classes({name: (images, masks)})

    def set_support_classes(
        self,
        classes: Mapping[str, tuple[Picture | Sequence[Picture], Annotation | Sequence[Annotation]]],
    ) -> None:
        """Encode the supports of several classes, {name: (images, masks)}; otherwise as `set_support`."""
        if not classes:
            raise ValueError("no class to set supports of: give {name: (images, masks)}")
        if not all(isinstance(name, str) and name for name in classes):
            raise ValueError(f"class names are {list(classes)}: give each a text that is not empty")
        self._classes = {name: self._encode_class(name, *pair) for name, pair in classes.items()}

    def reset(self) -> None:
        """Forget all supports."""
        self._classes = {}

    @torch.no_grad()
    def predict(self, image: Picture) -> Prediction:
        """Segment an image.

        Args:
            image: see `fss_d2.inference.annotations.read_picture`.

        Returns:
            The masks at the image's own resolution; of one class exactly those that an evaluation scores.

        Raises:
            RuntimeError: before `set_support`.
            FileNotFoundError: there is no such file.
            ValueError: the image cannot be read.
        """
        supports = self.supports
        pixels, _ = read_picture(image)
        height, width = pixels.shape[:2]
        queries = self._at_each_size(pixels)
        probability = np.empty((len(supports), height, width), np.float32)
        labels = np.zeros((height, width), np.min_scalar_type(len(supports)))
        best = np.zeros((height, width), np.float32)  # lead of the winner over its background
        for i, support in enumerate(supports.values()):
            lead = self._lead(queries, support, height, width)
            wins = (lead > torch.from_numpy(best).to(lead)).numpy()
            labels[wins], best[wins] = i + 1, lead.numpy()[wins]
            probability[i] = lead.sigmoid_().numpy()
        return Prediction(tuple(supports), probability, labels)

    def leave_out(
        self, images: Sequence[np.ndarray], masks: Sequence[np.ndarray], left_out: Sequence[tuple[int, ...]]
    ) -> Iterator[tuple[np.ndarray, ...]]:
        """For each group of left-out indices, the masks (H, W) bool of these supports, given all others."""
        other = self.another()
        for out in left_out:
            rest = [i for i in range(len(images)) if i not in out]
            other.set_support([images[i] for i in rest], [masks[i] for i in rest])
            yield tuple(other.predict(images[i]).labels == 1 for i in out)

    @torch.no_grad()
    def attention(
        self, image: Picture, point: tuple[float, float], *, name: str = ""
    ) -> tuple[np.ndarray, ...]:
        """Where in the supports of a class a point of an image looks, of methods that have such maps.

        Args:
            image: the query.
            point: (x, y) in pixels of the image.
            name: of the class; "" takes the first.

        Returns:
            One map (h, w) float32 for each support, at the support's own resolution, not negative.

        Raises:
            RuntimeError: before `set_support`.
            KeyError: there is no such class.
            ValueError: the method has no such maps, or the point lies outside the image.
        """
        supports = self.supports
        self.check_attention()
        if name and name not in supports:
            raise KeyError(f"no supports of class {name!r}: choose from {', '.join(supports)}")
        support = supports[name or next(iter(supports))]
        pixels, _ = read_picture(image)
        (height, width), (x, y) = pixels.shape[:2], point
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"point {tuple(point)} is outside the image of {width}x{height} pixels")
        query = self._at_each_size(pixels)[0]
        shape = query.image.shape[1:]
        valid = query.valid_size or shape
        fraction = (y / height * valid[0] / shape[0], x / width * valid[1] / shape[1])
        maps = self.model.attention_map(query.image[None], support.sets[0], fraction)[0]  # (K, Hs, Ws)
        return support.on_supports(maps)

    def check_attention(self) -> None:
        """Raise ValueError where the method has no attention maps."""
        if not hasattr(self.model, "attention_map"):
            raise ValueError(f"{type(self.model).__name__} has no attention maps: take a config of DCAMA")

    def save_support(self, path: str | os.PathLike[str]) -> None:
        """Write the encoded supports to a file, which replaces one that is there.

        Raises:
            RuntimeError: before `set_support`.
            OSError: it cannot be written.
        """
        save_classes(path, self.supports, self.model, self._settings)

    def load_support(self, path: str | os.PathLike[str]) -> None:
        """Take the supports of `save_support`, which replace all that were there.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is none, or of another method, config or weights. What was there before stays.
        """
        classes = load_classes(path, self.model, self._settings)
        self._classes = {
            name: ClassSupport(tuple(s.to(self.model.device) for s in support.sets), support.frames)
            for name, support in classes.items()
        }

    @property
    def supports(self) -> dict[str, ClassSupport]:
        """The encoded supports by class name; raises RuntimeError where there are none yet."""
        if not self._classes:
            raise RuntimeError("no supports yet: call set_support or load_support first")
        return self._classes

    @torch.no_grad()
    def _encode_class(
        self,
        name: str,
        images: Picture | Sequence[Picture],
        masks: Annotation | Sequence[Annotation],
    ) -> ClassSupport:
        shots, frames = [], []
        for number, pair in enumerate(support_pairs(images, masks, name), start=1):
            views = self._views(*pair, f"{name}, support {number}")
            shots += [by_size for by_size, _ in views]
            frames.append(tuple(frame for _, frame in views))
        sets = []
        for same_size in zip(*shots, strict=True):
            support = [{"image": sample.image, "mask": sample.mask} for sample in same_size]
            sets.append(self.model.encode_support(*stack_supports([{"support": support}])))
        return ClassSupport(tuple(sets), tuple(frames))

    def _views(self, picture: Picture, annotation: Annotation, name: str) -> list[tuple[list[Sample], Frame]]:
        """Those views of a support that still show its object at every size, and where each lies."""
        pixels, mask = read_support(picture, annotation, name)
        views = []
        for view in support_views(self._support_views, pixels, mask):
            samples = self._at_each_size(view.image, view.mask)
            if all(sample.shows(1) for sample in samples):
                frame = Frame(mask.shape, view.window, view.mirrored, samples[0].valid_size)
                views.append((samples, frame))
        if not views:
            (height, width), (h, w) = mask.shape, samples[0].image.shape[1:]
            raise ValueError(
                f"{name}: its object of {np.count_nonzero(mask == 1)} pixels is lost when the image of "
                f"{width}x{height} is resized to {w}x{h}; cut the image out round the object"
            )
        return views

    def _at_each_size(self, pixels: np.ndarray, mask: np.ndarray | None = None) -> list[Sample]:
        mask = np.zeros(pixels.shape[:2], np.uint8) if mask is None else mask
        return [transform_sample(resize, pixels, mask) for resize in self._resizes]

    def _lead(self, queries: Sequence[Sample], support: ClassSupport, height: int, width: int) -> Tensor:
        """(height, width) on the CPU: the object's score minus the background's."""
        scores = []
        for query, support_set in zip(queries, support.sets, strict=True):
            logits = self.model.segment(query.image[None], support_set)[0]
            frame = {"height": height, "width": width, "valid_size": query.valid_size or logits.shape[1:]}
            scores.append(self.model.to_frame(logits, frame).cpu())
        if len(scores) > 1:
            scores = [mean_log_probability([score.double() for score in scores])]
        background, foreground = scores[0]
        return foreground.sub_(background)  # in place: the image may be large
