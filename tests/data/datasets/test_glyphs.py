import doctest
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fss_d2.data.datasets import glyph_drawing, glyphs
from fss_d2.data.datasets.glyph_drawing import CLASS_NAMES, SYMBOLS, fonts_of, glyph_bitmap
from fss_d2.data.datasets.glyphs import GlyphGenerator, check_glyphs, load_records, write_glyphs
from tests.data.datasets.archives import snapshot

SIZE = 48


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of four images per class, one with each partner fold."""
    path = tmp_path_factory.mktemp("data")
    write_glyphs(path, size=SIZE, images_per_class=4)
    return path


def contents(root: Path) -> dict[str, bytes]:
    return {name: content for name, (_, content) in snapshot(root / "glyphs").items()}


def read(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_eighty_symbols_that_differ_and_that_fonts_hold() -> None:
    assert len(CLASS_NAMES) == len(set(SYMBOLS.values())) == 80
    assert min(len(fonts_of(c)) for c in range(80)) >= 7
    # A font without the character would draw its "missing" box: the same one for two characters.
    for font in ("DejaVuSans", "STIXGeneral"):
        held = [c for c in range(80) if font in fonts_of(c)]
        assert len({glyph_bitmap(c, font).tobytes() for c in held}) == len(held) >= 79


def test_image_is_a_function_of_seed_and_index() -> None:
    image, class_map = GlyphGenerator(3, SIZE).generate(17)
    again, map_again = GlyphGenerator(3, SIZE).generate(17)
    assert np.array_equal(image, again)
    assert np.array_equal(class_map, map_again)
    assert image.shape == (SIZE, SIZE, 3) and image.dtype == class_map.dtype == np.uint8
    for other in (GlyphGenerator(4, SIZE).generate(17)[0], GlyphGenerator(3, SIZE).generate(97)[0]):
        assert not np.array_equal(image, other)


@pytest.mark.parametrize("index", [0, 33, 79])
def test_mask_marks_the_pixels_that_symbols_changed(index: int) -> None:
    generator = GlyphGenerator(0, 160)
    image, class_map = generator.generate(index)
    bare = generator.finish(generator.background(index), index)
    change = np.abs(image.astype(int) - bare).sum(2)
    assert np.median(change[class_map > 0]) > 40
    far = np.ones_like(class_map, bool)  # from the blurred edge of any symbol
    for y, x in np.argwhere(class_map > 0):
        far[max(0, y - 6) : y + 7, max(0, x - 6) : x + 7] = False
    assert far.any()
    assert change[far].max() == 0
    assert index + 1 in class_map
    assert set(np.unique(class_map)) - {0} <= {c + 1 for c in generator.classes(index)}


def test_colour_does_not_tell_the_class() -> None:
    generator = GlyphGenerator(0, 64)
    colours = [image[mask == 6].mean(0) for image, mask in map(generator.generate, range(5, 805, 80))]
    assert np.std(colours, axis=0).min() > 25


def test_folds_divide_classes_and_images(root: Path) -> None:
    novel = [glyphs.metadata(f"glyphs_fold{f}_val")["class_ids"] for f in range(4)]
    assert sorted(c for ids in novel for c in ids) == list(range(80))
    for fold in range(4):
        train, val = (load_records(f"glyphs_fold{fold}_{split}", root) for split in ("train", "val"))
        assert glyphs.metadata(f"glyphs_fold{fold}_train")["class_ids"] == sorted(
            set(range(80)) - set(novel[fold])
        )
        assert sorted(r["image_id"] for r in train + val) == list(range(320))
        assert len(train) >= 180  # 9/16 of all: those with neither subject nor partner in the fold
        assert {c for r in train for c in r["classes"]} == set(range(80)) - set(novel[fold])
        assert {c for r in val for c in r["classes"]} == set(novel[fold])


def test_training_pixels_show_no_novel_class(root: Path) -> None:
    novel = np.array(glyphs.metadata("glyphs_fold1_train")["novel_class_ids"]) + 1
    for record in load_records("glyphs_fold1_train", root):
        class_map = read(record["sem_seg_file_name"])
        assert not np.isin(class_map, novel).any()
        assert [c + 1 for c in record["classes"]] == np.unique(class_map[class_map > 0]).tolist()
        assert class_map.shape == read(record["file_name"]).shape[:2] == (record["height"], record["width"])


def test_workers_do_not_change_the_files(root: Path, tmp_path: Path) -> None:
    write_glyphs(tmp_path, size=SIZE, images_per_class=1, workers=2)
    mine, all_files = contents(tmp_path), contents(root)
    mine.pop("index.json")
    assert {name: all_files[name] for name in mine} == mine


def test_second_run_keeps_and_a_stopped_one_goes_on(tmp_path: Path) -> None:
    write_glyphs(tmp_path, size=SIZE, images_per_class=1)
    before = snapshot(tmp_path / "glyphs")
    write_glyphs(tmp_path, size=SIZE, images_per_class=1)
    assert snapshot(tmp_path / "glyphs") == before
    for name in ("index.json", "images/000003.jpg", "masks/000004.png"):
        (tmp_path / "glyphs" / name).unlink()
    write_glyphs(tmp_path, size=SIZE, images_per_class=1)
    assert contents(tmp_path) == {name: content for name, (_, content) in before.items()}
    write_glyphs(tmp_path, size=SIZE, images_per_class=2)
    assert len(json.loads((tmp_path / "glyphs/index.json").read_text())["images"]) == 160


def test_check_counts_and_finds_faults(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"index\.json not found: run `python datasets/prepare_glyphs\.py`"
    ):
        check_glyphs(tmp_path)
    write_glyphs(tmp_path, size=SIZE, images_per_class=1)
    counts = check_glyphs(tmp_path)
    assert counts["glyphs_fold0_train"] == (60, 60)
    assert counts["glyphs_fold3_val"] == (20, 20)
    mask = tmp_path / "glyphs/masks/000009.png"
    whole = mask.read_bytes()
    mask.write_bytes(whole[:50])
    with pytest.raises(ValueError, match=r"000009\.png is missing or broken"):
        check_glyphs(tmp_path)
    mask.write_bytes((tmp_path / "glyphs/masks/000010.png").read_bytes())
    with pytest.raises(ValueError, match=r"000009\.png is not what seed 0 draws"):
        check_glyphs(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"seed": 1}, "holds glyphs made with"), ({"size": 8}, "size >= 32"), ({"images_per_class": 0}, ">= 1")],
)
def test_refuses_settings(root: Path, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_glyphs(root, **{"size": SIZE, **settings})


def test_example_in_the_documentation() -> None:
    failed, attempted = doctest.testmod(glyph_drawing)
    assert (failed, attempted) == (0, 2)
