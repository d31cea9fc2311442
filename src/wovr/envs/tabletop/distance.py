"""How far a recorded table is from its goal, read from states alone.

Legend: F frames, S state size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wovr.envs.tabletop.physics import STATE_SIZE
from wovr.envs.tabletop.scene import goal, suite_scene


def goal_distance(task_id: int, init_id: int, states_FS: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """(F,) table units from the named block to the middle of the named plate; infinite while the block is held.

    At most SETTLED_RADIUS is success. The states leave the plates out, which the initial state tells: None where the
    first of them does not begin as the suite's layout of that number does.
    """
    if states_FS.shape[1] != STATE_SIZE or init_id < 0:
        return None
    scene = suite_scene(init_id)
    if not np.allclose(states_FS[0, 4:], scene.blocks.ravel()):
        return None
    block, plate = goal(task_id)
    offset_F2 = states_FS[:, 4 + 2 * block : 6 + 2 * block] - scene.plates[plate]
    return np.where(states_FS[:, 3] == block, np.inf, np.hypot(*offset_F2.T))
