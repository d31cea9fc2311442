"""Settings of what is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from wovr.core.config import Config
from wovr.metrics.i3d import MIN_FRAMES
from wovr.metrics.perceptual import PerceptualMetric


class EvalConfig(Config):
    """True success of a policy."""

    initial_states: int = Field(50, ge=1)
    """Fixed initial states per task, the same for every policy: comparisons are paired."""
    repeats: int = Field(2, ge=1)
    """Episodes per initial state, each with its own seed."""
    temperature: float = Field(1.0, gt=0)
    """Of the policy's sampling."""
    greedy: bool = False
    """Take the likeliest tokens. Sampling is what RL improves and what the reference evaluates."""


class WorldModelEvalConfig(Config):
    """Imagined videos beside the true ones, by rollout horizon (Tables 1 and 4): always PSNR, SSIM and FPS.

    It may change in a run folder: nothing that is trained depends on it.
    """

    horizons: tuple[int, ...] = Field((128, 256, 512), min_length=1)
    """Env steps, multiples of the chunk length. Those that no held-out episode reaches are left out."""
    trajectories: int = Field(200, ge=1)
    """Held-out episodes of each purpose, at most: 200 in Table 1, 24 in Table 4."""
    batch_size: int = Field(16, ge=1)
    """Rollouts side by side; FPS and memory depend on it, the measures do not."""
    metrics: tuple[PerceptualMetric, ...] = ()
    """Measures that need published networks: lpips, fid, fvd, flolpips (`wovr.metrics.published` names their files)."""
    weights: Path | None = None
    """Folder of these files; none takes it from the environment's WOVR_METRIC_WEIGHTS."""

    @model_validator(mode="after")
    def _horizons_fit(self) -> Self:
        if sorted(set(self.horizons)) != list(self.horizons) or self.horizons[0] < 1:
            raise ValueError("horizons: expected positive numbers, each above the one before")
        if "fvd" in self.metrics and self.horizons[0] < MIN_FRAMES:
            raise ValueError(f"fvd: expected horizons of {MIN_FRAMES} steps or more")
        return self


class ActionFollowingConfig(Config):
    """Held-out episodes under recorded actions and under changed ones (`wovr.stages.action_following`).

    It may change in a run folder: nothing that is trained depends on it.
    """

    trajectories: int = Field(60, ge=1)
    """Held-out episodes of each purpose, at most; each is imagined 4 + action dims times."""
    steps: int = Field(16, ge=1)
    """Env steps, a multiple of the chunk length. Few: error grows with depth, and late errors are no longer the
    actions'. Shorter episodes are left out."""


class ClosedLoopConfig(Config):
    """Every policy of a run in imagination and in truth (`wovr.stages.closed_loop`).

    It may change in a run folder: nothing that is trained depends on it.
    """

    first_frames: int = Field(100, ge=1)
    """Rollouts of each policy from initial states, in either world."""
    keyframes: int = Field(50, ge=0)
    """Rollouts from keyframes."""
    policies: int = Field(12, ge=1)
    """At most so many of those that were kept, evenly spaced."""
