"""Training windows of the world model: which are drawn how often, and what each holds.

The window at t stands at the current frame o_t. It holds the reference frame o_0, the M memory frames up to o_t and
the H new frames o_{t+1} ... o_{t+H} (section 4.1). Before an episode nothing moves: every frame of index below 0 is
o_0, and no action produced it or o_0. This one rule gives the cold start (t = 0: the memory is filled with o_0) and
the static video (t = -H: all new frames are o_0 too).

Departure from the reference trainer, which draws t uniformly: windows around gripper toggles are drawn more often and
idle frames long after success never, because whether a grasp holds is decided in a few frames, and RL stops at success.

Legend: T env steps, A action dims, M memory frames, H new frames, E episodes, W windows of all episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from wovr.core.config import Config
from wovr.core.errors import UserError
from wovr.core.types import Actions, no_motion


class WindowConfig(Config):
    """How training windows are drawn."""

    contact_weight: float = Field(default=3.0, gt=0)
    """How much likelier a window is whose new frames show a whole contact, in proportion where they show a part of it;
    1 draws uniformly. On tabletop 3 raises such windows from 30-50 % of the draws to 45-65 %, and leaves approach and
    transport their share."""
    contact_frames: int = Field(default=4, ge=1)
    """Frames after a toggle of the gripper command that count as contact: the fingers close, the grasp is decided."""
    after_success: int = Field(default=4, ge=0)
    """The current frame is at most this many frames past the first successful one; what follows is idle."""
    cold_start: float = Field(default=0.05, ge=0, le=1)
    """Share of draws moved to t = 0, where every rollout starts. Default of the reference trainer."""
    static: float = Field(default=0.05, ge=0, le=1)
    """Share of draws moved to t = -H, a still video under no-motion actions. Default of the reference trainer."""

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.cold_start + self.static > 1:
            raise ValueError("cold_start and static are shares of the draws: expected a sum of at most 1")
        return self


class WindowIndex:
    """Draws windows (episode, t) from recorded episodes, weighted as `config` says.

    `steps` holds (actions_TA, success_T) per episode, as `EpisodeStore.steps` returns them. A window is drawn where
    its new frames exist: t + H <= T; and at multiples of `stride` alone. `weight_E`, one number per episode, multiplies
    the weights of its windows. Raises UserError where no episode has so many steps.
    """

    def __init__(
        self,
        steps: Sequence[tuple[Actions, NDArray[np.bool_]]],
        *,
        horizon: int,
        config: WindowConfig,
        stride: int = 1,
        weight_E: NDArray[np.float64] | None = None,
    ) -> None:
        self.horizon = horizon
        self.config = config
        weights = [window_weights(actions_TA, success_T, horizon, config)[::stride] for actions_TA, success_T in steps]
        counts = [len(weights_W) for weights_W in weights]
        if not sum(counts):
            raise UserError(f"episodes: expected at least one of {horizon} steps or more, found {len(steps)} shorter")
        self.episode_W = np.repeat(np.arange(len(steps)), counts)
        self.t_W = stride * np.concatenate([np.arange(count) for count in counts])
        self.weight_W = np.concatenate(weights)
        if weight_E is not None:
            self.weight_W *= weight_E[self.episode_W]
        self._cumulative_W = np.cumsum(self.weight_W)

    def __len__(self) -> int:
        return len(self.t_W)

    def draw(self, rng: np.random.Generator, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(episode indices, t), each (n,), with replacement; t = -H where the video is static: clamp frame indices."""
        uniform_n, kind_n = rng.random((2, n))
        window_n = np.searchsorted(self._cumulative_W, uniform_n * self._cumulative_W[-1], side="right")
        window_n = np.minimum(window_n, len(self) - 1)  # uniform * total may round up to the total
        t_n = self.t_W[window_n]
        t_n = np.where(kind_n < self.config.cold_start + self.config.static, 0, t_n)
        t_n = np.where(kind_n < self.config.static, -self.horizon, t_n)
        return self.episode_W[window_n], t_n


def window_weights(
    actions_TA: Actions, success_T: NDArray[np.bool_], horizon: int, config: WindowConfig
) -> NDArray[np.float64]:
    """Weights (W,) of the windows at t = 0, 1, ... of one episode: 1 + (contact_weight - 1) * contact shown."""
    steps = len(actions_TA)
    last = steps - horizon
    if success_T.any():
        first_frame = int(np.argmax(success_T)) + 1  # success_T[t] belongs to o_{t+1}
        last = min(last, first_frame + config.after_success)
    if last < 0:
        return np.empty(0)
    closed_T = actions_TA[:, -1] > 0
    toggles_before = np.concatenate([[0], np.cumsum(closed_T != np.concatenate([[False], closed_T[:-1]]))])
    frame = np.arange(1, steps + 1)  # contact where one of the last `contact_frames` actions toggled; it starts open
    contact_T = toggles_before[frame] > toggles_before[np.maximum(frame - config.contact_frames, 0)]
    contact_before = np.concatenate([[0], np.cumsum(contact_T)])
    shown_W = contact_before[horizon : horizon + last + 1] - contact_before[: last + 1]
    return 1 + (config.contact_weight - 1) * np.minimum(shown_W / config.contact_frames, 1)


def memory_indices(t: ArrayLike, memory: int) -> NDArray[np.int64]:
    """Indices (..., memory) of the last frames up to and including o_t, oldest first, none below 0.

    With memory = 4 it is the group of four frames that ends at t and shares one latent. The new frames of the window
    at t are `memory_indices(t + H, H)`.
    """
    offsets = np.arange(1 - memory, 1)
    return np.maximum(np.asarray(t, dtype=np.int64)[..., None] + offsets, 0)


def window_actions(actions_TA: Actions, t: int, memory: int, horizon: int) -> Actions:
    """Actions (1 + M + H, A) that produced the reference, memory and new frames of the window at t.

    No action produced the reference or a frame of index <= 0: they get `no_motion`.
    """
    assert t + horizon <= len(actions_TA), f"window at {t} with {horizon} new frames of {len(actions_TA)}"
    frame = np.concatenate([[0], np.arange(t - memory + 1, t + horizon + 1)])
    moved = frame > 0
    window = np.tile(no_motion(actions_TA.shape[1]), (len(frame), 1))
    window[moved] = actions_TA[frame[moved] - 1]
    return window
