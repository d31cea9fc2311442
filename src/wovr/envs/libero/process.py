"""A worker process as its parent sees it: started when it is first needed, lost when it dies or does not answer."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from wovr.envs.libero.scene import Setup

REPLY_LIMIT_S = 300.0
"""How long an answer may take. The longest, a start on a loaded machine with compiling, takes about 20 s."""
CODE = "from wovr.envs.libero.worker import main; main()"


class WorkerLostError(Exception):
    """The process is gone, with the episode in it; the message is the last line that it said."""


class WorkerFailedError(Exception):
    """The process lives, and what it was asked to do raised an exception: its name and words."""


class WorkerProcess:
    """Number `index` of the workers; `threads` for its numerics and its software renderer, 0 for their defaults."""

    def __init__(self, index: int, setup: Setup, threads: int) -> None:
        self._setup, self._threads = setup, threads
        self._said = setup.folder / f"worker-{index}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self.task_file = ""
        """Task whose model the process holds."""

    @property
    def pid(self) -> int | None:
        """Of the process that runs, None before its start."""
        return self._process.pid if self._process else None

    def ask(self, *request: Any) -> None:
        """Send a request, to a new process if there is none. Raises WorkerLostError."""
        try:
            if self._connection is None:
                self._start()
            assert self._connection is not None
            self._connection.send(request)
        except OSError:
            raise self._lost() from None

    def answer(self) -> Any:
        """What the last request gave. Raises WorkerLostError or WorkerFailedError."""
        assert self._connection is not None
        try:
            if not wait([self._connection], timeout=REPLY_LIMIT_S):
                raise self._lost(f"no answer in {REPLY_LIMIT_S:.0f} s")
            outcome, *value = self._connection.recv()
        except (OSError, EOFError):
            raise self._lost() from None
        if outcome == "failed":
            raise WorkerFailedError(": ".join(value))
        return value[0]

    def close(self) -> None:
        """End the process. It keeps nothing worth a farewell, and may be stuck."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        self._connection = self._process = None
        self.task_file = ""

    def _start(self) -> None:
        ours, theirs = Pipe()
        limits = {"MALLOC_ARENA_MAX": "1"}  # MuJoCo compiles models in threads: 1.0 instead of 1.3 GB a worker
        if self._threads:  # those of several workers would only wait for each other
            limits |= {name: str(self._threads) for name in ("OMP_NUM_THREADS", "LP_NUM_THREADS")}
        with self._said.open("wb") as said, theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", CODE, str(theirs.fileno())],
                env=os.environ | limits,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        self._connection = ours
        ours.send(self._setup)

    def _lost(self, why: str = "") -> WorkerLostError:
        self.close()
        lines = self._said.read_text(errors="replace").splitlines() if self._said.exists() else []
        return WorkerLostError(why or next((line.strip() for line in reversed(lines) if line.strip()), "nothing said"))
