"""LIBERO behind the simulator protocol: one worker process per environment, restarted when it is lost."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from wovr.core.errors import UserError
from wovr.core.types import Actions, SimulatorStart, Task
from wovr.envs.base import Observation
from wovr.envs.libero.config import LiberoConfig
from wovr.envs.libero.install import find_assets, find_package, working_gl
from wovr.envs.libero.process import WorkerFailedError, WorkerLostError, WorkerProcess
from wovr.envs.libero.scene import ACTION_DIM, PROPRIO_DIM, Begin, Glance, Look, Setup
from wovr.envs.libero.suites import load_initial_states, load_tasks, task_file

STARTS = 3
"""Times in a row that a worker may die at a reset."""


class Libero:
    """`wovr.envs.base.Simulator` over the tasks of one LIBERO suite.

    Actions are the seven of OSC_POSE in [-1, 1]: moves of the hand, turns of it, then the gripper, -1 to open.
    Proprioception is eight numbers, always told: see `wovr.envs.libero.scene.Glance`.
    """

    action_dim: int = ACTION_DIM

    def __init__(self, config: LiberoConfig) -> None:
        """Checks what is needed, and starts nothing yet; raises UserError."""
        self.suite, self.image_size, self.horizon = config.suite, config.image_size, config.horizon
        self.num_initial_states = config.num_initial_states
        self.max_batch = config.workers or len(os.sched_getaffinity(0))
        package = find_package()
        self.tasks: Sequence[Task] = load_tasks(config.suite, config.tasks)
        self._names = {task.task_id: task.name for task in self.tasks}
        self._settle_steps, self._wrist = config.settle_steps, config.wrist
        assets, gl = find_assets(config.assets), working_gl(config.gl)
        # Removed with this object, or at exit.
        self._folder = tempfile.TemporaryDirectory(prefix="wovr-libero-")
        look = Look(config.image_size, config.wrist, config.shadows, config.reflections, config.samples)
        setup = Setup(package, assets, gl, Path(self._folder.name), look)
        threads = 1 if self.max_batch > 1 else 0
        self._workers = [WorkerProcess(index, setup, threads) for index in range(self.max_batch)]
        self._states: dict[int, NDArray[np.float64]] = {}
        self._running: list[WorkerProcess] = []

    def reset(self, starts: Sequence[SimulatorStart]) -> Observation:
        """Start one environment per entry of `starts`, at most `max_batch`; raises UserError for what cannot start.

        Numbers below the shipped initial states' take those, larger ones seed the task's own placement of objects.
        """
        assert 0 < len(starts) <= self.max_batch, (len(starts), self.max_batch)
        begins = [self._begin(start) for start in starts]
        self._running = self._assign(begins)
        glances: list[Glance | None] = [None] * len(starts)
        last = ""
        for _ in range(STARTS):
            missing = [row for row, glance in enumerate(glances) if glance is None]
            for row in missing:
                self._running[row].task_file = begins[row].task_file
            found, last = self._exchange({row: ("reset", begins[row]) for row in missing}, self._refused)
            for row, glance in found.items():
                glances[row] = glance
            if all(glances):
                break
        else:
            raise UserError(f"LIBERO: expected a worker to start, {STARTS} in a row died; the last said: {last}")
        shown = [glance for glance in glances if glance is not None]
        self._lost = np.zeros(len(starts), dtype=np.bool_)
        self._success = np.zeros(len(starts), dtype=np.bool_)
        self._frames = np.zeros((len(starts), self.image_size, self.image_size, 3), np.uint8)
        self._wrists = np.zeros_like(self._frames) if self._wrist else None
        self._states_BS = np.full((len(starts), max(len(glance.state_S) for glance in shown)), np.nan)
        self._proprio_BP = np.zeros((len(starts), PROPRIO_DIM), np.float32)
        return self._observe(dict(enumerate(shown)))

    def step(
        self, actions_BA: Actions, active_B: NDArray[np.bool_] | None = None, *, render: bool = True
    ) -> Observation:
        """Advance the active environments that are not lost; see the protocol."""
        assert actions_BA.shape == (len(self._running), self.action_dim), actions_BA.shape
        active = ~self._lost if active_B is None else active_B & ~self._lost
        requests = {int(row): ("step", actions_BA[row], render) for row in np.flatnonzero(active)}
        return self._observe(self._consult(requests))

    def poses(self) -> list[dict[str, NDArray[np.float64]]]:
        """Privileged state of the environments of the last reset, empty for lost ones.

        (7,) world position and quaternion wxyz per name: `hand` (the gripper's site), bodies of objects and fixtures
        and their parts by their MuJoCo names, movable objects and fixtures by LIBERO's, and the task's regions; and
        `fingers`, (2,) joint positions.
        """
        requests = {int(row): ("poses",) for row in np.flatnonzero(~self._lost)}
        found = self._consult(requests)
        return [found.get(row, {}) for row in range(len(self._running))]

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.close()
        self._folder.cleanup()

    def _begin(self, start: SimulatorStart) -> Begin:
        if start.task_id not in self._names:
            known = ", ".join(map(str, self._names))
            raise UserError(f"task {start.task_id}: expected a task of suite {self.suite} ({known})")
        name = self._names[start.task_id]
        if start.task_id not in self._states:
            self._states[start.task_id] = load_initial_states(self.suite, name)
        shipped = self._states[start.task_id]
        state = shipped[start.init_id] if start.init_id < len(shipped) else None
        return Begin(str(task_file(self.suite, name)), start.init_id, state, self._settle_steps)

    def _assign(self, begins: Sequence[Begin]) -> list[WorkerProcess]:
        """A worker per row, one that holds the row's task where there is one: building a model takes a second."""
        free = list(self._workers)
        chosen: dict[int, WorkerProcess] = {}
        for row, begin in enumerate(begins):
            holder = next((worker for worker in free if worker.task_file == begin.task_file), None)
            if holder is not None:
                chosen[row] = holder
                free.remove(holder)
        return [chosen[row] if row in chosen else free.pop(0) for row in range(len(begins))]

    def _consult(self, requests: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        """Answers of environments that run; those that do not give one are lost from now on."""
        found, _ = self._exchange(requests, self._broke)
        self._lost = self._lost.copy()
        self._lost[[row for row in requests if row not in found]] = True
        return found

    def _exchange(
        self, requests: dict[int, tuple[Any, ...]], failed: Callable[[int, str], NoReturn]
    ) -> tuple[dict[int, Any], str]:
        """Ask all, then hear all, so that they work at the same time.

        Returns the answers by row, without those of workers that were lost, and the last words of such a one.
        """
        asked, found, last = [], {}, ""
        for row, request in requests.items():
            try:
                self._running[row].ask(*request)
                asked.append(row)
            except WorkerLostError as error:
                last = str(error)
        failures: list[tuple[int, str]] = []
        for row in asked:
            try:
                found[row] = self._running[row].answer()
            except WorkerLostError as error:
                last = str(error)
            except WorkerFailedError as error:
                failures.append((row, str(error)))
        if failures:
            failed(*failures[0])
        return found, last

    def _refused(self, row: int, words: str) -> NoReturn:
        """A reset failed for a reason that a new process would meet again."""
        task = Path(self._running[row].task_file).stem
        self._running[row].task_file = ""
        raise UserError(f"task {task} of {self.suite}: {words}")

    def _broke(self, row: int, words: str) -> NoReturn:
        raise RuntimeError(f"LIBERO worker {row}: {words}")

    def _observe(self, glances: dict[int, Glance]) -> Observation:
        self._success, self._states_BS = self._success.copy(), self._states_BS.copy()
        self._proprio_BP = self._proprio_BP.copy()
        if any(glance.frame_HWC is not None for glance in glances.values()):
            self._frames = self._frames.copy()
            self._wrists = None if self._wrists is None else self._wrists.copy()
        for row, glance in glances.items():
            self._success[row] = glance.success
            self._states_BS[row, : len(glance.state_S)] = glance.state_S
            self._proprio_BP[row] = glance.proprio_P
            if glance.frame_HWC is not None:
                self._frames[row] = glance.frame_HWC
            if self._wrists is not None and glance.wrist_HWC is not None:
                self._wrists[row] = glance.wrist_HWC
        return Observation(self._frames, self._success, self._states_BS, self._lost, self._wrists, self._proprio_BP)
