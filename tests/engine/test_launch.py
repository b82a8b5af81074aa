"""Processes: the plan, torchrun's variables, two spawned CPU processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm

from fss_d2.engine.launch import LaunchPlan, _free_port, launch

# Run as a program of its own, as the spawned processes import its main module again.
_PROGRAM = """
import json, sys
from detectron2.utils import comm
from fss_d2.engine.command_line import run_command
from fss_d2.engine.launch import LaunchPlan, launch

def work(path):
    mine = comm.get_rank(), comm.get_local_rank(), comm.get_local_size(), comm.get_world_size()
    seen = comm.all_gather(mine)
    if comm.is_main_process():
        json.dump(seen, open(path, "w"))
    comm.synchronize()
    if comm.get_rank() == 1:
        raise ValueError("image a.jpg is broken;\\nreplace it")

if __name__ == "__main__":
    sys.exit(run_command(lambda: launch(work, LaunchPlan(num_gpus=0, num_processes=2), (sys.argv[1],))))
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_gpus": 999}, r"--num-gpus 999: this machine has \d+ usable"),
        ({"num_gpus": 0, "num_processes": 0}, "1 or more"),
        ({"num_gpus": -1}, "0 or more"),
        ({"num_gpus": 0, "num_machines": 2, "machine_rank": 2, "dist_url": "tcp://a:1"}, "--machine-rank 2"),
        ({"num_gpus": 0, "num_machines": 2}, "needs --dist-url"),
    ],
)
def test_impossible_plans(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LaunchPlan(**arguments)


def test_plans_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (LaunchPlan().uses_gpu, LaunchPlan().per_machine) == (True, 1)
    assert LaunchPlan(num_gpus=4).per_machine == 4
    assert not LaunchPlan(num_gpus=0, num_processes=3).uses_gpu
    with pytest.raises(ValueError, match="--num-processes is for CPUs"):
        LaunchPlan(num_processes=2)


def test_one_process_runs_in_place() -> None:
    assert launch(lambda a, b: a + b, LaunchPlan(num_gpus=0), (1, 2)) == 3
    assert not dist.is_initialized()


def test_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    for name, value in {**variables, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}.items():
        monkeypatch.setenv(name, value)
    seen = launch(
        lambda: (dist.get_backend(), comm.get_local_rank(), comm.get_local_size()), LaunchPlan(num_gpus=0)
    )
    assert seen == ("gloo", 0, 1)
    assert not dist.is_initialized()
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(ValueError, match="MASTER_PORT not"):
        launch(lambda: None, LaunchPlan(num_gpus=0))


def test_wrong_address() -> None:
    plan = LaunchPlan(num_gpus=0, num_processes=2, dist_url="localhost")
    with pytest.raises(ValueError, match=r"--dist-url 'localhost' is not of the form"):
        launch(print, plan)


def test_two_processes_and_the_error_of_one(tmp_path: Path) -> None:
    program, seen = tmp_path / "program.py", tmp_path / "seen.json"
    program.write_text(_PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), str(seen)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert seen.read_text() == "[[0, 0, 2, 2], [1, 1, 2, 2]]"
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: image a.jpg is broken; replace it"
    assert "Traceback" not in done.stderr


_EARLY = """
import sys, time
from pathlib import Path
import torch.distributed as dist
from detectron2.utils import comm
from fss_d2.engine.launch import LaunchPlan, launch

def work(done, seen):
    leave = dist.destroy_process_group
    if comm.get_rank() == 1:
        time.sleep(2)
        Path(done).touch()
    else:
        dist.destroy_process_group = lambda: (Path(seen).write_text(str(Path(done).exists())), leave())

if __name__ == "__main__":
    launch(work, LaunchPlan(num_gpus=0, num_processes=2), sys.argv[1:])
"""


def test_no_process_leaves_while_another_works(tmp_path: Path) -> None:
    """With gloo a process that leaves early may abort one that still sends to it."""
    (tmp_path / "program.py").write_text(_EARLY)
    subprocess.run(
        [sys.executable, "program.py", "done", "seen"],
        cwd=tmp_path,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
    )
    assert (tmp_path / "seen").read_text() == "True"
