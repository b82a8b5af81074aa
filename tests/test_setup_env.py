"""The set-up resumes, repeats only what changed, and ends in one clear line when it cannot go on."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import setup_env
from tools.environment import builder, commands
from tools.environment.builder import Environment
from tools.environment.commands import SetupError
from tools.environment.journal import Journal, Step, pending_steps, perform

ROOT = Path(setup_env.__file__).parents[1]


class Recorder:
    """Steps that write down their names when they run; those named in `failing` raise instead."""

    def __init__(self, failing: dict[str, Exception] | None = None) -> None:
        self.ran: list[str] = []
        self.failing = failing or {}

    def steps(self, **inputs: str) -> list[Step]:
        return [Step(name, name, text, lambda name=name: self._run(name)) for name, text in inputs.items()]

    def _run(self, name: str) -> None:
        self.ran.append(name)
        if name in self.failing:
            raise self.failing[name]


@pytest.mark.parametrize("version", [(3, 10), (3, 12)])
def test_supported_python(version: tuple[int, int]) -> None:
    assert setup_env.python_problem(version) == ""


@pytest.mark.parametrize("version", [(2, 7), (3, 9), (3, 13), (4, 0)])
def test_unsupported_python_is_one_line_with_a_mend(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name == "python3.11" else None)
    problem = setup_env.python_problem(version)
    assert f"this is {version[0]}.{version[1]}" in problem
    assert "make setup PYTHON=python3.11" in problem


def test_second_run_does_nothing_and_prints_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / ".venv" / "journal.json"
    first, second = Recorder(), Recorder()
    perform(first.steps(venv="a", torch="b"), Journal.load(path))
    assert re.fullmatch(
        r"setup \[1/2\] venv \.\.\. \d+ s\nsetup \[2/2\] torch \.\.\. \d+ s\n", capsys.readouterr().out
    )
    perform(second.steps(venv="a", torch="b"), Journal.load(path))
    assert (first.ran, second.ran) == (["venv", "torch"], [])
    assert capsys.readouterr().out == ""


def test_changed_input_repeats_the_steps_from_there_on(tmp_path: Path) -> None:
    journal, recorder = Journal(tmp_path / "journal.json"), Recorder()
    perform(recorder.steps(venv="a", torch="b", package="c"), journal)
    recorder.ran.clear()
    perform(recorder.steps(venv="a", torch="other", package="c"), journal)
    assert recorder.ran == ["torch", "package"]


def test_inputs_cannot_move_between_steps_unnoticed() -> None:
    steps = Recorder().steps(venv="ab", torch="c")
    done = {step.name: chain for step, chain in pending_steps(steps, {})}
    assert not pending_steps(steps, done)
    assert len(pending_steps(Recorder().steps(venv="a", torch="bc"), done)) == 2


def test_clean_failure_goes_on_at_the_failed_step(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    with pytest.raises(SetupError, match="no network"):
        perform(Recorder({"torch": SetupError("no network")}).steps(venv="a", torch="b"), Journal.load(path))
    journal, recorder = Journal.load(path), Recorder()
    assert journal.running == ""
    perform(recorder.steps(venv="a", torch="b"), journal)
    assert recorder.ran == ["torch"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SetupError("disk full", half_done=True)])
def test_cut_off_step_stays_marked(tmp_path: Path, stop: Exception) -> None:
    path = tmp_path / "journal.json"
    with pytest.raises(type(stop)):
        perform(Recorder({"torch": stop}).steps(venv="a", torch="b"), Journal.load(path))
    assert Journal.load(path).running == "torch"


@pytest.mark.parametrize("text", ["", "{", '{"no such field": 1}', "[]"])
def test_damaged_journal_counts_as_cut_off(tmp_path: Path, text: str) -> None:
    path = tmp_path / "journal.json"
    path.write_text(text)
    assert Journal.load(path).running != ""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a checkout whose environment is complete; steps only record their names."""
    for name in ("PYTHON", *builder.NO_CHOICES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Environment, "_make_venv", fake_venv)
    for step in ("install_pip", "install_torch", "install_detectron2", "install_package", "check"):
        monkeypatch.setattr(Environment, f"_{step}", lambda self, step=step: ran.append(step))
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "install_detectron2.py").write_text("")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    Environment(tmp_path).make()
    ran.clear()
    return tmp_path


ran: list[str] = []


def fake_venv(environment: Environment) -> None:
    """Write what counts as a usable interpreter."""
    ran.append("make_venv")
    environment.python.parent.mkdir(parents=True)
    environment.python.symlink_to(sys.executable)


EVERYTHING = ["make_venv", "install_pip", "install_torch", "install_detectron2", "install_package", "check"]


def test_complete_environment_is_kept(checkout: Path) -> None:
    Environment(checkout).make()
    assert ran == []


def test_changed_pyproject_installs_the_package_again(checkout: Path) -> None:
    (checkout / "pyproject.toml").write_text("[project]\ndependencies = []\n")
    Environment(checkout).make()
    assert ran == ["install_package", "check"]


def test_choice_of_torch_is_remembered(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_SPEC", "torch==2.8.0 torchvision==0.23.0")
    Environment(checkout).make()
    assert ran == EVERYTHING[2:]
    monkeypatch.delenv("TORCH_SPEC")
    Environment(checkout).make()
    assert ran == EVERYTHING[2:]


def test_another_python_makes_the_environment_anew(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON", "python3")
    Environment(checkout).make()
    assert ran == []
    monkeypatch.setattr(sys, "executable", "/elsewhere/python3")
    Environment(checkout).make()
    assert ran == EVERYTHING


def test_cut_off_or_broken_environment_is_made_anew(checkout: Path) -> None:
    environment = Environment(checkout)
    environment.journal.running = "install_torch"
    environment.journal.save()
    (environment.folder / "half_a_package").touch()
    Environment(checkout).make()
    assert ran == EVERYTHING and not (environment.folder / "half_a_package").exists()
    environment.python.unlink()  # as after an upgrade of the system's Python
    ran.clear()
    Environment(checkout).make()
    assert ran == EVERYTHING


def test_environment_of_someone_else_is_not_touched(checkout: Path) -> None:
    (checkout / ".venv" / setup_env.JOURNAL).unlink()
    with pytest.raises(SetupError, match="was not made by `make setup`: move it away"):
        Environment(checkout).make()
    assert (checkout / ".venv" / "bin" / "python").exists()


def test_adopted_torch_is_not_installed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[tuple[str, ...]] = []
    monkeypatch.setattr(Environment, "_pip", lambda self, *arguments: installed.append(arguments))
    environment = Environment(tmp_path)
    environment.journal.choices = {"TORCH_SPEC": "", "TORCH_INDEX": "file:///cpu"}
    environment.journal.adopted = True
    environment._install_torch()
    assert installed == []
    environment.journal.adopted = False
    environment._install_torch()
    assert installed == [(*builder.TORCH_SPEC.split(), "--extra-index-url", "file:///cpu")]


def test_remembered_python(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    assert setup_env.remembered_python(path) == ""
    path.write_text(json.dumps({"choices": {"PYTHON": f"{sys.executable} 3.11"}}))
    assert setup_env.remembered_python(path) == sys.executable
    path.write_text(json.dumps({"choices": {"PYTHON": "/gone/python3 3.11"}}))
    assert setup_env.remembered_python(path) == ""


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("[Errno -3] Temporary failure in name resolution", "index cannot be reached"),
        ("Failed to establish a new connection: NewConnectionError", "index cannot be reached"),
        ("SSLError(SSLCertVerificationError('CERTIFICATE_VERIFY_FAILED'))", "PIP_CERT"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: No matching distribution found for torch==9", "TORCH_SPEC"),
        ("something never seen", "INSTALL.md"),
    ],
)
def test_failed_command_is_explained(output: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys; print('secret' * 0 + sys.argv[1]); sys.exit(3)"
    with pytest.raises(SetupError, match=words) as caught:
        commands.run([sys.executable, "-c", code, output])
    assert not caught.value.half_done and "\n" not in str(caught.value)
    assert output in capsys.readouterr().out


def test_failure_while_pip_writes_files_is_half_done() -> None:
    with pytest.raises(SetupError) as caught:
        commands.run([sys.executable, "-c", "exit('Installing collected packages: torch\\nboom')"])
    assert caught.value.half_done


def test_successful_command_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    commands.run([sys.executable, "-c", "print('noise')"])
    assert capfd.readouterr().out == ""


def test_disk_too_small(tmp_path: Path) -> None:
    builder.check_disk(tmp_path, 0.0)
    with pytest.raises(SetupError, match="1000000 GB are needed"):
        builder.check_disk(tmp_path, 1e6)


@pytest.mark.parametrize(
    ("present", "expected"),
    [("ensurepip", "-m venv"), ("virtualenv", "-m virtualenv"), ("-m pip", "-m pip install --target")],
)
def test_ways_to_make_a_venv(monkeypatch: pytest.MonkeyPatch, present: str, expected: str) -> None:
    seen: list[str] = []
    monkeypatch.setattr(builder, "succeeds", lambda command: present in " ".join(command))
    monkeypatch.setattr(builder, "run", lambda command, env=None: seen.append(" ".join(command[1:])))
    builder.create_venv(Path("env"), ["--option"])
    assert seen[0].startswith(expected)
    assert seen[-1].endswith("--option env")


def test_no_way_to_make_a_venv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "succeeds", lambda command: False)
    with pytest.raises(SetupError, match="apt install python3-venv"):
        builder.create_venv(Path("env"), [])


def test_oldest_torch_is_the_one_of_pyproject() -> None:
    major, minor = builder.OLDEST_TORCH
    assert f'"torch>={major}.{minor}"' in (ROOT / "pyproject.toml").read_text()


def test_old_python_gets_as_far_as_the_version_check() -> None:
    """The entry script uses no syntax and no import that Python 3.6 lacks."""
    source = (ROOT / "tools" / "setup_env.py").read_text()
    compile(source, "setup_env.py", "exec", dont_inherit=True)
    before_main = source[: source.index("def main")]
    assert not re.search(r"dataclass|:=|tuple\[|list\[|dict\[| \| None|__future__", before_main)


def test_lock_makes_the_second_run_wait(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys, fcntl, os; f = os.open(sys.argv[1], os.O_RDONLY); fcntl.flock(f, fcntl.LOCK_EX);"
    code += "print('locked', flush=True); sys.stdin.read(1)"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "locked\n"
        subprocess.Popen(["sh", "-c", f"sleep 0.2; kill {other.pid}"])
        with setup_env.only_one_at_a_time(tmp_path):
            assert other.wait() != 0
    assert "waiting for another run" in capsys.readouterr().out
