"""Keys of data sets, episodes and images."""

from detectron2.config import CfgNode as CN

__all__ = ["add_dataset_keys", "add_episode_keys", "add_input_keys"]


def add_dataset_keys(cfg: CN) -> None:
    """Add the keys of data sets that are not built in."""
    # Folder sets to register: dicts of keyword arguments of `fss_d2.data.register_folder`.
    # Relative paths are taken from $DETECTRON2_DATASETS.
    cfg.DATASETS.FOLDERS = []
    # COCO-format sets to register: dicts of keyword arguments of `fss_d2.data.register_coco_json`.
    cfg.DATASETS.COCO_JSON = []


def add_episode_keys(cfg: CN) -> None:
    """Add the keys of episodes: how many supports, how queries are drawn."""
    cfg.FEW_SHOT = CN()
    # Base seed of every episode drawn. Training adds nothing to it: episode i is a function of (SEED, i).
    cfg.FEW_SHOT.SEED = 0
    # A manifest or a protocol may list one support twice; ours never does unless this is True.
    cfg.FEW_SHOT.REPEAT_SUPPORTS = False

    cfg.FEW_SHOT.TRAIN = CN()
    # Supports per training episode. More than one number: drawn uniformly per batch.
    cfg.FEW_SHOT.TRAIN.SHOTS = (1,)
    # How a query is drawn: "class" (class, then image), "pair" (each (image, class) pair once
    # an epoch), "image" (each image once an epoch, class uniform among its classes), "pfenet" (as "image",
    # but among all classes that the image shows, also where it is too small to be a support).
    cfg.FEW_SHOT.TRAIN.QUERY_RULE = "class"
    # What a support tells of its object: "mask", "box" (a filled box each connected part) or "scribble"
    # (a stroke on the object, one on the background, 255 elsewhere; drawn anew for every episode).
    cfg.FEW_SHOT.TRAIN.SUPPORT_ANNOTATION = "mask"

    cfg.FEW_SHOT.TEST = CN()
    # One evaluation per number of shots listed.
    cfg.FEW_SHOT.TEST.SHOTS = (1,)
    # Episodes per evaluation; 0 means one per (image, class) pair.
    cfg.FEW_SHOT.TEST.EPISODES = 1000
    # Seed of the evaluation episodes.
    cfg.FEW_SHOT.TEST.SEED = 0
    # "class", "pair", "image", "pfenet" as above, or "hsnet_pascal", "hsnet_coco", "hsnet_fss": the exact
    # episodes of HSNet/DCAMA, drawn with numpy's legacy generator (docs/PROTOCOL.md), or "mmformer".
    cfg.FEW_SHOT.TEST.QUERY_RULE = "class"
    # "mask", "box" or "scribble", as above; "box" with models trained on masks is the usual comparison.
    cfg.FEW_SHOT.TEST.SUPPORT_ANNOTATION = "mask"
    # Each support is shown in these views, each of which counts as a shot: "whole", "flip" (mirrored), "cut"
    # (a window round the object), "cut_flip". For methods that take any number of shots.
    cfg.FEW_SHOT.TEST.SUPPORT_VIEWS = ("whole",)
    # A manifest file (JSON lines) to score on instead of drawing episodes; "" draws.
    cfg.FEW_SHOT.TEST.MANIFEST = ""


def add_input_keys(cfg: CN) -> None:
    """Add the keys of what becomes of an image before the network."""
    cfg.INPUT.FORMAT = "RGB"
    # Network input (height, width) of query and supports.
    cfg.INPUT.FEW_SHOT_SIZE = (384, 384)
    # How an image reaches that size at test: "squash" (aspect ratio given up; DCAMA, HSNet),
    # "letterbox" (longest side fitted, PFENet's rounding, black padding), "shortest_edge" (no crop).
    cfg.INPUT.TEST_RESIZE = "squash"
    # Training augmentations in order; an empty tuple means the test transform. Each is the name of
    # a builder in fss_d2/data/transforms.py, whose settings are the INPUT.AUG.* keys.
    cfg.INPUT.TRAIN_AUGMENTATIONS = ()
    # Supports go through TRAIN_AUGMENTATIONS as well, drawn independently of the query's.
    cfg.INPUT.AUGMENT_SUPPORTS = True
    # Also give a training query's "segments", one mask each: "" (none), "semantic" (each base class in the
    # image and the background; pixels of novel classes are in none) or "instance" (each object of a base
    # class; needs data sets with annotations). The proposal segmenter is trained on them.
    cfg.INPUT.SEGMENTS = ""
    # Augmentations of a training query (support) are drawn anew while its object covers fewer pixels,
    # at most so many times. Query 0, support 1: only a support that lost its object is drawn anew.
    cfg.INPUT.QUERY_MIN_PIXELS = 0
    cfg.INPUT.SUPPORT_MIN_PIXELS = 1
    cfg.INPUT.REDRAWS = 10
    cfg.INPUT.AUG = CN()
    cfg.INPUT.AUG.SCALE_RANGE = (0.9, 1.1)  # factor on both sides
    cfg.INPUT.AUG.ROTATE_DEGREES = 10.0  # uniform in [-x, x]
    cfg.INPUT.AUG.ROTATE_PROB = 0.5
    cfg.INPUT.AUG.BLUR_PROB = 0.5  # 5x5 Gaussian
    cfg.INPUT.AUG.FLIP_PROB = 0.5  # horizontal
    cfg.INPUT.AUG.CROP_KEEP = 0.85  # redraw a crop that keeps less of the target, 31 times at most
    cfg.INPUT.AUG.OBJECT_CONTEXT = (1.05, 3.0)  # sides of a window round the object: factor on the object's
    cfg.INPUT.AUG.OBJECT_CROP_PROB = 0.8  # of such a window
    cfg.INPUT.AUG.CROP_AREA = (0.3, 1.0)  # random resized crop: fraction of the image's area
    cfg.INPUT.AUG.COLOR = 0.4  # brightness, contrast, saturation: factor in [1-x, 1+x]
