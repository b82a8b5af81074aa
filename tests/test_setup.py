"""The set-up, with a Python and a pip that only write down what they are asked: no package is installed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# FAIL names an argument that makes it fail; OLD: its version is too old; TORCH: it has a torch that works;
# BARE: it has no ensurepip, and with "all" no pip either.
_PYTHON = """#!/bin/sh
echo "$*" >> "$LOG"
case "$*" in
*version_info*) [ -z "$OLD" ] ;;
*"import torch"*) [ -n "$TORCH" ] ;;
*addsitedir*) echo shared ;;
-V) echo "Python 3.9.1" ;;
*"import ensurepip"*) [ -z "$BARE" ] ;;
"-m pip --version") [ "$BARE" != all ] ;;
"-m venv .venv" | "-m virtualenv .venv")
    mkdir -p .venv/bin .venv/lib/python3/site-packages
    cp "$0" .venv/bin/python ;;
*) case "$*" in *"${FAIL:-nothing}"*) echo "no network"; exit 1 ;; esac ;;
esac
"""
_INSTALLS = ["pip>=", "torch==2", "-m pip install --no-build", "fss_d2.check_env"]


class Checkout:
    """A folder with the project's set-up and a fake `python3`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._log = folder, folder / "log"
        (folder / "bin").mkdir()
        (folder / "tools").mkdir()
        for name in ("Makefile", "tools/setup.sh"):
            shutil.copy(ROOT / name, folder / name)
        (folder / "pyproject.toml").touch()
        (folder / "bin" / "python3").write_text(_PYTHON)
        (folder / "bin" / "python3").chmod(0o755)

    def setup(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run `make setup`."""
        self._log.write_text("")
        env = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "LOG": str(self._log), **variables}
        command = ["make", "setup", *arguments]
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True)

    def asked(self) -> str:
        """What the last run asked of Python."""
        return self._log.read_text()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_a_bare_machine_then_nothing_to_do(checkout: Checkout) -> None:
    assert checkout.setup().returncode == 0
    places = [checkout.asked().index(words) for words in ["-m venv", *_INSTALLS]]
    assert places == sorted(places)
    second = checkout.setup()
    assert (second.returncode, second.stdout, checkout.asked()) == (0, "", "")


def test_a_changed_pyproject_installs_the_package_again(checkout: Checkout) -> None:
    checkout.setup()
    os.utime(checkout.folder / ".venv/ready", (0, 0))
    assert checkout.setup().returncode == 0
    assert "--editable" in checkout.asked() and "venv .venv" not in checkout.asked()
    assert checkout.setup().stdout == ""


@pytest.mark.parametrize("step", _INSTALLS)
def test_a_set_up_that_broke_off_is_made_anew(checkout: Checkout, step: str) -> None:
    broken = checkout.setup(FAIL=step)
    assert broken.returncode != 0
    assert "no network" in broken.stdout and "setup: this failed, see above" in broken.stderr
    (checkout.folder / ".venv/half_a_package").touch()
    assert checkout.setup().returncode == 0
    assert "-m venv" in checkout.asked()
    assert not (checkout.folder / ".venv/half_a_package").exists()


def test_choices_are_remembered(checkout: Checkout) -> None:
    chosen = "TORCH_SPEC=torch==2.8.0 torchvision==0.23.0"
    assert checkout.setup(chosen, "TORCH_INDEX=file:///cpu").returncode == 0
    assert "install torch==2.8.0 torchvision==0.23.0 --extra-index-url file:///cpu\n" in checkout.asked()
    assert checkout.setup().stdout == ""
    assert checkout.setup("TORCH_SPEC=torch==2.9.0").returncode == 0
    assert "-m venv" in checkout.asked() and "torch==2.9.0 --extra-index-url file:///cpu" in checkout.asked()


def test_a_torch_that_is_there_is_shared(checkout: Checkout) -> None:
    assert checkout.setup(TORCH="1").returncode == 0
    assert "install torch" not in checkout.asked()
    assert (checkout.folder / ".venv/lib/python3/site-packages/shared.pth").read_text() == "shared\n"


def test_without_ensurepip_pip_fetches_virtualenv(checkout: Checkout) -> None:
    assert checkout.setup(BARE="1").returncode == 0
    assert "virtualenv .venv" in checkout.asked() and "-m venv" not in checkout.asked()
    (checkout.folder / ".venv/ready").unlink()
    assert "sudo apt install python3-venv" in checkout.setup(BARE="all").stderr


def test_what_cannot_be_used_is_one_line(checkout: Checkout) -> None:
    (line, _) = checkout.setup(OLD="1").stderr.splitlines()  # the second is make's
    assert line.startswith(
        "setup: Python 3.10 to 3.12 is needed, this is Python 3.9.1: run `make setup PYTHON="
    )
    (line, _) = checkout.setup("PYTHON=python9").stderr.splitlines()
    assert line.startswith("setup: there is no python9")
    assert not (checkout.folder / ".venv").exists()


def test_someone_elses_environment_is_not_touched(checkout: Checkout) -> None:
    (checkout.folder / ".venv").mkdir()
    assert "setup: .venv was not made by `make setup`: move it away" in checkout.setup().stderr
    assert list((checkout.folder / ".venv").iterdir()) == []


def test_the_oldest_torch_is_the_one_of_pyproject() -> None:
    assert '"torch>=2.4"' in (ROOT / "pyproject.toml").read_text()
    assert ">= (2, 4)" in (ROOT / "tools/setup.sh").read_text()
