"""The measures of the paper's Tables 1 and 4 that need published networks, loaded by name.

LPIPS and FloLPIPS compare frames, FID and FVD distributions of features. Every function takes uint8 videos
(T, H, W, 3) on any device and works on that of its network.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from wovr.metrics.i3d import I3D, video_features
from wovr.metrics.inception import Inception, image_features
from wovr.metrics.lpips import flolpips, load_lpips, load_raft
from wovr.metrics.published import ALEXNET, INCEPTION, RAFT, find_files, load_published
from wovr.metrics.published import I3D as I3D_FILE

PerceptualMetric = Literal["lpips", "fid", "fvd", "flolpips"]
PairMeasure = Callable[[Tensor, Tensor], Tensor]
"""(imagined_THWC, true_THWC) -> one value per frame, or per frame that has a next one."""
Features = Callable[[Tensor, Sequence[int]], list[Tensor]]
"""(frames_THWC, horizons) -> for each horizon the vectors (N, F) of so many frames: one each, or one of the video."""

FRAMES_AT_ONCE = 32
"""Through a network; memory and nothing else depends on it."""


def load_pair_measures(
    metrics: Collection[str], folder: Path | None, device: torch.device | str
) -> dict[str, PairMeasure]:
    """LPIPS and FloLPIPS, where asked for. UserError where a file or library is missing."""
    files = find_files(metrics, folder)
    measures: dict[str, PairMeasure] = {}
    if ALEXNET not in files:
        return measures
    lpips = load_lpips(files[ALEXNET], device)
    if "lpips" in metrics:
        measures["lpips"] = lambda imagined, true: _in_parts(lpips, imagined, true, device)
    if "flolpips" in metrics:
        flow = load_raft(files[RAFT], device)

        def measure(imagined_T3HW: Tensor, true_T3HW: Tensor) -> Tensor:
            return flolpips(lpips, flow, imagined_T3HW, true_T3HW)

        measures["flolpips"] = lambda imagined, true: _in_parts(measure, imagined, true, device, overlap=1)
    return measures


def load_features(metrics: Collection[str], folder: Path | None, device: torch.device | str) -> dict[str, Features]:
    """The features of FID and FVD, where asked for. UserError where a file is missing."""
    files = find_files(metrics, folder)
    features: dict[str, Features] = {}
    if INCEPTION in files:
        inception = Inception()
        load_published(files[INCEPTION], inception, without="fc.")
        inception.to(device).eval().requires_grad_(False)

        def of_frames(frames_THWC: Tensor, horizons: Sequence[int]) -> list[Tensor]:
            parts = frames_THWC[: max(horizons)].split(FRAMES_AT_ONCE)
            vectors_TF = torch.cat([image_features(inception, part.to(device)) for part in parts])
            return [vectors_TF[:horizon] for horizon in horizons]

        features["fid"] = of_frames
    if I3D_FILE in files:
        i3d = I3D()
        load_published(files[I3D_FILE], i3d)
        i3d.to(device).eval().requires_grad_(False)

        def of_video(frames_THWC: Tensor, horizons: Sequence[int]) -> list[Tensor]:
            return [video_features(i3d, frames_THWC[:horizon].to(device))[None] for horizon in horizons]

        features["fvd"] = of_video
    return features


def _in_parts(
    measure: PairMeasure, imagined_THWC: Tensor, true_THWC: Tensor, device: torch.device | str, overlap: int = 0
) -> Tensor:
    """`measure` of images in [-1, 1], a few frames at a time; neighbouring parts share `overlap` frames."""
    values = []
    for first in range(0, len(true_THWC) - overlap, FRAMES_AT_ONCE):
        part = slice(first, first + FRAMES_AT_ONCE + overlap)
        images = (x_THWC[part].to(device).movedim(-1, 1).float() / 127.5 - 1 for x_THWC in (imagined_THWC, true_THWC))
        values.append(measure(*images).cpu())
    return torch.cat(values)
