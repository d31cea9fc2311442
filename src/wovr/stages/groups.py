"""Groups of rollouts for one RL update, in imagination or in the true simulator, shared by the ranks.

Every rank rolls out whole groups in its own copy of the world, and then all have all of them. Draws are keyed by
trajectory, so that the groups are the same for any number of ranks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import nn

from wovr.core.dist import Dist
from wovr.core.errors import UserError
from wovr.core.types import StartState
from wovr.envs.base import Simulator
from wovr.envs.chunked import ChunkedSimulator
from wovr.imagine.load import BANK, DIT, REWARD, WORLD_CODEC, load_judge, load_world_model
from wovr.imagine.rollout import RolloutBatch, Watch, rollout
from wovr.imagine.world import ImaginedWorld
from wovr.kir.bank import KeyframeBank
from wovr.kir.mine import FIRST_FRAME
from wovr.kir.sampler import SamplerConfig, draw_starts
from wovr.policy.base import Policy
from wovr.stages.experiment import Workplace
from wovr.stages.true_rollouts import training_starts


class Roll(Protocol):
    """Rolls out one batch of groups."""

    def __call__(self, policy: Policy, number: int, watch: Watch | None = None) -> RolloutBatch:
        """`number` of the rollout keys its draws; `watch` sees what this rank rolls out of it."""
        ...


@dataclass(frozen=True, slots=True)
class Imagination:
    """The world model, reward and start states of one phase of RL."""

    place: Workplace
    world: ImaginedWorld
    bank: KeyframeBank

    @classmethod
    def load(cls, place: Workplace, folder: Path) -> Imagination:
        """From the files below `folder`."""
        config, device = place.experiment, place.dist.device
        model = load_world_model(folder / WORLD_CODEC, folder / DIT, device, config.rl.precision)
        reward = load_judge(config.reward.judge, folder / REWARD, folder / DIT, device)
        world = ImaginedWorld(model, reward, config.simulator.horizon)
        return cls(place, world, KeyframeBank.load(folder / BANK))

    @property
    def modules(self) -> list[nn.Module]:
        """Networks that rollouts need beside the policy."""
        parts = (self.world.model.codec, self.world.model.dit, self.world.reward)
        return [part for part in parts if isinstance(part, nn.Module)]

    def groups(self, policy: Policy, number: int, watch: Watch | None = None) -> RolloutBatch:
        """Of first frames and keyframes."""
        config = self.place.experiment.rl
        starts = draw_starts(self.bank, config.groups, config.starts, seed=self.place.experiment.seed, update=number)
        return shared_rollout(
            self.place, self.world, policy, starts, number, self._limits(starts), config.rollout_batch, watch
        )

    def look(self, policy: Policy, rollouts: int, number: int) -> np.ndarray:
        """Success from first frames, always the same ones, of a policy that explores as in RL; on this rank alone."""
        config, seed = self.place.experiment.rl, self.place.experiment.seed
        starts = draw_starts(self.bank, rollouts, SamplerConfig(keyframe_fraction=0.0), seed=seed, update=number)
        batch = rollout(
            self.world,
            policy,
            starts,
            seed=seed,
            number=number,
            batch_size=config.rollout_batch,
            temperature=config.update.temperature,
            correlation=config.update.correlation,
            limits=self._limits(starts),
        )
        return batch.success_N

    def _limits(self, starts: Sequence[StartState]) -> list[int]:
        config = self.place.experiment.rl
        longest = config.horizon or self.world.horizon
        return [config.keyframe_steps if start.reason != FIRST_FRAME else longest for start in starts]


@contextmanager
def true_groups(place: Workplace, name: str) -> Iterator[Roll]:
    """In the true simulator, which the ledger pays. Groups of which it lost a trajectory are dropped."""
    with closing(place.simulator()) as simulator:
        yield lambda policy, number, watch=None: _true_groups(place, simulator, policy, number, name, watch)


def _true_groups(
    place: Workplace, simulator: Simulator, policy: Policy, number: int, name: str, watch: Watch | None
) -> RolloutBatch:
    config = place.experiment.rl
    world = ChunkedSimulator(simulator, policy.chunk_length)
    starts = training_starts(simulator, range(config.groups), number * config.groups)
    width = min(config.rollout_batch, simulator.max_batch)
    batch = shared_rollout(place, world, policy, starts, number, None, width, watch)
    lost = int(batch.lost_N.sum())
    place.run.add_rollouts(
        "online",
        episodes=len(batch) - lost,
        steps=int(batch.steps_N[~batch.lost_N].sum()),
        lost=lost,
        stage=name,
        key=f"online/{number}",
    )
    if not lost:
        return batch
    whole_N = ~np.isin(batch.group_N, batch.group_N[batch.lost_N])
    if not whole_N.any():
        raise UserError(f"{name}: expected groups of true rollouts, found every one with some lost by the simulator")
    return batch.select(whole_N)


def check_ranks(place: Workplace) -> None:
    """UserError where the ranks cannot share the groups evenly."""
    groups, ranks = place.experiment.rl.groups, place.dist.world_size
    if groups % ranks:
        raise UserError(
            f"key 'rl.groups': expected a multiple of {ranks}, since processes roll out whole groups, found {groups}"
        )


def shared_rollout(
    place: Workplace,
    world: Any,
    policy: Policy,
    starts: Sequence[Any],
    number: int,
    limits: list[int] | None,
    batch_size: int,
    watch: Watch | None = None,
) -> RolloutBatch:
    """One group from every start: this rank's share is rolled out here, and those of the others come over."""
    config, dist = place.experiment.rl, place.dist
    each = len(starts) // dist.world_size
    mine = slice(each * dist.rank, each * (dist.rank + 1))
    batch = rollout(
        world,
        policy,
        starts[mine],
        seed=place.experiment.seed,
        number=number,
        group_size=config.update.grpo.group_size,
        first_group=mine.start,
        batch_size=batch_size,
        temperature=config.update.temperature,
        correlation=config.update.correlation,
        limits=None if limits is None else limits[mine],
        longest=None if limits is None else max(limits),
        stop_at_success=config.update.grpo.mask_after_success,
        watch=watch,
    )
    return together(dist, batch)


def together(dist: Dist, batch: RolloutBatch) -> RolloutBatch:
    """The trajectories of all ranks, in their order, on each."""
    found: dict[str, Any] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, np.ndarray):
            value = dist.concatenate(value)
        elif value is not None:
            value = list(itertools.chain.from_iterable(dist.gather(value)))
        found[field.name] = value
    return RolloutBatch(**found)
