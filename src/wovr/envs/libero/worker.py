"""The process of one environment, driven over the connection that its one argument numbers.

A request is a tuple of a name and its arguments. The answer is ("done", value), or ("failed", kind, words) where kind
is the exception's name. The process ends with its connection, so that none outlives the run.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wovr.envs.libero.install import prepare
from wovr.envs.libero.scene import Begin, Glance, Scene, Setup


class Desk:
    """Answers requests; keeps the scene of the last task."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._task_file = ""
        self._scene: Scene | None = None

    def reset(self, begin: Begin) -> Glance:
        if begin.task_file != self._task_file or self._scene is None:
            if self._scene is not None:
                self._scene.close()
            self._scene = None
            gc.collect()  # robosuite's environment refers to itself
            self._scene, self._task_file = Scene(begin.task_file, self._setup.look), begin.task_file
        return self._scene.reset(begin)

    def step(self, action_A: NDArray[np.float32], render: bool) -> Glance:
        assert self._scene is not None
        return self._scene.step(action_A, render=render)

    def poses(self) -> dict[str, NDArray[np.float64]]:
        assert self._scene is not None
        return self._scene.poses()


def main() -> None:
    """Serve until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    connection = Connection(int(sys.argv[1]))
    try:
        setup: Setup = connection.recv()
        os.chdir(setup.folder)  # MuJoCo logs its warnings to the working directory
        prepare(setup.package, setup.assets, setup.gl, setup.folder)
        desk = Desk(setup)
        while True:
            name, *arguments = connection.recv()
            connection.send(_answer(desk, name, arguments))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    # Not through the interpreter's exit, in which GL libraries crash now and then.
    os._exit(0)


def _answer(desk: Desk, name: str, arguments: list[Any]) -> tuple[Any, ...]:
    try:
        return "done", getattr(desk, name)(*arguments)
    except Exception as error:
        traceback.print_exc()
        return "failed", type(error).__name__, " ".join(str(error).split())
