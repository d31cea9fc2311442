"""The embedded simulator `tabletop`: pick-and-place seen from above, with real contact."""

from wovr.envs.tabletop.demonstrator import Demonstrator, Player
from wovr.envs.tabletop.distance import goal_distance
from wovr.envs.tabletop.scene import goal, play_scene
from wovr.envs.tabletop.simulator import Tabletop, TabletopConfig

__all__ = ["Demonstrator", "Player", "Tabletop", "TabletopConfig", "goal", "goal_distance", "play_scene"]
