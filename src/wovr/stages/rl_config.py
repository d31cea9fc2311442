"""Settings of RL in imagination and of its refinement (PACE)."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from wovr.core.config import Config
from wovr.core.dist import Precision
from wovr.kir.sampler import SamplerConfig
from wovr.metrics.alarm import AlarmConfig
from wovr.stages.policy_update import UpdateConfig


class RLConfig(Config):
    """Reinforcement learning in imagination."""

    updates: int = Field(40, ge=0)
    """Rounds of rollouts and training on them; 0 leaves the base policy as it is."""
    groups: int = Field(24, ge=1)
    """Start states per update; trajectories are groups x group_size."""
    starts: SamplerConfig = SamplerConfig()
    horizon: int | None = Field(None, ge=8)
    """Longest imagined rollout from a first frame, env steps; none takes the simulator's."""
    keyframe_steps: int = Field(32, ge=8)
    """Longest rollout from a keyframe, env steps: short, since error grows with depth."""
    update: UpdateConfig = UpdateConfig()
    rollout_batch: int = Field(96, ge=1)
    """Trajectories imagined side by side, replays too; memory and nothing else depends on it."""
    checkpoint_every: int = Field(5, ge=1)
    """Updates between saved states."""
    keep_every: int = Field(0, ge=0)
    """Updates between policies that are kept on the way, for `wovr eval --what hallucination` to ask whether imagined
    success rises where true success does. 0 keeps the last alone."""
    simulator: bool = False
    """Roll out in the true simulator instead: the paper's online GRPO, without a world model. The ledger pays."""
    alarm: AlarmConfig = AlarmConfig()
    precision: Precision = "auto"
    """Of the world model while it imagines. In fp32 a trajectory does not depend on what is imagined beside it."""
    collocated: bool = False
    """Whether, on each device, the world model waits in host memory while the policy trains, and the optimiser's state
    while it acts (Appendix A). Results are the same; moves take seconds per update."""
    base_rows: int = Field(256, ge=0)
    """Chunks per update on which the divergence from the base policy is estimated; 0 holds no base policy."""
    largest_gap: float = Field(0.05, gt=0)
    """Nats per token by which log-probabilities in training may differ from those of the rollout, before the first step
    of an update, without a warning."""

    @model_validator(mode="after")
    def _only_imagination_is_exploited(self) -> Self:
        if self.simulator and self.alarm.action != "off":
            raise ValueError("alarm.action: expected off with simulator=true, since nothing is imagined")
        return self


class RefineConfig(Config):
    """PACE: what one round of co-evolution adds."""

    rounds: int = Field(1, ge=0)
    """At most so many; 0 is without PACE."""
    min_gain: float | None = Field(None, ge=-1, le=1)
    """Share of true rollouts by which a policy must succeed more often than the one a round before, or rounds end and
    the better of the two stands (`wovr.stages.rounds`). None runs all rounds (the paper)."""
    episodes: int = Field(200, ge=1)
    """True rollouts of the evolved policy per round."""
    world_steps: int = Field(600, ge=1)
    """Training steps of the world model on the mixture of old and new rollouts."""
    reward_steps: int = Field(200, ge=1)
    """Of the success classifier."""
    decoder_steps: int = Field(400, ge=1)
    """Of the decoder, where `decoder.train` asks for it at all."""
    rate: float = Field(1.0, gt=0)
    """Learning rates of these three in proportion to those of the first training."""
    updates: int = Field(20, ge=0)
    """RL updates that follow."""
