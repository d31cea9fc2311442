"""Pictures of replays and keyframes, as bytes that a web page or a README can hold.

Legend: T frames; images are height x width x 3, uint8.
"""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from wovr.core.types import Frames
from wovr.stages.replay import Replay

STRIP_SCALE = 3
STRIP_COLUMNS = 6
GAP = 2
"""Pixels between panels, before scaling."""
PAPER = (255, 255, 255)
LOSSLESS_SIDE = 128
"""Images up to this side are stored without loss: every pixel counts, and they are small anyway."""


def strip(replay: Replay) -> Frames:
    """Truth above, imagination below, at equal distances in time from the first imagined frame to the last."""
    steps = len(replay.probability_T)
    columns = np.linspace(min(steps, steps // STRIP_COLUMNS), steps, min(steps, STRIP_COLUMNS)).round().astype(int)
    rows = [_row(frames_THWC[columns]) for frames_THWC in (replay.true_THWC, replay.imagined_THWC)]
    gap = np.full((GAP, *rows[0].shape[1:]), PAPER, dtype=np.uint8)
    return enlarge(np.concatenate([rows[0], gap, rows[1]]), STRIP_SCALE)


def png(image_HWC: Frames) -> bytes:
    """One image as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image_HWC).save(file, format="PNG", optimize=True)
    return file.getvalue()


def still(image_HWC: Frames) -> str:
    """One image as the address of an inline WebP: without loss where it is small."""
    file = io.BytesIO()
    lossless = max(image_HWC.shape[:2]) <= LOSSLESS_SIDE
    Image.fromarray(image_HWC).save(file, format="WEBP", lossless=lossless, quality=80)
    return data_uri(file.getvalue(), "webp")


def data_uri(content: bytes, kind: str) -> str:
    """`content` as the address of an inline image of type `image/<kind>`."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def enlarge(image_HWC: Frames, scale: int) -> Frames:
    """Every pixel as a square of `scale` x `scale`."""
    return image_HWC.repeat(scale, axis=0).repeat(scale, axis=1)


def _row(frames_THWC: Frames) -> Frames:
    """Frames side by side."""
    padded = np.pad(frames_THWC, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=PAPER[0])
    return np.concatenate(list(padded), axis=1)[:, :-GAP]
