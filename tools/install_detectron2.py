"""Installs Detectron2 0.6 from the package index into the Python that runs this script.

Detectron2 itself is not on the index by name. Its Python files are, as the source archive `pb1-detectron2`,
without the C++ operators; recent pip refuses that archive's build files. So the archive is fetched with
`unearth`, compared with a known SHA-256, given a small pyproject.toml in place of its setup.py, and installed
with pip as `detectron2`. Takes seconds, needs no compiler.

    python tools/install_detectron2.py

Standard library only; pip's settings (index, proxy, certificates) apply.
"""

import argparse
import ast
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

ARCHIVE = "pb1-detectron2==0.6"
ARCHIVE_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
# Folders that Detectron2's own setup.py installs as detectron2.projects.<name>.
PROJECTS = {
    "point_rend": "projects/PointRend/point_rend",
    "deeplab": "projects/DeepLab/deeplab",
    "panoptic_deeplab": "projects/Panoptic-DeepLab/panoptic_deeplab",
}
# The requirements of Detectron2 0.6, less what only Caffe2 export needs, with bounds that today's Python can
# meet. setuptools: detectron2.model_zoo imports pkg_resources, gone from 81 on.
PYPROJECT = """\
[build-system]
requires = ["setuptools>=70.1,<81"]
build-backend = "setuptools.build_meta"

[project]
name = "detectron2"
version = "0.6"
dependencies = [
    "Pillow>=9.5", "matplotlib", "pycocotools>=2.0.2", "termcolor>=1.1", "yacs>=0.1.8", "tabulate",
    "cloudpickle", "tqdm>4.29.0", "tensorboard", "fvcore>=0.1.5", "iopath>=0.1.7", "omegaconf>=2.1",
    "hydra-core>=1.1", "black", "packaging", "setuptools<81",
]

[tool.setuptools.packages.find]
include = ["detectron2*"]

[tool.setuptools.package-data]
"detectron2.model_zoo" = ["configs/**/*.yaml", "configs/**/*.py"]
"""


class InstallError(RuntimeError):
    """Detectron2 cannot be installed; the message is one line and says what to do."""


def index_arguments(pip_config: str) -> list[str]:
    """Translate the output of `pip config list` into arguments of unearth.

    Environment settings win over files, as in pip. An extra index is passed on only together with a chosen
    main index, since unearth would otherwise leave the default one out.
    """
    settings: dict[str, str] = {}
    for line in sorted(pip_config.splitlines(), key=lambda line: line.startswith(":env:")):
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = ast.literal_eval(value) if value else ""
    main = settings.get("index-url")
    urls = [main, *settings.get("extra-index-url", "").split()] if main else []
    arguments = [word for url in urls for word in ("--index-url", url)]
    hosts = settings.get("trusted-host", "").split()
    return arguments + [word for host in hosts for word in ("--trusted-host", host)]


def fetch_archive(folder: Path) -> Path:
    """Download the source archive into `folder` with unearth, which is put there too and not installed."""
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "install", "--quiet", "--target", str(folder / "unearth"), "unearth"], check=True)
    env = {**os.environ, "PYTHONPATH": str(folder / "unearth")}
    if "PIP_CERT" in env:
        env.setdefault("SSL_CERT_FILE", env["PIP_CERT"])
    pip_config = subprocess.check_output([*pip, "config", "list"], text=True)
    command = [sys.executable, "-m", "unearth", "--no-binary", "--download", str(folder), ARCHIVE]
    subprocess.run([*command, *index_arguments(pip_config)], check=True, env=env)
    archives = list(folder.glob("*.tar.gz"))
    if len(archives) != 1:
        raise InstallError(f"the package index offers no {ARCHIVE}: install Detectron2 by hand (INSTALL.md)")
    return archives[0]


def verify_archive(archive: Path, sha256: str = ARCHIVE_SHA256) -> None:
    """Raise InstallError unless the file's SHA-256 is the expected one."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        cause = "the file was changed on its way; try another network or package index"
        raise InstallError(f"{archive.name} has SHA-256 {found}, expected {sha256}: {cause}")


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a source archive into `folder` and return its single top folder."""
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):  # refuses paths outside `folder`; not in early 3.10 and 3.11
            tar.extractall(folder, filter="data")
        else:
            tar.extractall(folder)
    (top,) = [path for path in folder.iterdir() if path.is_dir()]
    return top


def repack(source: Path) -> None:
    """Turn the unpacked archive into a plain pyproject.toml project named detectron2, in place."""
    for name, project in PROJECTS.items():
        shutil.copytree(source / project, source / "detectron2" / "projects" / name, dirs_exist_ok=True)
    (source / "setup.py").unlink(missing_ok=True)
    (source / "setup.cfg").unlink(missing_ok=True)
    (source / "pyproject.toml").write_text(PYPROJECT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch, verify, repack and install; exit code 0 when `import detectron2` will work."""
    show = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=show).parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="detectron2-") as temporary:
            folder = Path(temporary)
            archive = fetch_archive(folder)
            verify_archive(archive)
            source = unpack(archive, folder / "source")
            repack(source)
            subprocess.run([sys.executable, "-m", "pip", "install", str(source)], check=True)
    except InstallError as error:
        sys.stderr.write(f"detectron2: {error}\n")
        return 1
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"detectron2: this command failed, see above: {shlex.join(error.cmd)}\n")
        return 1
    sys.stdout.write("detectron2 0.6 is installed (Python files only, no compiled operators)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
