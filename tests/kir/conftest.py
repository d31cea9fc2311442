"""Episodes whose frames tell their own index."""

import numpy as np
import pytest

from wovr.core.types import Episode


@pytest.fixture
def make_episode():
    def make(grip_T, success=False, task_id=0, init_id=3):
        T = len(grip_T)
        frames = np.empty((T + 1, 4, 4, 3), dtype=np.uint8)
        frames[:] = np.arange(T + 1)[:, None, None, None]
        actions = np.zeros((T, 3), dtype=np.float32)
        actions[:, 0] = np.arange(T)
        actions[:, 2] = grip_T
        success_T = np.zeros(T, dtype=bool)
        success_T[-1] = success
        return Episode(
            frames,
            actions,
            success_T,
            np.zeros((T + 1, 0)),
            f"task {task_id}",
            "toy",
            task_id,
            init_id,
            "base",
            0,
            "collect",
        )

    return make
