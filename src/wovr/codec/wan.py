"""Wan2.2's video VAE as a codec: 16x smaller each way, four frames to one latent, causal in time.

Its convolutions see the last two frames of what came before at every depth, so an episode is one stream. diffusers'
`AutoencoderKLWan` has the layers, but forgets the stream after each call; here the encoder's cache lives through one
call, whatever its length, and the decoder's goes out and in as a `DecoderState`: one row per stream, so that any of
them may go on and only new latents are decoded. At full size and 256 x 256 pixels it takes 234 MB per stream in bf16.

A stream's first latent is one frame and passes no layer that doubles time. diffusers marks such a layer with a string
and gives it zeros for a past in the next call; a cache of zeros says the same, and gives every state the same shapes.

Latents are the posterior's mean, normalised by the published statistics. Legend: B batch, T frames, L latent frames,
C latent channels, h w latent height and width (H/16, W/16).
"""

from __future__ import annotations

from typing import Any, Self

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from wovr.codec.base import DecoderState, to_bytes
from wovr.core.config import Config
from wovr.core.errors import UserError

SPATIAL, GROUP = 16, 4
"""Pixels of a latent cell each way, and frames of a latent."""
PATCH = 2
"""Side of the pixel patches that the encoder reads and the decoder writes."""
PAST = 2
"""Frames that a causal convolution sees beside its own."""
LATENTS_AT_ONCE = 8
"""Latent frames encoded or decoded in one pass where there are more. It bounds memory and changes nothing else."""


class WanCodecConfig(Config):
    """Architecture. The defaults are Wan2.2-TI2V-5B's, 704.7 M parameters."""

    channels: int = Field(48, ge=1)
    """Latent channels."""
    encoder_width: int = Field(160, ge=1)
    """Channels at half of the image's size."""
    decoder_width: int = Field(256, ge=1)
    """The same of the decoder."""
    width_factors: tuple[int, int, int, int] = (1, 2, 4, 4)
    """Channels at a half, quarter, eighth and sixteenth of the image's size, as multiples of these widths."""
    blocks: int = Field(2, ge=1)
    """Residual blocks at each size of the encoder; the decoder has one more."""
    # fmt: off
    latents_mean: tuple[float, ...] = (
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
        0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
        -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
        -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
    )
    """Of each channel, over Wan's training videos."""
    latents_std: tuple[float, ...] = (
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
        0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
        0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
        0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
    )
    """The same."""
    # fmt: on

    @model_validator(mode="after")
    def _one_number_per_channel(self) -> Self:
        for key in ("latents_mean", "latents_std"):
            if len(getattr(self, key)) != self.channels:
                raise ValueError(f"{key}: expected {self.channels} numbers, found {len(getattr(self, key))}")
        if min(self.latents_std) <= 0:
            raise ValueError(f"latents_std: expected positive numbers, found {min(self.latents_std)}")
        return self

    def diffusers(self) -> dict[str, Any]:
        """The same as diffusers' `AutoencoderKLWan` is told it, and as its config.json has it."""
        return {
            "z_dim": self.channels,
            "base_dim": self.encoder_width,
            "decoder_base_dim": self.decoder_width,
            "dim_mult": list(self.width_factors),
            "num_res_blocks": self.blocks,
            "attn_scales": [],
            "temperal_downsample": [False, True, True],
            "latents_mean": list(self.latents_mean),
            "latents_std": list(self.latents_std),
            "is_residual": True,
            "in_channels": 3 * PATCH**2,
            "out_channels": 3 * PATCH**2,
            "patch_size": PATCH,
            "scale_factor_temporal": GROUP,
            "scale_factor_spatial": SPATIAL,
        }


class WanCodec(nn.Module):
    """The `Codec` protocol by Wan2.2's VAE, in the parameters' dtype; it is never trained here.

    Its parameters have diffusers' names. Weights are read by `wovr.codec.wan_weights.load_wan_codec`.
    """

    spatial_factor = SPATIAL
    temporal_factor = GROUP
    stride = GROUP

    def __init__(self, config: WanCodecConfig) -> None:
        from diffusers import AutoencoderKLWan

        super().__init__()
        self.config = config
        self.channels = config.channels
        vae: Any = AutoencoderKLWan(**config.diffusers())
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    @property
    def device(self) -> torch.device:
        return self.quant_conv.weight.device

    @torch.no_grad()
    def encode(self, frames_BTHWC: Tensor) -> Tensor:
        """uint8 frames (B, 1 + 4k, H, W, 3) -> latents (B, 1 + k, C, h, w), float32."""
        frames, height, width = frames_BTHWC.shape[1:4]
        assert frames % GROUP == 1, f"expected 1 + {GROUP}k frames, found {frames}"
        if height % SPATIAL or width % SPATIAL:
            raise UserError(f"image size: expected multiples of {SPATIAL} for the codec, found {height} x {width}")
        cache = _empty(self.encoder)
        z_BCLhw = [
            self.quant_conv(self.encoder(self._patches(part), feat_cache=cache, feat_idx=[0])).chunk(2, dim=1)[0]
            for part in _parts(frames_BTHWC, 1, first=1, size=LATENTS_AT_ONCE * GROUP)
        ]
        mean_C111, std_C111 = self._statistics()
        return rearrange((torch.cat(z_BCLhw, dim=2).float() - mean_C111) / std_C111, "B C L h w -> B L C h w")

    def encode_episode(self, frames_THWC: Tensor) -> Tensor:
        """The latents of frames 0, 1-4, 5-8, ..., (L, C, h, w), float32. Up to three last frames are left out."""
        whole = len(frames_THWC) - (len(frames_THWC) - 1) % GROUP
        return self.encode(frames_THWC[None, :whole])[0]

    def start(self, latents_BLChw: Tensor) -> DecoderState:
        """The decoder after these latents, the first of which is a stream's first."""
        return self.draw(latents_BLChw)[1]

    def decode(self, latents_BLChw: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """The latents that follow (B, L, C, h, w) -> uint8 frames (B, 4 L, H, W, 3), and the state after them."""
        pixels_BTHWC, following = self.draw(latents_BLChw, state)
        return to_bytes(pixels_BTHWC), following

    def decode_all(self, latents_BLChw: Tensor) -> Tensor:
        """Whole streams (B, 1 + k, C, h, w) -> uint8 frames (B, 1 + 4k, H, W, 3)."""
        return to_bytes(self.draw(latents_BLChw)[0])

    @torch.no_grad()
    def draw(self, latents_BLChw: Tensor, state: DecoderState | None = None) -> tuple[Tensor, DecoderState]:
        """Pixels (B, T, H, W, 3) in about [-1, 1], and the state after them; without one, a stream begins here."""
        mean_C111, std_C111 = self._statistics()
        z_BCLhw = rearrange(latents_BLChw, "B L C h w -> B C L h w").float() * std_C111 + mean_C111
        z_BCLhw = self.post_quant_conv(z_BCLhw.to(self.quant_conv.weight.dtype))
        pixels: list[Tensor] = []
        for part in _parts(z_BCLhw, 2, first=int(state is None), size=LATENTS_AT_ONCE):
            first, index = state is None, [0]
            cache = _empty(self.decoder) if state is None else [*state]
            x_BCThw = self.decoder(part, feat_cache=cache, feat_idx=index, first_chunk=first)
            pixels.append(rearrange(x_BCThw, "B (c q p) T h w -> B T (h p) (w q) c", p=PATCH, q=PATCH))
            state = _filled(cache[: index[0]]) if first else tuple(cache)
        assert state is not None, "expected at least one latent"
        return torch.cat(pixels, dim=1), state

    def _patches(self, frames_BTHWC: Tensor) -> Tensor:
        weight = self.quant_conv.weight
        pixels_BTHWC = (frames_BTHWC.to(weight.device) / 127.5 - 1).to(weight.dtype)
        return rearrange(pixels_BTHWC, "B T (h p) (w q) c -> B (c q p) T h w", p=PATCH, q=PATCH)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation (C, 1, 1, 1) of latents. In float32 always, which a buffer in bf16 would not be."""
        both_2C = torch.tensor([self.config.latents_mean, self.config.latents_std], device=self.device)
        mean_C111, std_C111 = both_2C[..., None, None, None]
        return mean_C111, std_C111


def _parts(x: Tensor, dim: int, *, first: int, size: int) -> tuple[Tensor, ...]:
    """`x` along `dim` in parts of `size`, after one of `first`."""
    rest = x.shape[dim] - first
    sizes = [first, *[size] * (rest // size), rest % size]
    return x.split([size for size in sizes if size], dim)


def _empty(network: nn.Module) -> list[Any]:
    """The cache of a stream that has not begun: a place for each convolution, of which diffusers fills as many as it
    needs."""
    return [None for module in network.modules() if isinstance(module, nn.Conv3d)]


def _filled(cache: list[Any]) -> DecoderState:
    """What a stream's first latent leaves behind, in the shape that every later one has: zeros stand before it.

    The layer that doubles time, which diffusers marks with a string, reads what the convolution before it reads.
    """
    state: list[Tensor] = []
    for kept in cache:
        if isinstance(kept, Tensor):
            state.append(functional.pad(kept, (0, 0, 0, 0, PAST - kept.shape[2], 0)))
        else:
            state.append(torch.zeros_like(state[-1]))
    return tuple(state)
