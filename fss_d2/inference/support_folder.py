"""Annotated images in a folder, each beside its mask."""

from pathlib import Path

from fss_d2.data.images import is_image_name

__all__ = ["find_supports"]

_MARK = "_mask"


def find_supports(folder: Path, name: str = "object") -> dict[str, tuple[list[Path], list[Path]]]:
    """Find the supports of one or several classes.

    ``<folder>/<class>/<name>.jpg`` lies beside its mask ``<name>.png`` or ``<name>_mask.png``; an image that
    is a PNG itself has a ``<name>_mask.png``. Without folders of classes all files are of one class. What
    starts with a dot is left out.

    Args:
        folder: of the classes, or of the files of one.
        name: of the class where there are no folders of classes.

    Returns:
        Images and their masks by class, in the order of the names.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: an image has no mask, there is no image, or images lie beside folders of classes.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"support folder {folder} does not exist; give one with <class>/<name>.jpg")
    classes = [path for path in sorted(folder.glob("[!.]*")) if path.is_dir()]
    here = _pairs(folder)
    if classes and here[0]:
        raise ValueError(
            f"{folder} has the image {here[0][0].name} beside the class folder {classes[0].name}: move all "
            "images into folders of classes, or all out of them"
        )
    found = {path.name: _pairs(path) for path in classes} if classes else {name: here}
    for class_name, (images, _) in found.items():
        if not images:
            where = folder / class_name if classes else folder
            raise ValueError(f"{where} holds no image: add images with their masks, or take another folder")
    return found


def _pairs(folder: Path) -> tuple[list[Path], list[Path]]:
    """Images of a folder by name, and their masks."""
    files = [p for p in sorted(folder.glob("[!.]*")) if is_image_name(p) and p.is_file()]
    pngs = {p.stem: p for p in files if p.suffix.lower() == ".png"}
    marked = {stem.removesuffix(_MARK): p for stem, p in pngs.items() if stem.endswith(_MARK)}
    plain = [p for p in files if p not in marked.values()]
    pictures = {p.stem for p in plain if p != pngs.get(p.stem)}
    images = [p for p in plain if p != pngs.get(p.stem) or p.stem not in pictures]
    masks = []
    for image in images:
        beside = pngs.get(image.stem)
        mask = marked.get(image.stem, beside if beside in plain and beside != image else None)
        if mask is None:
            raise ValueError(
                f"image {image} has no mask: add {image.stem}{_MARK}.png beside it, or take the image away"
            )
        masks.append(mask)
    return images, masks
