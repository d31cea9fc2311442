"""Scripted hands: a demonstrator whose skill is a parameter, and undirected play.

Both read the simulator's state, which no learned part of the system does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wovr.core.types import Actions
from wovr.envs.tabletop.physics import GAP_OPEN, HAND_HIGH, HAND_LOW, REACH
from wovr.envs.tabletop.scene import TABLE

APPROACH = 14.0
"""From this far behind a block the open fingers can be aligned without touching it."""


class Demonstrator:
    """Picks one block and puts it at one place. Aim errs by `(1 - skill) * 5` table units, anew at each attempt.

    `offset` (x, y), table units, is added to every aim: the constant error of a badly calibrated hand and eye.
    """

    def __init__(
        self,
        block: int,
        place: NDArray[np.float64],
        skill: float,
        rng: np.random.Generator,
        offset: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.block = block
        self.place = place
        self._spread = 5.0 * (1.0 - skill)
        self._jitter = 0.3 * (1.0 - skill)
        self._rng = rng
        self._offset = np.array(offset)
        self._closing = False
        self._wait = 0
        self.done = False
        self._aim_again()

    def action(self, state_S: NDArray[np.float64]) -> Actions:
        """(3,) command for one table's state."""
        move, grip = self._decide(state_S)
        noise = self._rng.normal(0.0, self._jitter, 2) if np.abs(move).max() > 0.05 else np.zeros(2)
        return np.array([*np.clip(move + noise, -1, 1), grip], np.float32)

    def _decide(self, state: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        hand, gap, held = state[:2], state[2], int(state[3])
        still = np.zeros(2)
        if held >= 0:
            if self._wait > 0 and self._closing:
                self._wait -= 1
                return still, 1.0
            target = self.place + self._place_error - (0.0, state[5 + 2 * held] - hand[1])
            if held != self.block or np.abs(target - hand).max() < 0.8:
                self._closing, self._wait, self.done = False, 2, held == self.block
                return still, -1.0
            return _towards(hand, target), 1.0
        if self.done:
            return np.array([0.0, -0.8]), -1.0
        if self._closing:
            if self._wait > 0:
                self._wait -= 1
                return still, 1.0
            self._aim_again()
        if gap < GAP_OPEN - 0.5:
            return np.array([0.0, -0.7]), -1.0
        return self._approach(hand, state[4 + 2 * self.block : 6 + 2 * self.block])

    def _approach(self, hand: NDArray[np.float64], block: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        target = np.clip(block + self._grasp_error, HAND_LOW, HAND_HIGH)
        if np.abs(target - hand).max() < 0.8:
            self._closing, self._wait = True, 2
            return np.zeros(2), 1.0
        aligned = abs(target[0] - hand[0]) < 0.8
        if not aligned:
            above = block[1] - APPROACH
            return _towards(hand, np.array([target[0], above if hand[1] > above - 6 else hand[1] + 2.0])), -1.0
        return _towards(hand, target), -1.0

    def _aim_again(self) -> None:
        self._grasp_error = self._offset + self._rng.normal(0.0, 0.6 * self._spread, 2)
        self._place_error = self._offset + self._rng.normal(0.0, self._spread, 2)
        self._closing = False


class Player:
    """Undirected play: picks blocks with poor aim, puts them anywhere, wanders, pushes and snaps at nothing."""

    def __init__(self, plates: NDArray[np.float64], rng: np.random.Generator) -> None:
        self._plates = plates
        self._rng = rng
        self._left = 0
        self._grip = -1.0
        self._drift = np.zeros(2)
        self._hand: Demonstrator | None = None

    def action(self, state_S: NDArray[np.float64]) -> Actions:
        """(3,) command for one table's state."""
        if self._left <= 0:
            self._choose()
        self._left -= 1
        if self._hand is None:
            drift = self._drift + self._rng.normal(0, 0.35, 2)
            if self._rng.random() < 0.12:
                self._grip = -self._grip
            return np.array([*np.clip(drift, -1, 1), self._grip], np.float32)
        if self._hand.done and self._left > 4:
            self._left = 4
        return self._hand.action(state_S)

    def _choose(self) -> None:
        self._hand = None
        if self._rng.random() < 0.75:
            anywhere = self._rng.uniform(12, TABLE - 12, 2)
            place = self._plates[self._rng.integers(2)] if self._rng.random() < 0.6 else anywhere
            self._hand = Demonstrator(int(self._rng.integers(2)), place, float(self._rng.uniform(-0.6, 0.9)), self._rng)
            self._left = 40
        else:
            self._drift = self._rng.uniform(-1, 1, 2)
            self._grip = float(self._rng.choice([-1.0, 1.0]))
            self._left = int(self._rng.integers(4, 14))


def _towards(hand: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip((target - hand) / REACH, -1.0, 1.0)
