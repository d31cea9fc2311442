"""Reinforcement learning in imagination (4.2): imagined groups from first frames and keyframes, masked GRPO.

No true rollout is used, unless `rl.simulator` asks for the paper's online baseline.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from wovr.core.checkpoint import save_model
from wovr.core.errors import UserError
from wovr.core.train import Trainer
from wovr.envs.base import Simulator
from wovr.envs.chunked import ChunkedSimulator
from wovr.imagine.load import BANK, DIT, REWARD, WORLD_CODEC, load_reward, load_world_model
from wovr.imagine.rollout import RolloutBatch, rollout
from wovr.imagine.world import ImaginedWorld
from wovr.kir.bank import KeyframeBank
from wovr.kir.mine import FIRST_FRAME
from wovr.kir.sampler import draw_starts
from wovr.policy.small import SmallVLA
from wovr.stages.experiment import Workplace
from wovr.stages.policy_update import update_policy
from wovr.stages.sft import POLICY, load_policy
from wovr.stages.true_rollouts import training_starts

IMAGINATION = Path("rl/policy.safetensors")


ROUND = 10_000
"""Rollout numbers of refinement round r start at r * ROUND, so that every phase has draws of its own."""

Roll = Callable[[SmallVLA, int], RolloutBatch]
"""(policy, number of the rollout) -> one batch of groups."""


def run(place: Workplace) -> dict[str, Any]:
    """Write `rl/policy.safetensors`, the base policy after `rl.updates` updates."""
    policy = load_policy(place.run.path / POLICY)
    return train_policy(
        place, policy, place.experiment.rl.updates, place.run.path / IMAGINATION, folder=place.run.path, name="rl"
    )


def train_policy(
    place: Workplace, policy: SmallVLA, updates: int, path: Path, *, folder: Path, name: str, number_of_round: int = 0
) -> dict[str, Any]:
    """GRPO with the world model, reward and keyframes below `folder`; resumes at the last saved update."""
    config = place.experiment.rl
    trainer = Trainer(policy, config.update.optim, place.dist, updates)
    state = path.parent / "policy.state"
    metadata = trainer.resume(state)
    done = int(metadata["update"]) if metadata else 0
    last: dict[str, float] = {}
    with _rolls(place, folder, name) as roll, place.log.progress(name, updates, done) as bar:
        for update in range(done, updates):
            number = number_of_round * ROUND + update
            began = time.monotonic()
            rollouts = roll(policy.eval(), number)
            speed = float(rollouts.steps_N.sum()) / (time.monotonic() - began)
            last = update_policy(trainer, rollouts, config.update, seed=place.experiment.seed, number=number)
            last["frames_per_second"] = speed
            place.log.metrics(name, update + 1, last)
            bar.advance(1, success=last["success"], frames_per_second=speed)
            if (update + 1) % config.checkpoint_every == 0:
                trainer.save(state, update=str(update + 1))
    save_model(path, policy, policy.config)
    shutil.rmtree(state, ignore_errors=True)
    return last


@contextmanager
def _rolls(place: Workplace, folder: Path, name: str) -> Iterator[Roll]:
    if not place.experiment.rl.simulator:
        yield _in_imagination(place, folder)
        return
    with closing(place.simulator()) as simulator:
        yield _in_simulator(place, simulator, name)


def _in_imagination(place: Workplace, folder: Path) -> Roll:
    config, experiment = place.experiment.rl, place.experiment
    model = load_world_model(folder / WORLD_CODEC, folder / DIT, place.dist.device)
    world = ImaginedWorld(model, load_reward(folder / REWARD, place.dist.device), experiment.simulator.horizon)
    bank = KeyframeBank.load(folder / BANK)

    def roll(policy: SmallVLA, number: int) -> RolloutBatch:
        starts = draw_starts(bank, config.groups, config.starts, seed=experiment.seed, update=number)
        longest = config.horizon or world.horizon
        limits = [config.keyframe_steps if start.reason != FIRST_FRAME else longest for start in starts]
        return _rollout(place, world, policy, starts, number, limits, config.rollout_batch)

    return roll


def _in_simulator(place: Workplace, simulator: Simulator, name: str) -> Roll:
    """Groups of which the simulator lost a trajectory are dropped."""
    config = place.experiment.rl
    world = ChunkedSimulator(simulator, place.experiment.policy.chunk_length)

    def roll(policy: SmallVLA, number: int) -> RolloutBatch:
        starts = training_starts(simulator, range(config.groups), number * config.groups)
        batch = _rollout(place, world, policy, starts, number, None, min(config.rollout_batch, simulator.max_batch))
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
            raise UserError(
                f"{name}: expected groups of true rollouts, found every one with some lost by the simulator"
            )
        return batch.select(whole_N)

    return roll


def _rollout(
    place: Workplace,
    world: Any,
    policy: SmallVLA,
    starts: Sequence[Any],
    number: int,
    limits: list[int] | None,
    batch_size: int,
) -> RolloutBatch:
    config = place.experiment.rl
    return rollout(
        world,
        policy,
        starts,
        seed=place.experiment.seed,
        number=number,
        group_size=config.update.grpo.group_size,
        batch_size=batch_size,
        temperature=config.update.temperature,
        correlation=config.update.correlation,
        limits=limits,
    )
