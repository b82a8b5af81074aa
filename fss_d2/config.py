"""The configuration: keys of Detectron2, shared keys of ours, and keys that backbones and methods declare."""

import difflib
from ast import literal_eval
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg

import fss_d2.modeling  # noqa: F401  (backbones and methods declare their keys)
from fss_d2.io.files import expand_user, shortened
from fss_d2.io.network import check_address, is_address
from fss_d2.io.yaml_files import read_yaml
from fss_d2.modeling.keys import KEY_GROUPS, at_least, require

__all__ = ["add_fss_config", "changed_keys", "get_cfg", "load_config"]

# Numbers that are refused here because too small a value fails late or unclearly.
_LEAST = {
    **{"SOLVER.CHECKPOINT_PERIOD": 1, "SOLVER.LOG_PERIOD": 1, "DATALOADER.NUM_WORKERS": 0},
    **{"SOLVER.EPOCHS": 0, "SOLVER.CHECKPOINT_EPOCHS": 0, "TEST.EVAL_EPOCHS": 0},
    **{"DATALOADER.FEATURE_CACHE_VARIANTS": 0},
    **{"FEW_SHOT.SEED": 0, "FEW_SHOT.TEST.SEED": 0, "FEW_SHOT.TEST.EPISODES": 0},
    **{"TEST.PERIODIC_EPISODES": 0, "TEST.ZOOM_TILES": 0, "TEST.PICTURES": 0},
    **{"INPUT.QUERY_MIN_PIXELS": 0, "INPUT.SUPPORT_MIN_PIXELS": 0, "INPUT.REDRAWS": 0},
}
_UNKNOWN = object()
# Of two of these keys the first counts where the second is 0; KEY VALUE pairs that give it alone make it so.
_INSTEAD = {
    "SOLVER.EPOCHS": "SOLVER.MAX_ITER",
    "SOLVER.CHECKPOINT_PERIOD": "SOLVER.CHECKPOINT_EPOCHS",
    "TEST.EVAL_PERIOD": "TEST.EVAL_EPOCHS",
}
_KINDS = {
    **{bool: "True or False", int: "a whole number", float: "a number", str: "text"},
    **{list: "a list", tuple: "a list", dict: "keys and values"},
}
_LENGTHS = {"MODEL.PIXEL_MEAN": 3, "MODEL.PIXEL_STD": 3, "INPUT.FEW_SHOT_SIZE": 2}
_LISTS_OF_NAMES = ("DATASETS.TRAIN", "DATASETS.TEST", "DATASETS.VALIDATION")
# Former keys: the key now, and values that have another name now.
_RENAMED = {"MODEL.DCAMA.KSHOT": ("TEST.KSHOT", {"one_pass": "own"})}
# Keys that hold the path of a file or folder; the first two may hold a name or an address instead.
_PATHS = (
    *("MODEL.WEIGHTS", "MODEL.BACKBONE.WEIGHTS", "MODEL.BACKBONE.PIXEL_DECODER_WEIGHTS", "OUTPUT_DIR"),
    *("MODEL.BASE_KNOWLEDGE.CACHE_DIR", "FEW_SHOT.TEST.MANIFEST"),
    "DATALOADER.FEATURE_CACHE",
)


def get_cfg() -> CfgNode:
    """Return Detectron2's default config with the keys of fss_d2 added."""
    cfg = get_detectron2_cfg()
    add_fss_config(cfg)
    return cfg


def add_fss_config(cfg: CfgNode) -> None:
    """Add the keys of fss_d2 to a Detectron2 config, in place."""
    shared = (_add_weight_keys, _add_dataset_keys, _add_episode_keys, _add_input_keys, _add_solver_keys)
    for add in (*shared, _add_test_keys, *KEY_GROUPS):
        add(cfg)


def load_config(config_file: str, opts: Sequence[str] = (), *, num_gpus: int | None = None) -> CfgNode:
    """Read a config file with its bases, apply ``KEY VALUE`` pairs, expand "~" in paths, and freeze.

    Args:
        opts: keys and values in turn.
        num_gpus: 0 puts the model on the CPU, as does a machine without GPU.

    Raises:
        FileNotFoundError: no such file, or no such base.
        ValueError: an unknown key (the message has the closest one), a value of the wrong type, YAML that
            does not parse, a key without value, a number below what its key allows.
    """
    defaults, cfg, config_file = get_cfg(), get_cfg(), expand_user(config_file)
    loaded = read_yaml(config_file)
    for key in _keys(loaded):
        _set(cfg, defaults, key, _value(loaded, key), config_file)
    if len(opts) % 2:
        alone = next((word for word in opts[::2] if word.partition(".")[0] not in cfg), opts[-1])
        raise ValueError(f"{shortened(alone)} has no value; give config keys and values in pairs: KEY VALUE")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        _set(cfg, defaults, key, value, "command line")
    for key, other in _INSTEAD.items():
        if key in opts[::2] and other not in opts[::2] and _value(cfg, key):
            _set(cfg, defaults, other, 0, "command line")
    if num_gpus == 0 or not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    _check_limits(cfg)
    _check_addresses(cfg)
    for key in _PATHS:
        group, name = _place(cfg, key)
        group[name] = expand_user(group[name])
    cfg.freeze()
    return cfg


def changed_keys(cfg: CfgNode, config_file: str) -> list[str]:
    """Which keys differ from those in a config file, as "SOLVER.BASE_LR 0.1 (was 0.01)".

    Raises as `load_config`.
    """
    now, before = (yaml.safe_load(each.dump()) for each in (cfg, load_config(config_file)))
    pairs = ((key, _value(now, key), _value(before, key)) for key in _keys(now))
    return [f"{key} {shortened(is_)} (was {shortened(was)})" for key, is_, was in pairs if is_ != was]


def _set(cfg: CfgNode, defaults: CfgNode, key: str, given: Any, where: str) -> None:
    """Set a key. As everywhere in Detectron2, text stands for the Python value that it spells."""
    if key in _RENAMED:
        key, values = _RENAMED[key]
        given = values.get(str(given), given)
    if given is None and isinstance(_found(cfg, key), CfgNode):
        return  # a group whose keys are all commented out
    _check_key(cfg, key, where)
    default = _value(defaults, key)
    try:
        value = literal_eval(given) if isinstance(given, str) else given
    except (ValueError, SyntaxError, TypeError):
        value = given
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"{where}: {key}: its value is nested too deeply") from error
    if isinstance(default, str) and isinstance(given, str) and isinstance(value, int | float):
        value = given  # a folder may be called 2024
    _check_elements(f"{where}: {key}", value, default, is_text=key in _LISTS_OF_NAMES)
    group, name = _place(cfg, key)
    group[name] = _of_type(value, default, f"{where}: {key}")


def _of_type(value: Any, default: Any, where: str) -> Any:
    """A value in the type of its default; ValueError if that would change it."""
    if value is None and default is not None:
        raise ValueError(f"{where} has no value; give one, or remove the key")
    if isinstance(default, list | tuple) and isinstance(value, list | tuple):
        return type(default)(value)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(default) is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if default is None or type(value) is type(default):
        return value
    note = "; put it in quotes" if isinstance(default, str) else ""
    if isinstance(default, list | tuple):
        note = f"; write ({shortened(repr(value))},)"
    raise ValueError(f"{where} takes {_KINDS[type(default)]}, not {shortened(repr(value))}{note}")


def _place(cfg: CfgNode, key: str) -> tuple[CfgNode, str]:
    """The group that holds a key, and the key's name in it."""
    *groups, name = key.split(".")
    return reduce(getitem, groups, cfg), name


def _value(tree: Mapping[str, Any], key: str) -> Any:
    return reduce(getitem, key.split("."), tree)


def _check_limits(cfg: CfgNode) -> None:
    require(cfg.SEED < 2**32, "SEED", cfg.SEED, "below 2**32")
    for key, least in _LEAST.items():
        at_least(key, _value(cfg, key), least)
    for key, length in _LENGTHS.items():
        require(len(_value(cfg, key)) == length, key, _value(cfg, key), f"{length} numbers")


def _check_addresses(cfg: CfgNode) -> None:
    """Refuse addresses where files are meant; weights may be downloaded if the environment allows it."""
    check_address(cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS")
    listed = [
        (f"DATASETS.{key}", entry)
        for key in ("FOLDERS", "COCO_JSON", "CLASS_MAPS")
        for entry in cfg.DATASETS[key]
    ]
    paths = [(name, v) for name, entry in listed if isinstance(entry, Mapping) for v in entry.values()]
    paths += [(key, _value(cfg, key)) for key in _PATHS[2:]]
    for name, path in paths:
        if isinstance(path, str) and is_address(path):
            raise ValueError(
                f"{name} {shortened(path)} is an address: download what is there and give its path"
            )


def _check_elements(key: str, value: Any, default: Any, *, is_text: bool) -> None:
    """Refuse text where a list holds numbers, and numbers where it holds text."""
    leaves, known = _leaves(value), _leaves(default)
    kinds = {isinstance(leaf, str) for leaf in known} or ({True} if is_text else set())
    if wrong := [leaf for leaf in leaves if kinds and isinstance(leaf, str) not in kinds]:
        kind = "text" if True in kinds else "numbers"
        raise ValueError(f"{key} takes {kind}, not {shortened(repr(wrong[0]))}")


def _leaves(value: Any) -> list[Any]:
    """What a list holds, also in lists in it; nothing for other values."""
    found = []
    for inner in value if isinstance(value, list | tuple) else ():
        found += _leaves(inner) if isinstance(inner, list | tuple) else [inner]
    return found


def _keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The full names of all leaves."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _found(cfg: CfgNode, key: str) -> Any:
    """What a key stands for; `_UNKNOWN` if there is no such key."""
    node: Any = cfg
    for part in key.split("."):
        node = node.get(part, _UNKNOWN) if isinstance(node, CfgNode) else _UNKNOWN
    return node


def _check_key(cfg: CfgNode, key: str, where: str) -> None:
    found = _found(cfg, key)
    if isinstance(found, CfgNode):
        raise ValueError(
            f"{where}: {key} is a group of keys; give one of them, like {key}.{next(iter(found))}"
        )
    if found is not _UNKNOWN:
        return
    known = {name.upper(): name for name in _keys(cfg)}
    if close := difflib.get_close_matches(key.upper(), known, n=1):
        hint = f"did you mean {known[close[0]]}?"
    elif key[-1] in "()":
        hint = "within {...}, write a list as [640, 480]"
    else:
        hint = "see fss_d2/config.py and the files of the methods"
    raise ValueError(f"{where}: there is no config key {shortened(key)}; {hint}")


def _add_weight_keys(cfg: CfgNode) -> None:
    """Add the key of what MODEL.WEIGHTS may lack."""
    # A checkpoint must have all tensors of the model, except a backbone that MODEL.BACKBONE.WEIGHTS gives,
    # and the matching network where a training of MMFormer starts from stage 1. True: any may be missing;
    # they keep their initial values, and a warning names them.
    cfg.MODEL.WEIGHTS_PARTIAL = False


def _add_dataset_keys(cfg: CfgNode) -> None:
    """Add the keys of data sets that are not built in."""
    # Folder sets to register: dicts of keyword arguments of `fss_d2.data.register_folder`.
    # Relative paths start at $DETECTRON2_DATASETS, or at the current folder if nothing is there.
    cfg.DATASETS.FOLDERS = []
    # The data sets of the evaluations while training, which choose model_best.pth; empty: those of TEST.
    cfg.DATASETS.VALIDATION = ()
    # COCO-format sets to register: dicts of keyword arguments of `fss_d2.data.register_coco_json`.
    cfg.DATASETS.COCO_JSON = []
    # Sets of photographs with class maps: dicts of keyword arguments of `fss_d2.data.register_class_maps`.
    cfg.DATASETS.CLASS_MAPS = []
    # A folder in which the maps of a frozen backbone are kept, in float16, so that each picture passes the
    # backbone once: in training with the augmentation "flip" alone, and in evaluation. "" keeps none.
    cfg.DATALOADER.FEATURE_CACHE = ""
    # With other augmentations: the number of augmented variants of each picture, the same for all classes, in
    # all trainings and without a cache. 0 augments anew for every episode.
    cfg.DATALOADER.FEATURE_CACHE_VARIANTS = 0


def _add_episode_keys(cfg: CfgNode) -> None:
    """Add the keys of episodes: how many supports, how queries are drawn."""
    cfg.FEW_SHOT = CfgNode()
    # Base seed of every episode drawn. Training adds nothing to it: episode i is a function of (SEED, i).
    cfg.FEW_SHOT.SEED = 0
    # A manifest or a protocol may list one support twice; ours never does unless this is True.
    cfg.FEW_SHOT.REPEAT_SUPPORTS = False

    cfg.FEW_SHOT.TRAIN = CfgNode()
    # Supports per training episode. More than one number: drawn uniformly per batch.
    cfg.FEW_SHOT.TRAIN.SHOTS = (1,)
    # How a query is drawn: "class" (class, then image), "root" (the same, but a class in proportion to the
    # square root of its number of images), "pair" (each (image, class) pair once an epoch), "image" (each
    # image once an epoch, class uniform among its classes), "pfenet" (as "image", but among all classes that
    # the image shows, also where it is too small to be a support), "crop" (as "image", but among the classes
    # that the augmented query still shows).
    cfg.FEW_SHOT.TRAIN.QUERY_RULE = "class"
    # What a support shows of its object: "mask", "box" (a filled box each connected part) or "scribble"
    # (a stroke on the object, one on the background, 255 elsewhere; drawn anew for every episode).
    cfg.FEW_SHOT.TRAIN.SUPPORT_ANNOTATION = "mask"
    # Share of negative episodes, whose query does not show the class: its target is all background. They come
    # from pictures that are annotated for the class. None before iteration NEGATIVES_START.
    cfg.FEW_SHOT.TRAIN.NEGATIVES = 0.0
    cfg.FEW_SHOT.TRAIN.NEGATIVES_START = 0
    # Share of the positive episodes whose object is no annotated one, but a region of similar colours in one
    # training picture (of the episode's class); query and supports are differently augmented variants of that
    # picture. They are of no other kind, and nothing is pasted into them.
    cfg.FEW_SHOT.TRAIN.REGIONS = 0.0
    # Share of the positive episodes whose query is drawn among the pictures of the class that show another
    # class of the set as well.
    cfg.FEW_SHOT.TRAIN.COMPETITION = 0.0
    # Share of the episodes, negative ones included, into whose query one or two objects of other classes are
    # pasted, from other training pictures that do not show the class; INPUT.AUG.PASTE_SIZE.
    cfg.FEW_SHOT.TRAIN.PASTE_OTHERS = 0.0
    # Share of the positive episodes into whose query small copies of an object of the class are pasted;
    # INPUT.AUG.PASTE_COPY_*. In half of them the query does not show the class otherwise.
    cfg.FEW_SHOT.TRAIN.PASTE_COPIES = 0.0

    cfg.FEW_SHOT.TEST = CfgNode()
    # One evaluation per number of shots listed.
    cfg.FEW_SHOT.TEST.SHOTS = (1,)
    # Episodes per evaluation; 0 means one per (image, class) pair.
    cfg.FEW_SHOT.TEST.EPISODES = 1000
    # Seed of the evaluation episodes.
    cfg.FEW_SHOT.TEST.SEED = 0
    # One of the rules above, or "hsnet_pascal", "hsnet_coco", "hsnet_fss": the exact
    # episodes of HSNet/DCAMA, drawn with numpy's legacy generator (docs/PROTOCOL.md), or "mmformer".
    cfg.FEW_SHOT.TEST.QUERY_RULE = "class"
    # "mask", "box" or "scribble", as above; "box" with models trained on masks is the usual comparison.
    cfg.FEW_SHOT.TEST.SUPPORT_ANNOTATION = "mask"
    # Each support is shown in these views, each of which counts as a shot: "whole", "flip" (mirrored), "cut"
    # (a window round the object), "cut_flip". For methods that take any number of shots.
    cfg.FEW_SHOT.TEST.SUPPORT_VIEWS = ("whole",)
    # A manifest file (JSON lines) to score on instead of drawing episodes; "" draws.
    cfg.FEW_SHOT.TEST.MANIFEST = ""


def _add_input_keys(cfg: CfgNode) -> None:
    """Add the keys of what happens to an image before the network."""
    cfg.INPUT.FORMAT = "RGB"
    # Network input (height, width) of query and supports.
    cfg.INPUT.FEW_SHOT_SIZE = (384, 384)
    # How an image reaches that size at test: "squash" (aspect ratio given up; DCAMA, HSNet),
    # "letterbox" (longest side fitted, PFENet's rounding, black padding), "shortest_edge" (no crop).
    cfg.INPUT.TEST_RESIZE = "squash"
    # Training augmentations in order; an empty tuple means the test transform. Each is the name of
    # a builder in fss_d2/data/augmentations.py, whose settings are the INPUT.AUG.* keys.
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
    cfg.INPUT.AUG = CfgNode()
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
    # Pasted objects (FEW_SHOT.TRAIN.PASTE_OTHERS, PASTE_COPIES): longer side over the query's shorter side.
    cfg.INPUT.AUG.PASTE_SIZE = (0.2, 0.6)
    cfg.INPUT.AUG.PASTE_COPY_SIZE = (0.05, 0.2)
    cfg.INPUT.AUG.PASTE_COPY_COUNT = (1, 6)  # copies of the object in a query, at most


def _add_solver_keys(cfg: CfgNode) -> None:
    """Keys of training."""
    cfg.SOLVER.OPTIMIZER = "SGD"  # or "ADAMW"
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0  # of embedding tables
    # The length of a training in epochs, where SOLVER.MAX_ITER is 0: iterations follow from the training set.
    # An epoch has as many queries as the set has images, with query rule "pair" as it has pairs.
    cfg.SOLVER.EPOCHS = 0
    # An incomplete batch at the end of an epoch does not count as an iteration.
    cfg.SOLVER.DROP_LAST = False
    # With EPOCHS: epochs between checkpoints; 0 takes CHECKPOINT_PERIOD, in iterations.
    cfg.SOLVER.CHECKPOINT_EPOCHS = 0
    # A warm-up (Detectron2's WARMUP_ITERS) longer than half of MAX_ITER is shortened to half, with a warning:
    # it leads to the value that the schedule has where it ends, and most schedules end at zero.
    # Precision of SOLVER.AMP: "float16" (bfloat16 on a CPU) or "bfloat16".
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Iterations between two lines on the console, in metrics.json and in TensorBoard. Losses are copied from
    # the GPU only then, and before a checkpoint or an evaluation; a NaN among them ends the training.
    cfg.SOLVER.LOG_PERIOD = 20
    # Factor on BASE_LR that a released code applies but its paper does not print.
    cfg.SOLVER.LR_FACTOR = 1.0
    # Besides Detectron2's: "WarmupPolyLR" (power below) and "ConstantLR".
    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0


def _add_test_keys(cfg: CfgNode) -> None:
    """Keys of evaluation."""
    # What is evaluated: "few_shot_seg" (the episodes' scores), "support_use" (further runs, with supports of
    # another class and with queries that do not show the object), "oracle" (the proposal that fits the truth
    # best) and "proposal_recall" (average recall of 10, 50 and 100 proposals), which need proposals, and
    # "aggregated" (the masks that DCAMA aggregates at each scale; its Fig. 6).
    cfg.TEST.EVALUATORS = ("few_shot_seg",)
    # "original": logits at the query's own size; "network": at INPUT.FEW_SHOT_SIZE;
    # "pfenet_square": at the square of the longer side, as PFENet's released code.
    cfg.TEST.FRAME = "original"
    # Multi-scale testing: an episode runs at each of these sizes instead of INPUT.FEW_SHOT_SIZE, and the
    # probabilities are averaged in TEST.FRAME. Sides, (473, 641), or heights and widths,
    # ((480, 640), (600, 800)); () runs at INPUT.FEW_SHOT_SIZE alone.
    cfg.TEST.SCALES = ()
    # How K supports become one prediction: "own" is the method's way, in which it was published. The others
    # join K predictions: "vote", "normalized_vote" (HSNet), "average", "or", "cross_guided" (SCL).
    cfg.TEST.KSHOT = "own"
    # After the network, at its size: "grabcut" moves masks to the outlines that the colours of the image show
    # (OpenCV's GrabCut, for any method); "" nothing.
    cfg.TEST.REFINEMENT = ""
    # Most tiles of a square query, 0 for none: if the supports show several small objects each, queries are
    # seen in overlapping tiles and supports in windows, so that an object has a third of the input's side.
    cfg.TEST.ZOOM_TILES = 0
    # What the presence of the object decides about masks: "off" nothing, as in the published protocols;
    # "gate" takes away the mask where the object is more likely absent than there.
    cfg.TEST.PRESENCE = "off"
    # How counts become scores: "hsnet" (union at least 1) or "pfenet" (union + 1e-10).
    cfg.TEST.COUNTING = "hsnet"
    # Classes that the episodes never draw: "zero" (count as IoU 0, both references) or "skip".
    cfg.TEST.ABSENT_CLASSES = "zero"
    # Episodes of the periodic evaluation while training (a fixed manifest); 0 uses FEW_SHOT.TEST.EPISODES.
    cfg.TEST.PERIODIC_EPISODES = 200
    # With SOLVER.EPOCHS: epochs between evaluations; 0 takes TEST.EVAL_PERIOD, in iterations, and so does an
    # EVAL_PERIOD of 0, which evaluates at the end alone.
    cfg.TEST.EVAL_EPOCHS = 0
    cfg.TEST.BOOTSTRAP = 1000  # resamples of the confidence interval
    cfg.TEST.REGION_WISE = False  # also ROM and RUM, region-wise measures (DCAMA, Table S1)
    # Episodes drawn as pictures: to TensorBoard while training, to OUTPUT_DIR at evaluation.
    cfg.TEST.PICTURES = 4
    # Keep model_best.pth by this metric of the first evaluator on the last of the sets that are evaluated
    # while training; "" keeps none.
    cfg.TEST.BEST_METRIC = "mIoU"
