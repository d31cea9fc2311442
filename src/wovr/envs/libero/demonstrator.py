"""Scripted demonstrator for LIBERO: it reads the poses of the simulator, which no learned part of the system does.

Names that it reads from `poses`, all in the world frame, metres, (7,) position xyz and quaternion wxyz:

- "hand": site `gripper0_grip_site`, between the finger tips; its x axis is the axis along which the fingers open.
- "fingers": (2,) joints `gripper0_finger_joint1` and `gripper0_finger_joint2`, 0.04 and -0.04 when open.
- "akita_black_bowl_1", "plate_1", "cream_cheese_1": the objects' root bodies (`<name>_main`, `env.obj_body_id[name]`).
- "flat_stove_1_button": the body of that name, the stove's knob, which turns about its z axis.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wovr.core.errors import UserError

Array = NDArray[np.float64]
Poses = Mapping[str, Array]
Command = tuple[Array, Array, float]
"""Move (3,), turn (3,), gripper."""

REACH_M = 0.05
"""Distance of the goal that a command of 1 sets for OSC_POSE; the arm covers about a quarter of it in one step."""
TURN_RAD = 0.5
"""The same for rotations."""
GAIN = 3.0
"""Goals are set this much farther than the aim, which the arm would else near by a quarter of the way a step."""
TURN_GAIN = 1.0
"""Lower: what rights a tilted hand also pushes it aside."""
HOVER_M = 0.07
"""Height above the aim at which the hand moves sideways."""
LIFT_M = 0.03
"""Rise of the thing before the hand moves it sideways."""
OVER_M = 0.012
"""The hand goes down when it is this nearly above the aim; it has arrived at `ALIGNED_M` from it along each axis."""
ALIGNED_M = 0.008
CLOSING_M = 0.02
"""Height above the aim at which the fingers, which take ten steps, begin to close."""
STUCK_STEPS = 15
"""A hand that in so many steps came no nearer its aim (by 1 mm) stands on something."""
SLIPPED_M = 0.03
"""A thing that moved so far in the hand was lost, and a target that moved so far is dragged along."""
NEAR_M = 0.03
"""LIBERO's `On` asks for contact and for less than this between the two origins, seen from above."""


@dataclass(frozen=True)
class PickPlace:
    """Takes `thing` at `grasp` (hand relative to its origin, metres), lets it go `height` metres above `target`."""

    thing: str
    target: str
    grasp: tuple[float, float, float]
    height: float


@dataclass(frozen=True)
class Turn:
    """Grips `thing` at `grasp` (hand relative to its origin, metres) and turns it by `angle` rad about z."""

    thing: str
    grasp: tuple[float, float, float]
    angle: float


_BOWL_TO_PLATE = PickPlace("akita_black_bowl_1", "plate_1", (0.0, 0.047, 0.035), 0.015)

SUPPORTED: dict[str, PickPlace | Turn] = {
    "put_the_cream_cheese_in_the_bowl": PickPlace("cream_cheese_1", "akita_black_bowl_1", (0.0, 0.0, 0.0), 0.05),
    "put_the_bowl_on_the_plate": _BOWL_TO_PLATE,
    "turn_on_the_stove": Turn("flat_stove_1_button", (0.02, 0.0, 0.038), 0.6),
    **{
        f"pick_up_the_black_bowl_{where}_and_place_it_on_the_plate": _BOWL_TO_PLATE
        for where in (
            "between_the_plate_and_the_ramekin",
            "from_table_center",
            "next_to_the_cookie_box",
            "next_to_the_plate",
            "next_to_the_ramekin",
            "on_the_cookie_box",
            "on_the_ramekin",
            "on_the_stove",
            "on_the_wooden_cabinet",
        )
    },
}


class LiberoDemonstrator:
    """Carries out one task. Aim errs by `(1 - skill) * 8` cm, anew at each attempt; what failed is tried again.

    `offset` (x, y), metres in the world frame, is added to every aim: the constant error of a badly calibrated hand and
    eye, by which the result is judged too.
    """

    def __init__(
        self,
        task_name: str,
        skill: float,
        rng: np.random.Generator,
        offset: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        if task_name not in SUPPORTED:
            near = difflib.get_close_matches(task_name, SUPPORTED, n=3) or list(SUPPORTED)
            raise UserError(f"task {task_name!r}: expected one that can be demonstrated ({', '.join(near)})")
        self.plan = SUPPORTED[task_name]
        self.done = False
        self._spread = 0.08 * (1.0 - skill)
        self._jitter = 0.3 * (1.0 - skill)
        self._rng = rng
        self._offset = np.array([*offset, 0.0])
        self._aim_again()
        self._begin(self._approach)

    def action(self, poses: Poses) -> NDArray[np.float32]:
        """(7,) command in [-1, 1]: OSC_POSE's translation and rotation in the world frame, gripper (-1 open, 1 shut).

        `poses` as the module's docstring says.
        """
        move, turn, grip = self._phase(poses)
        if np.abs(move).max() > 0.05:
            move = move + self._rng.normal(0.0, self._jitter, 3)
        return np.clip([*move, *turn, grip], -1, 1).astype(np.float32)

    def _begin(self, phase: Callable[[Poses], Command]) -> None:
        self._phase = phase
        self._steps = 0
        self._nearest, self._waited = np.inf, 0

    def _aim_again(self) -> None:
        error = self._rng.normal(0.0, self._spread, (2, 2))
        self._grasp_error = self._offset + (*(0.6 * error[0]), 0.0)
        self._place_error = self._offset + (*error[1], 0.0)

    def _approach(self, poses: Poses) -> Command:
        self._aim = poses[self.plan.thing][:3] + self.plan.grasp + self._grasp_error
        apart = self._aim - poses["hand"][:3]
        if np.abs(apart[:2]).max() < ALIGNED_M and apart[2] > -CLOSING_M:
            self._begin(self._close)
            self._width = np.inf
        elif self._stuck(apart):
            self._begin(self._open)
        return _towards(_from_above(apart)), _upright(poses["hand"]), -1.0

    def _close(self, poses: Poses) -> Command:
        self._steps += 1
        before, self._width = self._width, _width(poses)
        if self._steps > 3 and before - self._width < 0.001:
            self._start = poses[self.plan.thing].copy()
            self._held = self._start[:3] - poses["hand"][:3]
            if isinstance(self.plan, PickPlace):
                self._target = poses[self.plan.target][:3].copy()
            self._begin(self._turn if isinstance(self.plan, Turn) else self._lift)
        return _towards(self._aim - poses["hand"][:3]), _upright(poses["hand"]), 1.0

    def _lift(self, poses: Poses) -> Command:
        assert isinstance(self.plan, PickPlace)
        if self._slipped(poses):
            self._begin(self._open)
        elif poses[self.plan.thing][2] - self._start[2] > LIFT_M:
            self._begin(self._carry)
        return np.array([0.0, 0.0, 1.0]), _upright(poses["hand"]), 1.0

    def _carry(self, poses: Poses) -> Command:
        assert isinstance(self.plan, PickPlace)
        aim = poses[self.plan.target][:3] + (0.0, 0.0, self.plan.height) + self._place_error
        apart = aim - poses[self.plan.thing][:3]
        if np.abs(apart).max() < ALIGNED_M or self._slipped(poses) or self._stuck(apart):
            self._begin(self._open)
        # Not lower than it was lifted either: it may have stood on something.
        hover = max(HOVER_M, self._start[2] + LIFT_M - aim[2])
        return _towards(_from_above(apart, hover)), _upright(poses["hand"]), 1.0

    def _turn(self, poses: Poses) -> Command:
        assert isinstance(self.plan, Turn)
        self._steps += 1
        turned = _yaw(poses[self.plan.thing]) - _yaw(self._start)
        self.done = turned > self.plan.angle
        if self.done or turned < 0.01 * (self._steps - 10):
            self._begin(self._open)
        return np.zeros(3), np.array([0.0, 0.0, 1.0]), 1.0

    def _open(self, poses: Poses) -> Command:
        self._steps += 1
        if self._steps > 4:
            self._height = poses["hand"][2]
            self._begin(self._retreat)
        return np.zeros(3), np.zeros(3), -1.0

    def _retreat(self, poses: Poses) -> Command:
        if isinstance(self.plan, PickPlace):
            apart = poses[self.plan.target][:3] + self._offset - poses[self.plan.thing][:3]
            self.done = float(np.hypot(apart[0], apart[1])) < NEAR_M
        if poses["hand"][2] - self._height < HOVER_M:
            return np.array([0.0, 0.0, 1.0]), np.zeros(3), -1.0
        if not self.done:
            self._aim_again()
            self._begin(self._approach)
        return np.zeros(3), np.zeros(3), -1.0

    def _slipped(self, poses: Poses) -> bool:
        assert isinstance(self.plan, PickPlace)
        in_hand = poses[self.plan.thing][:3] - poses["hand"][:3] - self._held
        dragged = poses[self.plan.target][:3] - self._target
        return max(float(np.linalg.norm(in_hand)), float(np.linalg.norm(dragged))) > SLIPPED_M

    def _stuck(self, apart: Array) -> bool:
        distance = float(np.linalg.norm(apart))
        self._waited += 1
        if distance < self._nearest - 0.001:
            self._nearest, self._waited = distance, 0
        return self._waited >= STUCK_STEPS


def _from_above(apart: Array, hover: float = HOVER_M) -> Array:
    """The way to go (3,), metres: towards the aim, but at `hover` above it until the hand is nearly over it."""
    aside = float(np.hypot(apart[0], apart[1]))
    return apart + (0.0, 0.0, min(hover, 8.0 * max(0.0, aside - OVER_M)))


def _towards(apart: Array) -> Array:
    return np.clip(GAIN * apart / REACH_M, -1.0, 1.0)


def _upright(hand: Array) -> Array:
    """Command (3,) that turns the hand back to pointing straight down with its fingers opening along the world's y."""
    w, x, y, z = hand[3:]
    fingers = np.array([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)])
    ahead = np.array([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)])
    side = np.sign(fingers[1]) or 1.0
    error = np.cross(ahead, (0.0, 0.0, -1.0)) + np.cross(fingers, (0.0, side, 0.0))
    return np.clip(TURN_GAIN * error / 2 / TURN_RAD, -1.0, 1.0)


def _yaw(pose: Array) -> float:
    w, x, y, z = pose[3:]
    return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))


def _width(poses: Poses) -> float:
    return float(poses["fingers"][0] - poses["fingers"][1])
