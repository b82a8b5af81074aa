"""Bad inputs of the programs for one's own pictures: fss-d2 label, demo, export, figures."""

from functools import partial

import torch

from tests.spoiling import Case, Code, cut, each, mask, remove, replace, save, write

__all__ = ["CASES"]

_OTHER_SIZE = each("masks", partial(mask, side=20, value=255))
_EMPTY = each("masks", partial(mask, side=32, value=0))
_CUT = each("images", partial(cut, size=1200))
_NO_SUPPORTS = "MODEL.META_ARCHITECTURE PotentialObjectsSegmenter"
_JOB = '{"version": 3, "settings": {"supports": "x", "min_area": 1}, "model": {"weights": "y"}}'
_COCO = "label --support coco.json --support-images toy/cat/images"
_STEM = "backbone.model.conv_stem.weight"
_LABELME = "label --support labelme"
_NO_FOLDER = "cannot write to the output folder tiny.yaml"
_MASKED = "one --support-mask"
_DESCRIBED = '{"shapes": [], "imagePath": "a.png", "imageHeight": 32, "imageWidth": 32}'


def _photos_cut() -> None:
    for name in "ab":
        cut(f"photos/{name}.png", 1200)()


def _class_without_images() -> None:
    for number in range(3):
        for part in ("images", "masks"):
            remove(f"toy/dog/{part}/{number}.png")()


_LABEL = [
    # Supports.
    Case("label --support nowhere", "nowhere does not exist; give a folder with <class>/images"),
    Case("label --support photos", "image photos/a.png has no mask: add a_mask.png next to it"),
    Case("label", "is 20x20 pixels but its image", _OTHER_SIZE),
    Case("label", "toy/dog/images/2.png has no mask: add", remove("toy/dog/masks/2.png")),
    Case("label", "toy/dog/masks/2.png has no image", remove("toy/dog/images/2.png")),
    Case("label", "no pixel shows class 0; fix the mask", _EMPTY),
    Case("label", "image file toy/cat/images/0.png cannot be read", _CUT),
    Case("label", "image file toy/cat/images/1.png cannot be read", write("toy/cat/images/1.png", "a text")),
    Case("label", "toy/dog/images holds no image: add images", _class_without_images),
    Case(_COCO, "coco.json is not valid JSON", cut("coco.json", 100)),
    Case(_COCO, "coco.json holds a JSON list, not an object", write("coco.json", "[]")),
    Case(_COCO, "coco.json is in neither COCO's nor LabelMe's format", write("coco.json", "{}")),
    Case(_COCO, "has category 8", replace("coco.json", '"category_id": 7', '"category_id": 8')),
    Case(_COCO.replace("toy/cat/images", "nowhere"), "nowhere/0.png does not exist"),
    Case(_LABELME, "labelme/a.json is not valid JSON", write("labelme/a.json", "{")),
    Case(_LABELME, "labelme/a.json is not in LabelMe's format: it needs", write("labelme/a.json", "{}")),
    Case(_LABELME, "labelme annotates no object", write("labelme/a.json", _DESCRIBED)),
    # Images to label.
    Case("label --images nowhere", "nowhere is not a folder; give the folder of the images"),
    Case("label --images empty", "empty holds no image; give", write("empty/readme", "")),
    Case("label", "none of 2 images could be labelled; image file photos/a.png cannot be read", _photos_cut),
    # The output folder.
    Case("label", "out is in use for something else: give", write("out/thesis.txt", "mine")),
    Case("label --output tiny.yaml", "tiny.yaml is in use for something else"),
    Case("label --images photos/more --output photos", "photos holds the images", write("photos/more/x", "")),
    Case("label --output tiny.yaml/out", _NO_FOLDER),
    Case("label --output photos", "output photos holds the images to label"),
    Case(
        "label",
        "job with other settings (min_area, negatives, present_above, supports, weights): give",
        write("out/job.json", _JOB),
    ),
    Case("label", "out holds a job of another version", write("out/job.json", '{"version": 1}')),
    Case("label", "out/job.json is not valid JSON", write("out/job.json", "{")),
    # Settings.
    Case("label --formats voc", "formats: there is no 'voc'; choose from coco"),
    Case("label --formats coco,,png", "formats: there is no ''; choose from coco"),
    Case("label --review-below -1", "review_below is -1.0; an IoU is from 0 to 1"),
    Case("label --review-below nan", "review_below is nan"),
    Case("label --min-area -1", "min_area is -1; it must be 0"),
    Case("label --min-area ten", "--min-area: invalid int value: 'ten'"),
    Case("label --config-file nowhere.yaml", "nowhere.yaml does not exist"),
    Case("label --weights w.pth", "checkpoint w.pth does not exist"),
    Case("label --weights w.pth", "w.pth: none of its 1 names (a)", save({"a": torch.zeros(1)})),
    Case("label --weights w.pth", "w.pth lacks", save({_STEM: torch.zeros(24, 3, 3, 3)})),
    Case("label --weights w.pth", "w.pth is no checkpoint of plain", save(Code())),
    Case(f"label {_NO_SUPPORTS}", "PotentialObjectsSegmenter takes no supports"),
    Case("label INPUT.FEW_SHOT_SIZE (0,0)", "INPUT.FEW_SHOT_SIZE (0, 0)"),
    Case("label --num-gpus 99", "--num-gpus 99"),
]

_DEMO = [
    Case("demo --support-dir nowhere", "nowhere does not exist; give a folder"),
    Case("demo", "is 20x20 pixels but its image", _OTHER_SIZE),
    Case("demo", "no pixel shows class 0", _EMPTY),
    Case("demo", "image file toy/cat/images/0.png cannot be read", _CUT),
    Case("demo --support-box 1 1 5 5", "go with --support, not with --support-dir"),
    Case("flat", "flat/c.jpg has no mask: add c_mask.png", remove("flat/c.png")),
    Case(
        "flat",
        "mask file flat/c.png: the mask is 20x20 pixels but its image flat/c.jpg",
        mask("flat/c.png", 20, 1),
    ),
    Case("flat", "mask file flat/c.png: no pixel of the image shows the object", mask("flat/c.png", 32, 0)),
    Case("flat", "mask file flat/c.png cannot be read", write("flat/c.png", "a text")),
    Case("flat", "image file flat/c.jpg cannot be read", cut("flat/c.jpg", 300)),
    Case("flat", "c.jpg next to the class folder cat: move all", write("flat/cat/x", "")),
    Case("one", "--support needs either --support-mask or --support-box"),
    Case("one --support-box 9 9 3 3", "box (9.0, 9.0, 3.0, 3.0): give x0 y0 x1 y1"),
    Case("one --support-box 40 40 50 50", "object, support 1: no pixel of the image shows the object"),
    Case("one --support-box 1 2 3", "--support-box: expected 4 arguments"),
    Case(f"{_MASKED} nowhere.png", "mask file nowhere.png does not exist"),
    Case(f"{_MASKED} m.png m.png", "object: 1 support images and 2 masks", mask("m.png", 32, 255)),
    Case("demo --input nowhere/*.jpg", "--input nowhere/*.jpg: there is no such file"),
    Case("demo --input empty", "empty holds no image", write("empty/readme", "")),
    Case(
        "demo --save mask,coco",
        "1 of 2 images were left out; image file photos/b.png cannot",
        cut("photos/b.png", 900),
    ),
    Case("demo", "out/mask/b.png exists: take another --output, or", write("out/mask/b.png", "mine")),
    Case("demo --output tiny.yaml", _NO_FOLDER),
    Case("demo --save mask,video", "--save 'video': choose from mask"),
    Case("demo --save attention MODEL.META_ARCHITECTURE Prototype", "Prototype has no attention maps"),
    Case(f"demo {_NO_SUPPORTS}", "PotentialObjectsSegmenter takes no supports"),
    Case("demo --config-file nowhere.yaml", "nowhere.yaml does not exist"),
    Case("demo --weights w.pth", "checkpoint w.pth does not exist"),
]

_EXPORT = [
    Case("export --support", "--support: expected at least one argument"),
    Case("export --support nowhere.png", "image file nowhere.png does not exist"),
    Case("export --support-mask nowhere.png", "mask file nowhere.png does not exist"),
    Case("export --support photos/a.png photos/b.png", "object: 2 support images and 1 masks"),
    Case("export", "0.png: the mask is 20x20 pixels but its image photos/a.png is 32x32", _OTHER_SIZE),
    Case("export", "0.png: no pixel of the image shows the object", _EMPTY),
    Case("export", "image file photos/a.png cannot be read", _photos_cut),
    Case("export --image nowhere.png", "image file nowhere.png does not exist"),
    Case("export --format tflite", "--format: invalid choice: 'tflite'"),
    Case("export --size 0 0", "--size must be at least 1 1"),
    Case("export --output tiny.yaml", "--output tiny.yaml exists: give another name"),
    Case("export --output toy --overwrite", "--output toy exists: give another name"),
    Case("export --output tiny.yaml/m.pt2", _NO_FOLDER),
    Case("export", "--output out/m.pt2.json exists", write("out/m.pt2.json", "{}")),
    Case("export TEST.SCALES (32,64)", "TEST.SCALES gives 2 sizes"),
    Case(f"export {_NO_SUPPORTS}", "PotentialObjectsSegmenter takes no supports"),
    Case("encoded", "support file w.pth does not exist"),
    Case("encoded", "support file w.pth is none", write("w.pth", "a text")),
    Case("encoded", "support file w.pth is none", save({"a": 1})),
    Case("encoded", "support file w.pth is none", save(Code())),
]

_FIGURES = [
    Case("figures --figure heads", "--figure: invalid choice: 'heads'"),
    Case("figures --figure agnostic", "DCAMA has no figure 'agnostic' with these settings; choose from"),
    Case("figures --dataset toy_val", "'toy_val' is not registered"),
    Case("figures --num 0", "--num must be at least 1"),
    Case("figures --shots 0", "--shots must be at least 1"),
    Case("figures --shots 9", "the 10 images"),
    Case("figures --height -5", "--height must be at least 1"),
    Case("figures", "toy/cat/images", _CUT),
    Case("figures", "is 20x20 pixels but its image", _OTHER_SIZE),
    Case("figures", "no pixel shows class 0", _EMPTY),
    Case("figures --output tiny.yaml", _NO_FOLDER),
    Case("figures --figure tsne --output tiny.yaml", _NO_FOLDER),
    Case("figures --weights w.pth", "checkpoint w.pth does not exist"),
    Case("figures --weights w.pth", "w.pth is no checkpoint of plain", save(Code())),
    Case(f"figures {_NO_SUPPORTS}", "PotentialObjectsSegmenter reads no supports"),
    Case("figures MODEL.DCAMA.CKMM True", "are missing: set MODEL.WEIGHTS"),
]

CASES = [*_LABEL, *_DEMO, *_EXPORT, *_FIGURES]
