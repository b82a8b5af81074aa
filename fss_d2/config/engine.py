"""Keys of training and evaluation."""

from detectron2.config import CfgNode as CN

__all__ = ["add_solver_and_test_keys"]


def add_solver_and_test_keys(cfg: CN) -> None:
    """Add the keys of training and evaluation."""
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
    # Multi-scale testing: an episode runs at each of these sizes instead of INPUT.FEW_SHOT_SIZE, and the
    # probabilities are averaged in TEST.FRAME. Sides, (473, 641), or heights and widths,
    # ((480, 640), (600, 800)); () runs at INPUT.FEW_SHOT_SIZE alone.
    cfg.TEST.SCALES = ()
    # After the network, at its size: "grabcut" moves masks to the outlines that the colours of the image show
    # (OpenCV's GrabCut, for any method); "" nothing.
    cfg.TEST.REFINEMENT = ""
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
