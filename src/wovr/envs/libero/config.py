"""What is simulated and how it is looked at."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from wovr.core.config import Config
from wovr.core.errors import UserError
from wovr.envs.libero.suites import SUITES, check_suite, task_map, task_numbers


class LiberoConfig(Config):
    """One suite of LIBERO, or some of its tasks."""

    kind: Literal["libero"] = "libero"
    """Names the simulator."""
    suite: str = "libero_goal"
    """`libero_spatial`, `libero_object`, `libero_goal`, `libero_10` or `libero_90`."""
    tasks: tuple[str, ...] = ()
    """Names of tasks, or their numbers in the suite; none means all."""
    image_size: int = Field(default=256, ge=16)
    """Pixels; 256 as published, 128 or 64 for small runs."""
    horizon: int = Field(default=0, ge=0)
    """Env steps until time-out; 0 takes the suite's usual one, which is longer than its longest demonstration."""
    num_initial_states: int = Field(default=50, ge=1)
    """Initial states per task that evaluation uses: the 50 that LIBERO ships. From 50 on they are sampled."""
    settle_steps: int = Field(default=15, ge=0)
    """Env steps with the gripper open before an episode begins: objects start a little above what they lie on."""
    wrist: bool = False
    """Whether the camera at the hand is rendered too."""
    shadows: bool = False
    """Whether lights cast shadows, where a scene has such lights."""
    reflections: bool = False
    """Whether the floor and tables mirror the scene, as in LIBERO's own pictures; takes about as long as the rest."""
    samples: Literal[1, 2, 4] = 4
    """Per pixel, as LIBERO's own pictures have them. Fewer make edges jagged; 1 takes half of the time of rendering."""
    workers: int = Field(default=0, ge=0)
    """Processes, one environment and about 1 GB of memory each; 0 means one per core."""
    assets: Path | None = None
    """Folder of meshes and textures; without it `WOVR_LIBERO_ASSETS`, or where hf-libero keeps them."""
    gl: Literal["auto", "egl", "osmesa"] = "auto"
    """Renderer without a display; `auto` takes egl where it works."""

    @property
    def num_tasks(self) -> int:
        """How many tasks there are to act in."""
        return len(self.tasks) or SUITES[self.suite].tasks

    @field_validator("suite")
    @classmethod
    def _known(cls, suite: str) -> str:
        return check_suite(suite)

    @field_validator("tasks", mode="before")
    @classmethod
    def _as_text(cls, tasks: Any) -> Any:
        return tuple(map(str, tasks)) if isinstance(tasks, Iterable) and not isinstance(tasks, str) else tasks

    @field_validator("tasks")
    @classmethod
    def _in_suite(cls, tasks: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        """Checked here where hf-libero is installed, else when the simulator is made."""
        try:
            suites = task_map()
        except UserError:
            return tasks
        if "suite" in info.data:
            task_numbers(suites, info.data["suite"], tasks)
        return tasks

    @field_validator("horizon")
    @classmethod
    def _usual(cls, horizon: int, info: ValidationInfo) -> int:
        suite = SUITES.get(info.data.get("suite", ""))
        return horizon or (suite.horizon if suite else 0)
