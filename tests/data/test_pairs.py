"""Pictures and their masks in both folder layouts: the same things are refused, by name."""

import logging
from pathlib import Path

import pytest

from fss_d2.data.pairs import check_layout, find_pairs, find_pairs_in_parts


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


@pytest.mark.parametrize(
    ("files", "pairs"),
    [
        (["a.jpg", "a_mask.png"], [("a.jpg", "a_mask.png")]),
        (["a.jpg", "a.png"], [("a.jpg", "a.png")]),
        (["a.JPG", "a_mask.JPG", "b.png", "b_mask.bmp"], [("a.JPG", "a_mask.JPG"), ("b.png", "b_mask.bmp")]),
        (["a.jpg", "A.jpg", "a.png", "A.png"], [("A.jpg", "A.png"), ("a.jpg", "a.png")]),
        (["a.b.jpg", "a.b_mask.png", ".a.jpg", "notes.txt"], [("a.b.jpg", "a.b_mask.png")]),
        (["a.JPG", "a_MASK.PNG", "b.jpg", "b_Mask.png"], [("a.JPG", "a_MASK.PNG"), ("b.jpg", "b_Mask.png")]),
        (["e\u0301.jpg", "\u00e9_mask.png"], [("e\u0301.jpg", "\u00e9_mask.png")]),  # one letter, or two
        (["man_mask.jpg", "man_mask.png"], [("man_mask.jpg", "man_mask.png")]),  # a man with a mask
        (["man_mask.png", "man_mask_mask.png"], [("man_mask.png", "man_mask_mask.png")]),
        ([], []),
    ],
)
def test_masks_next_to_pictures(tmp_path: Path, files: list[str], pairs: list[tuple[str, str]]) -> None:
    touch(tmp_path, *files)
    assert [(image.name, mask.name) for image, mask in find_pairs(tmp_path)] == pairs


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["a.jpg", "a.bmp", "a_mask.png"],
            r": the images a\.bmp and a\.jpg have the same name, and a_mask\.png can be of one only; rename",
        ),
        (
            ["a.jpg", "a.png", "a_mask.png"],
            r"the images a\.jpg and a\.png have the same name, and a_mask\.png",
        ),
        (["a.jpg", "a.bmp", "a.png"], r"the images a\.bmp and a\.jpg and a\.png have the same name; rename"),
        (["a.jpg", "a.JPG", "a_mask.png"], r"the images a\.JPG and a\.jpg have the same name"),
        (["a.png", "a.PNG"], r"the images a\.PNG and a\.png have the same name"),
        (
            ["a.jpg", "a_mask.png", "a_mask.bmp"],
            r"image a\.jpg has the masks a_mask\.bmp and a_mask\.png; remove",
        ),
        (["a.jpg", "a_mask.png", "b_mask.png"], r"^mask .*b_mask\.png has no image in .*: add it or remove"),
        (["a.jpg", "a_mask.png", "a_mask_mask.png"], r"^mask .*a_mask_mask\.png has no image in"),
        (["a.jpg"], r"^image .*a\.jpg has no mask: add a_mask\.png next to it, or remove the image$"),
        (
            ["a.jpg", "a_mask.png", "b.HEIC", "b_mask.png"],
            r"b_mask\.png has no image in .* that can be read, b\.HEIC \(HEIC files cannot be decoded here",
        ),
    ],
)
def test_masks_next_to_pictures_that_fit_twice_or_not_at_all(
    tmp_path: Path, files: list[str], message: str
) -> None:
    touch(tmp_path, *files)
    with pytest.raises(ValueError, match=message) as caught:
        find_pairs(tmp_path)
    assert "\n" not in str(caught.value)


def test_masks_in_a_folder_of_their_own(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.JPG", "images/b.png", "masks/a.PNG", "masks/b.jpg", "masks/notes.txt")
    found = [(image.name, mask.name) for image, mask in find_pairs_in_parts(tmp_path)]
    assert found == [("a.JPG", "a.PNG"), ("b.png", "b.jpg")]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["images/a.jpg", "images/a.bmp", "masks/a.png"],
            r"images: two images have the name 'a' with different",
        ),
        (
            ["images/a.jpg", "masks/a.png", "masks/a.bmp"],
            r"image a\.jpg has the masks a\.bmp and a\.png; remove",
        ),
        (["images/a.jpg", "masks/a.png", "masks/b.png"], r"^mask .*b\.png has no image in .*images: add it"),
        (["images/a.jpg", "masks/a_mask.png"], r"^image .*a\.jpg has no mask: add .*masks/a\.png or remove"),
        (
            ["images/a.jpg", "masks/a.png", "images/b.cr2", "masks/b.png"],
            r"b\.png has no image in .*images that can be read, b\.cr2 \(CR2 files cannot",
        ),
        (["images/a.heic", "masks/a.png"], r"images holds no image that can be read, a\.heic \(HEIC files"),
        (["images/notes.txt", "masks/a.png"], r"images holds no image: add images"),
    ],
)
def test_masks_in_a_folder_of_their_own_that_fit_twice_or_not_at_all(
    tmp_path: Path, files: list[str], message: str
) -> None:
    touch(tmp_path, *files)
    with pytest.raises(ValueError, match=message) as caught:
        find_pairs_in_parts(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", ["next", "parts"])
def test_lost_pictures_and_subfolders_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, layout: str
) -> None:
    images, masks = (tmp_path, tmp_path) if layout == "next" else (tmp_path / "images", tmp_path / "masks")
    touch(images, "a.jpg", "b.HEIC", "more/c.jpg")
    touch(masks, "a.png")
    with caplog.at_level(logging.WARNING):
        assert len((find_pairs if layout == "next" else find_pairs_in_parts)(tmp_path)) == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"Left out in {images}: b.HEIC (HEIC files cannot be decoded here, save it as JPEG or PNG), "
        "more (subfolders are not searched)"
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["key/b.jpg", "key/b_mask.png"],
            r"key has pictures \(b\.jpg\) but no folder images: arrange all",
        ),
        (["cup/c.jpg"], r"cup has pictures \(c\.jpg\) next to its folder images: move them into images"),
        (["c.jpg"], r" has pictures \(c\.jpg\) next to class folders: arrange all"),
        (
            ["key/masks/b.png"],
            r"key has a folder masks but no folder images: add the images, or move it away",
        ),
    ],
)
def test_mixed_layouts(tmp_path: Path, files: list[str], message: str) -> None:
    touch(tmp_path, "cup/images/a.jpg", "cup/masks/a.png", "notes.txt", "lists/train.txt")
    check_layout(tmp_path)
    touch(tmp_path, *files)
    with pytest.raises(ValueError, match=message) as caught:
        check_layout(tmp_path)
    assert "\n" not in str(caught.value)
    if not files[0].startswith("cup"):
        check_layout(tmp_path, ["cup"])
