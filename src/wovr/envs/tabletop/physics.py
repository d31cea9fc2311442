"""One table: a two-finger gripper over blocks and plates, with contact through pymunk.

The plane is the table seen from above. Friction with the table stops whatever nothing pushes, so the state at the
end of a step holds no velocities. A grasp lifts the block clear of the others; a close that catches a block only by
its end squeezes it out along the fingers, which a frame shows.
"""

from __future__ import annotations

import math

import numpy as np
import pymunk
from numpy.typing import NDArray

from wovr.envs.tabletop.scene import BLOCK_HALF, NUM_BLOCKS, SETTLED_RADIUS, TABLE, WELL_RADIUS, Scene, goal

STATE_SIZE = 4 + 2 * NUM_BLOCKS
"""Gripper x, y, half gap, held block (-1 for none); then x, y of each block. Plates do not move."""

REACH = 3.0
"""Table units that the gripper moves per step at full command."""
HAND_LOW, HAND_HIGH = (10.0, 6.0), (TABLE - 10.0, TABLE - 6.0)
"""Corners of the box that the gripper's centre stays in."""
GAP_OPEN = 9.5
GAP_EMPTY = 1.0
GAP_RATE = 4.0
"""Half gap between the fingers: open, closed on nothing, and its change per step."""
FINGER_HALF = (2.0, 4.0)
GRASP_REACH = 5.5
"""Farthest a block's centre may lie along the fingers and still be held."""
SUBSTEPS = 4
_RELEASED = pymunk.ShapeFilter()
_LIFTED = pymunk.ShapeFilter(mask=0)


class Table:
    """State and contact of one environment."""

    def __init__(self, scene: Scene) -> None:
        self.plates = scene.plates
        self.gripper = scene.gripper.astype(np.float64).copy()
        self.gap = GAP_OPEN
        self.held = -1
        self._grasp_y = 0.0
        self._space = pymunk.Space()
        self._space.damping = 0.01
        self._space.iterations = 8
        self._blocks = [self._add_block(position) for position in scene.blocks]
        self._fingers = [self._add_finger(side) for side in (-1, 1)]
        for start, end in (((0, 0), (1, 0)), ((1, 0), (1, 1)), ((1, 1), (0, 1)), ((0, 1), (0, 0))):
            (x1, y1), (x2, y2) = ((2.0 + (TABLE - 4.0) * x, 2.0 + (TABLE - 4.0) * y) for x, y in (start, end))
            self._space.add(pymunk.Segment(self._space.static_body, (x1, y1), (x2, y2), 1.0))

    def step(self, action_A: NDArray[np.float32]) -> None:
        """Move by `(dx, dy) * REACH`, closing the fingers where `grip > 0` and opening them otherwise."""
        dx, dy, grip = (float(a) for a in np.clip(action_A, -1.0, 1.0))
        target = np.clip(self.gripper + REACH * np.array([dx, dy]), HAND_LOW, HAND_HIGH)
        velocity = (float(target[0] - self.gripper[0]), float(target[1] - self.gripper[1]))
        closing = grip > 0
        if self.held >= 0 and not closing:
            self._release()
        for _ in range(SUBSTEPS):
            self._move_fingers(velocity, closing)
            self._space.step(1.0 / SUBSTEPS)
            self.gripper += (velocity[0] / SUBSTEPS, velocity[1] / SUBSTEPS)
            if self.held >= 0:
                self._carry()
            elif closing:
                self._try_grasp()
        self._rest()

    def success(self, task_id: int) -> bool:
        """The named block lies in the middle of the named plate and is not held."""
        block, plate = goal(task_id)
        position = self._blocks[block].position
        distance = math.hypot(position.x - self.plates[plate, 0], position.y - self.plates[plate, 1])
        return self.held != block and distance <= SETTLED_RADIUS

    def state(self) -> NDArray[np.float64]:
        """(STATE_SIZE,) as the constant's docstring lists it."""
        blocks = [value for body in self._blocks for value in body.position]
        return np.array([*self.gripper, self.gap, self.held, *blocks])

    def _move_fingers(self, velocity: tuple[float, float], closing: bool) -> None:
        floor = BLOCK_HALF if self.held >= 0 else GAP_EMPTY
        wanted = floor if closing else GAP_OPEN
        limit = GAP_RATE / SUBSTEPS
        change = min(max(wanted - self.gap, -limit), limit)
        for side, finger in zip((-1, 1), self._fingers, strict=True):
            finger.position = (
                self.gripper[0] + side * (self.gap + FINGER_HALF[0]),
                float(self.gripper[1]),
            )
            finger.velocity = (velocity[0] + side * change * SUBSTEPS, velocity[1])
        self.gap += change

    def _try_grasp(self) -> None:
        for index, body in enumerate(self._blocks):
            along_x = body.position.x - self.gripper[0]
            along_y = body.position.y - self.gripper[1]
            between = abs(along_x) < self.gap and abs(along_y) < FINGER_HALF[1] + BLOCK_HALF
            if not between or self.gap > BLOCK_HALF + 0.3:
                continue
            if abs(along_y) <= GRASP_REACH:
                self._lift(index)
                return
            body.velocity = (body.velocity.x, math.copysign(9.0, along_y))

    def _lift(self, index: int) -> None:
        self.held = index
        body = self._blocks[index]
        self._grasp_y = float(body.position.y - self.gripper[1])
        for shape in (*body.shapes, *(s for finger in self._fingers for s in finger.shapes)):
            shape.filter = _LIFTED
        self.gap = BLOCK_HALF
        self._carry()

    def _carry(self) -> None:
        body = self._blocks[self.held]
        body.position = (float(self.gripper[0]), float(self.gripper[1]) + self._grasp_y)
        body.velocity = (0.0, 0.0)

    def _release(self) -> None:
        for shape in (*self._blocks[self.held].shapes, *(s for finger in self._fingers for s in finger.shapes)):
            shape.filter = _RELEASED
        self.held = -1

    def _rest(self) -> None:
        """Table friction ends all motion; a block in a plate's well slides half its way to the centre."""
        for index, body in enumerate(self._blocks):
            body.velocity = (0.0, 0.0)
            if index == self.held:
                continue
            for plate in self.plates:
                offset = (plate[0] - body.position.x, plate[1] - body.position.y)
                if math.hypot(*offset) <= WELL_RADIUS:
                    body.position = (body.position.x + 0.5 * offset[0], body.position.y + 0.5 * offset[1])
            self._space.reindex_shapes_for_body(body)

    def _add_block(self, position: NDArray[np.float64]) -> pymunk.Body:
        size = (2 * BLOCK_HALF, 2 * BLOCK_HALF)
        body = pymunk.Body(1.0, math.inf)  # blocks slide and do not turn: one thing less to imagine
        body.position = (float(position[0]), float(position[1]))
        shape = pymunk.Poly.create_box(body, size)
        shape.friction = 0.5
        self._space.add(body, shape)
        return body

    def _add_finger(self, side: int) -> pymunk.Body:
        body = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        body.position = (self.gripper[0] + side * (self.gap + FINGER_HALF[0]), float(self.gripper[1]))
        shape = pymunk.Poly.create_box(body, (2 * FINGER_HALF[0], 2 * FINGER_HALF[1]))
        shape.friction = 0.5
        self._space.add(body, shape)
        return body
