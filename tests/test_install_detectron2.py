"""Only the known archive is installed, as a plain project, from the index that pip is set to."""

import hashlib
import subprocess
import tarfile
from pathlib import Path

import pytest

from tools import install_detectron2
from tools.install_detectron2 import InstallError


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A small source archive with the layout of the real one."""
    source = tmp_path / "pb1-detectron2-0.6"
    for project in install_detectron2.PROJECTS.values():
        (source / project).mkdir(parents=True)
        (source / project / "__init__.py").write_text(f"# {project}\n")
    (source / "detectron2" / "projects").mkdir(parents=True)
    (source / "detectron2" / "__init__.py").touch()
    (source / "setup.py").write_text("import torch\n")
    (source / "setup.cfg").touch()
    path = tmp_path / "pb1-detectron2-0.6.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(source, source.name)
    return path


def test_wrong_file_is_refused(archive: Path) -> None:
    install_detectron2.verify_archive(archive, hashlib.sha256(archive.read_bytes()).hexdigest())
    with pytest.raises(InstallError, match=r"pb1-detectron2-0\.6\.tar\.gz has SHA-256 .*, expected 5d2e9e51"):
        install_detectron2.verify_archive(archive)


def test_unpacked_and_repacked(archive: Path, tmp_path: Path) -> None:
    source = install_detectron2.unpack(archive, tmp_path / "unpacked")
    install_detectron2.repack(source)
    install_detectron2.repack(source)  # a second time changes nothing
    assert not (source / "setup.py").exists() and not (source / "setup.cfg").exists()
    for name, project in install_detectron2.PROJECTS.items():
        copy = source / "detectron2" / "projects" / name / "__init__.py"
        assert copy.read_text() == f"# {project}\n"
    assert '\nname = "detectron2"\nversion = "0.6"\n' in (source / "pyproject.toml").read_text()


def test_index_settings_of_pip() -> None:
    config = "\n".join(
        [
            ":env:.index-url='file:///chosen'",
            "global.extra-index-url='file:///one\\nfile:///two'",
            "global.index-url='file:///overruled'",
            "install.trusted-host='mirror'",
            "global.timeout='60'",
        ]
    )
    assert install_detectron2.index_arguments(config) == [
        *("--index-url", "file:///chosen", "--index-url", "file:///one", "--index-url", "file:///two"),
        *("--trusted-host", "mirror"),
    ]


def test_extra_index_alone_leaves_the_default_index() -> None:
    assert install_detectron2.index_arguments("global.extra-index-url='file:///one'\n") == []
    assert install_detectron2.index_arguments("") == []


def test_wrong_archive_installs_nothing(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install_detectron2, "fetch_archive", lambda folder: archive)
    monkeypatch.setattr(subprocess, "run", lambda *command, **options: pytest.fail("pip was called"))
    assert install_detectron2.main([]) == 1
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1 and printed[0].startswith("detectron2: pb1-detectron2-0.6.tar.gz has SHA-256")


def test_failing_command_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(command: list[str], **options: object) -> None:
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", fail)
    assert install_detectron2.main([]) == 1
    assert "-m pip install" in capsys.readouterr().err
