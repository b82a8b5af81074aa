"""Keys of the proposal segmenter and of MM-Former."""

from detectron2.config import CfgNode as CN

__all__ = ["add_mm_former_keys", "add_proposal_keys"]


def add_proposal_keys(cfg: CN) -> None:
    """Add the keys of the class-agnostic proposal segmenter, Mask2Former without classifier (stage 1)."""
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


def add_mm_former_keys(cfg: CN) -> None:
    """Add the keys of MM-Former (Jiao et al., NeurIPS 2022), stage 2: the mask matching module."""
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
    # Not in the paper: similarities reach the matching network with mean 0 and deviation 1 an image.
    cfg.MODEL.MM_FORMER.STANDARDIZE_SIMILARITY = False
    cfg.MODEL.MM_FORMER.MATCHING_WIDTH = 500  # hidden units of the matching MLP
    cfg.MODEL.MM_FORMER.MEMORY_SIDE = 15  # shorter side of the maps attended to, pixels
    cfg.MODEL.MM_FORMER.DICE_WEIGHT = 10.0  # lambda_1, of the fused mask's Dice loss
    cfg.MODEL.MM_FORMER.CONTRASTIVE_WEIGHT = 6.0  # lambda_2, of L_co (Eq. 5); 0 leaves it out
    # Table 3c: False freezes the proposal segmenter (stage 2), True trains both together (end to end).
    cfg.MODEL.MM_FORMER.TRAIN_PROPOSALS = False
