"""Rollouts in the true simulator, recorded as episodes: for collection, refinement and evaluation.

Every one of them is written to the ledger with its purpose.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wovr.core.types import Episode, SimulatorStart
from wovr.envs.base import Simulator
from wovr.envs.chunked import ChunkedSimulator
from wovr.imagine.rollout import RolloutBatch, rollout
from wovr.policy.base import Policy
from wovr.stages.data import names_of
from wovr.stages.experiment import Workplace

SHARD = 64
"""Episodes per append: what an interruption may cost."""
SUCCESS_FRAMES = 4
"""Frames of success that end a recorded rollout, so that classifier and world model see what success looks like."""


def training_starts(simulator: Simulator, count: int, first: int) -> list[SimulatorStart]:
    """`count` starts, tasks in turn, at initial states from number `first` on, beyond those that evaluation uses."""
    tasks = [task.task_id for task in simulator.tasks]
    base = simulator.num_initial_states + first
    return [SimulatorStart(tasks[i % len(tasks)], base + i // len(tasks)) for i in range(count)]


def collect_episodes(place: Workplace, policy: Policy, count: int, *, purpose: str, name: str, first_init: int) -> None:
    """Add rollouts of `policy` to the store until it holds `count` of `purpose`; goes on where it stopped."""
    store, simulator, config = place.episodes(), place.simulator(), place.experiment.collect
    starts = training_starts(simulator, count, first_init)
    world = ChunkedSimulator(simulator, policy.chunk_length, hold=SUCCESS_FRAMES, every_frame=True)
    done = len(names_of(store, purpose))
    with place.log.progress(f"collect {purpose}", count, done) as bar:
        for number in range(done // SHARD, -(-count // SHARD)):
            chosen = starts[done : (number + 1) * SHARD]
            batch = rollout(
                world,
                policy,
                chosen,
                seed=place.experiment.seed,
                number=done,
                temperature=config.temperature,
                correlation=config.correlation,
                batch_size=SHARD,
                record=True,
            )
            episodes = to_episodes(batch, chosen, simulator, purpose, name, place.experiment.seed)
            store.append(episodes)
            steps = sum(len(episode) for episode in episodes)
            place.run.add_rollouts(purpose, episodes=len(episodes), steps=steps, stage=purpose, key=f"{purpose}/{done}")
            done += len(episodes)
            bar.advance(len(episodes), success=float(np.mean([episode.success for episode in episodes])))


def to_episodes(
    batch: RolloutBatch, starts: Sequence[SimulatorStart], simulator: Simulator, purpose: str, name: str, seed: int
) -> list[Episode]:
    """Recorded true rollouts as episodes."""
    episodes = []
    for i, start in enumerate(starts):
        recording, steps = batch.recordings[i], int(batch.steps_N[i])
        episodes.append(
            Episode(
                frames_THWC=recording.frames_THWC,
                actions_TA=batch.actions_NTA[i, :steps],
                success_T=batch.probability_NT[i, :steps] > 0.5,
                states_TS=recording.states_TS,
                instruction=batch.instructions[i],
                suite=simulator.suite,
                task_id=start.task_id,
                init_id=start.init_id,
                policy=name,
                seed=seed,
                purpose=purpose,
            )
        )
    return episodes
