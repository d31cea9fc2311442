"""What the world model sees beside the new latents: first-frame anchor, memory, noisy context (4.1).

A window is [reference latent, memory latents, new latents], each part optional but the last. At inference the context
is clean and its timestep is 0. Training noises the memory and leaves its timestep at 0, so that the network learns to
mistrust it (noisy context); the reference is never noised.

Packed training puts several chunks of a clip behind one context, each at its own sigma (diffusion forcing, Chen et al.
2024), so that nearly every latent is supervised. The attention is block-causal: context and first chunk attend as they
do alone, so that the first chunk is the window of inference, and every later chunk attends to all that came before it,
noised as it is, and to itself. A chunk sees the actions up to its own end, and sums of actions restart with every
chunk, as at inference; positions go on along the clip.

Legend: B batch, T actions, L latent frames, N new latent frames, K chunks, C latent channels, h w latent height and
width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from wovr.core.config import Config
from wovr.flow import path
from wovr.flow.schedule import TIMESTEPS

FRAMES_PER_LATENT = 4
"""Temporal factor of every codec here (Wan's)."""
ABSOLUTE_SCALE = 1 / 8
"""Of absolute actions: a chunk of whole motions counts 1."""


class ContextConfig(Config):
    """The paper's three context mechanisms; each can be switched off."""

    reference: bool = True
    """Whether the episode's first frame anchors every chunk."""
    memory_frames: int = Field(4, ge=1)
    """Most recent frames in the context: 1 (a still latent of the current frame) or a multiple of 4. Four in the
    published models."""
    noise: Literal["none", "fixed", "uniform"] = "uniform"
    """How training noises the memory: not at all, with one sigma (the published trainer), or with sigmas drawn from
    [0, noise_sigma] (the paper says that noise is drawn)."""
    noise_sigma: float = Field(0.2083, ge=0, le=1)
    """The fixed sigma, or the largest drawn one. The published trainer's value."""
    actions: Literal["residual", "absolute"] = "residual"
    """How the network is told what produced a frame: by that motion (the paper), or by where the hand has been told to
    be since o_0, the sum of all motions so far over 8 (EVAC's choice); the gripper's command is the same in both. Sums
    differ from true poses where the workspace's border stopped a motion, and those of rotations stand for a pose while
    rotations are small alone. `dit.action_sums` must be off with it."""

    @field_validator("memory_frames")
    @classmethod
    def _whole_latents(cls, value: int) -> int:
        if value != 1 and value % FRAMES_PER_LATENT:
            raise ValueError(f"expected 1 or a multiple of {FRAMES_PER_LATENT}")
        return value


class Run(NamedTuple):
    """Neighbouring latent frames that attend to the same."""

    frames: int
    """How many they are."""
    latents: int
    """How many latent frames they see, counted from the window's first."""
    actions: int
    """How many actions they see, counted likewise."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Latent frames of a window in order, and how many actions belong to each."""

    actions_per_frame: tuple[int, ...]
    """1 for a still latent, 4 for a latent of four frames; an action belongs to the frame that it produced."""
    new: int
    """How many of the last latent frames are new."""
    chunks: int = 1
    """K, how many chunks the new latent frames are; more than one in packed training alone."""

    @property
    def frames(self) -> int:
        """L."""
        return len(self.actions_per_frame)

    @property
    def context(self) -> int:
        """L - N, the reference and memory latents."""
        return self.frames - self.new

    @property
    def actions(self) -> int:
        """T, 13 for 1 reference + 4 memory + 8 new frames."""
        return sum(self.actions_per_frame)

    @property
    def new_actions(self) -> int:
        """How many of the last actions are new."""
        return sum(self.actions_per_frame[self.context :])

    def packed(self, chunks: int) -> Layout:
        """This window of one chunk with `chunks` that follow each other in its place."""
        assert self.chunks == 1
        chunk = self.actions_per_frame[self.context :]
        return Layout(self.actions_per_frame[: self.context] + chunk * chunks, self.new * chunks, chunks)

    def runs(self, first: int, stop: int) -> tuple[Run, ...]:
        """The block-causal mask of the latent frames from `first` to before `stop`, where frames from `stop` on are
        not there to be seen. Empty for one chunk, where all see all."""
        if self.chunks == 1:
            return ()
        runs = []
        size = self.new // self.chunks
        for end in range(self.context + size, self.frames + 1, size):
            last = min(end, stop)
            if last > first:
                runs.append(Run(last - first, last, sum(self.actions_per_frame[:end])))
                first = last
        return tuple(runs)


def layout(config: ContextConfig, chunk_length: int) -> Layout:
    """The window of one chunk of `chunk_length` env steps, a multiple of 4."""
    assert chunk_length % FRAMES_PER_LATENT == 0
    new = chunk_length // FRAMES_PER_LATENT
    memory = (1,) if config.memory_frames == 1 else (FRAMES_PER_LATENT,) * (config.memory_frames // FRAMES_PER_LATENT)
    return Layout((1,) * config.reference + memory + (FRAMES_PER_LATENT,) * new, new)


def moved(actions_BTA: Tensor) -> Tensor:
    """The sum of the motions (B, A); the last entry, which is the gripper's and no motion, is 0."""
    return nn.functional.pad(actions_BTA[..., :-1].sum(1), (0, 1))


def absolute(actions_BTA: Tensor, moved_BA: Tensor) -> Tensor:
    """Absolute actions (B, T, A) of neighbouring frames, from the actions that produced them and the sum of all motions
    before."""
    sums_BTA = ABSOLUTE_SCALE * (moved_BA[:, None] + actions_BTA.cumsum(1, dtype=torch.float64))
    return torch.cat((sums_BTA[..., :-1].to(actions_BTA.dtype), actions_BTA[..., -1:]), dim=-1)


def memory_sigmas(config: ContextConfig, uniform_B: Tensor) -> Tensor:
    """Sigmas (B,) of the memory's noise in training, from numbers uniform in [0, 1)."""
    match config.noise:
        case "none":
            return torch.zeros_like(uniform_B)
        case "fixed":
            return torch.full_like(uniform_B, config.noise_sigma)
        case "uniform":
            return config.noise_sigma * uniform_B


def timesteps(layout: Layout, sigma: Tensor) -> Tensor:
    """Per-frame timesteps (B, L) as the network takes them: 0 for the context, 1000 sigma for the new latents, whose
    `sigma` is (B,) or, one per chunk, (B, K)."""
    timesteps_BL = sigma.new_zeros(len(sigma), layout.frames)
    timesteps_BL[:, layout.context :] = TIMESTEPS * _per_new_frame(layout, sigma)
    return timesteps_BL


def noised_window(
    config: ContextConfig,
    layout: Layout,
    latents_BLChw: Tensor,
    noise_BLChw: Tensor,
    sigma: Tensor,
    memory_sigma_B: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Training input from clean windows: latents (B, L, C, h, w), timesteps (B, L), target velocity (B, N, C, h, w).

    The reference stays clean, the memory goes to `memory_sigma_B` and the new latents to `sigma`, (B,) or (B, K).
    """
    assert latents_BLChw.shape == noise_BLChw.shape and latents_BLChw.shape[1] == layout.frames
    sigma_BL = memory_sigma_B[:, None].repeat(1, layout.frames)
    sigma_BL[:, layout.context :] = _per_new_frame(layout, sigma)
    if config.reference:
        sigma_BL[:, 0] = 0
    noised_BLChw = path.interpolate(latents_BLChw, noise_BLChw, sigma_BL)
    target_BNChw = path.velocity(latents_BLChw[:, layout.context :], noise_BLChw[:, layout.context :])
    return noised_BLChw, timesteps(layout, sigma), target_BNChw


def _per_new_frame(layout: Layout, sigma: Tensor) -> Tensor:
    """(B, N) of sigmas (B,) or (B, K)."""
    sigma_BK = sigma.reshape(len(sigma), -1)
    return sigma_BK.repeat_interleave(layout.new // sigma_BK.shape[1], dim=1)
