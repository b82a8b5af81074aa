"""Arguments; one line for the user's errors, a traceback for ours; logs that end with their command."""

import argparse
import contextlib
import io
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from torch.utils.data import DataLoader, Dataset

from fss_d2.config import get_cfg
from fss_d2.engine import command_line
from fss_d2.engine.command_line import (
    TRACEBACK_VARIABLE,
    argument_parser,
    hide_tracebacks,
    one_line,
    parse_command_line,
    plan_from,
    run_command,
    start_log,
)


def test_flags_and_overrides_in_any_order() -> None:
    parser = argument_parser("test")
    parser.add_argument("--folds", type=int, nargs="+")
    flags = ["--config-file", "A.yaml", "--folds", "0", "1"]
    words = [*flags, "SOLVER.MAX_ITER", "-4", "--eval-only", "SEED", "3", "--num-gpus", "0"]
    args = parse_command_line(parser, words)
    assert (args.config_file, args.folds, args.eval_only) == ("A.yaml", [0, 1], True)
    assert args.opts == ["SOLVER.MAX_ITER", "-4", "SEED", "3"]
    assert plan_from(args).per_machine == 1


def test_config_keys_are_distinguished_from_file_names() -> None:
    """As cameras write them: a file name in capitals with an ending is no config key."""
    assert all(command_line._KEY.fullmatch(name) for name in get_cfg())
    parser = argparse.ArgumentParser()
    parser.add_argument("--input", nargs="+")
    args = parse_command_line(parser, ["--input", "DSC_1.JPG", "IMG.PNG", "INPUT.REDRAWS", "3"])
    assert (args.input, args.opts) == (["DSC_1.JPG", "IMG.PNG"], ["INPUT.REDRAWS", "3"])


class _Broken(Dataset):
    """Fails in a data loader's worker, as an unreadable image does."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        raise self._error


def _raise(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("image a.jpg is broken;\n  replace it"), "image a.jpg is broken; replace it"),
        (ValueError("x" * 10**6), "x" * 997 + "..."),
        (FileNotFoundError("checkpoint x.pth does not exist"), "checkpoint x.pth does not exist"),
        (PermissionError(13, "Permission denied", "/root/out"), "/root/out: Permission denied"),
        (KeyError("no dataset named 'a'"), "no dataset named 'a'"),
        (KeyError("classes"), f"missing key classes (set {TRACEBACK_VARIABLE}=1 to see where)"),
        (FloatingPointError("Loss became NaN at iteration=3!\nloss_dict = {}"), None),
        (yaml.YAMLError("bad indentation"), "bad indentation"),
        (ValueError(), f"ValueError (set {TRACEBACK_VARIABLE}=1 to see where)"),
    ],
)
def test_user_errors_become_one_line(error: Exception, line: str | None) -> None:
    found = one_line(error)
    assert found is not None
    assert "\n" not in found
    assert line is None or found == line


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), TypeError("x"), AttributeError("y")])
def test_bugs_keep_their_traceback(error: Exception) -> None:
    assert one_line(error) is None
    with pytest.raises(type(error)):
        run_command(_raise(error))


def test_gpu_memory_names_the_keys_to_lower() -> None:
    line = one_line(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has 3."))
    assert line == "CUDA out of memory; lower SOLVER.IMS_PER_BATCH or INPUT.FEW_SHOT_SIZE"


@pytest.mark.parametrize("error", [ValueError("mask m.png is empty"), FileNotFoundError("no image m.png")])
def test_error_of_a_loader_worker(error: Exception) -> None:
    batches = iter(DataLoader(_Broken(error), num_workers=1, multiprocessing_context="fork"))
    with pytest.raises(type(error)) as caught:
        next(batches)
    assert "Traceback" in str(caught.value)  # this is what has to be unpacked
    assert one_line(caught.value) == str(error)


def test_error_of_a_worker_of_a_spawned_process() -> None:
    inner = "Traceback (most recent call last):\n  File ...\nyaml.scanner.ScannerError: bad\n  in a.yaml"
    assert one_line(RuntimeError(f"-- Process 1 terminated --\n{inner}")) == "bad in a.yaml"
    nested = f"Traceback (most recent call last):\nValueError: Caught KeyError in worker.\n{inner}"
    assert one_line(RuntimeError(nested)) == "bad in a.yaml"
    bug = "Traceback (most recent call last):\n  File ...\nTypeError: unexpected keyword"
    assert one_line(RuntimeError(bug)) is None


def test_run_command_prints_one_line_and_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TRACEBACK_VARIABLE, raising=False)
    assert run_command(lambda: None) == 0
    assert run_command(_raise(ValueError("a\nb"))) == 1
    assert capsys.readouterr().err == "error: a b\n"
    assert run_command(_raise(KeyboardInterrupt())) == 130


def test_logs_end_with_their_command(capsys: pytest.CaptureFixture[str]) -> None:
    """A second command in the process logs to its own stream; nothing is written to that of the first."""
    before = list(logging.getLogger("fss_d2").handlers)
    for text in ("first", "second"):
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream):
            assert run_command(lambda text=text: (start_log(), logging.getLogger("fss_d2").info(text))) == 0
        assert [line.split()[-1] for line in stream.getvalue().splitlines()] == [text]
        assert logging.getLogger("fss_d2").handlers == before
        stream.close()
        logging.getLogger("fss_d2").info("after the command")
    assert capsys.readouterr().err == ""


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    with pytest.raises(ValueError, match="wrong"):
        run_command(_raise(ValueError("wrong")))


def test_the_training_loop_logs_no_traceback_of_a_user_error(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TRACEBACK_VARIABLE, raising=False)
    log = logging.getLogger("detectron2.engine.train_loop")
    monkeypatch.setattr(log, "filters", [])
    hide_tracebacks()
    for error in (ValueError("image a.jpg is broken"), TypeError("a bug")):
        try:
            raise error
        except (ValueError, TypeError):
            log.exception("Exception during training:")
    user, bug = caplog.records
    assert user.getMessage() == "Training stopped: image a.jpg is broken"
    assert user.exc_info is None
    assert bug.exc_info is not None
