"""The small convolutional codec that is trained here: four frames <-> one latent frame, 8x smaller each way.

It keeps Wan's temporal structure (the first frame has a latent of its own, later frames share one by fours) but is
stateless: the first frame is encoded as four copies of itself and no group sees another.

Departures from Wan's VAE, both for speed and for the world model's sake: the encoder is deterministic, with no KL term
and no sampling. Instead the decoder trains on latents with a little relative noise, which keeps the latent space smooth
and lets the decoder forgive the world model's errors (`wovr.codec.conv_training`).

One small network per frame, the same for all four, reads and draws; a wider one joins the group in between. Trained
for equal time, this draws what moves better than convolutions over the four frames stacked.

Legend: B batch, T frames, F frames of a group (4), N = B F, H W height and width, L latent frames, C latent channels,
h w latent height and width (H/8, W/8).
"""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from wovr.codec.base import DecoderState, to_bytes
from wovr.core.config import Config
from wovr.core.errors import UserError
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


def _initialise(module: nn.Module) -> None:
    """Keep the signal's variance without normalisation layers; residual branches start at zero."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    elif isinstance(module, ResidualBlock):
        nn.init.zeros_(module.conv_out.weight)
