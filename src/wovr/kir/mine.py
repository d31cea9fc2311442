"""Find keyframes: states shortly before a failed episode went wrong (paper, 4.2).

The paper says that keyframes lie near task-critical states, not how to find them. Here two signs mark an event, and
both can be seen on a real robot: the gripper is told to open or close, or the reward model's probability peaks without
reaching success. No simulator state is read. A keyframe lies `lead` steps ahead of the event, so that the
policy can still do better; early events go first, because after a failed grasp the object may lie out of reach.

Legend: T env steps, F = T + 1 frames, A action dims, M memory frames.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from wovr.core.config import Config
from wovr.core.seed import stream
from wovr.core.types import Actions, Episode, StartState
from wovr.episodes.windows import memory_indices, window_actions

FIRST_FRAME, GRIPPER, SUCCESS_PEAK = "first_frame", "gripper", "success_peak"
"""Reasons of start states."""


class MineConfig(Config):
    """Which moments of a failed episode become keyframes."""

    lead: int = Field(8, ge=0)
    """Env steps from keyframe to event. One chunk: the policy decides once more before the moment that failed."""
    jitter: int = Field(4, ge=0)
    """The lead is drawn from lead - jitter ... lead + jitter: the event then falls at every place in a chunk."""
    min_peak: float = Field(0.2, ge=0, le=1)
    """Peaks of the success probability below this are noise, not near-misses."""
    min_gap: int = Field(8, ge=1)
    """Env steps between keyframes of one episode: a gripper that chatters is one event."""
    min_steps_left: int = Field(16, ge=1)
    """Env steps from keyframe to the episode's end: two chunks, or nothing can be mended in the time that is left."""
    max_per_episode: int = Field(4, ge=1)
    """Keyframes of one episode; the earliest are kept."""

    @model_validator(mode="after")
    def _ahead(self) -> MineConfig:
        if self.jitter > self.lead:
            raise ValueError(f"jitter {self.jitter} is larger than lead {self.lead}: keyframes would follow the event")
        return self


def mine_keyframes(
    episode: Episode,
    name: str,
    probability_F: NDArray[np.float32] | None,
    *,
    config: MineConfig,
    memory_frames: int,
    seed: int,
) -> list[StartState]:
    """Keyframes of one episode, earliest first; none of an episode that succeeded.

    Args:
        episode: frames and actions; neither states nor anything else of the simulator is read.
        name: the episode's name in its store. Together with `seed` it decides the jitter.
        probability_F: the reward model's success probability of each frame, or None for gripper events alone.
        config: which moments count.
        memory_frames: M, the memory of the world model.
        seed: of the run.
    """
    assert probability_F is None or len(probability_F) == len(episode.frames_THWC), "one probability per frame"
    if episode.success:
        return []
    events = [(int(step), GRIPPER) for step in gripper_toggles(episode.actions_TA)]
    if probability_F is not None:
        events += [(int(step), SUCCESS_PEAK) for step in success_peaks(probability_F, config.min_peak)]

    rng = stream(seed, f"keyframes/{name}")
    leads = config.lead + rng.integers(-config.jitter, config.jitter + 1, size=len(events))
    candidates = sorted((step - int(lead), reason) for (step, reason), lead in zip(events, leads, strict=True))
    chosen: list[StartState] = []
    for step, reason in candidates:
        # Before step 1 it would be the first frame, which is a start state of its own.
        in_time = 1 <= step <= len(episode) - config.min_steps_left
        if in_time and (not chosen or step - chosen[-1].step >= config.min_gap):
            chosen.append(start_state(episode, name, step, reason, memory_frames))
    return chosen[: config.max_per_episode]


def first_frame_start(episode: Episode, name: str, memory_frames: int) -> StartState:
    """The start that a rollout from o_0 needs: the memory repeats the reference, with no-motion actions."""
    return start_state(episode, name, 0, FIRST_FRAME, memory_frames)


def start_state(episode: Episode, name: str, step: int, reason: str, memory_frames: int) -> StartState:
    """Cut the state at frame `step` out of an episode: reference o_0, the last M frames, what produced them and
    the sum of all motions so far."""
    # The bank outlives the episode: copies, or each would keep all frames alive.
    return StartState(
        reference_HWC=episode.frames_THWC[0].copy(),
        memory_MHWC=episode.frames_THWC[memory_indices(step, memory_frames)],
        memory_actions_MA=window_actions(episode.actions_TA, step, memory_frames, horizon=0)[1:].copy(),
        instruction=episode.instruction,
        task_id=episode.task_id,
        episode=name,
        step=step,
        reason=reason,
        init_id=episode.init_id,
        moved_A=_moved(episode.actions_TA[:step]),
    )


def _moved(actions_TA: Actions) -> Actions:
    moved_A = actions_TA.sum(axis=0, dtype=np.float64).astype(np.float32)
    moved_A[-1] = 0  # the gripper's command is no motion
    return moved_A


def gripper_toggles(actions_TA: Actions) -> NDArray[np.int64]:
    """Frames at which the gripper is told to change: > 0 closes, otherwise open, and open before the episode."""
    closed_T = actions_TA[:, -1] > 0
    return np.flatnonzero(np.diff(closed_T, prepend=False))


def success_peaks(probability_F: NDArray[np.float32], min_peak: float) -> NDArray[np.int64]:
    """Frames of local maxima of at least `min_peak`; a plateau counts once, at its first frame."""
    rises = np.diff(probability_F, prepend=-np.inf)
    run_F = np.flatnonzero(rises != 0)  # first frame of each run of equal values
    value_F = probability_F[run_F]
    higher = (value_F > np.append(-np.inf, value_F[:-1])) & (value_F > np.append(value_F[1:], -np.inf))
    return run_F[higher & (value_F >= min_peak)]
