"""Bad inputs of training, evaluation, data sets, weights and their tools."""

from functools import partial

import torch

from tests.spoiling import Case, Code, cut, each, mask, remove, replace, save, write

__all__ = ["CASES"]

_COCO_TRAIN = "train DATASETS.TRAIN ('toy_coco',)"
_COCO_2014 = "coco/annotations/instances_train2014.json"
_ON_MANIFEST = "eval FEW_SHOT.TEST.MANIFEST manifest.jsonl"
_STEM = "backbone.model.conv_stem.weight"

CASES = [
    # Images and masks.
    Case("train", "toy/dog/images", each("images", partial(cut, size=1200))),
    Case("eval", "toy/cat/images", each("images", partial(cut, size=1200))),
    Case("draw", "toy/cat/images", each("images", partial(cut, size=1200))),
    Case("train", "toy/dog/images/1.png cannot be read", write("toy/dog/images/1.png", "a text")),
    Case("train", "is 20x20 pixels but its image", each("masks", partial(mask, side=20, value=255))),
    Case("eval", "no pixel shows class 0", each("masks", partial(mask, side=32, value=0))),
    Case("draw", "toy/cat/masks", each("masks", partial(write, content="a text"))),
    Case("train", "toy/dog/images/2.png has no mask", remove("toy/dog/masks/2.png")),
    Case("train", "toy/dog/masks/2.png has no image", remove("toy/dog/images/2.png")),
    # Data sets.
    Case("train DATASETS.TRAIN ('toy_fold0_trian',)", "'toy_fold0_trian' is not registered"),
    Case("eval DATASETS.TEST ('glyphs_fold4_val',)", "no fold 4; folds are 0..3"),
    Case("train DATASETS.TRAIN ('glyphs_fold0_train',)", "prepare_glyphs.py"),
    Case("train DATASETS.TEST ('pascal5i_fold0_val',)", "prepare_pascal5i.py"),
    Case("eval DATASETS.TEST ()", "DATASETS.TEST"),
    Case("train DATASETS.FOLDERS [3]", "DATASETS.FOLDERS"),
    Case("train", "fold 2 does not exist", replace("tiny.yaml", "fold: 0", "fold: 2")),
    Case("train", "'fold': 'zero'", replace("tiny.yaml", "fold: 0", "fold: zero")),
    Case("train", "'foldd'", replace("tiny.yaml", "fold:", "foldd:")),
    Case("train", "toi does not exist", replace("tiny.yaml", "root: toy", "root: toi")),
    Case(_COCO_TRAIN, "coco.json is not valid JSON", cut("coco.json", 100)),
    Case(_COCO_TRAIN, "no list 'categories'", replace("coco.json", "categories", "cats")),
    Case(_COCO_TRAIN, "is of image 9", replace("coco.json", '"image_id": 1', '"image_id": 9')),
    Case(_COCO_TRAIN, "has category 8", replace("coco.json", '"category_id": 7', '"category_id": 8')),
    Case(_COCO_TRAIN, "coco.json is not in COCO's format", replace("coco.json", '"id": 1,', '"id": [1],')),
    Case(_COCO_TRAIN, "cat/images/", replace("coco.json", "[[4, 4, 20, 4, 20, 20]]", "5")),
    # Episodes.
    Case("train FEW_SHOT.TRAIN.SHOTS (9,)", "the 10 images"),
    Case("eval FEW_SHOT.TEST.SHOTS (0,)", "SHOTS"),
    Case("eval FEW_SHOT.TEST.EPISODES -1", "FEW_SHOT.TEST.EPISODES -1 must be at least 0"),
    Case("eval FEW_SHOT.TEST.QUERY_RULE clas", "FEW_SHOT.TEST.QUERY_RULE 'clas'"),
    Case(
        "eval FEW_SHOT.TEST.SUPPORT_ANNOTATION boxes",
        "FEW_SHOT.TEST.SUPPORT_ANNOTATION 'boxes'; choose one of",
    ),
    Case("train FEW_SHOT.TRAIN.SUPPORT_ANNOTATION point", "FEW_SHOT.TRAIN.SUPPORT_ANNOTATION 'point'"),
    Case("train FEW_SHOT.TEST.SUPPORT_ANNOTATION point", "FEW_SHOT.TEST.SUPPORT_ANNOTATION 'point'"),
    Case("draw FEW_SHOT.TEST.SUPPORT_ANNOTATION point", "FEW_SHOT.TEST.SUPPORT_ANNOTATION 'point'"),
    Case(_ON_MANIFEST, "manifest.jsonl does not exist", remove("manifest.jsonl")),
    Case(_ON_MANIFEST, "manifest.jsonl:1: written for", replace("manifest.jsonl", "toy_fold0", "other")),
    Case(_ON_MANIFEST, "manifest.jsonl:2: not JSON", cut("manifest.jsonl", 160)),
    Case(_ON_MANIFEST, "manifest.jsonl:2: image 'cat/9'", replace("manifest.jsonl", "cat/1", "cat/9")),
    Case(_ON_MANIFEST + " FEW_SHOT.TEST.SHOTS (2,)", "manifest.jsonl: has 1 supports"),
    # Configs.
    Case("train --config-file nowhere.yaml", "nowhere.yaml does not exist"),
    Case("train", "tiny.yaml: not a config", write("tiny.yaml", b"\xff\x00")),
    Case("train", "tiny.yaml: not a config", write("tiny.yaml", "_BASE_: tiny.yaml")),
    Case("train", "did you mean SOLVER.MAX_ITER", replace("tiny.yaml", "MAX_ITER", "MAX_ITR")),
    Case("train SOLVER.MAX_ITER three", "SOLVER.MAX_ITER takes a whole number, not 'three'"),
    Case("train SOLVER 3", "SOLVER is a group of keys"),
    Case("train SOLVER.MAX_ITER -5", "SOLVER.MAX_ITER is -5"),
    Case("train SOLVER.LOG_PERIOD 0", "SOLVER.LOG_PERIOD 0 must be at least 1"),
    Case("train DATALOADER.NUM_WORKERS -1", "DATALOADER.NUM_WORKERS -1 must be at least 0"),
    Case("train INPUT.TRAIN_AUGMENTATIONS ('flipp',)", "'flipp' in INPUT.TRAIN_AUGMENTATIONS"),
    Case("train INPUT.FEW_SHOT_SIZE (0,0)", "INPUT.FEW_SHOT_SIZE (0, 0)"),
    Case("eval TEST.FRAME netwrok", "TEST.FRAME 'netwrok'"),
    Case("eval TEST.SCALES 473", "TEST.SCALES takes a list, not 473; write (473,)"),
    Case("eval TEST.SCALES (32,0)", "TEST.SCALES has 0; give sides"),
    Case("train TEST.SCALES ((32,32,32),)", "TEST.SCALES has (32, 32, 32); give sides"),
    Case("eval TEST.SCALES (32,(32,32))", "has a size twice"),
    Case(
        "train MODEL.META_ARCHITECTURE MMFormer TEST.SCALES (32,) TEST.EVALUATORS ('few_shot_seg','oracle')",
        "TEST.SCALES (32,) averages scores, not the masks",
    ),
    Case("eval TEST.COUNTING pfnet", "TEST.COUNTING is 'pfnet'"),
    Case("eval TEST.REFINEMENT crf", "unknown TEST.REFINEMENT 'crf'"),
    Case("eval FEW_SHOT.TEST.SUPPORT_VIEWS ('zoom',)", "SUPPORT_VIEWS ('zoom',): give one or more of whole"),
    Case(
        "train INPUT.TRAIN_AUGMENTATIONS ('object_crop',) INPUT.AUG.OBJECT_CONTEXT (0.5,2.0)",
        "INPUT.AUG.OBJECT_CONTEXT (0.5, 2.0)",
    ),
    # Models and weights.
    Case("eval MODEL.META_ARCHITECTURE DKAMA", "did you mean DCAMA"),
    Case("train MODEL.PIXEL_STD [1,1]", "PIXEL_STD [1, 1]"),
    Case("eval MODEL.PIXEL_STD [1,1,0]", "PIXEL_STD [1, 1, 0]"),
    Case("train MODEL.META_ARCHITECTURE Prototype", "--eval-only"),
    Case("eval MODEL.BACKBONE.NAME build_tim_backbone", "MODEL.BACKBONE.NAME 'build_tim_backbone'"),
    Case("eval MODEL.TIMM.NAME resnet5000", "MODEL.TIMM.NAME 'resnet5000'"),
    Case("eval TEST.KSHOT votes", "TEST.KSHOT 'votes'"),
    Case("eval MODEL.DCAMA.ATTENTION_LEVELS ('res9',)", "'res9'"),
    Case(
        "train MODEL.BACKBONE.WEIGHTS w.pth", "checkpoint w.pth does not exist: check MODEL.BACKBONE.WEIGHTS"
    ),
    Case("train MODEL.BACKBONE.WEIGHTS w.pth", "no tensor of w.pth fits", save({"a": torch.zeros(1)})),
    Case("train MODEL.BACKBONE.WEIGHTS w.pth", "(1,) in w.pth", save({"conv_stem.weight": torch.zeros(1)})),
    Case("train MODEL.BACKBONE.WEIGHTS w.pth", "w.pth is no checkpoint of plain", save(Code())),
    Case("eval MODEL.WEIGHTS w.pth", "checkpoint w.pth does not exist"),
    Case("eval MODEL.WEIGHTS w.pth", "w.pth: none of its 1 names (a)", save({"a": torch.zeros(1)})),
    Case("eval MODEL.WEIGHTS w.pth", f"{_STEM} (1,) instead of (24, 3, 3, 3)", save({_STEM: torch.zeros(1)})),
    Case("eval MODEL.WEIGHTS w.pth", "w.pth is no checkpoint of plain", save(Code())),
    Case("eval MODEL.WEIGHTS w.pth", "w.pth is no checkpoint of plain", write("w.pth", "a text")),
    *(
        Case(f"{program} MODEL.WEIGHTS w.pth", "w.pth lacks", save({_STEM: torch.zeros(24, 3, 3, 3)}))
        for program in ("train", "eval", "supports")
    ),
    Case("train MODEL.WEIGHTS https://x.org/w.pth", "MODEL.WEIGHTS https://x.org/w.pth is an address"),
    Case(
        "eval", "tiny.yaml: not a config: it is nested too deeply", write("tiny.yaml", "SEED: " + "[" * 9999)
    ),
    Case(
        "eval", "tiny.yaml: its _BASE_ https://x.org/a is an", write("tiny.yaml", "_BASE_: https://x.org/a")
    ),
    Case("train --resume", "out/model_9.pth, which", write("out/last_checkpoint", "model_9.pth")),
    # Outputs.
    Case("train OUTPUT_DIR tiny.yaml", "output folder tiny.yaml"),
    Case("eval OUTPUT_DIR tiny.yaml/out", "output folder tiny.yaml/out"),
    Case("eval", "out/results.json: Is a directory", write("out/results.json/a", "")),
    Case("train", "out/model_final.pth: Is a directory", write("out/model_final.pth/a", "")),
    Case("draw --output tiny.yaml", "output folder tiny.yaml"),
    # Processes.
    Case("train --num-gpus 99", "--num-gpus 99"),
    Case("train --machine-rank 3", "--machine-rank 3"),
    # The other programs.
    Case("convert --method pfnet w.pth b.pth", "'pfnet'"),
    Case("convert --method dcama w.pth b.pth", "checkpoint w.pth does not exist"),
    Case("convert --method dcama w.pth b.pth", "no DCAMA checkpoint", save({"a": torch.zeros(1)})),
    Case("convert --method dcama w.pth b.pth", "w.pth is no checkpoint of plain", save(Code())),
    Case("convert --method dcama w.pth tiny.yaml", "tiny.yaml exists", save({})),
    Case("head w.pth b.pth", "checkpoint w.pth does not exist"),
    Case("head w.pth b.pth", "w.pth is no checkpoint of plain", save(Code())),
    Case("head w.pth b.pth", "w.pth holds no backbone", save({"model": {"a": torch.zeros(1)}})),
    Case("head w.pth b.pth", "a backbone only", save({"model": {"backbone.a": torch.zeros(1)}})),
    Case("score --data toy --shots 9", "--shots 9: toy/cat/images has only"),
    Case("score --data nowhere", "nowhere"),
    Case("folds --folds 7", "fold 7 does not exist"),
    Case("folds --weights {fald}.pth", "--weights {fald}.pth"),
    Case("folds --config-file tiny.yaml nowhere.yaml", "nowhere.yaml"),
    Case("folds --jobs 0", "--jobs 0"),
    Case("folds --seeds -1", "--seeds [-1]"),
    Case("draw --dataset toy_val", "'toy_val' is not registered"),
    Case("draw --num 0", "--num"),
    Case("proposals", "toy/cat/images", each("images", partial(cut, size=1200))),
    Case("proposals --config-file nowhere.yaml", "nowhere.yaml does not exist"),
    Case("proposals --dataset toy_val", "'toy_val' is not registered"),
    Case("proposals --num 0", "--num"),
    Case("proposals --proposals 0", "--proposals"),
    Case("proposals --shots 9", "the 10 images"),
    Case("proposals --output tiny.yaml", "output folder tiny.yaml"),
    Case("proposals MODEL.META_ARCHITECTURE DCAMA", "DCAMA makes no proposals"),
    Case("proposals MODEL.PROPOSALS.DIM 33", "MODEL.PROPOSALS.DIM 33"),
    Case("proposals MODEL.WEIGHTS w.pth", "checkpoint w.pth does not exist"),
    Case("proposals MODEL.WEIGHTS w.pth", "w.pth: none of its 1 names", save({"a": torch.zeros(1)})),
    Case("proposals MODEL.WEIGHTS w.pth", "w.pth is no checkpoint of plain", save(Code())),
    Case("supports", "toy_fold0_val: all 4 episodes are of one class"),
    Case("supports --episodes 1", "--episodes must be at least 2"),
    Case("supports --dataset toy_val", "'toy_val' is not registered"),
    Case("supports --dataset toy_both OUTPUT_DIR tiny.yaml", "output folder tiny.yaml"),
    Case("supports --dataset toy_both --weights w.pth", "checkpoint w.pth does not exist"),
    Case("supports --dataset toy_both MODEL.META_ARCHITECTURE PotentialObjectsSegmenter", "no supports"),
    Case("benchmark --repeats 0", "must be at least 1"),
    Case("benchmark --output toy", "--output toy is a folder"),
    Case("benchmark --output nowhere/numbers.json", "folder nowhere does not exist"),
    Case("glyphs --size 3", "size >= 32"),
    Case("glyphs --check", "index.json is broken", write("glyphs/index.json", "{}")),
    Case("pascal5i", "VOC2012 not found"),
    Case("coco20i", "instances_train2014.json not found"),
    Case("coco20i", "instances_train2014.json is not", write(_COCO_2014, '{"categories": [')),
    Case("fss1000", "fss1000/bus holds no images", write("fss1000/bus/readme", "")),
]
