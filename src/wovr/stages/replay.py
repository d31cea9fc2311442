"""Recorded actions replayed in imagination, open loop: both worlds side by side, and how they are kept on disk.

Other actions than those that were recorded may be fed, to see what the world model makes of the difference.

Legend: T replayed env steps, H chunk length, A action dims; images are height x width x 3.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wovr.core.checkpoint import load_tensors, save_tensors
from wovr.core.errors import UserError
from wovr.core.types import Actions, Episode, Frames
from wovr.envs.chunked import TrajectoryKey
from wovr.imagine.true_frames import judge_true
from wovr.imagine.world import ImaginedWorld
from wovr.imagine.world_model import WorldModel
from wovr.kir.mine import FIRST_FRAME, start_state
from wovr.metrics.success import first_success
from wovr.reward.base import RewardModel

KEYFRAME = "keyframe"
"""Kind of every start that is not a first frame."""
OUTCOMES = ("both_succeed", "both_fail", "false_success", "false_failure")
"""Fields of `wovr.metrics.hallucination.Confusion`, in the order in which examples are chosen."""
ROLLOUT = 2**32 - 1
"""Number of the rollout that keys the noise of replays: no update reaches it."""
ARRAYS = ("imagined_THWC", "true_THWC", "probability_T", "true_probability_T")
"""Fields of `Replay` that are stored as tensors; the others are JSON in the header."""


@dataclass(frozen=True, slots=True)
class Replay:
    """One sequence of actions in both worlds. Frame 0 is the start; frame t + 1 follows action t."""

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
    true_probability_T: NDArray[np.float32]
    """Success probability of the true frames after each action, by the same reward model."""

    @property
    def kind(self) -> str:
        """Kind of start."""
        return KEYFRAME if self.step else FIRST_FRAME

    @property
    def outcome(self) -> str:
        """One of OUTCOMES."""
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
    actions: Sequence[Actions] | None = None,
) -> Iterator[Replay]:
    """Replay each (episode, name) in imagination from the frame at the step beside it.

    A replay takes whole chunks of recorded actions, at most `horizon` steps. Starts with less than a chunk left, or
    after the first success, are left out. The noise depends on the place in the list, neither on `batch_size` nor on
    the actions. `actions` (A of every step from the start on, for each episode) are fed in place of the recorded
    ones; what was recorded before the start stays the memory, and what was recorded after it is still the truth.
    """
    world = ImaginedWorld(model, reward, horizon)
    cuts = []
    for i, ((episode, name), step) in enumerate(zip(episodes, start_steps, strict=True)):
        steps = min(horizon, len(episode) - step) // world.chunk_length * world.chunk_length
        if steps > 0 and not episode.success_T[:step].any():
            fed_TA = (episode.actions_TA[step:] if actions is None else actions[i])[:steps]
            assert fed_TA.shape == (steps, episode.actions_TA.shape[1]), fed_TA.shape
            cuts.append(_Cut(episode, name, step, fed_TA, TrajectoryKey(seed, ROLLOUT, i, world=i)))
    for first in range(0, len(cuts), batch_size):
        yield from _replay_batch(world, cuts[first : first + batch_size])


@dataclass(frozen=True, slots=True)
class _Cut:
    """What is fed from frame `step` of an episode on."""

    episode: Episode
    name: str
    step: int
    actions_TA: Actions
    key: TrajectoryKey

    @property
    def steps(self) -> int:
        return len(self.actions_TA)


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
        chunk = world.step(np.stack([cuts[i].actions_TA[t : t + H] for i in running]))
        for row, i in enumerate(running):
            frames[i].append(chunk.frames_BTHWC[row])
            probabilities[i].append(chunk.probability_BT[row])
    for i, cut in enumerate(cuts):
        yield _compare(cut, np.concatenate(frames[i]), np.concatenate(probabilities[i]), world)


def _compare(cut: _Cut, imagined_THWC: Frames, probability_T: NDArray[np.float32], world: ImaginedWorld) -> Replay:
    stop = cut.step + cut.steps
    true_THWC = cut.episode.frames_THWC[cut.step : stop + 1]
    true_T = judge_true(world.model, world.reward, cut.episode, cut.name, cut.step, cut.steps, seed=cut.key.seed)
    return Replay(
        episode=cut.name,
        step=cut.step,
        instruction=cut.episode.instruction,
        imagined_THWC=imagined_THWC,
        true_THWC=true_THWC,
        probability_T=probability_T,
        imagined_first=int(first_success(probability_T[None], world.threshold, world.hold)[0]),
        true_first=int(first_success(cut.episode.success_T[None, cut.step : stop], threshold=0.5)[0]),
        true_probability_T=true_T,
    )


def save_replays(path: Path, replays: Sequence[Replay]) -> None:
    """Write replays with their frames as one safetensors file."""
    tensors: dict[str, Tensor] = {}
    facts = []
    for i, one in enumerate(replays):
        tensors |= {f"{name}.{i}": torch.from_numpy(np.array(getattr(one, name))) for name in ARRAYS}
        facts.append({name: getattr(one, name) for name in Replay.__slots__ if name not in ARRAYS})
    save_tensors(path, tensors, replays=json.dumps(facts))


def load_replays(path: Path) -> list[Replay]:
    """Read what `save_replays` wrote. UserError where the file is missing or damaged."""
    tensors, metadata = load_tensors(path)
    try:
        facts = json.loads(metadata["replays"])
        arrays: list[dict[str, Any]] = [
            {name: tensors[f"{name}.{i}"].numpy() for name in ARRAYS} for i in range(len(facts))
        ]
        return [Replay(**one, **frames) for one, frames in zip(facts, arrays, strict=True)]
    except (KeyError, ValueError, TypeError):
        raise UserError(f"{path}: expected replays that `wovr` saved, found something else") from None
