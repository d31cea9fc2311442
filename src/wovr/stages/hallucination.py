"""Hallucination of the world model: the recorded actions of held-out episodes are replayed in imagination.

Both worlds start from the same frames and take the same actions, open loop, so that every difference is the world
model's. Rollouts from first frames and from keyframes are judged apart, and so are the base world model and the one
that PACE refined.

Legend: N replays, T replayed env steps, H chunk length, A action dims; images are height x width x 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from wovr.core.errors import UserError
from wovr.core.types import Episode, Frames
from wovr.envs.chunked import TrajectoryKey
from wovr.imagine.world import ImaginedWorld
from wovr.imagine.world_model import WorldModel
from wovr.kir.mine import FIRST_FRAME, start_state
from wovr.metrics.hallucination import HallucinationReport, measure_hallucination
from wovr.metrics.success import first_success
from wovr.metrics.video import psnr
from wovr.reward.base import RewardModel

KEYFRAME = "keyframe"
"""Kind of every start that is not a first frame."""
ROLLOUT = 2**32 - 1
"""Number of the rollout that keys the noise of replays: no update reaches it."""


@dataclass(frozen=True, slots=True)
class Replay:
    """One sequence of recorded actions in both worlds. Frame 0 is the start; frame t + 1 follows action t."""

    episode: str
    step: int
    """Where the replay starts in the episode."""
    instruction: str
    imagined_THWC: Frames
    """(T + 1, height, width, 3)."""
    true_THWC: Frames
    probability_T: NDArray[np.float32]
    """Success probability of the imagined frames after each action."""
    imagined_first: int
    """Index of the frame that completes success in imagination; T where there is none."""
    true_first: int
    """The same in the recording, where one frame is enough."""

    @property
    def kind(self) -> str:
        """Kind of start."""
        return KEYFRAME if self.step else FIRST_FRAME

    @property
    def outcome(self) -> str:
        """A field of `wovr.metrics.hallucination.Confusion`."""
        steps = len(self.probability_T)
        imagined, true = self.imagined_first < steps, self.true_first < steps
        if imagined == true:
            return "both_succeed" if true else "both_fail"
        return "false_success" if imagined else "false_failure"


def replay(
    model: WorldModel,
    reward: RewardModel,
    episodes: Sequence[tuple[Episode, str]],
    start_steps: Sequence[int],
    *,
    horizon: int,
    batch_size: int,
    seed: int,
) -> Iterator[Replay]:
    """Replay each (episode, name) in imagination from the frame at the step beside it.

    A replay takes whole chunks of recorded actions, at most `horizon` steps. Starts with less than a chunk left, or
    after the first success, are left out. The noise depends on the place in the list, not on `batch_size`.
    """
    world = ImaginedWorld(model, reward, horizon)
    cuts = []
    for i, ((episode, name), step) in enumerate(zip(episodes, start_steps, strict=True)):
        steps = min(horizon, len(episode) - step) // world.chunk_length * world.chunk_length
        if steps > 0 and not episode.success_T[:step].any():
            cuts.append(_Cut(episode, name, step, steps, TrajectoryKey(seed, ROLLOUT, i)))
    for first in range(0, len(cuts), batch_size):
        yield from _replay_batch(world, cuts[first : first + batch_size])


@dataclass(frozen=True, slots=True)
class _Cut:
    """`steps` actions of an episode from frame `step` on."""

    episode: Episode
    name: str
    step: int
    steps: int
    key: TrajectoryKey


def _replay_batch(world: ImaginedWorld, cuts: Sequence[_Cut]) -> Iterator[Replay]:
    H = world.chunk_length
    states = [start_state(cut.episode, cut.name, cut.step, KEYFRAME, world.model.context.memory_frames) for cut in cuts]
    chunk = world.reset(states, [cut.key for cut in cuts])
    frames = [[frames_THWC] for frames_THWC in chunk.frames_BTHWC]
    probabilities: list[list[NDArray[np.float32]]] = [[] for _ in cuts]
    running = list(range(len(cuts)))
    for t in range(0, max(cut.steps for cut in cuts), H):
        left = [row for row, i in enumerate(running) if cuts[i].steps > t]
        if len(left) < len(running):
            world.keep(left)
            running = [running[row] for row in left]
        starts = [cuts[i].step + t for i in running]
        chunk = world.step(
            np.stack([cuts[i].episode.actions_TA[start : start + H] for i, start in zip(running, starts, strict=True)])
        )
        for row, i in enumerate(running):
            frames[i].append(chunk.frames_BTHWC[row])
            probabilities[i].append(chunk.probability_BT[row])
    for i, cut in enumerate(cuts):
        yield _compare(cut, np.concatenate(frames[i]), np.concatenate(probabilities[i]), world)


def _compare(cut: _Cut, imagined_THWC: Frames, probability_T: NDArray[np.float32], world: ImaginedWorld) -> Replay:
    stop = cut.step + cut.steps
    return Replay(
        episode=cut.name,
        step=cut.step,
        instruction=cut.episode.instruction,
        imagined_THWC=imagined_THWC,
        true_THWC=cut.episode.frames_THWC[cut.step : stop + 1],
        probability_T=probability_T,
        imagined_first=int(first_success(probability_T[None], world.threshold, world.hold)[0]),
        true_first=int(first_success(cut.episode.success_T[None, cut.step : stop], threshold=0.5)[0]),
    )


class Measurement:
    """Gathers replays one at a time, so that their frames need not stay in memory."""

    def __init__(self, horizon: int, chunk_length: int) -> None:
        self.horizon, self.chunk_length = horizon, chunk_length
        self._kinds: list[str] = []
        self._firsts: list[tuple[int, int]] = []
        self._psnr: list[torch.Tensor] = []

    def add(self, replayed: Replay) -> None:
        """Count one replay; what a shorter one lacks to the horizon counts as neither success nor error."""
        steps = len(replayed.probability_T)
        psnr_T = torch.full((self.horizon,), math.nan, dtype=torch.float64)
        imagined, true = torch.from_numpy(replayed.imagined_THWC[1:]), torch.from_numpy(replayed.true_THWC[1:])
        psnr_T[:steps] = psnr(imagined[None], true[None])[0]
        imagined_first, true_first = (
            first if first < steps else self.horizon for first in (replayed.imagined_first, replayed.true_first)
        )
        self._kinds.append(replayed.kind)
        self._firsts.append((imagined_first, true_first))
        self._psnr.append(psnr_T)

    def report(self) -> HallucinationReport:
        """All replays so far. UserError where there is none."""
        if not self._kinds:
            raise UserError(f"held-out episodes: expected at least one of {self.chunk_length} steps, found none")
        imagined_N, true_N = torch.tensor(self._firsts).unbind(dim=1)
        return measure_hallucination(imagined_N, true_N, torch.stack(self._psnr), self._kinds, self.chunk_length)


def replay_agreement(
    model: WorldModel,
    reward: RewardModel,
    episodes: Sequence[tuple[Episode, str]],
    start_steps: Sequence[int],
    *,
    horizon: int,
    batch_size: int,
    seed: int,
) -> HallucinationReport:
    """`replay`, measured. UserError where no episode can be replayed."""
    measurement = Measurement(horizon, model.chunk_length)
    for one in replay(model, reward, episodes, start_steps, horizon=horizon, batch_size=batch_size, seed=seed):
        measurement.add(one)
    return measurement.report()
