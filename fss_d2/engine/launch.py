"""Start one or many processes: on GPUs or CPUs, spawned here or started by torchrun.

Detectron2 0.6 launches on GPUs only, and no version of it joins the processes of torchrun.
"""

import multiprocessing
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import wait
from typing import Any

from .errors import LOST_PROCESS
from .signals import FORWARDED, Interrupted, forwarding, raising

__all__ = ["LaunchPlan", "launch"]

Main = Callable[..., Any]
_TIMEOUT = timedelta(minutes=30)  # as Detectron2's
_PATIENCE = 2.0  # seconds that a process which lost another waits, so that the other's error is seen first
_GRACE = 60.0  # seconds for the processes that are left after one has ended
_LOST_EXIT = 3  # exit code of a process that lost another
_STOPPED = {128 + n: n for n in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", 1))}  # exit codes
_RENDEZVOUS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets


@dataclass(frozen=True)
class LaunchPlan:
    """How many processes, and on what.

    Raises:
        ValueError: the numbers contradict each other, or there are fewer GPUs.
    """

    num_gpus: int | None = None  # per machine, one process each; 0 runs on CPUs; None: one if there is one
    num_processes: int = 1  # per machine where num_gpus is 0
    num_machines: int = 1  # that run the same command
    machine_rank: int = 0  # which of them this is
    dist_url: str = "auto"  # "tcp://host:port" of machine 0; "auto" takes a free port of a single machine

    def __post_init__(self) -> None:
        import torch  # here, so that --help does not wait for it

        found = torch.cuda.device_count()
        if self.num_gpus is not None and self.num_gpus > found:
            fix = "use --num-gpus 0 (with --num-processes N for several CPU processes)"
            raise ValueError(f"--num-gpus {self.num_gpus}: this machine has {found} usable GPU(s); {fix}")
        if min(self.num_processes, self.num_machines) < 1 or (self.num_gpus or 0) < 0:
            raise ValueError("--num-gpus must be 0 or more, --num-processes and --num-machines 1 or more")
        if not 0 <= self.machine_rank < self.num_machines:
            limit = f"--num-machines {self.num_machines} - 1"
            raise ValueError(f"--machine-rank {self.machine_rank} is not from 0 to {limit}")
        if self.num_machines > 1 and self.dist_url == "auto":
            raise ValueError(
                "--num-machines above 1 needs --dist-url tcp://HOST:PORT, an address of machine 0"
            )
        if self.num_processes > 1 and self.uses_gpu:
            raise ValueError("--num-processes is for CPUs: add --num-gpus 0, or give --num-gpus alone")

    @property
    def uses_gpu(self) -> bool:
        """Whether the processes run on GPUs."""
        import torch

        return torch.cuda.is_available() if self.num_gpus is None else self.num_gpus > 0

    @property
    def per_machine(self) -> int:
        """Processes per machine."""
        return (self.num_gpus or 1) if self.uses_gpu else self.num_processes


def launch(main: Main, plan: LaunchPlan, args: Sequence[Any] = ()) -> Any:
    """Call ``main(*args)`` in every process of the plan, with Detectron2's `comm` ready for use.

    Under torchrun, or any launcher that sets RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT and LOCAL_RANK, this
    process is one of those that it started, and the plan's counts do not matter. Otherwise the processes of
    this machine are spawned here; a single one runs in place. The backend is nccl on GPUs, gloo on CPUs.

    Returns:
        What ``main`` returns, or None where the processes were spawned.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        missing = [name for name in _RENDEZVOUS if name not in os.environ]
        if missing:
            fix = "start with torchrun, or unset them"
            raise ValueError(f"RANK and WORLD_SIZE are set, {', '.join(missing)} not: {fix}")
        return _join_and_run(main, plan.uses_gpu, args)
    world_size = plan.per_machine * plan.num_machines
    if world_size == 1:
        return main(*args)
    url = f"tcp://127.0.0.1:{_free_port()}" if plan.dist_url == "auto" else plan.dist_url
    host, _, port = url.removeprefix("tcp://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--dist-url {url!r} is not of the form tcp://HOST:PORT")
    variables = {"MASTER_ADDR": host, "MASTER_PORT": port, "WORLD_SIZE": str(world_size)}
    _spawn(plan.per_machine, (main, plan, tuple(args), variables))
    return None


def _spawn(count: int, args: tuple[Any, ...]) -> None:
    """Start processes, pass signals on to them, wait for all, and raise the error of the one that has one."""
    import torch.multiprocessing as mp

    with forwarding(_send_to_children):
        context = mp.start_processes(_spawned, args=args, nprocs=count, join=False, start_method="spawn")
        codes = _wait_for(context.processes)
        for rank, file in enumerate(context.error_files):
            if os.path.isfile(file):
                with open(file, "rb") as stream:
                    raise RuntimeError(f"process {rank} of {count} failed:\n{pickle.load(stream)}")
        if stopped := [_STOPPED[code] for code in codes if code in _STOPPED]:
            raise Interrupted(stopped[0], "")  # the main process has said what it did
        for rank, code in sorted(enumerate(codes), key=lambda ended: ended[1] in (0, _LOST_EXIT)):
            if code < 0:
                name, fix = signal.Signals(-code).name, "lower SOLVER.IMS_PER_BATCH or DATALOADER.NUM_WORKERS"
                memory = f"; the machine may have run out of memory: {fix}" if code == -9 else ""
                raise ChildProcessError(f"process {rank} of {count} was killed by {name}{memory}")
            if code:
                raise ChildProcessError(f"process {rank} of {count} ended with exit code {code}")


def _wait_for(processes: Sequence[multiprocessing.Process]) -> list[int]:
    """Wait for all, and after a failure end the others; return the exit codes, 0 for those ended here."""
    running = list(processes)
    while running and not any(p.exitcode for p in processes):
        wait([p.sentinel for p in running])
        running = [p for p in running if p.exitcode is None]
    # One that failed leaves the others without their exchanges, which need not notice it on GPUs.
    stopped = any(p.exitcode in _STOPPED for p in processes)
    _join(processes, _GRACE if stopped else 2 * _PATIENCE)
    own = [p for p in processes if p.is_alive()]
    for end in ("terminate", "kill"):
        for process in processes:
            if process.is_alive():
                getattr(process, end)()
        _join(processes, _GRACE if stopped else _PATIENCE)
    return [0 if p in own else p.exitcode or 0 for p in processes]


def _join(processes: Iterable[multiprocessing.Process], seconds: float) -> None:
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))


def _send_to_children(number: int) -> bool:
    children = [child.pid for child in multiprocessing.active_children() if child.pid]
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, number)
    return bool(children)


def _spawned(rank: int, main: Main, plan: LaunchPlan, args: Sequence[Any], variables: dict[str, str]) -> None:
    """Set the variables that torchrun would set, and run."""
    local = {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(plan.per_machine), FORWARDED: "1"}
    os.environ.update(variables, RANK=str(plan.machine_rank * plan.per_machine + rank), **local)
    try:
        with raising():
            _join_and_run(main, plan.uses_gpu, args)
    except Interrupted as stop:
        if stop.line and os.environ["RANK"] == "0":
            print(stop.line, file=sys.stderr, flush=True)
        sys.exit(stop.exit_code)
    except RuntimeError as error:
        if LOST_PROCESS.search(str(error)):
            sys.exit(_LOST_EXIT)
        raise


def _join_and_run(main: Main, on_gpu: bool, args: Sequence[Any]) -> Any:
    """Join the process group that the environment describes, run, and leave it."""
    import torch
    import torch.distributed as dist
    from detectron2.utils import comm

    if on_gpu:
        local_rank, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local_rank >= found:
            fix = "start fewer processes, or use --num-gpus 0"
            raise ValueError(f"local process {local_rank} has no GPU of its own ({found} found); {fix}")
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if on_gpu else "gloo", init_method="env://", timeout=_TIMEOUT)
    try:
        per_machine = int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))
        if dist.get_world_size() % per_machine:
            fix = "start the same number on every machine"
            raise ValueError(
                f"{dist.get_world_size()} processes do not divide by LOCAL_WORLD_SIZE={per_machine}; {fix}"
            )
        # Detectron2 0.6 and its main branch keep the group of this machine's processes in this variable.
        comm._LOCAL_PROCESS_GROUP, _ = dist.new_subgroups(per_machine)
        comm.synchronize()
        result = main(*args)
        if not on_gpu:
            with suppress(RuntimeError):  # another process failed, and reports its own error
                dist.barrier()  # gloo: a process that leaves early may abort one that still sends
        return result
    except RuntimeError as error:
        if LOST_PROCESS.search(str(error)):
            with suppress(KeyboardInterrupt):
                time.sleep(_PATIENCE)
        raise
    finally:
        comm._LOCAL_PROCESS_GROUP = None
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
