"""What every worker process of a data loader does first."""

import os
import signal
import threading

import cv2

__all__ = ["init_worker"]


def init_worker(worker: int) -> None:
    """Load with one thread, and leave signals to the main process, which ends the workers when it is done.

    A signal to the whole group of processes (Ctrl-C, torchrun, a batch system) would otherwise end the
    workers while the main process finishes its iteration.
    """
    cv2.setNumThreads(0)
    for number in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_when_parent_says, daemon=True).start()


def _end_when_parent_says() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)
