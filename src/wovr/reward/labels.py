"""Labelled frames for the reward classifier: balanced classes, and negatives that look like successes.

Most frames of a rollout are easy negatives. What decides whether imagined success can be trusted are the frames
just before success, those after a release that missed, and how failed rollouts end: the hard negatives.
A frame is only ever shown with the instruction it was recorded under. Whether it meets another one is not known
from the recording, so there are no negatives by swapped instruction.

Legend: B batch, E episodes, T env steps; frame t + 1 of an episode is the result of its action t and carries
`success_T[t]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from wovr.core.config import Config
from wovr.core.errors import UserError
from wovr.core.seed import stream
from wovr.core.types import Episode, Video


class LabelConfig(Config):
    """What a batch of labelled frames is made of."""

    positive: float = Field(0.5, gt=0, lt=1)
    """Share of successful frames; 0.5 balances the classes."""
    hard: float = Field(0.75, ge=0, le=1)
    """Share of hard ones among the negatives; the others are drawn from all negatives."""
    window: int = Field(8, ge=1)
    """Env steps before a success, after a release and before the end of a failure that count as hard; one chunk."""
    reconstructed: float = Field(0.5, ge=0, le=1)
    """Share of frames taken as the codec reconstructs them: what the classifier meets in imagination."""


class LabelledFrames:
    """Draws batches from recorded episodes. Which frames a batch holds is a pure function of (seed, step)."""

    def __init__(
        self,
        episodes: Sequence[Episode],
        config: LabelConfig,
        seed: int,
        reconstructed: Sequence[Video] | None = None,
        weight_E: NDArray[np.float64] | None = None,
    ) -> None:
        """`reconstructed[i]`, where given, has the shape of `episodes[i].frames_THWC`; `weight_E[i]` says how
        many times likelier that episode is drawn than one of weight 1, among those with frames of the kind asked for.

        Raises UserError when the episodes hold no successful or no unsuccessful frame.
        """
        assert reconstructed is None or [r.shape for r in reconstructed] == [e.frames_THWC.shape for e in episodes]
        self.episodes, self.config, self.seed = episodes, config, seed
        self.frames = [episode.frames_THWC for episode in episodes]
        self.reconstructed = self.frames if reconstructed is None else reconstructed
        success = [np.concatenate([[False], episode.success_T]) for episode in episodes]
        self.kinds = {
            "positive": _frames_by_episode(success),
            "negative": _frames_by_episode([~success_F for success_F in success]),
            "hard": _frames_by_episode([hard_frames(episode, config.window) for episode in episodes]),
        }
        weight_E = np.ones(len(episodes)) if weight_E is None else weight_E
        self.cumulative = {
            kind: np.cumsum([weight_E[index] for index, _ in choices]) for kind, choices in self.kinds.items()
        }
        for kind in ("positive", "negative"):
            if not self.kinds[kind]:
                raise UserError(
                    f"reward labels: expected frames with and without success, found no {kind} frame "
                    f"in {len(episodes)} episodes; collect more"
                )

    def batch(self, step: int, size: int) -> dict[str, Any]:
        """`frames_BHWC` uint8, `instructions`, `labels_B` float32: the training batch of that step.

        An episode is drawn first and then one of its frames, so that long stays on the plate do not outweigh.
        """
        rng = stream(self.seed, "reward-batch", step)
        frames, instructions, labels = [], [], []
        for kind_u, hard_u, source_u, episode_u, frame_u in rng.random((size, 5)):
            label = kind_u < self.config.positive
            hard = hard_u < self.config.hard and self.kinds["hard"]
            kind = "positive" if label else "hard" if hard else "negative"
            cumulative = self.cumulative[kind]
            choice = int(np.searchsorted(cumulative, episode_u * cumulative[-1], side="right"))
            index, candidates = self.kinds[kind][min(choice, len(cumulative) - 1)]
            source = self.reconstructed if source_u < self.config.reconstructed else self.frames
            frames.append(source[index][candidates[int(frame_u * len(candidates))]])
            instructions.append(self.episodes[index].instruction)
            labels.append(float(label))
        return {
            "frames_BHWC": torch.from_numpy(np.stack(frames)),
            "instructions": instructions,
            "labels_B": torch.tensor(labels, dtype=torch.float32),
        }


def hard_frames(episode: Episode, window: int) -> NDArray[np.bool_]:
    """(T + 1,) mask of the negatives that are easily taken for success.

    They lie within `window` steps before a frame of success, after the gripper opens, or before the end of an
    episode that fails.
    """
    steps = len(episode)
    near_F = np.zeros(steps + 1, dtype=bool)
    success_F = np.concatenate([[False], episode.success_T])
    for t in np.flatnonzero(success_F[1:] & ~success_F[:-1]) + 1:
        near_F[max(t - window, 0) : t] = True
    opening_T = np.diff(episode.actions_TA[:, -1] > 0, prepend=False) & (episode.actions_TA[:, -1] <= 0)
    for t in np.flatnonzero(opening_T) + 1:
        near_F[t : t + window] = True
    if not episode.success:
        near_F[-window:] = True
    return near_F & ~success_F


def _frames_by_episode(masks: Sequence[NDArray[np.bool_]]) -> list[tuple[int, NDArray[np.int64]]]:
    """(episode, its frames under the mask) for every episode that has any."""
    return [(index, np.flatnonzero(mask_F)) for index, mask_F in enumerate(masks) if mask_F.any()]
