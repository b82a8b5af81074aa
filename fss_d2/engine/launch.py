"""Start one or many processes: on GPUs or CPUs, spawned here or started by torchrun.

Detectron2 0.6 launches on GPUs only, and no version of it joins the processes of torchrun.
"""

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

__all__ = ["LaunchPlan", "launch"]

Main = Callable[..., Any]
_TIMEOUT = timedelta(minutes=30)  # as Detectron2's
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
    import torch.multiprocessing as mp

    url = f"tcp://127.0.0.1:{_free_port()}" if plan.dist_url == "auto" else plan.dist_url
    host, _, port = url.removeprefix("tcp://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--dist-url {url!r} is not of the form tcp://HOST:PORT")
    variables = {"MASTER_ADDR": host, "MASTER_PORT": port, "WORLD_SIZE": str(world_size)}
    mp.spawn(_spawned, args=(main, plan, tuple(args), variables), nprocs=plan.per_machine)
    return None


def _spawned(rank: int, main: Main, plan: LaunchPlan, args: Sequence[Any], variables: dict[str, str]) -> None:
    """Set the variables that torchrun would set, and run."""
    local = {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(plan.per_machine)}
    os.environ.update(variables, RANK=str(plan.machine_rank * plan.per_machine + rank), **local)
    _join_and_run(main, plan.uses_gpu, args)


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
    finally:
        comm._LOCAL_PROCESS_GROUP = None
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
