"""The small convolutional codec that is trained here: four frames <-> one latent frame, 8x smaller each way.

It keeps Wan's temporal structure (the first frame has a latent of its own, later frames share one by fours) but is
stateless: the first frame is encoded as four copies of itself and no group sees another.

Departures from Wan's VAE, both for speed and for the world model's sake: the encoder is deterministic, with no KL term
and no sampling. Instead the decoder trains on latents with a little relative noise, which keeps the latent space smooth
and lets the decoder forgive the world model's errors. The loss is weighted towards what moves: a gripper is one per
cent of the image and all of the task.

One small network per frame, the same for all four, reads and draws; a wider one joins the group in between. Trained
for equal time, this draws what moves better than convolutions over the four frames stacked.

Legend: B batch, T frames, F frames of a group (4), N = B F, H W height and width, L latent frames, C latent channels,
h w latent height and width (H/8, W/8).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from wovr.codec.base import DecoderState, to_bytes
from wovr.core.config import Config
from wovr.core.errors import UserError
from wovr.core.seed import normal, stream
from wovr.core.types import Frames
from wovr.episodes.windows import memory_indices

GROUP = 4
"""Frames that share a latent."""
PATCH = 4
"""Side of the pixel patches that the first layer reads and the last layer writes."""
SPATIAL = 8
CACHED_GROUPS = 64
"""Groups decoded at once on a CPU: their feature maps stay in its cache, which takes a fifth off the time."""
ENCODED_GROUPS = 64
"""Groups of an episode encoded at once."""


class ConvCodecConfig(Config):
    """Architecture. The defaults cost about 0.3 GFLOP to encode a 64 x 64 group and 0.45 to decode it."""

    channels: int = Field(12, ge=1)
    """Latent channels. 8 blur the gripper; 16 are no sharper than 12 and slower for the world model to learn."""
    frame_width: int = Field(40, ge=1)
    """Channels of the convolutions at a quarter of the image's size, which see one frame at a time."""
    group_width: int = Field(192, ge=1)
    """Channels of those at an eighth, which see the four frames of a group together."""
    blocks: int = Field(2, ge=1)
    """Residual blocks of a group in the encoder and of a frame in the decoder. The encoder has one less per frame, the
    decoder one more per group."""


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(norm(x)))), with a root-mean-square norm over channels.

    Without the norm the loss explodes at useful learning rates, and GroupNorm is slow on a CPU. The branch starts at 0.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_C = nn.Parameter(torch.ones(width))
        self.conv_in = nn.Conv2d(width, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        inverse = torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-6)
        unit = x * inverse * self.scale_C[:, None, None]  # in this order every map stays channels_last
        return x + self.conv_out(functional.silu(self.conv_in(unit)))


class ConvCodec(nn.Module):
    """The `Codec` protocol by residual convolutions. Inference runs in the parameters' dtype: `.bfloat16()` halves it.

    `forward` is the training pass; `encode` and `decode` speak calibrated latents, about zero mean and unit variance
    per channel once `calibrate` has been called.
    """

    spatial_factor = SPATIAL
    temporal_factor = GROUP
    stride = 1
    analysis_PP: Tensor
    synthesis_PP: Tensor
    latent_mean_C: Tensor
    latent_std_C: Tensor

    def __init__(self, config: ConvCodecConfig) -> None:
        super().__init__()
        self.config = config
        self.channels = config.channels
        pixels, frame, group = PATCH * PATCH * 3, config.frame_width, config.group_width
        folded = GROUP * 4 * frame  # four frames, 2 x 2 cells of a quarter in one of an eighth
        self.frame_encoder = nn.Sequential(
            nn.Conv2d(pixels, frame, 3, padding=1), *(ResidualBlock(frame) for _ in range(config.blocks - 1))
        )
        self.group_encoder = nn.Sequential(
            nn.Conv2d(folded, group, 1),
            *(ResidualBlock(group) for _ in range(config.blocks)),
            nn.Conv2d(group, config.channels, 1),
        )
        self.group_decoder = nn.Sequential(
            nn.Conv2d(config.channels, group, 3, padding=1),
            *(ResidualBlock(group) for _ in range(config.blocks + 1)),
            nn.Conv2d(group, folded, 1),
        )
        self.frame_decoder = nn.Sequential(
            *(ResidualBlock(frame) for _ in range(config.blocks)), nn.Conv2d(frame, pixels, 3, padding=1)
        )
        analysis_PP, synthesis_PP = _patch_basis()
        self.register_buffer("analysis_PP", analysis_PP, persistent=False)
        self.register_buffer("synthesis_PP", synthesis_PP, persistent=False)
        self.register_buffer("latent_mean_C", torch.zeros(config.channels))
        self.register_buffer("latent_std_C", torch.ones(config.channels))
        self.apply(_initialise)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def device(self) -> torch.device:
        return self.latent_mean_C.device

    def forward(self, frames_BFHWC: Tensor, noise_BChw: Tensor) -> Tensor:
        """Training pass: uint8 groups (B, 4, H, W, 3) -> reconstruction in about [-1, 1], same shape.

        `noise_BChw` is added in units of each sample's root mean square latent. The gradient flows through that unit,
        so the encoder can't drown the noise by growing, and gains by centred channels of equal strength.
        """
        z_BChw = self._latents(frames_BFHWC)
        unit_B111 = z_BChw.float().square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        return self._pixels(z_BChw + unit_B111 * noise_BChw)

    def draw(self, latents_BChw: Tensor) -> Tensor:
        """The decoder alone, with gradient: calibrated latents -> groups (B, 4, H, W, 3) in about [-1, 1]."""
        return self._pixels(latents_BChw.float() * self._std() + self._mean())

    def freeze_encoder(self) -> None:
        """Train the decoder alone: latents stay what they are."""
        for module in (self.frame_encoder, self.group_encoder):
            module.requires_grad_(False)

    @torch.no_grad()
    def calibrate(self, latents_BChw: Tensor) -> None:
        """Make latents like these (what `encode_groups` gives now) zero-mean and unit-variance, channel by channel."""
        raw_BChw = latents_BChw.float() * self._std() + self._mean()
        self.latent_mean_C.copy_(raw_BChw.mean(dim=(0, 2, 3)))
        self.latent_std_C.copy_(raw_BChw.std(dim=(0, 2, 3)).clamp_min(1e-6))

    @torch.no_grad()
    def encode(self, frames_BTHWC: Tensor) -> Tensor:
        """uint8 frames (B, 1 + 4k, H, W, 3) -> latents (B, 1 + k, C, h, w), float32."""
        batch, frames = frames_BTHWC.shape[:2]
        assert frames % GROUP == 1, f"expected 1 + {GROUP}k frames, found {frames}"
        still_BFHWC = frames_BTHWC[:, :1].expand(-1, GROUP - 1, -1, -1, -1)
        padded_BTHWC = torch.cat([still_BFHWC, frames_BTHWC], dim=1)
        z_NChw = self.encode_groups(rearrange(padded_BTHWC, "B (L F) H W c -> (B L) F H W c", F=GROUP))
        return rearrange(z_NChw, "(B L) C h w -> B L C h w", B=batch)

    @torch.no_grad()
    def encode_groups(self, frames_BFHWC: Tensor) -> Tensor:
        """uint8 groups of four frames (B, 4, H, W, 3) -> latents (B, C, h, w), float32."""
        return (self._latents(frames_BFHWC).float() - self._mean()) / self._std()

    def encode_episode(self, frames_THWC: Tensor) -> Tensor:
        """The latent of the four frames that end at each frame, (T, C, h, w); before the first nothing moves."""
        index_TF = memory_indices(np.arange(len(frames_THWC)), GROUP)
        parts = np.array_split(index_TF, max(1, len(index_TF) // ENCODED_GROUPS))
        return torch.cat([self.encode_groups(frames_THWC[torch.from_numpy(rows)].to(self.device)) for rows in parts])

    def start(self, latents_BLChw: Tensor) -> DecoderState:
        """Nothing: no group sees another."""
        return ()

    @torch.no_grad()
    def decode(self, latents_BLChw: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Latents (B, L, C, h, w) -> uint8 frames (B, 4 L, H, W, 3)."""
        latents_NChw = latents_BLChw.flatten(0, 1)
        parts = latents_NChw.split(CACHED_GROUPS) if self.device.type == "cpu" else (latents_NChw,)
        pixels_NFHWC = torch.cat([to_bytes(self.draw(part)) for part in parts])
        return rearrange(pixels_NFHWC, "(B L) F H W c -> B (L F) H W c", L=latents_BLChw.shape[1]), state

    def decode_all(self, latents_BLChw: Tensor) -> Tensor:
        """Latents (B, 1 + k, C, h, w) -> uint8 frames (B, 1 + 4k, H, W, 3); the first latent is of four equal ones."""
        return self.decode(latents_BLChw, ())[0][:, GROUP - 1 :]

    def _mean(self) -> Tensor:
        return self.latent_mean_C.float()[:, None, None]

    def _std(self) -> Tensor:
        return self.latent_std_C.float()[:, None, None]

    def _latents(self, frames_BFHWC: Tensor) -> Tensor:
        height, width = frames_BFHWC.shape[2:4]
        if height % SPATIAL or width % SPATIAL:
            raise UserError(f"image size: expected multiples of {SPATIAL} for the codec, found {height} x {width}")
        # Rearranged as bytes, then viewed with channels second: this is the channels_last layout, at no further copy.
        patches_NhwC = rearrange(frames_BFHWC, "B F (h p) (w q) c -> (B F) h w (p q c)", p=PATCH, q=PATCH)
        pixels_NhwC = patches_NhwC.to(self.latent_mean_C.dtype) / 127.5 - 1
        x_NChw: Tensor = self.frame_encoder((pixels_NhwC @ self.analysis_PP).permute(0, 3, 1, 2))
        folded_BhwC = rearrange(x_NChw, "(B F) C (h p) (w q) -> B h w (F C p q)", F=GROUP, p=2, q=2)
        z_BChw: Tensor = self.group_encoder(folded_BhwC.permute(0, 3, 1, 2))
        return z_BChw

    def _pixels(self, z_BChw: Tensor) -> Tensor:
        x_BChw = self.group_decoder(z_BChw.to(self.latent_mean_C.dtype, memory_format=torch.channels_last))
        frames_NhwC = rearrange(x_BChw, "B (F C p q) h w -> (B F) (h p) (w q) C", F=GROUP, p=2, q=2)
        x_NChw = self.frame_decoder(frames_NhwC.permute(0, 3, 1, 2))
        pixels_NhwC = x_NChw.permute(0, 2, 3, 1) @ self.synthesis_PP
        return rearrange(pixels_NhwC, "(B F) h w (p q c) -> B F (h p) (w q) c", F=GROUP, p=PATCH, q=PATCH, c=3)


def _patch_basis() -> tuple[Tensor, Tensor]:
    """(48, 48) each: pixels of a 4 x 4 x 3 patch -> coefficients of a cosine transform, and back.

    Pictures are smooth: in these, the coefficient of frequency (u, v) is about ((1 + u)(1 + v))^-1.75 as large as the
    mean, and colours are a third as large as brightness. Coefficients are divided by the root of that size: a network
    that reads and writes them more nearly as equals learns edges in a fraction of the steps.
    """
    n = torch.arange(PATCH, dtype=torch.float64)
    cosine = torch.cos(torch.pi / PATCH * (n[None, :] + 0.5) * n[:, None]) * (2 / PATCH) ** 0.5
    cosine[0] /= 2**0.5
    colour = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]], dtype=torch.float64)
    colour /= colour.norm(dim=1, keepdim=True)
    size = torch.tensor([1.77, 0.66, 0.66], dtype=torch.float64) / ((1 + n)[:, None, None] * (1 + n)[:, None]) ** 1.75
    basis = torch.einsum("up,vq,kc->pqcuvk", cosine, cosine, colour)
    pixels = PATCH * PATCH * 3
    analysis_PP, synthesis_PP = ((basis * scale).reshape(pixels, pixels) for scale in (size.rsqrt(), size.sqrt()))
    return analysis_PP.float(), synthesis_PP.T.contiguous().float()


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
        self, episodes: Sequence[Frames], config: CodecDataConfig, *, channels: int, batch_size: int, seed: int
    ) -> None:
        assert episodes, "expected at least one episode"
        self.episodes, self.config, self.seed = episodes, config, seed
        self.channels, self.batch_size = channels, batch_size
        lengths = [len(frames) for frames in episodes]
        self.owner_N = np.repeat(np.arange(len(episodes)), lengths)
        self.end_N = np.concatenate([np.arange(length) for length in lengths])
        motion_N = np.concatenate([_motion(frames, config.motion_threshold) for frames in episodes])
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
    videos: Sequence[Frames], rows_BF: NDArray[np.int64], others_B: NDArray[np.float64], config: CodecDataConfig
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


def _initialise(module: nn.Module) -> None:
    """Keep the signal's variance without normalisation layers; residual branches start at zero."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    elif isinstance(module, ResidualBlock):
        nn.init.zeros_(module.conv_out.weight)
