"""Pictures of B tables at once, by signed distances with one pixel of anti-aliasing.

Legend: B tables, P side of the square patch that a shape is drawn into.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wovr.core.types import Frames
from wovr.envs.tabletop.physics import FINGER_HALF
from wovr.envs.tabletop.scene import BLOCK_HALF, NUM_BLOCKS, NUM_PLATES, PLATE_RADIUS, TABLE, WELL_RADIUS

Array = NDArray[np.float32]
_STEEL = np.array([52, 54, 62], np.float32)
_PAD = np.array([238, 240, 244], np.float32)
_SHADOW = np.array([40, 34, 30], np.float32)
LIFT_SCALE = 1.18
"""A lifted block is nearer to the camera."""


class Renderer:
    """Draws states; what does not move (table and plates) is drawn once per reset."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._scale = size / TABLE
        self._margin = int(np.ceil(16 * self._scale))

    def background(self, plates_B22: NDArray[np.float64], colours_B53: NDArray[np.float64]) -> Array:
        """(B, size + 2 margins, same, 3) float canvases with table and plates."""
        batch = len(plates_B22)
        side = self.size + 2 * self._margin
        colours = colours_B53.astype(np.float32)
        canvas = np.broadcast_to(colours[:, 4, None, None], (batch, side, side, 3)).copy()
        for j in range(NUM_PLATES):
            tint = colours[:, NUM_BLOCKS + j]
            centre = plates_B22[:, j].astype(np.float32)
            self._disc(canvas, centre, PLATE_RADIUS, tint * 0.72)
            self._disc(canvas, centre, PLATE_RADIUS - 1.2, tint)
            self._disc(canvas, centre, WELL_RADIUS, np.minimum(tint * 0.55 + 115, 255))
        return canvas

    def draw(self, canvas_BPP3: Array, states_BS: NDArray[np.float64], colours_B53: NDArray[np.float64]) -> Frames:
        """uint8 frames (B, size, size, 3): blocks on the table, then fingers, then what the gripper holds."""
        canvas = canvas_BPP3.copy()
        states = states_BS.astype(np.float32)
        colours = colours_B53.astype(np.float32)
        held = states[:, 3].astype(int)
        for lifted in (False, True):
            if lifted:
                self._fingers(canvas, states)
            for i in range(NUM_BLOCKS):
                rows = np.flatnonzero((held == i) == lifted)
                if len(rows):
                    self._block(canvas, rows, states[rows, 4 + 2 * i : 6 + 2 * i], colours[rows, i], lifted)
        inner = slice(self._margin, self._margin + self.size)
        return np.rint(canvas[:, inner, inner]).astype(np.uint8)

    def _block(self, canvas: Array, rows: NDArray[np.intp], centre: Array, tint_B3: Array, lifted: bool) -> None:
        half = BLOCK_HALF * (LIFT_SCALE if lifted else 1.0)
        if lifted:
            self._box(canvas, centre + np.float32(2.0), (half, half), _SHADOW, rows, opacity=0.35)
        self._box(canvas, centre, (half, half), tint_B3 * 0.6, rows)
        tint = np.minimum(tint_B3 * 1.1 + 18, 255) if lifted else tint_B3
        self._box(canvas, centre, (half - 1.1, half - 1.1), tint, rows)

    def _fingers(self, canvas: Array, states_BS: Array) -> None:
        centre, gap = states_BS[:, :2], states_BS[:, 2]
        bar = centre - np.array([0.0, FINGER_HALF[1] + 1.7], np.float32)
        self._box(canvas, bar, (gap + 2 * FINGER_HALF[0], 1.4), _STEEL)
        for side in (-1.0, 1.0):
            finger, pad = centre.copy(), centre.copy()
            finger[:, 0] += side * (gap + FINGER_HALF[0])
            pad[:, 0] += side * (gap + 0.8)
            self._box(canvas, finger, (FINGER_HALF[0], FINGER_HALF[1] + 0.4), _STEEL)
            self._box(canvas, pad, (0.8, FINGER_HALF[1]), _PAD)

    def _disc(self, canvas: Array, centre_B2: Array, radius: float, tint: Array) -> None:
        rows, window, x, y = self._patch(centre_B2, radius)
        self._blend(canvas, rows, window, (np.hypot(x, y) - radius).astype(np.float32), tint, 1.0)

    def _box(
        self,
        canvas: Array,
        centre_B2: Array,
        half: tuple[float | Array, float],
        tint: Array,
        rows: NDArray[np.intp] | None = None,
        opacity: float = 1.0,
    ) -> None:
        half_x = np.broadcast_to(np.asarray(half[0], np.float32), centre_B2.shape[:1])[:, None, None]
        reach = max(float(half_x.max()), half[1])
        every, window, x, y = self._patch(centre_B2, reach)
        across, along = np.abs(x) - half_x, np.abs(y) - np.float32(half[1])
        self._blend(canvas, every if rows is None else rows, window, np.maximum(across, along), tint, opacity)

    def _patch(
        self, centre_B2: Array, reach: float
    ) -> tuple[NDArray[np.intp], tuple[NDArray[np.intp], NDArray[np.intp]], Array, Array]:
        """Pixel windows around the centres and each pixel's offset from its centre in table units."""
        count = int(np.ceil(2 * (reach + 1) * self._scale)) + 2
        corner = np.floor(centre_B2 * self._scale).astype(np.intp) - count // 2
        limit = self._margin + self.size - count + self._margin
        corner = np.clip(corner + self._margin, 0, limit)
        steps = np.arange(count)
        columns, lines = corner[:, 0, None] + steps, corner[:, 1, None] + steps
        unit = np.float32(1.0 / self._scale)
        x = (columns - self._margin + 0.5).astype(np.float32) * unit - centre_B2[:, :1]
        y = (lines - self._margin + 0.5).astype(np.float32) * unit - centre_B2[:, 1:]
        return np.arange(len(corner)), (columns, lines), x[:, None, :], y[:, :, None]

    def _blend(
        self,
        canvas: Array,
        rows: NDArray[np.intp],
        window: tuple[NDArray[np.intp], NDArray[np.intp]],
        distance_BPP: Array,
        tint: Array,
        opacity: float,
    ) -> None:
        cover = np.clip(0.5 - distance_BPP * np.float32(self._scale), 0.0, 1.0)[..., None] * np.float32(opacity)
        index = (rows[:, None, None], window[1][:, :, None], window[0][:, None, :])
        tint = tint[:, None, None] if tint.ndim == 2 else tint
        under = canvas[index]
        canvas[index] = under + cover * (tint - under)
