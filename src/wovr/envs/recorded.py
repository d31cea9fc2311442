"""A robot that no simulator stands for: its episodes are recorded elsewhere and brought in by `wovr convert`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from wovr.core.config import Config


class RecordedConfig(Config):
    """What there is to say of the recordings."""

    kind: Literal["recorded"] = "recorded"
    """Tells this section from that of a simulator."""
    image_size: int = Field(256, ge=8)
    """Pixels of their square frames; `wovr convert --size` makes them so."""
    horizon: int = Field(256, ge=8)
    """Env steps after which an imagined episode is given up."""
    num_tasks: int = Field(1, ge=1)
    """Tasks among the recordings."""
