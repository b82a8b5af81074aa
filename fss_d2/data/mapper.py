"""From an episode (ids) to the model's input (pixels)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetFromList
from detectron2.data import transforms as T

from .augmentations import build_augmentations, build_resize, build_view_resizes
from .augmenting import Augmenter, Picture
from .episode import Episode, ImageId, donors_of
from .feature_store import FeatureStore
from .images import read_image
from .masks import annotate, load_sample, support_annotation
from .pasting import PasteOptions, cut_object, paste_copies, paste_other
from .regions import region_samples
from .sampler import EpisodeSampler
from .samples import Sample, Segment, blank_image, load_segments, transform_sample
from .views import FRAMES, SupportView, check_support_views, in_frame, shown_views, view_frame

__all__ = ["SEGMENTS", "AbsentQueryMapper", "EpisodeMapper", "ForeignSupportMapper"]

SEGMENTS = ("", "semantic", "instance")

# Keys of INPUT that are arguments of the mapper in lower case.
_INPUT_KEYS = ("AUGMENT_SUPPORTS", "SEGMENTS", "QUERY_MIN_PIXELS", "SUPPORT_MIN_PIXELS", "REDRAWS")
# Random streams of a drawn class, scribbles and pasted objects, apart from the seeds of the augmentations.
_CLASS_STREAM, _SCRIBBLE_STREAM, _PASTE_STREAM = 1, 2, 3


class EpisodeMapper:
    """Reads, augments and resizes the query and the supports of an episode.

    The same episode gives the same tensors in every process and worker: its augmentations are drawn from
    generators seeded by (episode.seed, 0 for the query or the support's number), and the state of the
    global generators is restored afterwards.

    Augmentations are redrawn while the object covers too few pixels; after `redraws` tries the image is
    resized only. An object so small that the resize itself loses it gives an all-background mask, as in the
    reference codes: models must accept that.

    With `variants`, the generator is seeded by the image and by which of its variants the episode's seed
    chooses, so that all trainings share them (`Augmenter`).

    With `redraw`, and with segments and no supports (training of a proposal segmenter), the episode's class
    is redrawn among the classes that the augmented query shows, and the supports with it; the augmentations
    are redrawn while it shows none. A query with pasted objects keeps its class.

    Augmentations of a query that does not show the class look at an object of another class instead.
    """

    @configurable
    def __init__(
        self,
        *,
        records: Sequence[Mapping[str, Any]],
        resize: T.Augmentation,
        augmentations: Sequence[T.Augmentation] = (),
        augment_supports: bool = True,
        frame: str = "original",
        views: Sequence[T.Augmentation] = (),
        support_annotation: str = "mask",
        support_views: Sequence[str] = ("whole",),
        whole: bool = False,
        is_train: bool = False,
        segments: str = "",
        target_segments: bool = False,
        class_ids: Sequence[int] = (),
        query_min_pixels: int = 0,
        support_min_pixels: int = 1,
        redraws: int = 10,
        pasting: PasteOptions | None = None,
        variants: int = 0,
        features: FeatureStore | None = None,
        redraw: EpisodeSampler | None = None,
    ) -> None:
        """`fss_d2/config.py` explains the arguments that are config keys; see `from_config`.

        Args:
            resize: brings an image to the network's size if it is not augmented.
            augmentations: replace `resize` in training; empty = none.
            views: resizes, one for each further size of the episode in evaluation.
            whole: also return the pictures at their own size, in evaluation.
            is_train: augment, and return no "target".
            target_segments: return "target_segments" in evaluation.
            pasting: how objects are pasted; None = the defaults.
            class_ids: classes of the segments; the episode's class is always included.
            variants: number of augmented variants of an image; 0 augments anew for every episode.
            features: pixels of images whose features it has are not read.
            redraw: draws supports of the class that a training episode gets in place of its own.
        """
        if frame not in FRAMES:
            raise ValueError(f"unknown TEST.FRAME {frame!r}; choose one of {', '.join(FRAMES)}")
        if segments not in SEGMENTS:
            raise ValueError(f"unknown INPUT.SEGMENTS {segments!r}; use '', 'semantic' or 'instance'")
        self.frame, self.is_train = frame, is_train
        augmentation = T.AugmentationList(augmentations) if augmentations and is_train else None
        self.augmenter = Augmenter(resize, augmentation, redraws, variants)
        self.augments_supports = augment_supports and augmentation is not None
        self.views = () if is_train else tuple(views)
        self.support_annotation = support_annotation
        self.support_views = ("whole",) if is_train else check_support_views(support_views)
        self.whole = whole and not is_train
        self.segments = segments if is_train else "objects" if target_segments else ""
        self.class_ids = frozenset(class_ids)
        self.redraw = redraw if is_train else None
        self.query_min_pixels, self.support_min_pixels = query_min_pixels, support_min_pixels
        self.pasting, self.features = pasting or PasteOptions(), features
        self._read = read_image if features is None else blank_image
        self._records = DatasetFromList(list(records), copy=False)  # one buffer that forked workers share
        self._place = {record["image_id"]: i for i, record in enumerate(records)}
        if len(self._place) != len(records):
            raise ValueError(f"{len(records) - len(self._place)} image ids occur twice; make them unique")

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        is_train: bool,
        records: Sequence[Mapping[str, Any]],
        class_ids: Sequence[int] = (),
        features: FeatureStore | None = None,
        redraw: EpisodeSampler | None = None,
    ) -> dict[str, Any]:
        """Arguments from INPUT, FEW_SHOT.*.SUPPORT_ANNOTATION, TEST.FRAME, .SCALES and .EVALUATORS."""
        return {
            "records": records,
            "resize": build_resize(cfg),
            "augmentations": build_augmentations(cfg) if is_train and cfg.INPUT.TRAIN_AUGMENTATIONS else (),
            "frame": cfg.TEST.FRAME,
            "views": build_view_resizes(cfg),
            "support_annotation": support_annotation(cfg, is_train),
            "support_views": cfg.FEW_SHOT.TEST.SUPPORT_VIEWS,
            "whole": cfg.TEST.ZOOM_TILES > 0,
            "is_train": is_train,
            "target_segments": "proposal_recall" in cfg.TEST.EVALUATORS,
            "class_ids": class_ids,
            "pasting": PasteOptions.from_config(cfg),
            "variants": cfg.DATALOADER.FEATURE_CACHE_VARIANTS,
            "features": features,
            "redraw": redraw,
            **{key.lower(): cfg.INPUT[key] for key in _INPUT_KEYS},
        }

    def __call__(self, episode: Episode) -> dict[str, Any]:
        """Load an episode.

        Returns:
            A dict of
            - image: (3, H, W) uint8 RGB; sem_seg: (H, W) uint8 in {0, 1, 255}, at the network's size;
            - entry: name of the image in `features`; the image may then be zeros (`FeatureStore.picture`);
            - height, width: of the frame in which predictions are compared;
            - target: (height, width) uint8 in {0, 1, 255}; evaluation only;
            - valid_size: (h, w) of `image` without padding; only if letterboxed, in the original frame;
            - class_id, image_id, episode_index;
            - support_ids: image ids of the K supports of the episode, in order;
            - support: dicts of image and entry as above, mask (H, W) uint8 in {0, 1, 255}, image_id, one
              for each view of each of the K supports: K or more;
            - segments: (M, H, W) bool, those with a pixel, and segment_labels: (M,) int64, 0 background,
              class id + 1; only in training with `segments`;
            - target_segments: (M, height, width) bool; only in evaluation with `target_segments`;
            - views: the episode at other sizes, dicts of image, entry, support, class_id, image_id,
              episode_index, and of height, width and valid_size for its scores (`view_frame`); in evaluation
              with `views`;
            - whole: a dict of image (h, w, 3) and support, pairs of image (h, w, 3) and mask (h, w), uint8
              tensors at the pictures' own sizes; in evaluation with `whole`.
        """
        record = self._record(episode.query)
        read = read_image if episode.pasted or self.whole else self._read
        if kind := self.segments or ("semantic" if self.redraw else ""):
            given = (episode.class_id, self.class_ids, kind, read)
            image, mask, segments = load_segments(record, *given, must_show=not episode.absent)
        else:
            image, mask = load_sample(record, episode.class_id, read, must_show=not episode.absent)
            segments = []
        if episode.pasted:
            before = image
            image, mask = self._pasted(episode, image, mask)
            segments = _without_region(segments, (image != before).any(axis=2))
        picture = Picture(record, image, mask, segments)
        annotated: list[tuple[np.ndarray, np.ndarray]] = []
        if episode.region:
            query, supports = self._region(episode, picture)
            class_id = episode.class_id
        else:
            query, class_id = self._query(episode, picture)
            if self.redraw and class_id != episode.class_id and episode.supports:
                episode = self.redraw.of_class(episode, class_id)
            annotated = [self._support(episode, number) for number in range(len(episode.supports))]
            supports = [
                shot for number, pair in enumerate(annotated) for shot in self._shots(episode, number, *pair)
            ]
        mapped = {
            **self._picture(episode, record, query),
            "sem_seg": query.mask,
            **self._frame_of(mask, query),
            **self._segments_of(segments, query),
            "class_id": class_id,
            "image_id": episode.query,
            "episode_index": episode.index,
            "support_ids": tuple(episode.supports),
            "support": [sizes[0] for sizes in supports],
        }
        if self.views:
            mapped["views"] = [
                {
                    **self._picture(episode, record, view),
                    **view_frame(self.frame, view, query, mapped["height"], mapped["width"]),
                    **{name: mapped[name] for name in ("class_id", "image_id", "episode_index")},
                    "support": [sizes[number] for sizes in supports],
                }
                for number, resize in enumerate(self.views, start=1)
                for view in [transform_sample(resize, image, mask)]
            ]
        if self.whole:
            pairs = [tuple(map(_whole, pair)) for pair in annotated]
            mapped["whole"] = {"image": _whole(image), "support": pairs}
        return mapped

    def _query(self, episode: Episode, picture: Picture) -> tuple[Sample, int]:
        """Return the query at the network's size, and its class, which may be redrawn."""
        seed = (episode.seed, 0)
        prepare = partial(self.augmenter.prepare, picture, seed)
        if episode.absent and not (picture.mask == 1).any():
            return self._without_object(episode, picture), episode.class_id
        if any(class_id == episode.class_id for _, class_id in episode.pasted):  # small copies
            return prepare(lambda sample: sample.shows(1)), episode.class_id
        if not self._redraws_class(episode):
            return prepare(lambda sample: sample.shows(self.query_min_pixels)), episode.class_id

        def classes(sample: Sample) -> list[int]:
            shown = sample.shown_classes(max(self.query_min_pixels, 1))
            return [c for c in shown if self.redraw is None or c in self.redraw.images_of]

        query = prepare(lambda sample: bool(classes(sample)))
        if not (shown := classes(query)):
            return query, episode.class_id
        rng = np.random.default_rng((*seed, _CLASS_STREAM))
        class_id = shown[rng.integers(len(shown))]
        return query.of_class(class_id), class_id

    def _redraws_class(self, episode: Episode) -> bool:
        if episode.supports:
            return self.redraw is not None and not episode.pasted
        return self.is_train and bool(self.segments)

    def _without_object(self, episode: Episode, picture: Picture) -> Sample:
        """Return a query that does not show the class, augmented as one of a class that it shows."""
        seed, classes = (episode.seed, 0), picture.record["classes"]
        if self.augmenter.variants:
            return self.augmenter.prepare(picture, seed, lambda sample: True)
        rng = np.random.default_rng((*seed, _CLASS_STREAM))
        _, shown = load_sample(picture.record, classes[rng.integers(len(classes))], blank_image)
        both = [Segment(episode.class_id + 1, picture.mask), *picture.segments]
        looking = replace(picture, mask=shown, segments=both)
        sample = self.augmenter.prepare(looking, seed, lambda s: s.shows(self.query_min_pixels))
        return sample.of_first_segment()

    def _region(self, episode: Episode, picture: Picture) -> tuple[Sample, list[list[dict[str, Any]]]]:
        """Return the query and the supports of an episode whose object is a region of one picture."""
        shots, annotation = len(episode.supports), self.support_annotation
        query, *supports = region_samples(picture, shots, self.augmenter, episode.seed, annotation)
        shown = [(self._picture(episode, picture.record, s), s.mask) for s in supports]
        return query, [[{**image, "mask": mask, "image_id": episode.query}] for image, mask in shown]

    def _pasted(self, episode: Episode, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the query with the episode's objects pasted into it, in order."""
        image, mask = image.copy(), mask.copy()
        rng, options = np.random.default_rng((episode.seed, 0, _PASTE_STREAM)), self.pasting
        for donor, class_id in episode.pasted:
            cut = cut_object(*load_sample(self._record(donor), class_id), rng)
            if class_id == episode.class_id:
                paste_copies(image, mask, cut, options.paste_copy_size, options.paste_copy_count, rng)
            else:
                paste_other(image, mask, cut, options.paste_size, rng)
        return image, mask

    def _support(self, episode: Episode, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a support and its annotation, at their own size."""
        read = read_image if self.whole else self._read
        image, mask = load_sample(self._record(episode.supports[number]), episode.class_id, read)
        seed = (episode.seed, number + 1, _SCRIBBLE_STREAM)
        return image, annotate(mask, self.support_annotation, seed)

    def _shots(
        self, episode: Episode, number: int, image: np.ndarray, mask: np.ndarray
    ) -> list[list[dict[str, Any]]]:
        """Return the views of a support, each at the network's size, then at those of `self.views`."""
        image_id, stream = episode.supports[number], number + 1
        record = self._record(image_id)

        def at_each_size(image: np.ndarray, mask: np.ndarray) -> list[Sample]:
            picture = Picture(record, image, mask)
            if self.augments_supports:
                first = self.augmenter.prepare(
                    picture, (episode.seed, stream), lambda s: s.shows(self.support_min_pixels)
                )
            else:
                first = self.augmenter.plain(picture)
            return [first, *(transform_sample(resize, image, mask) for resize in self.views)]

        def finish(view: SupportView, sample: Sample) -> dict[str, Any]:
            part = None if view.mask.shape == mask.shape and not view.mirrored else view
            picture = self._picture(episode, record, sample, part)
            return {**picture, "mask": sample.mask, "image_id": image_id}

        return [
            [finish(view, sample) for sample in samples]
            for view, samples in shown_views(self.support_views, image, mask, at_each_size)
        ]

    def _picture(
        self, episode: Episode, record: Mapping[str, Any], sample: Sample, view: SupportView | None = None
    ) -> dict[str, Any]:
        """Return the image of a sample, or the entry of its features; the view is part of the record's."""
        if self.features is None or sample.transform is None:
            return {"image": sample.image}
        return self.features.picture(record["file_name"], sample, episode.index, view)

    def _record(self, image_id: ImageId) -> Mapping[str, Any]:
        if image_id not in self._place:
            raise KeyError(f"image {image_id!r} of an episode is not in the dataset; draw episodes from it")
        return self._records[self._place[image_id]]

    def _frame_of(self, mask: np.ndarray, query: Sample) -> dict[str, Any]:
        """Return the size, and in evaluation the target, in the frame in which predictions are compared."""
        target = self._in_frame(mask, query.mask)
        frame: dict[str, Any] = {"height": target.shape[0], "width": target.shape[1]}
        if not self.is_train:
            frame["target"] = target
            if self.frame == "original" and query.valid_size is not None:
                frame["valid_size"] = query.valid_size
        return frame

    def _segments_of(self, segments: Sequence[Segment], query: Sample) -> dict[str, Any]:
        """Return the query's segments in the frame of its image (training) or of the target (evaluation)."""
        if not self.segments:
            return {}
        found = [
            (before.label, self._in_frame(before.mask, torch.from_numpy(after.mask)) == 1)
            for before, after in zip(segments, query.segments, strict=True)
        ]
        kept = [(label, mask) for label, mask in found if mask.any()]
        masks = torch.stack([mask for _, mask in kept]) if kept else found[0][1][None][:0]
        if not self.is_train:
            return {"target_segments": masks}
        labels = torch.tensor([label for label, _ in kept], dtype=torch.int64)
        return {"segments": masks, "segment_labels": labels}

    def _in_frame(self, original: np.ndarray, network: torch.Tensor) -> torch.Tensor:
        return in_frame("network" if self.is_train else self.frame, original, network)


def _whole(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(pixels, order="C"))


def _without_region(segments: Sequence[Segment], region: np.ndarray) -> list[Segment]:
    """The segments less what (H, W) covers."""
    return [Segment(s.label, np.where(region, np.uint8(0), s.mask)) for s in segments]


class ForeignSupportMapper:
    """Maps episodes with the supports of another class: the score of a method that ignores its supports.

    Query, class and truth stay those of the episode. The donors are those of `donors_of`, among ``episodes``,
    which must be all of the evaluation.
    """

    def __init__(self, mapper: Callable[[Episode], dict[str, Any]], episodes: Sequence[Episode]) -> None:
        self._mapper = mapper
        donors = zip(episodes, donors_of(episodes), strict=True)
        self._donors = {e.index: replace(donor, index=e.index) for e, donor in donors}

    def __call__(self, episode: Episode) -> dict[str, Any]:
        """Load an episode; "support" and "support_ids" are the donor's, in "views" too."""
        return _with_supports(self._mapper(episode), self._mapper(self._donors[episode.index]))


class AbsentQueryMapper:
    """Maps episodes with a query that does not show their class: nothing of it should be found.

    Class and supports stay those of the episode; ``donors`` gives, by its index, the episode whose query it
    gets.
    """

    def __init__(self, mapper: Callable[[Episode], dict[str, Any]], donors: Mapping[int, Episode]) -> None:
        self._mapper = mapper
        self._donors = {index: replace(donor, index=index) for index, donor in donors.items()}

    def __call__(self, episode: Episode) -> dict[str, Any]:
        """Load an episode; all but its supports and class is the donor's, and no pixel is the object."""
        own, donor = self._mapper(episode), self._mapper(self._donors[episode.index])
        kept = {key: own[key] for key in ("class_id", "episode_index")}
        absent = {key: donor[key].masked_fill(donor[key] == 1, 0) for key in ("sem_seg", "target")}
        return _with_supports({**donor, **kept, **absent}, own)


def _with_supports(query: dict[str, Any], donor: Mapping[str, Any]) -> dict[str, Any]:
    """A mapped episode with the supports of another, in "views" too."""
    taken = {key: donor[key] for key in ("support", "support_ids")}
    pairs = zip(query.get("views", ()), donor.get("views", ()), strict=True)
    views = [{**view, "support": theirs["support"]} for view, theirs in pairs]
    if "whole" in query:
        taken["whole"] = {**query["whole"], "support": donor["whole"]["support"]}
    return {**query, **taken, **({"views": views} if views else {})}
