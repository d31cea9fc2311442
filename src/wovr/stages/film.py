"""A few of the rollouts that RL learns from, kept as films: numbers do not show what a world model makes up.

Nothing is drawn or rolled out for them. Legend: T frames of one trajectory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wovr.core.types import Frames
from wovr.envs.chunked import Chunk, TrajectoryKey
from wovr.imagine.rollout import RolloutBatch
from wovr.stages.pictures import save_film, small

FILMS = "films"
"""Folder beside the policy, NNNN.gif before update NNNN."""
TIMES = 10
"""Films of one phase, beside that of its first update, whatever its length."""
PANELS = 4


class Film:
    """Watches the first trajectory of the first groups of a rollout."""

    def __init__(self, group_size: int) -> None:
        self._group_size = group_size
        self._frames: dict[int, list[Frames]] = {}

    def __call__(self, keys: Sequence[TrajectoryKey], chunk: Chunk) -> None:
        """Keep the frames of a chunk, as small as they are shown: whole ones of long rollouts would take a GB."""
        for row, key in enumerate(keys):
            group, place = divmod(key.trajectory, self._group_size)
            if place == 0 and group < PANELS:
                self._frames.setdefault(group, []).append(np.stack([small(one) for one in chunk.frames_BTHWC[row]]))

    def save(self, path: Path, batch: RolloutBatch) -> bool:
        """Write what was watched of `batch`, the groups of all ranks. False where the simulator lost all of it."""
        videos = []
        for group, pieces in self._frames.items():
            rows = np.flatnonzero(batch.group_N == group)
            if len(rows):
                frames_THWC = np.concatenate(pieces)[: 1 + batch.limit_N[rows[0]]]
                videos.append((frames_THWC, int(batch.success_step_N[rows[0]])))
        if videos:
            save_film(path, videos)
        return bool(videos)


def is_filmed(update: int, updates: int) -> bool:
    """Whether the rollouts of this update, counted from 0, are: the first, and about every tenth part of them."""
    return update % max(1, updates // TIMES) == 0
