"""What the convolutional codec trains on, and its loss.

The loss is weighted towards what moves: a gripper is one per cent of the image and all of the task.

Legend: B batch, T frames, F frames of a group (4), N frames of all episodes, H W height and width, C latent channels,
h w latent height and width (H/8, W/8).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from wovr.codec.conv import GROUP, SPATIAL
from wovr.core.config import Config
from wovr.core.seed import normal, stream
from wovr.core.types import Frames, Video
from wovr.episodes.windows import memory_indices


def codec_loss(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Per-sample reconstruction loss (B,) of a batch of `CodecBatches`, and its logs, each (B,)."""
    return pixel_loss(model(batch["frames_BFHWC"], batch["noise_BChw"]), batch["frames_BFHWC"], batch["weight_BHW"])


def pixel_loss(drawn_BFHWC: Tensor, frames_BFHWC: Tensor, weight_BHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses and logs, (B,) each, of pictures in [-1, 1] that should be these uint8 frames.

    `_penalty` of the pixels' error, plus half that of their differences to the right and below (edges), all averaged
    with the weight map. Samples don't interact, so any split of the batch gives the same step.
    """
    error_BFHWC = drawn_BFHWC.float() - (frames_BFHWC.float() / 127.5 - 1)
    weight_B1HW1 = weight_BHW[:, None, :, :, None]
    # Differences are linear: the error of the edges is the edge of the error.
    below_BFHWC, right_BFHWC = error_BFHWC.diff(dim=2), error_BFHWC.diff(dim=3)
    pixels_B = _mean(_penalty(error_BFHWC) * weight_B1HW1)
    edges_B = _mean(_penalty(below_BFHWC) * weight_B1HW1[:, :, 1:])
    edges_B = edges_B + _mean(_penalty(right_BFHWC) * weight_B1HW1[:, :, :, 1:])
    psnr_B = 10 * torch.log10(4 / _mean(error_BFHWC.square()))
    logs = {"pixels": pixels_B.detach(), "edges": edges_B.detach(), "psnr": psnr_B.detach()}
    return pixels_B + 0.5 * edges_B, logs


class CodecDataConfig(Config):
    """Which groups the codec trains on, and what counts in them."""

    still_fraction: float = Field(0.15, ge=0, le=1)
    """Share of four copies of one frame: the reference latent is such a group."""
    moving_fraction: float = Field(0.5, ge=0, le=1)
    """Share of the other groups drawn in proportion to their motion; the rest is drawn evenly."""
    motion_weight: float = Field(8.0, ge=0)
    """Extra weight of a pixel that moves; it is about the inverse of the moving share of the image."""
    motion_threshold: int = Field(12, ge=0, le=255)
    """Grey levels by which a pixel must change to count as moving."""
    latent_noise: float = Field(0.1, ge=0)
    """Standard deviation of the noise on latents, relative to theirs. It is what the decoder learns to forgive."""


class CodecBatches:
    """Training batches drawn from episodes (each (T + 1, H, W, 3), uint8); `at(step)` is a pure function of the step.

    A pixel moves if it changes within the group or between the group and a random frame of the same episode. The
    second makes the map mark a gripper at rest, and in still groups too.
    """

    def __init__(
        self, episodes: Sequence[Video], config: CodecDataConfig, *, channels: int, batch_size: int, seed: int
    ) -> None:
        assert episodes, "expected at least one episode"
        self.episodes, self.config, self.seed = episodes, config, seed
        self.channels, self.batch_size = channels, batch_size
        lengths = [len(frames) for frames in episodes]
        self.owner_N = np.repeat(np.arange(len(episodes)), lengths)
        self.end_N = np.concatenate([np.arange(length) for length in lengths])
        motion_N = np.concatenate([_motion(frames[:], config.motion_threshold) for frames in episodes])
        even_N = np.full(len(motion_N), 1 / len(motion_N))
        moving_N = motion_N / motion_N.sum() if motion_N.any() else even_N
        share = config.moving_fraction
        self.cumulative_N = np.cumsum(share * moving_N + (1 - share) * even_N)

    def at(self, step: int) -> dict[str, Tensor]:
        """`frames_BFHWC` uint8, `weight_BHW` and `noise_BChw` float32."""
        random = stream(self.seed, "codec-groups", step)
        draws_B = random.random(self.batch_size) * self.cumulative_N[-1]
        chosen_B = np.searchsorted(self.cumulative_N, draws_B, side="right")
        still_B = random.random(self.batch_size) < self.config.still_fraction
        others_B = random.random(self.batch_size)
        videos = [self.episodes[self.owner_N[index]] for index in chosen_B]
        ends_B = self.end_N[chosen_B]
        rows_BF = np.where(still_B[:, None], ends_B[:, None], memory_indices(ends_B, GROUP))
        groups = weighted_groups(videos, rows_BF, others_B, self.config)
        batch, _, height, width, _ = groups["frames_BFHWC"].shape
        shape = (batch, self.channels, height // SPATIAL, width // SPATIAL)
        return groups | {"noise_BChw": self.config.latent_noise * normal(shape, self.seed, "codec-noise", step)}


def weighted_groups(
    videos: Sequence[Video], rows_BF: NDArray[np.int64], others_B: NDArray[np.float64], config: CodecDataConfig
) -> dict[str, Tensor]:
    """`frames_BFHWC` uint8, the frames `rows_BF[i]` of `videos[i]`, and `weight_BHW` float32: what moves counts more.

    `others_B` in [0, 1) choose the frame of the same video that a group is compared with.
    """
    frames_BFHWC = torch.from_numpy(np.stack([video[rows] for video, rows in zip(videos, rows_BF, strict=True)]))
    others = [video[int(other * len(video))] for video, other in zip(videos, others_B, strict=True)]
    moving_BHW = moving_pixels(frames_BFHWC, torch.from_numpy(np.stack(others)), config.motion_threshold)
    return {"frames_BFHWC": frames_BFHWC, "weight_BHW": 1 + config.motion_weight * moving_BHW}


def moving_pixels(frames_BFHWC: Tensor, other_BHWC: Tensor, threshold: int) -> Tensor:
    """(B, H, W): 1 where a pixel or its neighbour changes by more than `threshold` among a group and another frame."""
    all_BFHWC = torch.cat([frames_BFHWC, other_BHWC[:, None]], dim=1)
    change_BHW = (all_BFHWC.amax(dim=1) - all_BFHWC.amin(dim=1)).amax(dim=-1)
    return functional.max_pool2d((change_BHW > threshold).float(), 3, stride=1, padding=1)


def _motion(frames_THWC: Frames, threshold: int) -> NDArray[np.float64]:
    """How many pixels change within the group that ends at each frame; (T,)."""
    now, before = frames_THWC[1:], frames_THWC[:-1]
    change_T = (np.maximum(now, before) - np.minimum(now, before) > threshold).any(axis=-1).mean(axis=(1, 2))
    return np.convolve(np.concatenate([np.zeros(GROUP - 1), change_T]), np.ones(GROUP - 1), mode="valid")


def _penalty(error: Tensor) -> Tensor:
    """Squares move large errors, absolute values finish small ones. (L1 alone is content with a bare table.)"""
    return error.square() + 0.1 * error.abs()


def _mean(x_B: Tensor) -> Tensor:
    return x_B.flatten(1).mean(dim=1)
