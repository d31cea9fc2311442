"""Scripted hands in the simulators, recorded: demonstrations and undirected play."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wovr.core.types import Actions
from wovr.envs.base import Observation, Simulator


class Hand(Protocol):
    """What acts on one environment and sees what no learned part of the system does."""

    def action(self, view: Any, /) -> Actions:
        """(A,) command."""
        ...


View = Callable[[Observation], Sequence[Any]]
"""What the hands see, one entry per environment."""


def states(observation: Observation) -> Sequence[Any]:
    """The view of hands that need no more than the simulator's states."""
    return list(observation.states_BS)


def record(
    simulator: Simulator,
    observation: Observation,
    hands: Sequence[Hand],
    steps: int,
    *,
    view: View = states,
    after_success: int | None = None,
) -> list[dict[str, NDArray[Any]] | None]:
    """Step all environments from `observation` on; per hand the array fields of one `Episode`, None where it was lost.

    With `after_success` an episode ends after so many frames of success in a row.
    """
    B, hold = len(hands), steps + 1 if after_success is None else after_success
    seen, actions = [observation], []
    length_B, held_B, running_B = np.full(B, steps), np.zeros(B, dtype=np.int64), np.ones(B, dtype=np.bool_)
    for step in range(steps):
        actions.append(np.stack([hand.action(one) for hand, one in zip(hands, view(observation), strict=True)]))
        observation = simulator.step(actions[-1], running_B)
        seen.append(observation)
        held_B = np.where(observation.success_B, held_B + 1, 0)
        ended_B = running_B & (observation.lost_B | (held_B == hold))
        length_B[ended_B] = step + 1
        running_B = running_B & ~ended_B
        if not running_B.any():
            break
    return [None if observation.lost_B[i] else _arrays(seen, actions, i, int(length_B[i])) for i in range(B)]


def _arrays(seen: Sequence[Observation], actions: Sequence[Actions], i: int, steps: int) -> dict[str, NDArray[Any]]:
    arrays = {
        "frames_THWC": np.stack([observation.frames_BHWC[i] for observation in seen[: steps + 1]]),
        "actions_TA": np.stack([action_BA[i] for action_BA in actions[:steps]]),
        "success_T": np.stack([observation.success_B[i] for observation in seen[1 : steps + 1]]),
        "states_TS": own_states(np.stack([observation.states_BS[i] for observation in seen[: steps + 1]])),
    }
    wrist = [observation.wrist_BHWC[i] for observation in seen[: steps + 1] if observation.wrist_BHWC is not None]
    proprio = [observation.proprio_BP[i] for observation in seen[: steps + 1] if observation.proprio_BP is not None]
    arrays |= {"wrist_THWC": np.stack(wrist)} if wrist else {}
    return arrays | ({"proprio_TP": np.stack(proprio)} if proprio else {})


def own_states(states_TS: NDArray[np.float64]) -> NDArray[np.float64]:
    """States of one task without the padding that other tasks beside it needed."""
    return states_TS[:, ~np.isnan(states_TS[0])]
