"""The command ``fss-d2``: its commands by name, and what it says of words that it does not know."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fss_d2 import __version__, cli
from fss_d2.config import load_config
from fss_d2.model_zoo import DEMO_CONFIGS

ROOT = Path(__file__).parents[1]


def test_commands_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == cli.main(["help"]) == 0
    asked = capsys.readouterr().out
    assert asked.startswith("usage: fss-d2 COMMAND")
    assert [line.split()[0] for line in asked.splitlines()[2:7]] == [
        "label",
        "app",
        "export",
        "check",
        "demo",
    ]
    assert cli.main([]) == 2
    assert capsys.readouterr().err.startswith("usage: fss-d2 COMMAND")
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fss_d2 {__version__}\n"


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("lable", "did you mean label?"),
        ("Export", "did you mean export?"),
        ("--lable", "did you mean label?"),
        ("x" * 300, "choose from label, app, export, check, demo"),
    ],
)
def test_a_command_that_does_not_exist(word: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([word, "--support", "a"]) == 2
    shown = word if len(word) <= 200 else f"{word[:197]}..."
    assert capsys.readouterr().err == f"error: there is no command '{shown}'; {hint}\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("label --suport a --images b --output c", "there is no option --suport; did you mean --support?"),
        ("label --support a --imags=b --output c", "there is no option --imags; did you mean --images?"),
        ("app --prot 7860", "there is no option --prot; did you mean --port?"),
        ("export --support-file a --output b.onnx --format onx", "did you mean onnx?"),
        ("demo --qqqqqqq 3", "there is no option --qqqqqqq; see --help"),
        (
            "label --support a --images b --output ~no-such-user/c",
            "~no-such-user is not a home folder; ./~no-",
        ),
    ],
)
def test_options_that_are_misspelled(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(line.split())
    assert end.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"fss-d2 {line.split()[0]}: error: ") and message in error


def test_the_script_is_declared() -> None:
    assert 'fss-d2 = "fss_d2.cli:main"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("name", DEMO_CONFIGS)
def test_the_configs_of_the_demo_are_those_of_the_checkout(name: str) -> None:
    of_checkout = ROOT / f"configs/{name}/glyphs_efficientnet_lite0.yaml"
    assert load_config(str(DEMO_CONFIGS[name])).dump() == load_config(str(of_checkout)).dump()


def test_a_wheel_has_every_file_of_the_package(tmp_path: Path) -> None:
    """Commands run from the wheel alone, in any folder, as what they need is in it."""
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "fss_d2"):  # a build writes into the folder of the sources
        subprocess.run(["cp", "-r", str(ROOT / name), str(source)], check=True)
    done = subprocess.run([*build, "-w", str(tmp_path), str(source)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no wheel can be built here: {done.stderr.splitlines()[-1]}")
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = {name for name in wheel.namelist() if name.startswith("fss_d2/")}
        wheel.extractall(tmp_path / "installed")
    needed = [
        path for kind in ("py", "yaml", "pth", "json", "png") for path in (ROOT / "fss_d2").rglob(f"*.{kind}")
    ]
    assert names >= {path.relative_to(ROOT).as_posix() for path in needed}
    for command in (
        "--version",
        "label --help",
        "app --help",
        "export --help",
        "check --help",
        "demo --help",
    ):
        program = [sys.executable, "-m", "fss_d2.cli", *command.split()]
        environment = {"PYTHONPATH": str(tmp_path / "installed"), "PATH": ""}
        shown = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.startswith((f"usage: fss-d2 {command.split()[0]}", "fss_d2 "))
