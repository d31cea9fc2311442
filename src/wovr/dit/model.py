"""ActionDiT: Wan2.2's video transformer with actions in place of text. One class for 3 M and 5 B parameters.

With width 3072, depth 30, heads 24, ffn_width 14336, channels 48, action_dim 7, gelu tanh, action_positions,
action_sums and causal_context off it is the network of the published WoVR checkpoints (5,025,334,464 parameters).

Departure: with `causal_context` the reference and memory do not attend to the new latents. What they contribute is
then the same at every Euler step and computed once per chunk, 1.6 times as fast on a CPU.

Given more latents and actions than its window has, the network reads them as several chunks behind one context (packed
training, see `wovr.dit.context`).

Legend: B batch, L latent frames, N new latent frames, S tokens per latent frame, C latent channels, h w latent height
and width, T actions, A action dims, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self, cast

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn

from wovr.core.config import Config
from wovr.dit.action import ActionEncoder, positions, sinusoid
from wovr.dit.block import Block, KeysValues, linear, modulate, modulation
from wovr.dit.checkpointing import Checkpointing, call
from wovr.dit.context import Layout
from wovr.dit.rope import rotation
from wovr.flow.schedule import TIMESTEPS

PATCH = 2
"""A token is a patch of 1 x 2 x 2 latent cells."""
TIME_FEATURES = 256
"""Width of the timestep's sinusoids."""
LEAST_SIGMA = 0.05
"""Below it the velocity that clean latents stand for is bounded: it divides by sigma."""
ACTION_PARTS = ("adaln", "cross_attention", "action_sums")
"""Switches of a `DiTConfig` that a training may turn off in a pretrained network."""


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
    action_sums: bool = True
    """Both channels also read the sum of the new actions so far (see `wovr.dit.action`). Off for published weights."""
    causal_context: bool = False
    """Reference and memory attend to each other but not to the new latents, so that the Euler steps of a chunk, and
    several noised copies of a window in training, share one pass over them. Off for published weights."""
    prediction: Literal["velocity", "data"] = "velocity"
    """What the last layer says: the velocity (Wan, the paper), or how the clean latents differ from the last of the
    memory, from which the velocity follows. `data` suits few Euler steps: at sigma = 1, where the new latents are all
    noise, it sees the last of the memory in their place, and has to say what the actions change."""
    gelu: Literal["none", "tanh"] = "none"
    """Approximation of the feed-forward part's GELU. Wan's is `tanh`; the exact one is four times as fast on a CPU."""
    eps: float = 1e-6
    """Of all norms; Wan's."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of twice the heads, {2 * self.heads}")
        return self

    def reduced(self, asked: DiTConfig) -> DiTConfig:
        """This network without what `asked` switches off of ACTION_PARTS."""
        return self.model_copy(update={part: getattr(self, part) and getattr(asked, part) for part in ACTION_PARTS})


@dataclass(frozen=True, slots=True)
class WindowCache:
    """What depends on neither the new latents nor their timestep: the Euler steps of one chunk share it."""

    layout: Layout
    """Of the window, packed or not."""
    adaln_BLD: Tensor | None
    actions: tuple[KeysValues, ...]
    """Of each block's cross-attention, (B, heads, T, head dim); empty without it."""
    context: tuple[KeysValues, ...] = ()
    """Of each block's self-attention, (B, context tokens, heads, head dim); empty without `causal_context`."""

    def repeat(self, copies: int) -> WindowCache:
        """Every row `copies` times."""
        if copies == 1:
            return self

        def all_of(parts: tuple[KeysValues, ...]) -> tuple[KeysValues, ...]:
            return tuple((k.repeat_interleave(copies, 0), v.repeat_interleave(copies, 0)) for k, v in parts)

        adaln_BLD = None if self.adaln_BLD is None else self.adaln_BLD.repeat_interleave(copies, 0)
        return WindowCache(self.layout, adaln_BLD, all_of(self.actions), all_of(self.context))


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


def action_encoder(config: DiTConfig) -> ActionEncoder:
    """The action channels of such a network, initialised."""
    return ActionEncoder(
        config.action_dim,
        config.width,
        adaln=config.adaln,
        cross_attention=config.cross_attention,
        sums=config.action_sums,
    )


class ActionDiT(nn.Module):
    """Velocity of a window of latents given its actions and per-frame timesteps.

    `layout` says which latent frames there are in a window of one chunk (`wovr.dit.context.layout`).
    """

    def __init__(self, config: DiTConfig, layout: Layout):
        super().__init__()
        self.config, self.layout = config, layout
        self.checkpointing: Checkpointing = "none"
        """Of the blocks' activations in training. It belongs to the machine, not to the network."""
        D, patch_dim = config.width, config.channels * PATCH**2
        self.patch_embedding = linear(patch_dim, D)
        self.time_embedding = nn.Sequential(linear(TIME_FEATURES, D), nn.SiLU(), linear(D, D))
        self.time_projection = nn.Sequential(nn.SiLU(), linear(D, 6 * D))
        self.action_encoder = action_encoder(config)
        self.blocks = nn.ModuleList(
            Block(D, config.heads, config.ffn_width, config.eps, config.gelu, config.cross_attention)
            for _ in range(config.depth)
        )
        self.head = Head(D, patch_dim, config.eps)
        self.reward_head: nn.Module | None = None
        """What is trained on the features with the network, and travels in its file (`wovr.reward.joint`)."""
        for name in ("0.weight", "2.weight"):
            nn.init.normal_(self.time_embedding.get_parameter(name), std=0.02)  # Wan's

    def forward(
        self,
        latents_BLChw: Tensor,
        timesteps_BL: Tensor,
        actions: Tensor | WindowCache,
        *,
        new_only: bool = False,
        features: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Velocity (B, L, C, h, w), or (B, N, C, h, w) of the new latents with `new_only`; and with `features` the
        hidden tokens that it is read from, those after the last block, (B, L or N, h / 2, w / 2, D).

        `timesteps_BL` is sigma * 1000, 0 for the context; `actions` are (B, T, A) in environment units or what
        `precompute` made of them. `new_only` gives the same numbers for less: the last block and the head skip the
        context, which still serves as keys and values; with `causal_context` there is nothing else. Then `actions`
        may also be (B / k, T, A): k neighbouring rows are noised copies of one window and share its context. The number
        of actions says how many chunks are packed.
        """
        device = latents_BLChw.device.type
        if self.patch_embedding.weight.dtype == torch.float32 or not torch.amp.is_autocast_available(device):
            found = self._velocity(latents_BLChw, timesteps_BL, actions, new_only)
        else:
            with torch.autocast(device, enabled=False):  # would keep float32 copies of norms
                found = self._velocity(latents_BLChw, timesteps_BL, actions, new_only)
        return found if features else found[0]

    def _velocity(
        self, latents_BLChw: Tensor, timesteps_BL: Tensor, actions: Tensor | WindowCache, new_only: bool
    ) -> tuple[Tensor, Tensor]:
        L, _, h, w = latents_BLChw.shape[1:]
        assert h % PATCH == w % PATCH == 0
        assert new_only or not self.config.causal_context, "a causal context has no velocity"
        if isinstance(actions, Tensor):
            copies, rest = divmod(len(latents_BLChw), len(actions))
            assert rest == 0 and (copies == 1 or self.config.causal_context)
            actions = self.precompute(actions, latents_BLChw[::copies, : self.layout.context]).repeat(copies)
        assert actions.layout.frames == L
        first = self.layout.context if self.config.causal_context else 0
        outputs = actions.layout.new if new_only else L
        seen_BLChw = latents_BLChw
        if self.config.prediction == "data":
            now_B1Chw = latents_BLChw[:, self.layout.context - 1 : self.layout.context]
            sigma_BL111 = timesteps_BL[:, :, None, None, None] / TIMESTEPS
            seen_BLChw = torch.where(sigma_BL111 < 1, latents_BLChw, now_B1Chw)
        x_BLSD, time_BLD, _ = self._blocks(seen_BLChw[:, first:], timesteps_BL[:, first:], actions, first, outputs)
        patches = self.head(x_BLSD, time_BLD[:, -outputs:])
        found = rearrange(patches, "B L (h w) (p q C) -> B L C (h p) (w q)", h=h // PATCH, p=PATCH, q=PATCH)
        if self.config.prediction == "data":
            data = now_B1Chw.float() + found.float()
            found = (latents_BLChw[:, -outputs:].float() - data) / sigma_BL111[:, -outputs:].clamp(min=LEAST_SIGMA)
        return found, x_BLSD.unflatten(2, (h // PATCH, w // PATCH))

    def precompute(self, actions_BTA: Tensor, context_BKChw: Tensor) -> WindowCache:
        """What all Euler steps of a chunk share: the AdaLN embedding, each block's keys and values of the actions and,
        with `causal_context`, of the K reference and memory latents."""
        more_chunks = (actions_BTA.shape[1] - self.layout.actions) // self.layout.new_actions
        layout = self.layout.packed(1 + more_chunks)
        assert actions_BTA.shape[1:] == (layout.actions, self.config.action_dim)
        features_BTF = self.action_encoder.features(actions_BTA.to(self.patch_embedding.weight.dtype), layout)
        tokens_BTD = self.action_encoder.tokens(features_BTF)
        keys_values: tuple[KeysValues, ...] = ()
        if tokens_BTD is not None:
            if self.config.action_positions:
                action_positions_TD, _ = positions(layout, self.config.width, tokens_BTD.device)
                tokens_BTD = tokens_BTD + action_positions_TD.to(tokens_BTD.dtype)
            keys_values = tuple(cast(Block, block).action_keys_values(tokens_BTD) for block in self.blocks)
        cache = WindowCache(layout, self.action_encoder.modulation(features_BTF, layout), keys_values)
        if self.config.causal_context:
            still_BK = context_BKChw.new_zeros(context_BKChw.shape[:2])
            *_, context = self._blocks(context_BKChw, still_BK, cache, 0, outputs=0)
            cache = replace(cache, context=context)
        return cache

    def _blocks(
        self, latents_BLChw: Tensor, timesteps_BL: Tensor, cache: WindowCache, first: int, outputs: int
    ) -> tuple[Tensor, Tensor, tuple[KeysValues, ...]]:
        """The last `outputs` of the L latent frames that stand at `first` in the window, through all blocks.

        Returns tokens (B, outputs, S, D), time embeddings (B, L, D), and self-attention's keys and values per block,
        which are asked for where there are no outputs and left out where there are.
        """
        dtype, device = self.patch_embedding.weight.dtype, latents_BLChw.device
        L, _, h, w = latents_BLChw.shape[1:]
        frames = slice(first, first + L)
        patches = rearrange(latents_BLChw.to(dtype), "B L C (h p) (w q) -> B L (h w) (C p q)", p=PATCH, q=PATCH)
        x_BLSD = self.patch_embedding(patches).to(dtype)  # float32 residuals under autocast
        if self.config.action_positions:
            _, frame_positions_LD = positions(cache.layout, self.config.width, device)
            x_BLSD = x_BLSD + frame_positions_LD[frames].unsqueeze(1).to(dtype)

        features = sinusoid(timesteps_BL, TIME_FEATURES, 10_000.0).to(dtype)
        time_BLD = self.time_embedding(features)
        if cache.adaln_BLD is not None:
            time_BLD = time_BLD + cache.adaln_BLD[:, frames]
        time_BL6D = self.time_projection(time_BLD).unflatten(-1, (6, -1))

        grid = (cache.layout.frames, h // PATCH, w // PATCH)
        tokens = slice(frames.start * grid[1] * grid[2], frames.stop * grid[1] * grid[2])
        cos, sin = rotation(*grid, self.config.width // self.config.heads, device)
        angles = cos[tokens], sin[tokens]
        keys_values = []
        for i, block in enumerate(self.blocks):
            queries = outputs if i == len(self.blocks) - 1 else L
            x_BLSD, own = call(
                block,
                self.checkpointing if self.training else "none",
                x_BLSD,
                time_BL6D,
                angles,
                cache.actions[i] if cache.actions else None,
                queries,
                cache.context[i] if cache.context else None,
                cache.layout.runs(frames.stop - queries, frames.stop),
            )
            if not outputs:  # else they would outlive their block in memory
                keys_values.append(own)
        return x_BLSD, time_BLD, tuple(keys_values)
