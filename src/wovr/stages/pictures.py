"""Pictures of replays and keyframes, as bytes that a web page or a README can hold.

Legend: T frames; images are height x width x 3, uint8.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wovr.core.checkpoint import write_atomic
from wovr.core.types import Frames
from wovr.stages.replay import Replay

STRIP_SCALE = 3
STRIP_COLUMNS = 6
GAP = 2
"""Pixels between panels, before scaling."""
BAR = 3
"""Height in pixels of the line below a panel that turns green at success."""
SUCCESS, WAITING, PAPER = (34, 160, 80), (150, 150, 150), (255, 255, 255)
MAX_FRAMES = 64
"""Frames of an animation; longer replays are shown at equal distances in time."""
FRAME_MS, LAST_MS = 120, 1500
FILM_SIDE = 128
"""Longest side of a panel of a film, pixels: GIF stores them badly, and many are written."""
LOSSLESS_SIDE = 128
"""Images up to this side are stored without loss: every pixel counts, and they are small anyway."""


def strip(replay: Replay) -> Frames:
    """Truth above, imagination below, at equal distances in time from the first imagined frame to the last."""
    steps = len(replay.probability_T)
    columns = np.linspace(min(steps, steps // STRIP_COLUMNS), steps, min(steps, STRIP_COLUMNS)).round().astype(int)
    rows = [_row(frames_THWC[columns]) for frames_THWC in (replay.true_THWC, replay.imagined_THWC)]
    gap = np.full((GAP, *rows[0].shape[1:]), PAPER, dtype=np.uint8)
    return enlarge(np.concatenate([rows[0], gap, rows[1]]), STRIP_SCALE)


def save_film(path: Path, videos: Sequence[tuple[Frames, int]]) -> None:
    """Write videos side by side as an animated GIF, each with the index of the frame that completes its success.

    One that ends before the others stands still. The line below a video turns green at success.
    """
    frames = max(len(video_THWC) for video_THWC, _ in videos)
    images = []
    for t in _shown(frames):
        ends = [min(int(t), len(video_THWC) - 1) for video_THWC, _ in videos]
        panels = [
            _with_bar(small(video_THWC[end]), end > first)
            for end, (video_THWC, first) in zip(ends, videos, strict=True)
        ]
        images.append(Image.fromarray(_row(np.stack(panels))))
    durations = [FRAME_MS] * (len(images) - 1) + [LAST_MS]
    write_atomic(
        path,
        lambda file: images[0].save(
            file, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0
        ),
    )


def small(frame_HWC: Frames) -> Frames:
    """A frame as large as a film shows it."""
    factor = -(-max(frame_HWC.shape[:2]) // FILM_SIDE)
    return np.asarray(Image.fromarray(frame_HWC).reduce(factor)) if factor > 1 else frame_HWC


def _shown(frames: int) -> NDArray[np.int64]:
    """Which of so many frames an animation shows."""
    return np.unique(np.linspace(0, frames - 1, min(frames, MAX_FRAMES)).round().astype(int))


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


def _with_bar(frame_HWC: Frames, success: bool) -> Frames:
    colour = SUCCESS if success else WAITING
    bar = np.full((BAR, *frame_HWC.shape[1:]), colour, dtype=np.uint8)
    return np.concatenate([frame_HWC, bar])
