"""Keys of PFENet and of the methods that grow on it: DPCN, JC2A, DANet."""

from detectron2.config import CfgNode as CN

__all__ = ["add_base_knowledge_keys", "add_danet_keys", "add_dpcn_keys", "add_jc2a_keys", "add_pfenet_keys"]


def add_pfenet_keys(cfg: CN) -> None:
    """Add the keys of PFENet (Tian et al., TPAMI 2020)."""
    cfg.MODEL.PFENET = CN()
    # Middle features, joined in this order at the first one's size and reduced to DIM channels.
    cfg.MODEL.PFENET.IN_FEATURES = ("res4", "res3")
    cfg.MODEL.PFENET.PRIOR_FEATURE = "res5"  # compared for the prior mask
    # The support mask is also applied before the stage of PRIOR_FEATURE runs (reference code, not the paper).
    cfg.MODEL.PFENET.MASK_BEFORE_PRIOR = True
    cfg.MODEL.PFENET.DIM = 256
    # Sides of the pyramid's levels, in cells; a number up to 1.0 is a fraction of the feature map's side.
    cfg.MODEL.PFENET.BINS = (60.0, 30.0, 15.0, 8.0)
    cfg.MODEL.PFENET.DROPOUT = 0.5  # of channels of the middle features
    cfg.MODEL.PFENET.AUX_WEIGHT = 1.0  # of the mean loss of the pyramid's levels
    # Plug-ins: "dcm" (DPCN, Table 6: dynamic convolution of the query features; settings in MODEL.DPCN),
    # "ckmm" (JC2A, Table 5: the class-agnostic map beside the prior; settings in MODEL.BASE_KNOWLEDGE).
    cfg.MODEL.PFENET.PLUG_INS = ()


def add_base_knowledge_keys(cfg: CN) -> None:
    """Add the keys of the class-agnostic knowledge (CKMM of JC2A) that several methods can use."""
    cfg.MODEL.BASE_KNOWLEDGE = CN()
    cfg.MODEL.BASE_KNOWLEDGE.IN_FEATURES = ("res4", "res3")  # of the frozen backbone, joined as in PFENET
    cfg.MODEL.BASE_KNOWLEDGE.NUM_CLASSES = 15  # base classes of a fold: 15 of PASCAL-5i, 60 of COCO-20i
    cfg.MODEL.BASE_KNOWLEDGE.SIMILARITY = "dot"  # Eq. 13; or "cosine"
    cfg.MODEL.BASE_KNOWLEDGE.NORMALIZATION = "min_max"  # of the map, an image at a time; "none", "sigmoid"
    # Pixels of a class that an image must show (at its own size) to enter the class's prototype.
    cfg.MODEL.BASE_KNOWLEDGE.MIN_PIXELS = 2048
    # Folder of the prototypes once built, in files named after all that they depend on; "" keeps none. A
    # checkpoint holds its prototypes: evaluation and resumed training build and read none.
    cfg.MODEL.BASE_KNOWLEDGE.CACHE_DIR = "./output/base_prototypes"


def add_dpcn_keys(cfg: CN) -> None:
    """Add the keys of DPCN (Liu et al., CVPR 2022)."""
    cfg.MODEL.DPCN = CN()
    cfg.MODEL.DPCN.IN_FEATURES = ("res4", "res3")  # middle features, as in PFENET
    cfg.MODEL.DPCN.SAM_FEATURE = "res5"  # compared by the support activation module
    cfg.MODEL.DPCN.DIM = 256
    cfg.MODEL.DPCN.DROPOUT = 0.5
    # Table 3: SAM, FFM, DCM. Without SAM its windows are ((1, 1),), which is PFENet's prior.
    cfg.MODEL.DPCN.SAM = True
    cfg.MODEL.DPCN.FFM = True
    cfg.MODEL.DPCN.DCM = True
    cfg.MODEL.DPCN.WINDOWS = ((5, 1), (3, 3), (1, 5))  # of SAM, (height, width)
    cfg.MODEL.DPCN.MASK_BEFORE_SAM = False  # also mask before the last stage, as PFENet's code does
    cfg.MODEL.DPCN.FFM_KERNEL = 1
    cfg.MODEL.DPCN.KERNEL_SIZE = 5  # S of the dynamic kernels (Table 4: 3, 5, 7, 9)
    cfg.MODEL.DPCN.KERNELS = ("vertical", "horizontal", "square")  # Sx1, 1xS, SxS (Table 5)
    # Table A1: "serial" (Eq. 6), "parallel", "serial_kernels" (Appendix B's words).
    cfg.MODEL.DPCN.KERNEL_GENERATION = "serial"
    cfg.MODEL.DPCN.ASPP_DILATIONS = (6, 12, 18)
    cfg.MODEL.DPCN.RETURN_WEIGHT = 1.0  # lambda of the query-to-support loss (Fig. A2)
    cfg.MODEL.DPCN.CKMM = False  # JC2A's class-agnostic map as one more activation map
    cfg.MODEL.DPCN.TRAIN_LAST_STAGE = True  # the stage of SAM_FEATURE learns, although the backbone is frozen
    cfg.MODEL.DPCN.LAST_STAGE_START = 0  # iteration from which it does


def add_jc2a_keys(cfg: CN) -> None:
    """Add the keys of JC2A (Huang et al., 2022). CKMM's own settings are MODEL.BASE_KNOWLEDGE."""
    cfg.MODEL.JC2A = CN()
    cfg.MODEL.JC2A.IN_FEATURES = ("res4", "res3")  # middle features, as in PFENET
    cfg.MODEL.JC2A.DIM = 256
    cfg.MODEL.JC2A.DROPOUT = 0.5
    # Sides of the pyramid's levels, in cells; as learned position embeddings have them, no fractions.
    cfg.MODEL.JC2A.BINS = (60, 30, 15, 8)
    cfg.MODEL.JC2A.P2P = True  # Table 3: point-to-point attention (P2P and P2B together are HPAM)
    cfg.MODEL.JC2A.P2B = True  # Table 3: point-to-block attention
    cfg.MODEL.JC2A.CKMM = True  # Table 3: the class-agnostic map
    cfg.MODEL.JC2A.BLOCK_SIDES = (3, 3, 3, 2)  # m of P2B's blocks, one a level, in cells
    cfg.MODEL.JC2A.TOP_BLOCKS = (60, 20, 5, 3)  # k blocks that show most of the object, one a level
    # Table 4: "linear" (ours), "normalized_linear" (NLA), "softmax" (NA), "cosine".
    cfg.MODEL.JC2A.ATTENTION = "linear"
    cfg.MODEL.JC2A.POSITION_EMBEDDING = True  # of point-to-block attention
    cfg.MODEL.JC2A.ATTENTION_MERGE = "add"  # of P2P and P2B (Table 6): "multiply", "concat"
    # Of the attention's answer and the class-agnostic map (Table 6): "concat", "add", "multiply".
    cfg.MODEL.JC2A.AGNOSTIC_MERGE = "concat"
    cfg.MODEL.JC2A.AUX_WEIGHT = 1.0  # of the mean loss of the pyramid's levels


def add_danet_keys(cfg: CN) -> None:
    """Add the keys of the few-shot DANet (Chen et al., 2022)."""
    cfg.MODEL.DANET = CN()
    cfg.MODEL.DANET.IN_FEATURES = ("res3", "res4")  # low and high features, joined at the first one's size
    cfg.MODEL.DANET.DIM = 256
    cfg.MODEL.DANET.DROPOUT = 0.5
    cfg.MODEL.DANET.LDA = True  # Table 3: light and dense attention
    cfg.MODEL.DANET.PCA = True  # Table 3: prototypical channel attention; False: masked average pooling
    cfg.MODEL.DANET.LIGHT_SCALE = False  # divide light attention's products by the root of their length
    cfg.MODEL.DANET.PCA_RATIO = 16
    cfg.MODEL.DANET.PCA_MASKED = False  # soft pooling over the object only
    cfg.MODEL.DANET.USE_PRIOR = False  # PFENet's prior mask as a further channel
    cfg.MODEL.DANET.PRIOR_FEATURE = "res5"  # compared for it; masked after that stage only
    cfg.MODEL.DANET.PPM_BINS = (1, 2, 3, 6)
    cfg.MODEL.DANET.CKMM = False  # JC2A's class-agnostic map as a further channel
