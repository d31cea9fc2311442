"""What lies on the table: geometry, colours, tasks and the fixed numbered layouts.

Lengths are table units: the table is 64 x 64 of them, x to the right, y towards the viewer, so that at the
default image size one unit is one pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wovr.core.seed import stream
from wovr.core.types import Task

TABLE = 64.0
BLOCK_HALF = 5.5
"""Half the side of a block: 17 % of the image, large against a latent cell of 8 pixels."""
PLATE_RADIUS = 10.0
WELL_RADIUS = 6.5
"""A block that is let go with its centre inside the sunken middle slides to the centre; outside it stays on the rim.
So success shows in a 64 x 64 frame: a block either sits in the middle or it does not."""
SETTLED_RADIUS = 2.0
CLEAR = (20.0, 11.0)
"""So far from a block's centre, on one axis or the other, an open gripper does not touch it."""
NUM_BLOCKS = 2
NUM_PLATES = 2

RGB = tuple[float, float, float]
BLOCK_COLOURS: dict[str, RGB] = {"red": (214, 48, 44), "blue": (44, 92, 214)}
PLATE_COLOURS: dict[str, RGB] = {"green": (70, 168, 88), "yellow": (236, 196, 64)}
TABLE_COLOUR: RGB = (196, 184, 170)
PLAY_BLOCK_COLOURS: tuple[RGB, ...] = ((226, 108, 36), (186, 36, 98), (48, 150, 222), (92, 58, 188))
"""Orange, crimson, sky blue, indigo: other colours than the suite's, on both sides of each, so that what is learned of
these carries over. The same goes for the plates': teal, lime, amber, straw."""
PLAY_PLATE_COLOURS: tuple[RGB, ...] = ((46, 150, 132), (140, 190, 70), (228, 152, 60), (236, 224, 122))

TASKS: tuple[Task, ...] = tuple(
    Task(i * NUM_PLATES + j, f"{block}_block_on_{plate}_plate", f"put the {block} block on the {plate} plate")
    for i, block in enumerate(BLOCK_COLOURS)
    for j, plate in enumerate(PLATE_COLOURS)
)
"""Every scene holds both blocks and both plates, so each task's target has distractors."""


def goal(task_id: int) -> tuple[int, int]:
    """(block, plate) indices that a task names."""
    return divmod(task_id, NUM_PLATES)


@dataclass(frozen=True, slots=True)
class Scene:
    """A layout and its colours."""

    gripper: NDArray[np.float64]
    """(2,) start of the gripper."""
    blocks: NDArray[np.float64]
    """(2, 2) centres."""
    plates: NDArray[np.float64]
    """(2, 2) centres."""
    colours: NDArray[np.float64]
    """(5, 3): two blocks, two plates, the table; RGB in [0, 255]."""


SUITE_COLOURS = np.array([*BLOCK_COLOURS.values(), *PLATE_COLOURS.values(), TABLE_COLOUR], dtype=np.float64)


def suite_scene(init_id: int) -> Scene:
    """Initial state `init_id`: the gripper at the back, blocks in the middle band, plates at the front.

    All tasks share it: what to do with a layout can only be read from the instruction.
    """
    return _scene(stream(0, "tabletop-layout", init_id), SUITE_COLOURS)


def play_scene(rng: np.random.Generator) -> Scene:
    """A fresh layout for undirected play, with blocks and plates in colours that the suite's do not have.

    Half of them are laid as the suite's; in the others the gripper and the blocks are anywhere, as they are in the
    middle of an episode.
    """
    blocks = rng.permutation(PLAY_BLOCK_COLOURS)[:NUM_BLOCKS]
    plates = rng.permutation(PLAY_PLATE_COLOURS)[:NUM_PLATES]
    scene = _scene(rng, np.array([*blocks, *plates, TABLE_COLOUR], dtype=np.float64))
    if rng.random() < 0.5:
        return scene
    anywhere = _spread(rng, (10, 16), (54, 56), gap=16.0)
    while True:
        gripper = rng.uniform((12, 7), (52, 57))
        apart_22 = np.abs(anywhere - gripper)
        if ((apart_22[:, 0] > CLEAR[0]) | (apart_22[:, 1] > CLEAR[1])).all():
            return replace(scene, gripper=gripper, blocks=anywhere)


def _scene(rng: np.random.Generator, colours: NDArray[np.float64]) -> Scene:
    return Scene(
        gripper=rng.uniform((22, 7), (42, 11)),
        blocks=_spread(rng, (13, 24), (51, 36), gap=25.0),
        plates=_spread(rng, (13, 47), (51, 52), gap=23.0),
        colours=colours,
    )


def _spread(
    rng: np.random.Generator, low: tuple[float, float], high: tuple[float, float], gap: float
) -> NDArray[np.float64]:
    while True:
        points = rng.uniform(low, high, size=(2, 2))
        if np.linalg.norm(points[0] - points[1]) >= gap:
            return points
