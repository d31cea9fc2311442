"""What a person can do: named controls, their keys, and the action that those held make together."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from wovr.core.types import Actions

FINE = 0.35
"""Share of full speed for careful moves."""


@dataclass(frozen=True, slots=True)
class Control:
    """Something that is held, and moves the robot meanwhile."""

    name: str
    label: str
    keys: tuple[str, ...]
    """As `KeyboardEvent.key` names them."""
    dim: int
    """Of the action; -1 moves nothing and lets time pass."""
    sign: int


WAIT = Control("wait", "wait", (".",), -1, 0)
ON_THE_TABLE = (
    Control("left", "left", ("ArrowLeft", "a"), 0, -1),
    Control("right", "right", ("ArrowRight", "d"), 0, 1),
    Control("up", "back", ("ArrowUp", "w"), 1, -1),
    Control("down", "front", ("ArrowDown", "s"), 1, 1),
    WAIT,
)
"""The embedded table: y grows towards the viewer."""
IN_SPACE = (
    # LIBERO's pictures are mirrored, and its camera faces the robot.
    Control("left", "left", ("ArrowLeft", "a"), 1, 1),
    Control("right", "right", ("ArrowRight", "d"), 1, -1),
    Control("up", "back", ("ArrowUp", "w"), 0, -1),
    Control("down", "front", ("ArrowDown", "s"), 0, 1),
    Control("higher", "higher", ("e", "PageUp"), 2, 1),
    Control("lower", "lower", ("q", "PageDown"), 2, -1),
    Control("turn-left", "turn left", ("z",), 5, 1),
    Control("turn-right", "turn right", ("x",), 5, -1),
    WAIT,
)
"""A hand that moves in space and turns, its gripper last: LIBERO's seven numbers."""
KEY_PAIRS = (("ArrowLeft", "ArrowRight"), ("ArrowDown", "ArrowUp"), ("q", "e"), ("z", "x"), ("j", "l"), ("u", "o"))


def controls_of(action_dim: int) -> tuple[Control, ...]:
    """By how many numbers an action has. Of robots that are not known the numbers themselves are moved, the first six
    of them, without the last, which is the gripper's."""
    if action_dim == 3:
        return ON_THE_TABLE
    if action_dim == 7:
        return IN_SPACE
    found = []
    for dim, keys in enumerate(KEY_PAIRS[: action_dim - 1]):
        for sign, key in zip((-1, 1), keys, strict=True):
            found.append(Control(f"{dim}{sign:+d}", f"number {dim + 1} {sign:+d}", (key,), dim, sign))
    return (*found, WAIT)


def action_of(
    controls: Collection[Control], held: Collection[str], action_dim: int, closed: bool, fine: bool
) -> Actions:
    """(A,) of the controls that are held; opposite ones cancel out."""
    action_A = np.zeros(action_dim, np.float32)
    for control in controls:
        if control.name in held and control.dim >= 0:
            action_A[control.dim] += control.sign * (FINE if fine else 1.0)
    action_A[-1] = 1.0 if closed else -1.0
    return action_A
