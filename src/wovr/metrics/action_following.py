"""Action following: how far the world model's error tells the true actions from changed ones.

Recorded actions are replayed from the first frame, and so are changed ones, with the same noise; all are judged by the
frames that truly followed. A world model that follows its actions is worse under changed ones. One that ignores them
draws the same frames whatever it is told, and RL inside it would optimise nothing.

The error is the mean squared error of pixels, not PSNR: what codec and network get wrong whatever the actions is in
every variant, and cancels in a difference of squared errors but not in a ratio of them, which is what decibels compare.
A blurred world model would seem deaf.

Changed are all actions together: `shuffled` are those of another held-out episode at the same steps. They are motions
that the world model knows, where zero and negated ones may be strange to it, and the motion differs even where a chunk
repeats the one before, as on the way to an object, so that another order of the same chunks would change little. Or
one dimension alone is negated, which flips a gripper; what the recordings hardly move can't be told, so their mean
|a_d| stands beside it.

Legend: N replays, T env steps, A action dims.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wovr.core.seed import stream
from wovr.core.types import no_motion
from wovr.metrics.prediction import mean_interval
from wovr.metrics.success import Rate
from wovr.metrics.video import by_depth

RECORDED, SHUFFLED, ZERO, NEGATED = "recorded", "shuffled", "zero", "negated"
TOGETHER = (SHUFFLED, ZERO, NEGATED)
"""Changes of every dimension at once."""
DECIDE = (SHUFFLED, NEGATED)
"""Those by which a world model is judged to follow. Standing still is not among them: slow recordings come near it, and
a world model that moves the wrong way, for example with two dimensions swapped, may still tell it apart."""


def dimension(d: int) -> str:
    """Name of the variant in which dimension d alone is negated."""
    return f"dimension_{d}"


def variant_names(action_dim: int) -> list[str]:
    """Keys of `variants`, the recorded actions first."""
    return [RECORDED, *TOGETHER, *map(dimension, range(action_dim))]


def variants(actions_NTA: NDArray[np.float32], seed: int) -> dict[str, NDArray[np.float32]]:
    """The recorded actions and all changed ones, (N, T, A) each. At least two replays."""
    action_dim = actions_NTA.shape[-1]
    signs_DA = 1 - 2 * np.eye(action_dim, dtype=np.float32)
    still_NTA = np.broadcast_to(no_motion(action_dim), actions_NTA.shape)
    together = (actions_NTA[donors(len(actions_NTA), seed)], still_NTA, -actions_NTA)
    alone = (actions_NTA * signs_A for signs_A in signs_DA)
    return dict(zip(variant_names(action_dim), (actions_NTA, *together, *alone), strict=True))


def donors(n: int, seed: int) -> NDArray[np.int64]:
    """Whose actions each of n replays is given: every one's once, none its own."""
    assert n >= 2, n
    ring_N = stream(seed, "action-donors").permutation(n)
    donor_N = np.empty_like(ring_N)
    donor_N[ring_N] = np.roll(ring_N, 1)
    return donor_N


@dataclass(frozen=True, slots=True)
class Change:
    """What changed actions do to the error; intervals are of the mean over replays, as `mean_interval` gives them."""

    error: dict[str, Any]
    """Mean squared error under the changed actions, squared counts."""
    error_by_chunk: tuple[float, ...]
    """Mean of each chunk."""
    difference: dict[str, Any]
    """Error under the changed actions minus that under the recorded ones, replay by replay."""
    told_apart: Rate
    """Replays in which the recorded actions give the smaller error. Half of them is chance; equal errors are not told
    apart, so that a world model that does not even look at its actions has 0."""

    @property
    def told(self) -> bool:
        """Whether the error grows beyond chance."""
        ci95 = self.difference["ci95"]
        return ci95 is not None and ci95[0] > 0

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "error": self.error,
            "error_by_chunk": list(self.error_by_chunk),
            "difference": self.difference,
            "told_apart": self.told_apart.to_dict(),
            "told": self.told,
        }


@dataclass(frozen=True, slots=True)
class ActionFollowing:
    """One world model on N replays."""

    n: int
    error: dict[str, Any]
    """Mean squared error under the recorded actions, squared counts, with its interval."""
    error_by_chunk: tuple[float, ...]
    changes: dict[str, Change]
    """By variant, in the order of `variant_names`."""
    motion_A: tuple[float, ...]
    """Mean |a_d| of the recorded actions, environment units."""

    @property
    def follows(self) -> bool:
        """Whether the error grows beyond chance under the actions of others and under negated ones."""
        return all(self.changes[name].told for name in DECIDE)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "n": self.n,
            "follows": self.follows,
            "error": self.error,
            "error_by_chunk": list(self.error_by_chunk),
            "changes": {name: change.to_dict() for name, change in self.changes.items()},
            "motion": list(self.motion_A),
        }


def measure_action_following(
    error_NT: Mapping[str, Tensor], actions_NTA: NDArray[np.float32], chunk_length: int, seed: int
) -> ActionFollowing:
    """Compare the errors of one world model under all variants.

    Args:
        error_NT: by variant (`variant_names`), float64 (N, T): mean squared error of each imagined frame
            (`wovr.metrics.video.squared_error`).
        actions_NTA: the recorded actions.
        chunk_length: env steps per chunk.
        seed: of the bootstrap.
    """
    N, T, A = actions_NTA.shape
    assert list(error_NT) == variant_names(A) and all(one.shape == (N, T) for one in error_NT.values())
    mean_N: dict[str, Any] = {name: one.mean(dim=1).numpy() for name, one in error_NT.items()}
    true_N = mean_N[RECORDED]
    return ActionFollowing(
        n=N,
        error=mean_interval(true_N, seed),
        error_by_chunk=tuple(by_depth(error_NT[RECORDED], chunk_length)),
        changes={
            name: Change(
                error=mean_interval(mean_N[name], seed),
                error_by_chunk=tuple(by_depth(error_NT[name], chunk_length)),
                difference=mean_interval(mean_N[name] - true_N, seed),
                told_apart=Rate.of(true_N < mean_N[name]),
            )
            for name in (*TOGETHER, *map(dimension, range(A)))
        },
        motion_A=tuple(np.abs(actions_NTA).mean(axis=(0, 1), dtype=np.float64).tolist()),
    )
