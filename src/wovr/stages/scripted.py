"""Scripted hands in the embedded simulator, recorded: demonstrations and undirected play."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wovr.core.types import Actions
from wovr.envs.base import Observation, Simulator


class Hand(Protocol):
    """What acts on one environment and sees its state."""

    def action(self, state_S: NDArray[np.float64]) -> Actions:
        """(A,) command."""
        ...


def record(
    simulator: Simulator, observation: Observation, hands: Sequence[Hand], steps: int
) -> list[dict[str, NDArray[Any]]]:
    """Step all environments from `observation` on; the array fields of one `Episode` per hand."""
    frames, states, actions, success = [observation.frames_BHWC], [observation.states_BS], [], []
    for _ in range(steps):
        actions.append(np.stack([hand.action(state) for hand, state in zip(hands, observation.states_BS, strict=True)]))
        observation = simulator.step(actions[-1])
        frames.append(observation.frames_BHWC)
        states.append(observation.states_BS)
        success.append(observation.success_B)
    arrays: dict[str, list[NDArray[Any]]] = {
        "frames_THWC": frames,
        "actions_TA": actions,
        "success_T": success,
        "states_TS": states,
    }
    stacked = {name: np.stack(rows, axis=1) for name, rows in arrays.items()}
    return [{name: rows[i] for name, rows in stacked.items()} for i in range(len(hands))]
