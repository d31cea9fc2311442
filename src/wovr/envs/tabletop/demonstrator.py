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
SWAY = 0.9
"""Correlation of the disturbances of neighbouring steps in play, as of the draws in RL."""


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
    """Undirected play, also where a policy that learns comes to be: picks blocks with poor aim and puts them anywhere,
    drives at blocks and plates as if it held something or would, wanders, pushes and snaps at nothing.

    What a policy does about a block that it missed, no demonstrator does: it closes beside it, pushes it ahead, and
    goes on to the plate with empty fingers.
    """

    def __init__(self, plates: NDArray[np.float64], rng: np.random.Generator) -> None:
        self._plates = plates
        self._rng = rng
        self._left = 0
        self._grip = -1.0
        self._drift = np.zeros(2)
        self._sway = np.zeros(2)
        self._sway_sigma = 0.0
        self._hand: Demonstrator | None = None
        self._drive: _Drive | None = None

    def action(self, state_S: NDArray[np.float64]) -> Actions:
        """(3,) command for one table's state."""
        if self._left <= 0:
            self._choose(state_S)
        self._left -= 1
        self._sway = SWAY * self._sway + (1 - SWAY**2) ** 0.5 * self._rng.normal(0, self._sway_sigma, 2)
        if self._hand is not None:
            if self._hand.done and self._left > 4:
                self._left, self._grip = 4, -1.0
            dx, dy, grip = (float(a) for a in self._hand.action(state_S))
        elif self._drive is not None:
            (dx, dy), grip = self._drive.decide(state_S[:2])
            if self._drive.wait < 0:
                self._left = 0
        else:
            dx, dy = self._drift + self._rng.normal(0, 0.2, 2)
            if self._rng.random() < 0.12:
                self._grip = -self._grip
            grip = self._grip
        sway_x, sway_y = self._sway
        return np.array([*np.clip((dx + sway_x, dy + sway_y), -1, 1), grip], np.float32)

    def _choose(self, state_S: NDArray[np.float64]) -> None:
        rng, closed = self._rng, self._drive is not None and self._grip > 0
        self._hand = self._drive = None
        self._sway_sigma = float(rng.choice([0.0, 0.2, 0.5]))
        kind = rng.random()
        if closed and kind < 0.8:  # on to a plate, with or without a block
            self._go(self._plates[rng.integers(2)] + rng.normal(0, 5.0, 2) if rng.random() < 0.7 else _front(rng))
        elif kind < 0.55:
            self._pick()
        elif kind < 0.85:
            blocks = state_S[4:].reshape(-1, 2)
            near_block = blocks[rng.integers(2)] + rng.normal(0, 4.0, 2)
            near_plate = self._plates[rng.integers(2)] + rng.normal(0, 5.0, 2)
            self._go(
                (near_block, near_block, near_plate, rng.uniform(HAND_LOW, HAND_HIGH), _front(rng))[rng.integers(5)]
            )
        else:
            self._drift = rng.uniform(-1, 1, 2)
            self._grip = float(rng.choice([-1.0, 1.0]))
            self._left = int(rng.integers(4, 14))

    def _pick(self) -> None:
        rng = self._rng
        place = self._plates[rng.integers(2)] if rng.random() < 0.6 else rng.uniform(12, TABLE - 12, 2)
        offset_x, offset_y = rng.normal(0, 3.0, 2) * (rng.random() < 0.4)
        skill = float(rng.uniform(-0.2, 0.95))
        self._hand = Demonstrator(int(rng.integers(2)), place, skill, rng, (float(offset_x), float(offset_y)))
        self._left = 40

    def _go(self, target: NDArray[np.float64]) -> None:
        rng = self._rng
        after = -self._grip if rng.random() < 0.85 else self._grip
        self._drive = _Drive(target, float(rng.uniform(0.4, 1.0)), self._grip, after, int(rng.integers(1, 5)))
        self._grip = after
        self._left = 30


def _front(rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.uniform((HAND_LOW[0], 40), HAND_HIGH)


class _Drive:
    """Goes straight to a point at a share of full speed, then commands the fingers and waits."""

    def __init__(self, target: NDArray[np.float64], speed: float, grip: float, after: float, wait: int) -> None:
        self._target = np.clip(target, HAND_LOW, HAND_HIGH)
        self._speed, self._grip, self._after, self.wait = speed, grip, after, wait
        self._arrived = False

    def decide(self, hand_2: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        """Motion and grip; `wait` is below 0 once it is over."""
        if not self._arrived and np.abs(self._target - hand_2).max() > 1.2:
            return _towards(hand_2, self._target, self._speed), self._grip
        self._arrived = True
        self.wait -= 1
        return np.zeros(2), self._after


def _towards(hand: NDArray[np.float64], target: NDArray[np.float64], most: float = 1.0) -> NDArray[np.float64]:
    return np.clip((target - hand) / REACH, -most, most)
