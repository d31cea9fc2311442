"""The embedded simulator `tabletop`: pick-and-place seen from above, with real contact."""

from wovr.envs.tabletop.demonstrator import Demonstrator, Player
from wovr.envs.tabletop.scene import goal, play_scene
from wovr.envs.tabletop.simulator import Tabletop, TabletopConfig

__all__ = ["Demonstrator", "Player", "Tabletop", "TabletopConfig", "goal", "play_scene"]
