"""Segment many images with a few annotated ones, which are encoded once."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from threading import Lock
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from torch import Tensor

from fss_d2.checkpoint.checkpointer import load_model
from fss_d2.config import load_config
from fss_d2.data.augmentations import build_resize, build_view_resizes
from fss_d2.data.mask_values import MaskRule, MaskValues, parse_mask_values
from fss_d2.data.samples import Sample, transform_sample
from fss_d2.data.views import check_support_views, shown_views
from fss_d2.io.files import expand_user
from fss_d2.model_zoo import DEFAULT_CONFIG
from fss_d2.modeling import FewShotSegmentor
from fss_d2.modeling.enlarged import encode_enlarged, match_enlarged, merge_enlarged
from fss_d2.modeling.meta_arch.contract import resize_support

from .annotations import Annotation, Picture, read_picture, read_support, support_pairs
from .negatives import Negative, Negatives, add_negatives, negatives_of, read_negatives, without_negative
from .prediction import Prediction, check_share
from .quality import QualityModel, load_quality, prior_quality
from .segment import EncodedImage, segment
from .support_file import ClassSupport, Frame, encoding_settings, load_classes, save_classes

__all__ = ["EncodedImage", "FewShotPredictor", "Prediction"]

Pictures, Annotations = Picture | Sequence[Picture], Annotation | Sequence[Annotation]
Supports = Mapping[str, tuple[Pictures, Annotations]]
Size = tuple[int, int]
_PRESENT_ABOVE = 0.5  # the presence is calibrated; numbers that are not fitted judge nothing absent


class FewShotPredictor:
    """Segment images with supports that are encoded once.

    Images go through the same steps as in an evaluation with TEST.FRAME "original", TEST.SCALES included.
    An image passes the backbone once for all classes, which compete (`fss_d2.inference.competition`).
    ``model`` is the method, in evaluation mode.

    Several threads may use one predictor at the same time: each call works on the supports that are set when
    it starts, and its result equals that of a call alone to the bit.

    Wherever an image or annotation is given, `read_picture` and `read_annotation` of
    `fss_d2.inference.annotations` say in which forms, and raise FileNotFoundError or ValueError if they
    cannot be read. Methods that use supports raise RuntimeError if none are set, and KeyError for a class
    that has none. After an error, earlier supports stay.

    Example:
        >>> from fss_d2.inference.annotations import Box
        >>> predictor = FewShotPredictor.from_config()
        >>> predictor.set_support(["a.jpg", "b.jpg"], ["a.png", Box(10, 20, 200, 180)], name="dog")
        >>> prediction = predictor.predict("photo.jpg")
        >>> prediction.masks["dog"], prediction.expected_iou["dog"]  # (H, W) bool, a float
    """

    def __init__(
        self,
        model: FewShotSegmentor,
        resizes: Sequence[T.Augmentation],
        *,
        support_views: Sequence[str] = ("whole",),
        zoom_tiles: int = 0,
        settings: Mapping[str, str] | None = None,
        quality: QualityModel | None = None,
        present_above: float | None = None,
    ) -> None:
        """Wrap a model, which is put into evaluation mode.

        Args:
            resizes: bring an image to each size at which the model runs; at least one.
            support_views: in which each support is shown (`fss_d2.data.views`).
            zoom_tiles: most tiles in which a square image of small objects is seen; 0 never enlarges.
            settings: what encoded supports depend on besides the weights, for support files.
            quality: for `Prediction.expected_iou`; None takes the prior.
            present_above: as the attribute of `Prediction`; None takes that of the model.
        """
        if not isinstance(model, FewShotSegmentor):
            raise ValueError(f"{type(model).__name__} takes no supports: choose a few-shot method's config")
        if not resizes:
            raise ValueError("a predictor needs at least one resize: give build_resize(cfg)")
        self.model = model.eval()
        self._resizes = tuple(resizes)
        self._support_views = check_support_views(support_views)
        self._zoom_tiles = zoom_tiles
        self._settings = dict(settings or {})
        self.quality = quality or prior_quality()
        fitted = bool(model.presence.state_dict())  # numbers of the prior are not in it
        usual = _PRESENT_ABOVE if fitted else 0.0
        self.present_above = usual if present_above is None else present_above
        check_share("present_above", self.present_above)
        self._classes: dict[str, ClassSupport] = {}  # replaced, never changed, so that threads can read it
        self._shared: tuple[Negative, ...] = ()  # negatives of all classes, for classes that come later
        self._changing = Lock()  # one support at a time is added or removed

    @classmethod
    def from_config(
        cls,
        config_file: str | os.PathLike[str] = DEFAULT_CONFIG,
        *,
        weights: str | os.PathLike[str] = "",
        opts: Sequence[Any] = (),
        device: str = "",
        present_above: float | None = None,
    ) -> "FewShotPredictor":
        """Build a predictor from a config file.

        Args:
            config_file: YAML; by default that of the trained model in the package.
            weights: checkpoint; "" takes the config's MODEL.WEIGHTS.
            opts: config keys and values, alternating.
            device: "cpu", "cuda", "cuda:1"; "" takes a GPU where there is one.
            present_above: see `__init__`.
        """
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device {device}: this machine has no usable GPU; give 'cpu' or nothing")
        chosen = ["MODEL.WEIGHTS", os.fspath(weights)] if weights else []
        chosen += ["MODEL.DEVICE", device] if device else []
        cfg = load_config(os.fspath(config_file), [*opts, *chosen], num_gpus=0 if device == "cpu" else None)
        return cls.from_cfg(cfg, present_above=present_above)

    @classmethod
    def from_cfg(cls, cfg: CfgNode, *, present_above: float | None = None) -> "FewShotPredictor":
        """Build a predictor from a loaded config, including MODEL.WEIGHTS and MODEL.DEVICE."""
        resizes = build_view_resizes(cfg) or [build_resize(cfg)]
        views, settings, model = cfg.FEW_SHOT.TEST.SUPPORT_VIEWS, encoding_settings(cfg), load_model(cfg)
        quality = load_quality(model, {**settings, "TEST.REFINEMENT": cfg.TEST.REFINEMENT})
        return cls(
            model,
            resizes,
            support_views=views,
            zoom_tiles=cfg.TEST.ZOOM_TILES,
            settings=settings,
            quality=quality,
            present_above=present_above,
        )

    def another(self) -> "FewShotPredictor":
        """A predictor without supports that shares the model and its settings."""
        shared = {"support_views": self._support_views, "settings": self._settings, "quality": self.quality}
        shared |= {"present_above": self.present_above, "zoom_tiles": self._zoom_tiles}
        return FewShotPredictor(self.model, self._resizes, **shared)

    # -- supports ----------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes with supports; none before `set_support`."""
        return tuple(self._classes)

    @property
    def supports(self) -> dict[str, ClassSupport]:
        """The encoded supports by class name."""
        if not self._classes:
            raise RuntimeError("no supports yet: call set_support or load_support first")
        return self._classes

    def set_support(
        self,
        images: Pictures,
        masks: Annotations,
        *,
        name: str = "object",
        mask_values: MaskValues | None = None,
    ) -> None:
        """Encode one or more supports of one class, each with its mask; they replace all earlier supports.

        ``mask_values`` says what the values of mask files mean, as in `set_support_classes`.
        """
        self.set_support_classes({name: (images, masks)}, mask_values=mask_values)

    def set_support_classes(
        self,
        classes: Supports,
        *,
        mask_values: MaskValues | None = None,
        negatives: Negatives | None = None,
    ) -> None:
        """Encode the supports of several classes, in place of all earlier supports and negatives.

        Args:
            classes: {name: (images, masks)}.
            mask_values: what the values of mask files mean, for all classes or by class, such as
                {"cup": "1,2,3", "key": "15 ignore=255"} (`fss_d2.data.mask_values`); None recognises it.
            negatives: by class, or under "" for all classes, pairs (image, region) as of `add_negative`.
        """
        if not classes:
            raise ValueError("no class to set supports of: give {name: (images, masks)}")
        if not all(isinstance(name, str) and name for name in classes):
            raise ValueError(f"class names are {list(classes)}: give each a text that is not empty")
        rules = parse_mask_values(mask_values)
        rules.check_classes(classes)
        if unknown := [name for name in negatives or () if name and name not in classes]:
            raise ValueError(f"negatives of {unknown[0]!r}: the classes are {', '.join(classes)}")
        read = {name: read_negatives(pairs, name) for name, pairs in (negatives or {}).items()}
        shared = read.get("", ())
        encoded = {}
        for name, given in classes.items():
            positive = self._encode_class(name, *support_pairs(*given, name), rule=rules.of(name))
            encoded[name] = self._with_negatives(positive, [*shared, *read.get(name, ())])
        self._classes, self._shared = encoded, shared

    def add_support(
        self,
        image: Picture,
        mask: Annotation,
        *,
        name: str = "object",
        mask_values: MaskValues | None = None,
    ) -> None:
        """Encode one more support of a class, or the first of a new class; the others stay.

        ``mask_values`` says what the values of a mask file mean, as in `set_support_classes`.
        """
        rule = parse_mask_values(mask_values).of(name)
        with self._changing:
            before = self._classes.get(name)
            added = self._encode_class(name, (image, mask), after=before, rule=rule)
            if before is None:
                added = self._with_negatives(added, self._shared)
            self._classes = {**self._classes, name: added}

    def remove_support(self, index: int, *, name: str = "object") -> None:
        """Remove one support of a class, counted from 0; with its last one, the class is removed.

        Raises:
            IndexError: the class has no such support.
        """
        with self._changing:
            old = self._of_class(name)
            if not 0 <= index < len(old.frames):
                raise IndexError(f"{name} has {len(old.frames)} supports, none with index {index}")
            kept = [i for i in range(len(old.frames)) if i != index]
            if kept:
                self._classes = {**self._classes, name: self._select(old, kept)}
            else:
                self._classes = {key: value for key, value in self._classes.items() if key != name}

    def add_negative(
        self, image: Picture, region: Annotation | None = None, *, name: str | None = None
    ) -> None:
        """Encode a picture, or a region of it, that does not show the object; the supports stay.

        What resembles it counts as background. ``region`` marks where the object is not, None the whole
        picture. ``name`` is the class whose object that is; None means all classes, also those that come
        later.
        """
        negatives = read_negatives([(image, region)], name or "")
        with self._changing:
            supports = self.supports if name is None else {name: self._of_class(name)}
            changed = {key: self._with_negatives(of_class, negatives) for key, of_class in supports.items()}
            self._classes = {**self._classes, **changed}
            self._shared += negatives if name is None else ()

    def remove_negative(self, index: int, *, name: str = "object") -> None:
        """Remove one negative of a class, counted from 0 in the order in which it got them.

        Raises:
            IndexError: the class has no such negative.
        """
        with self._changing:
            left = without_negative(self.model, self._of_class(name), index)
            self._classes = {**self._classes, name: left}

    def reset(self) -> None:
        """Remove all supports and negatives."""
        self._classes, self._shared = {}, ()

    def save_support(self, path: str | os.PathLike[str]) -> None:
        """Write the encoded supports to a file; an existing one is replaced."""
        save_classes(expand_user(path), self.supports, self.model, self._settings)

    @torch.no_grad()
    def load_support(self, path: str | os.PathLike[str]) -> None:
        """Read the supports that `save_support` wrote, with the same method, config and weights.

        They replace all earlier supports and negatives; another file raises ValueError.
        """
        self._classes, self._shared = load_classes(expand_user(path), self.model, self._settings), ()

    # -- images ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_image(self, image: Picture) -> EncodedImage:
        """Run the backbone on an image, to segment it with several support sets."""
        pixels, _ = read_picture(image)
        samples = self._at_each_size(pixels)
        return self._as_query(pixels, samples, self._features([s.image[None] for s in samples]))

    @torch.no_grad()
    def predict(self, image: Picture | EncodedImage) -> Prediction:
        """Segment an image.

        The masks have the resolution of the image; with one class they are exactly those that an evaluation
        scores.
        """
        supports = self.supports
        encoded = image if isinstance(image, EncodedImage) else self.encode_image(image)
        return self._segment(encoded, supports)

    @torch.no_grad()
    def predict_batch(self, images: Sequence[Picture]) -> list[Prediction]:
        """Segment several images; those with the same network input size run as one batch.

        The results equal those of `predict` except for rounding. All images are in memory at once. If small
        objects are seen enlarged, the images run one by one.
        """
        supports = self.supports
        if any(support.enlarged for support in supports.values()):
            return [self._segment(self.encode_image(image), supports) for image in images]
        samples, sizes, groups = [], [], defaultdict(list)
        for number, image in enumerate(images):
            pixels, _ = read_picture(image, f"image {number + 1}")
            samples.append(self._at_each_size(pixels))
            sizes.append(pixels.shape[:2])
            groups[tuple(sample.image.shape for sample in samples[-1])].append(number)
        predictions: list[Prediction | None] = [None] * len(images)
        for numbers in groups.values():
            by_size = zip(*(samples[n] for n in numbers), strict=True)
            pixels_of = [torch.stack([s.image for s in same]) for same in by_size]
            queries = [self.model.encode_query(pixels) for pixels in pixels_of]
            frames = [(sizes[n], tuple(map(_valid_size, samples[n]))) for n in numbers]
            found = segment(self.model, queries, frames, supports, self.quality, self.present_above)
            for n, prediction in zip(numbers, found, strict=True):
                predictions[n] = prediction
        return predictions

    @torch.no_grad()
    def leave_out(
        self,
        images: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
        left_out: Sequence[tuple[int, ...]],
        negatives: Sequence[tuple[Picture, Annotation | None]] = (),
    ) -> Iterator[tuple[Prediction, ...]]:
        """Segment supports with the others of their class; the predictor's own supports do not matter.

        A support passes the backbone once, and once more for each further view of it; only those in a group
        are kept as queries. All are encoded at the size of the first.

        Args:
            images: K of (H, W, 3) uint8.
            masks: K of (H, W) in {0, 1, 255}.
            left_out: groups of indices; a group leaves at least one support.
            negatives: pairs as of `add_negative`, which are never left out.

        Yields:
            For each group the predictions of its supports, segmented with those outside it as "object".
        """
        encoded: list[ClassSupport] = []
        queries: dict[int, EncodedImage] = {}
        wanted = set(chain.from_iterable(left_out))
        for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
            views, known = self._views(image, mask, f"support {i + 1}"), []
            if i in wanted:
                samples, whole = self._whole(image, views)
                features = self._features([sample.image[None] for sample in samples])
                queries[i], known = self._as_query(image, samples, features), features if whole else []
            part = self._encode_views(views, encoded[0].sizes if encoded else None, known)
            encoded.append(self._with_windows(part, image, mask, encoded))
        against = self._with_negatives(encoded[0], read_negatives(negatives)) if negatives else None
        for group in left_out:
            rest = self._merge([support for i, support in enumerate(encoded) if i not in group])
            if against:
                rest = negatives_of(self.model, against, rest)
            yield tuple(self._segment(queries[i], {"object": rest}) for i in group)

    @torch.no_grad()
    def attention(
        self, image: Picture, point: tuple[float, float], *, name: str = ""
    ) -> tuple[np.ndarray, ...]:
        """The attention of a pixel (x, y) of an image to the supports of a class ("": the first class).

        Returns one map (h, w) float32 per support, at the support's own resolution, not negative. A method
        without such maps raises ValueError.
        """
        supports = self.supports
        self.check_attention()
        support = self._of_class(name or next(iter(supports)))
        pixels, _ = read_picture(image)
        (height, width), (x, y) = pixels.shape[:2], point
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"point {tuple(point)} is outside the image of {width}x{height} pixels")
        query = self._at_each_size(pixels)[0]
        valid, shape = _valid_size(query), query.image.shape[1:]
        fraction = (y / height * valid[0] / shape[0], x / width * valid[1] / shape[1])
        maps = self.model.attention_map(query.image[None], support.sets[0], fraction)[0]  # (K, Hs, Ws)
        return support.on_supports(maps)

    def check_attention(self) -> None:
        """Raise ValueError if the method has no attention maps."""
        if not hasattr(self.model, "attention_map"):
            raise ValueError(f"{type(self.model).__name__} has no attention maps: take a config of DCAMA")

    # -- steps -------------------------------------------------------------------------------------------

    def _of_class(self, name: str) -> ClassSupport:
        if name not in self.supports:
            raise KeyError(f"no supports of class {name!r}: choose from {', '.join(self.supports)}")
        return self.supports[name]

    def _at_each_size(self, pixels: np.ndarray, mask: np.ndarray | None = None) -> list[Sample]:
        mask = np.zeros(pixels.shape[:2], np.uint8) if mask is None else mask
        return [transform_sample(resize, pixels, mask) for resize in self._resizes]

    @torch.no_grad()
    def _encode_class(
        self,
        name: str,
        *pairs: tuple[Picture, Annotation],
        after: ClassSupport | None = None,
        rule: MaskRule | None = None,
    ) -> ClassSupport:
        """Encode supports of a class, after those that it has; all at the sizes of the first."""
        parts = [after] if after else []
        count = len(after.frames) if after else 0
        for number, pair in enumerate(pairs, start=count + 1):
            where = f"{name}, support {number}"
            image, mask = read_support(*pair, where, rule)
            views = self._views(image, mask, where)
            part = self._encode_views(views, parts[0].sizes if parts else None)
            parts.append(self._with_windows(part, image, mask, parts))
        return self._merge(parts)

    def _encode_views(
        self,
        views: Sequence[tuple[Sequence[Sample], Frame]],
        sizes: Sequence[Size] | None,
        known: Sequence[Mapping[str, Tensor]] = (),
    ) -> ClassSupport:
        """Encode the views of one support at ``sizes`` of the network input (None: those of the first view).

        ``known`` features of the first view at each size save its backbone passes.
        """
        sets = []
        # One by one needs less memory and, on a CPU, no more time.
        at_once = 1 if self.model.shot_by_shot or self.model.device.type == "cpu" else len(views)
        for i, size in enumerate(sizes or [sample.image.shape[1:] for sample in views[0][0]]):
            pairs = [resize_support(samples[i].image, samples[i].mask, size) for samples, _ in views]
            images = torch.stack([image.float() for image, _ in pairs])
            masks = torch.stack([mask for _, mask in pairs]).to(self.model.device)
            same = bool(known) and pairs[0][0] is views[0][0][i].image
            first = [known[i]] if same else []
            rest = self._features(images[len(first) :].split(at_once)) if len(first) < len(images) else []
            parts = first + rest
            features = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            sets.append(self.model.encode_support(images[None], masks[None], features))
        return ClassSupport(tuple(sets), (tuple(frame for _, frame in views),))

    def _with_negatives(self, support: ClassSupport, negatives: Sequence[Negative]) -> ClassSupport:
        return add_negatives(self.model, self._at_each_size, support, negatives)

    def _with_windows(
        self, support: ClassSupport, image: np.ndarray, mask: np.ndarray, others: Sequence[ClassSupport]
    ) -> ClassSupport:
        """Add the windows of a support of small objects, at the size of those of the others of its class."""
        sizes = (one.support.size for other in others for one in other.windows if one)
        windows = encode_enlarged(
            self.model, self._resizes[0], image, mask, self._zoom_tiles, next(sizes, None)
        )
        return replace(support, windows=(windows,))

    def _features(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """The backbone's maps of images (1, 3, H, W)."""
        return [self.model.extract(self.model.normalise(image)) for image in images]

    def _whole(
        self, image: np.ndarray, views: Sequence[tuple[Sequence[Sample], Frame]]
    ) -> tuple[Sequence[Sample], bool]:
        """A support image at each size, and whether that is its first view."""
        samples, frame = views[0]
        if not frame.mirrored and frame.window == (0, 0, *image.shape[1::-1]):
            return samples, True
        return self._at_each_size(image), False

    def _as_query(
        self, image: np.ndarray, samples: Sequence[Sample], features: Sequence[Mapping[str, Tensor]]
    ) -> EncodedImage:
        """Encode an image from its samples and their features."""
        pairs = zip(samples, features, strict=True)
        queries = tuple(self.model.encode_query(s.image[None], maps) for s, maps in pairs)
        return EncodedImage(image, queries, tuple(map(_valid_size, samples)))

    def _segment(self, image: EncodedImage, supports: Mapping[str, ClassSupport]) -> Prediction:
        frames = [(image.size, image.valid_sizes)]
        enlarge = partial(match_enlarged, self.model, self._resizes[0], image.pixels)
        limits = self.quality, self.present_above
        return segment(self.model, image.queries, frames, supports, *limits, enlarge)[0]

    def _merge(self, parts: Sequence[ClassSupport]) -> ClassSupport:
        """Join supports to those of one class."""
        by_size = zip(*(part.sets for part in parts), strict=True)
        sets = tuple(self.model.merge_supports(same) for same in by_size)
        frames = tuple(chain.from_iterable(part.frames for part in parts))
        windows = tuple(chain.from_iterable(part.windows for part in parts))
        return ClassSupport(sets, frames, windows, merge_enlarged(self.model, windows))

    def _select(self, support: ClassSupport, kept: Sequence[int]) -> ClassSupport:
        """Some supports of a class, each with all its views."""
        ends = np.cumsum([len(views) for views in support.frames])
        shots = [s for i in kept for s in range(ends[i] - len(support.frames[i]), ends[i])]
        sets = tuple(self.model.select_supports(s, shots) for s in support.sets)
        frames, windows = (tuple(of_each[i] for i in kept) for of_each in (support.frames, support.windows))
        return ClassSupport(sets, frames, windows, merge_enlarged(self.model, windows))

    def _views(self, pixels: np.ndarray, mask: np.ndarray, name: str) -> list[tuple[Sequence[Sample], Frame]]:
        """The views of a support that still show its object at every size, and where each lies."""
        shown = shown_views(self._support_views, pixels, mask, self._at_each_size)
        if not all(sample.shows(1) for sample in shown[0][1]):  # the object is lost in every view
            (height, width), (h, w) = mask.shape, shown[0][1][0].image.shape[1:]
            raise ValueError(
                f"{name}: its object of {np.count_nonzero(mask == 1)} pixels is lost when the image of "
                f"{width}x{height} is resized to {w}x{h}; crop the image around the object"
            )
        return [
            (samples, Frame(mask.shape, view.window, view.mirrored, samples[0].valid_size))
            for view, samples in shown
        ]


def _valid_size(sample: Sample) -> Size:
    return sample.valid_size or tuple(sample.image.shape[1:])
