"""Runs the commands of the set-up quietly, and turns a failure into one clear line."""

import os
import re
import subprocess
import sys

# (what a command prints, what is wrong and how to mend it); the first match is shown.
KNOWN_FAILURES = (
    (
        "No space left on device",
        "the disk is full: free 8 GB, or set PIP_CACHE_DIR and TMPDIR elsewhere",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED|SSLError",
        "the package index's certificate is not trusted: set PIP_CERT to your network's certificate file",
    ),
    (
        "name resolution|Name or service not known|NameResolutionError|nodename nor servname"
        "|NewConnectionError|Connection refused|Network is unreachable|ConnectTimeout|ConnectError"
        "|ProxyError|ReadTimeout|Max retries exceeded",
        "the package index cannot be reached: check the network, or set HTTPS_PROXY or PIP_INDEX_URL",
    ),
    (
        "No matching distribution found for torch",
        "no such torch for this Python and machine: set TORCH_SPEC (and TORCH_INDEX) as INSTALL.md shows",
    ),
    ("Permission denied", "a file cannot be written: check who owns .venv and pip's cache folder"),
)


class SetupError(RuntimeError):
    """The environment cannot be made. The message is one line and names the mend.

    half_done: whether files may have been left half-written.
    """

    def __init__(self, message: str, half_done: bool = False) -> None:
        super().__init__(message)
        self.half_done = half_done


def explain(output: str) -> str:
    """The likely cause and mend of a failed command, from what it printed."""
    for pattern, mend in KNOWN_FAILURES:
        if re.search(pattern, output):
            return mend
    return "see the output above and the section on common errors in INSTALL.md"


def run(command: list[str], env: dict[str, str] | None = None) -> None:
    """Run a command quietly; on failure show the end of its output and raise SetupError."""
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", **(env or {})}
    env.setdefault("PIP_RETRIES", "2")
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    result = subprocess.run(command, text=True, env=env, **streams)
    if result.returncode != 0:
        sys.stdout.write("failed\n" + "\n".join(result.stdout.splitlines()[-30:]) + "\n")
        sys.stdout.flush()
        # pip prints this line after all downloads, before it writes the first file.
        raise SetupError(explain(result.stdout), half_done="Installing collected packages" in result.stdout)


def succeeds(command: list[str]) -> bool:
    """Whether a command ends with exit code 0; its output is dropped."""
    return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0
