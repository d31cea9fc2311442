"""Settings of masked GRPO."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from wovr.core.config import Config


class GRPOConfig(Config):
    """Eq. 10 and 11, with the reference's RL settings as options."""

    group_size: int = Field(8, ge=2)
    """Trajectories per start state, G in Eq. 10. The reference's setting."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per env step in Eq. 10. At 1 every success is worth the same; below 1, earlier ones are worth more."""
    normalize: Literal["mean", "std"] = "mean"
    """`mean` subtracts the group mean (Eq. 10); `std` also divides by the group's deviation (the reference)."""
    clip_low: float = Field(0.2, gt=0, lt=1)
    """Ratios are clipped below at 1 - clip_low. Equal to clip_high it is the epsilon of Eq. 11."""
    clip_high: float = Field(0.28, gt=0)
    """Ratios are clipped above at 1 + clip_high. The reference's value, which leaves rare good actions room to grow."""
    ratio: Literal["step", "token", "chunk"] = "step"
    """What one probability ratio spans: an env step (Eq. 11), one action token (the reference) or the whole chunk."""
    entropy_bonus: float = Field(0.0, ge=0)
    """Weight of the mean token entropy (nats) added to the objective. 0 as in paper and reference."""
    min_successes: int = Field(1, ge=0)
    """Groups with fewer successes are skipped. With min_failures this is the reference's 1 to 7 of 8."""
    min_failures: int = Field(1, ge=0)
    """Groups with fewer failures are skipped. 0 together with gamma < 1 lets groups learn to be faster."""
    mask_after_success: bool = True
    """Whether a trajectory ends at first success (T_valid of Eq. 11). Off: it runs on to its limit and all its steps
    count, as in WMPO; its return is still that of first success."""
