"""Mirror images of episodes: twice the dynamics from the same rollouts, where the world allows it.

Left and right change places in the frames, and the actions that move sideways change their sign. What a world model
learns from it holds only where the mirrored scene could have happened: two fingers over a table, seen from above, but
no arm of six joints beside it. An instruction stays as it is: it must not name left or right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wovr.core.types import Episode, Frames, Video


@dataclass(frozen=True, slots=True)
class MirroredVideo:
    """A video with left and right changed, as it is read."""

    video: Video

    @property
    def shape(self) -> tuple[int, ...]:
        return self.video.shape

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        return self.video.dtype

    def __len__(self) -> int:
        return len(self.video)

    def __getitem__(self, rows: Any, /) -> Frames:
        return np.ascontiguousarray(self.video[rows][..., ::-1, :])


def with_mirror_images(episodes: Sequence[Episode], action_dims: Sequence[int]) -> list[Episode]:
    """The episodes; then the mirror image of each, in the same order, unless `action_dims` is empty."""
    return [*episodes, *(mirrored(episode, action_dims) for episode in episodes if action_dims)]


def mirrored(episode: Episode, action_dims: Sequence[int]) -> Episode:
    """The mirror image, whose actions have the other sign in `action_dims`. Simulator states, the view of the hand and
    proprioception have none."""
    actions_TA = episode.actions_TA.copy()
    actions_TA[:, list(action_dims)] *= -1
    return replace(
        episode,
        frames_THWC=MirroredVideo(episode.frames_THWC),
        actions_TA=actions_TA,
        states_TS=np.empty((len(episode) + 1, 0)),
        wrist_THWC=None,
        proprio_TP=None,
    )
