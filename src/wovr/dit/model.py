"""ActionDiT: Wan2.2's video transformer with actions in place of text. One class for 3 M and 5 B parameters.

With width 3072, depth 30, heads 24, ffn_width 14336, channels 48, action_dim 7, gelu tanh and action_positions off it
is the network of the published WoVR checkpoints (5,025,334,464 parameters).

Legend: B batch, L latent frames, N new latent frames, S tokens per latent frame, C latent channels, h w latent height
and width, T actions, A action dims, D width.
"""

from __future__ import annotations

from typing import Literal, Self, cast

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn

from wovr.core.config import Config
from wovr.dit.action import ActionCache, ActionEncoder, positions, sinusoid
from wovr.dit.block import Block, linear, modulate, modulation
from wovr.dit.context import Layout
from wovr.dit.rope import rotation

PATCH = 2
"""A token is a patch of 1 x 2 x 2 latent cells."""
TIME_FEATURES = 256
"""Width of the timestep's sinusoids."""


class DiTConfig(Config):
    """Sizes and switches of the network. The defaults are the embedded size."""

    width: int = 192
    """D. 3072 in Wan2.2-TI2V-5B."""
    depth: int = Field(6, ge=1)
    """Blocks. 30 in Wan2.2-TI2V-5B."""
    heads: int = 6
    """24 in Wan2.2-TI2V-5B, of 128 channels each; 32 channels are enough for a small width."""
    ffn_width: int = 768
    """Hidden width of the feed-forward part. 14336 in Wan2.2-TI2V-5B."""
    channels: int = 16
    """C, the codec's. 48 in Wan2.2-TI2V-5B."""
    action_dim: int = 3
    """A. 7 in LIBERO."""
    adaln: bool = True
    """Actions reach the modulation of their latent frame."""
    cross_attention: bool = True
    """Blocks attend to action tokens; without it they have no cross-attention."""
    action_positions: bool = True
    """Action tokens and latent tokens are told their time (see `wovr.dit.action`). Off for published weights."""
    gelu: Literal["none", "tanh"] = "none"
    """Approximation of the feed-forward part's GELU. Wan's is `tanh`; the exact one is four times as fast on a CPU."""
    eps: float = 1e-6
    """Of all norms; Wan's."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of twice the heads, {2 * self.heads}")
        return self


class Head(nn.Module):
    """Modulated norm and projection from tokens to patches."""

    def __init__(self, width: int, patch_dim: int, eps: float):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps, elementwise_affine=False)
        self.head = linear(width, patch_dim)
        nn.init.zeros_(self.head.weight)
        self.modulation = nn.Parameter(torch.randn(1, 2, width) / width**0.5)

    def forward(self, x_BLSD: Tensor, time_BLD: Tensor) -> Tensor:
        shift, scale = modulation(self.modulation, time_BLD.unsqueeze(2), x_BLSD.dtype)
        return self.head(modulate(self.norm(x_BLSD), shift, scale))


class ActionDiT(nn.Module):
    """Velocity of a window of latents given its actions and per-frame timesteps.

    `layout` says which latent frames there are (`wovr.dit.context.layout`).
    """

    def __init__(self, config: DiTConfig, layout: Layout):
        super().__init__()
        self.config, self.layout = config, layout
        D, patch_dim = config.width, config.channels * PATCH**2
        self.patch_embedding = linear(patch_dim, D)
        self.time_embedding = nn.Sequential(linear(TIME_FEATURES, D), nn.SiLU(), linear(D, D))
        self.time_projection = nn.Sequential(nn.SiLU(), linear(D, 6 * D))
        self.action_encoder = ActionEncoder(
            config.action_dim, D, adaln=config.adaln, cross_attention=config.cross_attention
        )
        self.blocks = nn.ModuleList(
            Block(D, config.heads, config.ffn_width, config.eps, config.gelu, config.cross_attention)
            for _ in range(config.depth)
        )
        self.head = Head(D, patch_dim, config.eps)
        for name in ("0.weight", "2.weight"):
            nn.init.normal_(self.time_embedding.get_parameter(name), std=0.02)  # Wan's

    def forward(
        self, latents_BLChw: Tensor, timesteps_BL: Tensor, actions: Tensor | ActionCache, *, new_only: bool = False
    ) -> Tensor:
        """Velocity (B, L, C, h, w), or (B, N, C, h, w) of the new latents with `new_only`.

        `timesteps_BL` is sigma * 1000, 0 for the context; `actions` are (B, T, A) in environment units or what
        `precompute_actions` made of them. `new_only` gives the same numbers for less: the last block and the head
        skip the context, which still serves as keys and values.
        """
        cache = self.precompute_actions(actions) if isinstance(actions, Tensor) else actions
        dtype = self.patch_embedding.weight.dtype
        L, _, h, w = latents_BLChw.shape[1:]
        assert self.layout.frames == L and h % PATCH == w % PATCH == 0
        patches = rearrange(latents_BLChw.to(dtype), "B L C (h p) (w q) -> B L (h w) (C p q)", p=PATCH, q=PATCH)
        x_BLSD = self.patch_embedding(patches).to(dtype)  # float32 residuals under autocast
        if self.config.action_positions:
            _, frame_positions_LD = positions(self.layout, self.config.width, x_BLSD.device)
            x_BLSD = x_BLSD + frame_positions_LD.unsqueeze(1).to(dtype)

        features = sinusoid(timesteps_BL, TIME_FEATURES, 10_000.0).to(dtype)
        time_BLD = self.time_embedding(features)
        if cache.adaln_BLD is not None:
            time_BLD = time_BLD + cache.adaln_BLD
        time_BL6D = self.time_projection(time_BLD).unflatten(-1, (6, -1))

        angles = rotation(L, h // PATCH, w // PATCH, self.config.width // self.config.heads, x_BLSD.device)
        outputs = self.layout.new if new_only else L
        for i, block in enumerate(self.blocks):
            frames = outputs if i == len(self.blocks) - 1 else L
            x_BLSD = block(x_BLSD, time_BL6D, angles, cache.keys_values[i] if cache.keys_values else None, frames)
        patches = self.head(x_BLSD, time_BLD[:, L - outputs :])
        return rearrange(patches, "B L (h w) (p q C) -> B L C (h p) (w q)", h=h // PATCH, p=PATCH, q=PATCH)

    def precompute_actions(self, actions_BTA: Tensor) -> ActionCache:
        """What all Euler steps of a chunk share: the AdaLN embedding and each block's keys and values."""
        assert actions_BTA.shape[1:] == (self.layout.actions, self.config.action_dim)
        actions_BTA = actions_BTA.to(self.patch_embedding.weight.dtype)
        tokens_BTD = self.action_encoder.tokens(actions_BTA)
        keys_values: tuple[tuple[Tensor, Tensor], ...] = ()
        if tokens_BTD is not None:
            if self.config.action_positions:
                action_positions_TD, _ = positions(self.layout, self.config.width, tokens_BTD.device)
                tokens_BTD = tokens_BTD + action_positions_TD.to(tokens_BTD.dtype)
            keys_values = tuple(cast(Block, block).action_keys_values(tokens_BTD) for block in self.blocks)
        return ActionCache(self.action_encoder.modulation(actions_BTA, self.layout), keys_values)
