"""The virtual environment of one checkout and the steps that make it."""

import os
import re
import shutil
import site
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.environment.commands import SetupError, run, succeeds
from tools.environment.journal import Journal, Step, perform
from tools.setup_env import JOURNAL

OLDEST_TORCH = (2, 4)  # as in pyproject.toml
TORCH_SPEC = "torch==2.12.1 torchvision==0.27.1"
NO_CHOICES = {"TORCH_SPEC": "", "TORCH_INDEX": ""}
DISK_GB = 8.0  # CUDA builds of torch: about 5 GB installed and 3 GB in pip's cache
DISK_GB_WITHOUT_CUDA = 3.0


class Environment:
    """The virtual environment `.venv` under `root`. Raises SetupError wherever it cannot be made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / ".venv"
        self.python = self.folder / "bin" / "python"
        self.journal = Journal.load(self.folder / JOURNAL)

    def make(self) -> None:
        """Bring the environment up to date."""
        self._remove_if_unusable()
        asked = {name: os.environ[name] for name in NO_CHOICES if os.environ.get(name)}
        if os.environ.get("PYTHON") or "PYTHON" not in self.journal.choices:
            asked["PYTHON"] = f"{sys.executable} {sys.version_info.major}.{sys.version_info.minor}"
        if self.journal.done and asked.get("PYTHON", "") not in ("", self.journal.choices["PYTHON"]):
            sys.stdout.write("setup: another PYTHON is chosen, making .venv anew\n")
            self._remove()
        self.journal.choices = {**NO_CHOICES, **self.journal.choices, **asked}
        perform(self.steps(), self.journal)

    def _remove_if_unusable(self) -> None:
        if not self.folder.exists():
            return
        if not self.journal.path.exists():
            raise SetupError(f"{self.folder} was not made by `make setup`: move it away and run again")
        if self.journal.running or not os.access(self.python, os.X_OK):
            sys.stdout.write("setup: the last run was cut off, making .venv anew\n")
            self._remove()

    def _remove(self) -> None:
        shutil.rmtree(self.folder)
        kept = {name: value for name, value in self.journal.choices.items() if name != "PYTHON"}
        self.journal = Journal(self.journal.path, choices=kept)

    def steps(self) -> list[Step]:
        """The steps in order, for the choices in the journal."""
        choices = self.journal.choices
        installer = self.root / "tools" / "install_detectron2.py"
        pyproject = (self.root / "pyproject.toml").read_text()
        torch_inputs = f"{choices['TORCH_SPEC'] or TORCH_SPEC} {choices['TORCH_INDEX']}"
        return [
            Step("venv", "virtual environment", f"{choices['PYTHON']} {self.folder}", self._make_venv),
            Step("pip", "pip and setuptools", "", self._install_pip),
            Step("torch", "torch and torchvision, minutes if new", torch_inputs, self._install_torch),
            Step("detectron2", "detectron2", installer.read_text(), self._install_detectron2),
            Step("package", "fss_d2 and the packages it uses", pyproject, self._install_package),
            Step("check", "check", "", self._check),
        ]

    def _pip(self, *arguments: str) -> None:
        run([str(self.python), "-m", "pip", "install", *arguments])

    def _make_venv(self) -> None:
        choices = self.journal.choices
        adopted = not choices["TORCH_SPEC"] and has_usable_torch()
        if not adopted:
            cuda = sys.platform == "linux" and not choices["TORCH_INDEX"]
            check_disk(self.root, DISK_GB if cuda else DISK_GB_WITHOUT_CUDA)
        nested = sys.prefix != sys.base_prefix
        create_venv(self.folder, ["--system-site-packages"] if adopted and not nested else [])
        if adopted and nested:
            # A venv made from a venv sees only the outermost interpreter's packages: name the inner ones.
            lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
            (packages,) = self.folder.glob("lib/python*/site-packages")
            (packages / "fss_d2_parent.pth").write_text("\n".join(lines) + "\n")
        self.journal.adopted = adopted

    def _install_pip(self) -> None:
        self._pip("pip>=23.1", "setuptools>=70.1,<81")

    def _install_torch(self) -> None:
        choices = self.journal.choices
        if self.journal.adopted and not choices["TORCH_SPEC"]:
            return
        index = ["--extra-index-url", choices["TORCH_INDEX"]] if choices["TORCH_INDEX"] else []
        self._pip(*(choices["TORCH_SPEC"] or TORCH_SPEC).split(), *index)

    def _install_detectron2(self) -> None:
        if not succeeds([str(self.python), "-c", "import detectron2"]):
            run([str(self.python), str(self.root / "tools" / "install_detectron2.py")])

    def _install_package(self) -> None:
        # A cv2 that works, with or without windows, is kept: two of them in one environment would clash.
        has_opencv = self.journal.adopted and succeeds([str(self.python), "-c", "import cv2"])
        extras = "dev,weights" if has_opencv else "dev,weights,opencv"
        self._pip("--no-build-isolation", "--editable", f"{self.root}[{extras}]")

    def _check(self) -> None:
        run([str(self.python), "-m", "fss_d2.check_env"])


def has_usable_torch() -> bool:
    """Whether this interpreter imports a torch that is new enough and a torchvision that matches it."""
    code = "import torch, torchvision; print('torch', torch.__version__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    found = re.search(r"^torch (\d+)\.(\d+)", result.stdout, re.MULTILINE)
    return found is not None and result.returncode == 0 and tuple(map(int, found.groups())) >= OLDEST_TORCH


def check_disk(folder: Path, needed_gb: float) -> None:
    """Raise SetupError when the disk of `folder` has less than `needed_gb` (10^9 bytes) free."""
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < needed_gb:
        raise SetupError(
            f"{folder} has {free_gb:.1f} GB free, {needed_gb:.0f} GB are needed: free some space"
        )


def create_venv(folder: Path, options: list[str]) -> None:
    """Create a virtual environment with pip in it: by venv, virtualenv, or a virtualenv fetched by pip."""
    arguments = [*options, str(folder)]
    if succeeds([sys.executable, "-c", "import venv, ensurepip"]):
        run([sys.executable, "-m", "venv", *arguments])
    elif succeeds([sys.executable, "-m", "virtualenv", "--version"]):
        run([sys.executable, "-m", "virtualenv", *arguments])
    elif succeeds([sys.executable, "-m", "pip", "--version"]):
        with tempfile.TemporaryDirectory() as temporary:
            run([sys.executable, "-m", "pip", "install", "--target", temporary, "virtualenv"])
            run([sys.executable, "-m", "virtualenv", *arguments], {"PYTHONPATH": temporary})
    else:
        raise SetupError(
            "this Python has neither venv nor pip: `sudo apt install python3-venv`, then run again"
        )
