"""Start a command anew in several processes, one per GPU: here, or on the machines of a hostfile.

Results are those of one process, up to rounding.

A process knows by `RANK` in its environment that it is one of several. Here they are started directly, so that errors
and exit statuses pass through; on several machines DeepSpeed's launcher does it over ssh.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from wovr.core.errors import UserError
from wovr_cli.arguments import packaged

GRACE = 10.0
"""Seconds that processes get to end by themselves after one has failed."""
INTERRUPTED, USER_ERROR = 130, 2
SHOWN_LINES = 30


@dataclass(frozen=True, slots=True)
class Ranks:
    """What the flags of a command say of its processes."""

    nproc: int = 1
    zero: Path | None = None
    """DeepSpeed's settings."""
    offload: bool = False
    hostfile: Path | None = None

    @classmethod
    def of(cls, nproc: int, zero: str, offload: bool, hostfile: Path | None) -> Ranks:
        """UserError where they contradict each other, or name no settings."""
        settings = None
        if zero != "0":
            settings = packaged(f"configs/deepspeed/zero{zero}.json") if zero in ("1", "2", "3") else Path(zero)
            if not settings.is_file():
                raise UserError(f"--zero: expected 0, 1, 2, 3 or a JSON file of DeepSpeed's settings, found {zero!r}")
        if offload and settings is None:
            raise UserError("--offload: expected --zero 1, 2 or 3 with it, found none")
        return cls(nproc, settings, offload, hostfile)

    def start(self, check: Callable[[], object]) -> None:
        """In the first process, where several are asked for, start them and do not return. What `check` finds wrong is
        said once, before that."""
        if (self.nproc > 1 or self.zero or self.hostfile) and not is_worker():
            check()
            launch(self.nproc, self.hostfile)


ALONE = Ranks()


def is_worker() -> bool:
    """Whether this process is one of several that were started together."""
    return "RANK" in os.environ


def launch(processes: int, hostfile: Path | None) -> NoReturn:
    """Run this command line in `processes` processes here, or as `hostfile` says, and exit as they do.

    UserError where the hostfile or pdsh is missing, or where this machine has GPUs but fewer than processes.
    """
    command = [sys.executable, "-m", "wovr_cli", *sys.argv[1:]]
    if hostfile is not None:
        _check_hostfile(hostfile)
        if shutil.which("pdsh") is None:
            raise UserError("--hostfile: expected pdsh, which reaches machines by ssh, found none; apt install pdsh")
        runner = ["deepspeed.launcher.runner", "--hostfile", str(hostfile), "--no_local_rank", "--module", "wovr_cli"]
        sys.exit(subprocess.call([sys.executable, "-m", *runner, *sys.argv[1:]]))
    import torch

    if 0 < torch.cuda.device_count() < processes:
        raise UserError(
            f"--nproc: expected at most {torch.cuda.device_count()}, this machine's GPUs, found {processes}"
        )
    with tempfile.TemporaryDirectory(prefix="wovr-") as folder:
        sys.exit(_run_here(command, processes, Path(folder)))


def _run_here(command: Sequence[str], processes: int, folder: Path) -> int:
    """Rank 0 speaks. The end of what another says is shown where it fails, unless by an error that rank 0 names too."""
    environment = _environment(processes)
    outputs = [folder / f"rank_{rank}" for rank in range(processes)]
    ranks = []
    for rank, output in enumerate(outputs):
        own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with output.open("wb") as file:
            stream = file if rank else None
            ranks.append(subprocess.Popen(command, env=own, stdout=stream, stderr=stream, preexec_fn=_die_with_parent))
    try:
        failed = _first_failure(ranks)
    except KeyboardInterrupt:  # the terminal has told them too
        _end(ranks)
        return INTERRUPTED
    if failed is None:
        return 0
    _end(ranks)
    for rank, (process, output) in enumerate(zip(ranks, outputs, strict=True)):
        same_as_rank_0 = process.returncode == ranks[0].returncode == USER_ERROR
        if rank and process.returncode > 0 and not same_as_rank_0:
            said = output.read_text(errors="replace").splitlines()[-SHOWN_LINES:]
            print(
                f"wovr: process {rank} of {processes} ended with status {process.returncode}:",
                *said,
                sep="\n",
                file=sys.stderr,
            )
    return max(1, ranks[failed].returncode)  # negative where a signal ended it


def _first_failure(ranks: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all; the first rank that fails, None where all succeed."""
    while True:
        found = [process.poll() for process in ranks]
        for rank, status in enumerate(found):
            if status:
                return rank
        if None not in found:
            return None
        time.sleep(0.1)


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """Let every process end by itself, or kill it."""
    deadline = time.monotonic() + GRACE
    for process in ranks:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environment(processes: int) -> dict[str, str]:
    """What all processes share. They meet at a free port, and divide the cores."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    return {"OMP_NUM_THREADS": threads, **os.environ, **meeting}


def _die_with_parent() -> None:
    """Linux kills this process when the launcher dies, so that none is left with the run folder open."""
    if sys.platform == "linux":
        parent_death_signal = 1
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)


def _check_hostfile(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: expected a hostfile with lines as 'worker-1 slots=8', found none")
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.strip() and not line.startswith("#") and not re.fullmatch(r"\S+\s+slots=[1-9]\d*", line.strip()):
            raise UserError(f"{path}: line {number}: expected a line as 'worker-1 slots=8', found {line!r}")


def run_worker(command: Callable[[], object]) -> NoReturn:
    """Run one of several processes to its end, without the interpreter's own: there, a thread of gloo or NCCL that is
    still alive would abort a process whose work is done."""
    status: int | str | None = 0
    try:
        command()
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))
