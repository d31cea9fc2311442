"""Rollouts in the true simulator, recorded as episodes: for collection, refinement and evaluation.

Every one of them is written to the ledger with its purpose.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing

import numpy as np

from wovr.core.errors import UserError
from wovr.core.types import Episode, SimulatorStart
from wovr.envs.base import Simulator
from wovr.envs.chunked import ChunkedSimulator
from wovr.envs.recorded import RecordedConfig
from wovr.episodes.store import EpisodeStore
from wovr.imagine.rollout import RolloutBatch, rollout
from wovr.metrics.success import Rate
from wovr.policy.base import Policy
from wovr.stages.data import names_of
from wovr.stages.experiment import Workplace
from wovr.stages.scripted import own_states


def training_starts(simulator: Simulator, numbers: Iterable[int], first: int) -> list[SimulatorStart]:
    """Starts by their numbers, tasks in turn, at initial states from `first` on, beyond those that evaluation uses."""
    tasks = [task.task_id for task in simulator.tasks]
    base = simulator.num_initial_states + first
    return [SimulatorStart(tasks[i % len(tasks)], base + i // len(tasks)) for i in numbers]


def collect_episodes(place: Workplace, policy: Policy, count: int, *, purpose: str, name: str, first_init: int) -> None:
    """Add rollouts of `policy` to the store until it holds `count` of `purpose`; goes on where it stopped.

    One shard is in memory at a time. Rollouts that the simulator loses are counted in the ledger and made up for by
    others. Where all there is are recordings, they must be in the store: UserError.
    """
    store = place.episodes()
    if isinstance(place.experiment.simulator, RecordedConfig):
        count_recorded(place, purpose)
    else:
        _collect(place, store, policy, count, purpose=purpose, name=name, first_init=first_init)
    success = Rate.of([store.info(episode).success for episode in names_of(store, purpose)])
    place.log.success("true", f"{name}, {purpose}", success.rate, step=success.n, ci95=success.ci95)


def _collect(
    place: Workplace, store: EpisodeStore, policy: Policy, count: int, *, purpose: str, name: str, first_init: int
) -> None:
    config = place.experiment.collect
    done = len(names_of(store, purpose))
    with (
        closing(place.simulator()) as simulator,
        place.log.progress(f"collect {purpose}", count, done) as bar,
    ):
        world = ChunkedSimulator(simulator, policy.chunk_length, hold=config.success_frames, every_frame=True)
        tried = _tried(store, simulator, purpose, first_init)
        while done < count:
            numbers = range(tried, tried + min(config.shard, count - done))
            starts = training_starts(simulator, numbers, first_init)
            batch = rollout(
                world,
                policy,
                starts,
                seed=place.experiment.seed,
                number=tried,
                temperature=config.temperature,
                correlation=config.correlation,
                batch_size=min(config.shard, simulator.max_batch),
                record=True,
            )
            episodes = to_episodes(batch, starts, simulator, purpose, name, place.experiment.seed)
            if not episodes:
                raise UserError(
                    f"collect {purpose}: expected rollouts, found {len(starts)} in a row lost by the simulator"
                )
            # First the ledger: what an interruption takes from the store was paid for all the same.
            place.run.add_rollouts(
                purpose,
                episodes=len(episodes),
                steps=sum(len(episode) for episode in episodes),
                lost=len(starts) - len(episodes),
                stage=purpose,
                key=f"{purpose}/{tried}",
            )
            store.append(episodes)
            done, tried = done + len(episodes), tried + len(starts)
            bar.advance(len(episodes), success=float(np.mean([episode.success for episode in episodes])))
            del batch, episodes  # before the next are recorded


def _tried(store: EpisodeStore, simulator: Simulator, purpose: str, first_init: int) -> int:
    """How many of `training_starts` the stored episodes of `purpose` reach: lost ones have none, and those that
    `wovr convert` brought are none of them."""
    tasks = [task.task_id for task in simulator.tasks]
    infos = [store.info(name) for name in names_of(store, purpose)]
    base = simulator.num_initial_states + first_init
    own = [info for info in infos if info.task_id in tasks and info.init_id >= base]
    return max((1 + (info.init_id - base) * len(tasks) + tasks.index(info.task_id) for info in own), default=0)


def count_recorded(place: Workplace, purpose: str) -> None:
    """Enter the stored episodes of `purpose` in the ledger, whoever recorded them. UserError where there are none."""
    store = place.episodes()
    names = names_of(store, purpose)
    if not names:
        raise UserError(
            f"{store.folder}: expected recorded episodes of purpose '{purpose}', found none; "
            f"bring them in: wovr convert SOURCE {store.folder} --purpose {purpose}"
        )
    steps = sum(store.info(name).length for name in names)
    place.run.add_rollouts(purpose, episodes=len(names), steps=steps, stage=purpose, key=f"{purpose}/0")


def to_episodes(
    batch: RolloutBatch, starts: Sequence[SimulatorStart], simulator: Simulator, purpose: str, name: str, seed: int
) -> list[Episode]:
    """Recorded true rollouts as episodes; those that were lost are left out."""
    episodes = []
    for i, start in enumerate(starts):
        if batch.lost_N[i]:
            continue
        recording, steps = batch.recordings[i], int(batch.steps_N[i])
        episodes.append(
            Episode(
                frames_THWC=recording.frames_THWC,
                actions_TA=batch.actions_NTA[i, :steps],
                success_T=batch.probability_NT[i, :steps] > 0.5,
                states_TS=own_states(recording.states_TS),
                instruction=batch.instructions[i],
                suite=simulator.suite,
                task_id=start.task_id,
                init_id=start.init_id,
                policy=name,
                seed=seed,
                purpose=purpose,
                wrist_THWC=recording.wrist_THWC,
                proprio_TP=recording.proprio_TP,
            )
        )
    return episodes
