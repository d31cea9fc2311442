"""The LIBERO benchmark: robosuite's Panda over 130 tasks, one process per environment.

Importing this is light; mujoco, robosuite and hf-libero are imported by the workers alone.
"""

from wovr.envs.libero.config import LiberoConfig
from wovr.envs.libero.simulator import Libero

__all__ = ["Libero", "LiberoConfig"]
