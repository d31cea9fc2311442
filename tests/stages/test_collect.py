"""Collection streams: what is in memory does not grow with the number of episodes."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.imagine.worlds import FakePolicy
from wovr.core.types import Task
from wovr.envs.base import Observation
from wovr.stages.experiment import Workplace
from wovr.stages.pipeline import open_workplace
from wovr.stages.true_rollouts import collect_episodes

SHARD, IMAGE, STEPS = 8, 64, 16
RAW = SHARD * (STEPS + 1) * IMAGE * IMAGE * 3
"""Bytes of the frames of a shard."""


class Noise:
    """A simulator that shows noise, which does not pack, and never succeeds."""

    suite, image_size, action_dim, horizon = "noise", IMAGE, 3, STEPS
    tasks = (Task(0, "look", "look"),)
    num_initial_states, max_batch = 1, SHARD

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def reset(self, starts: Any) -> Observation:
        self.count = len(starts)
        return self.step(None)

    def step(self, actions_BA: Any, active_B: Any = None, *, render: bool = True) -> Observation:
        return Observation(
            self.rng.integers(0, 256, (self.count, IMAGE, IMAGE, 3), dtype=np.uint8),
            np.zeros(self.count, dtype=np.bool_),
            np.zeros((self.count, 4)),
            np.zeros(self.count, dtype=np.bool_),
        )

    def close(self) -> None: ...


def test_memory_is_that_of_one_shard(toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workplace, "simulator", lambda place: Noise())

    def peak(shards: int) -> int:
        experiment = toy(f"simulator.horizon={STEPS}", f"collect.shard={SHARD}")
        with open_workplace(experiment, tmp_path / str(shards), plain=True) as place:
            tracemalloc.start()
            collect_episodes(place, FakePolicy(), shards * SHARD, purpose="collect", name="noise", first_init=0)
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert len(place.episodes()) == shards * SHARD
        return most

    peak(1)  # imports, and what is made once
    few, many = peak(2), peak(8)
    assert many - few < RAW / 8, "six shards more"
    assert few < 3 * RAW, "episodes, their file, and what the policy saw"
