"""The embedded simulator: B tables that step and render together, exact from their initial states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wovr.core.config import Config
from wovr.core.errors import UserError
from wovr.core.types import Actions, Frames, SimulatorStart, Task
from wovr.envs.base import Observation
from wovr.envs.tabletop.physics import Table
from wovr.envs.tabletop.render import Renderer
from wovr.envs.tabletop.scene import TASKS, Scene, suite_scene


class TabletopConfig(Config):
    """The tabletop suite."""

    kind: Literal["tabletop"] = "tabletop"
    """Tells this section from that of another simulator."""
    image_size: int = 64
    """Pixels; the geometry is drawn for 64."""
    horizon: int = 48
    """Env steps until time-out; a clean demonstration takes about 25."""
    num_initial_states: int = 50
    """Initial states per task that evaluation uses; collection uses numbers from here on."""

    @property
    def num_tasks(self) -> int:
        """Tasks of the suite."""
        return len(TASKS)


class Tabletop:
    """`wovr.envs.base.Simulator` over pymunk tables."""

    suite: str = "tabletop"
    action_dim: int = 3
    tasks: Sequence[Task] = TASKS
    max_batch: int = 128

    def __init__(self, config: TabletopConfig) -> None:
        self.image_size = config.image_size
        self.horizon = config.horizon
        self.num_initial_states = config.num_initial_states
        self._renderer = Renderer(config.image_size)

    def reset(self, starts: Sequence[SimulatorStart]) -> Observation:
        """Lay one table per start; raises UserError for a task that the suite does not have."""
        for start in starts:
            if not 0 <= start.task_id < len(TASKS):
                raise UserError(f"task {start.task_id}: expected 0 to {len(TASKS) - 1} in the tabletop suite")
        return self.reset_scenes([suite_scene(start.init_id) for start in starts], [start.task_id for start in starts])

    def reset_scenes(self, scenes: Sequence[Scene], task_ids: Sequence[int]) -> Observation:
        """Lay given scenes, which undirected play draws for itself."""
        self._tables = [Table(scene) for scene in scenes]
        self._task_ids = list(task_ids)
        self._colours = np.stack([scene.colours for scene in scenes])
        self._canvas = self._renderer.background(np.stack([scene.plates for scene in scenes]), self._colours)
        self._frames = np.zeros((len(scenes), self.image_size, self.image_size, 3), np.uint8)
        return self._observe(np.arange(len(scenes)))

    def step(
        self, actions_BA: Actions, active_B: NDArray[np.bool_] | None = None, *, render: bool = True
    ) -> Observation:
        """Advance the active tables; see the protocol."""
        assert actions_BA.shape == (len(self._tables), self.action_dim), actions_BA.shape
        rows = np.arange(len(self._tables)) if active_B is None else np.flatnonzero(active_B)
        for row in rows:
            self._tables[row].step(actions_BA[row])
        return self._observe(rows if render else rows[:0])

    @property
    def plates_B22(self) -> NDArray[np.float64]:
        """(B, 2, 2) centres of the plates, which the state leaves out because they do not move."""
        return np.stack([table.plates for table in self._tables])

    def close(self) -> None:
        """Nothing outlives the object."""

    def _observe(self, rows: NDArray[np.intp]) -> Observation:
        states = np.stack([table.state() for table in self._tables])
        if len(rows):
            self._frames = self._frames.copy()
            self._frames[rows] = self._render(rows, states)
        success = np.array([t.success(i) for t, i in zip(self._tables, self._task_ids, strict=True)])
        return Observation(self._frames, success, states, np.zeros(len(states), dtype=np.bool_))

    def _render(self, rows: NDArray[np.intp], states_BS: NDArray[np.float64]) -> Frames:
        return self._renderer.draw(self._canvas[rows], states_BS[rows], self._colours[rows])
