"""Demonstrations by scripted hands, for a base policy where no person has shown the tasks."""

from __future__ import annotations

from contextlib import closing

from wovr.core.errors import UserError
from wovr.core.seed import stream
from wovr.core.types import Episode, SimulatorStart
from wovr.envs.base import Observation, Simulator
from wovr.envs.libero import Libero
from wovr.envs.libero.demonstrator import SUPPORTED, LiberoDemonstrator
from wovr.envs.recorded import RecordedConfig
from wovr.envs.tabletop import Demonstrator, Tabletop, goal
from wovr.stages.data import DEMONSTRATIONS, names_of
from wovr.stages.experiment import Experiment, Workplace
from wovr.stages.scripted import Hand, View, record, states
from wovr.stages.true_rollouts import count_recorded, training_starts

FIRST_INIT = 10_000
"""Demonstrations start from initial states that no rollout of a policy uses."""


def record_demonstrations(place: Workplace) -> None:
    """Add demonstrations to a store that has none. UserError where there is nothing that could demonstrate."""
    store, config = place.episodes(), place.experiment
    if names_of(store, DEMONSTRATIONS) or isinstance(config.simulator, RecordedConfig):
        count_recorded(place, DEMONSTRATIONS)
        return
    with closing(place.simulator()) as simulator:
        _check_hands(place, simulator)
        count = config.sft.demonstrations * len(simulator.tasks)
        starts = training_starts(simulator, range(count), FIRST_INIT)
        episodes: list[Episode] = []
        with place.log.progress("demonstrate", count) as bar:
            for first in range(0, count, simulator.max_batch):
                part = range(first, min(first + simulator.max_batch, count))
                episodes += demonstrate(simulator, [starts[i] for i in part], config, first)
                bar.advance(len(part))
    store.append(episodes)
    steps, lost = sum(len(episode) for episode in episodes), count - len(episodes)
    key = f"{DEMONSTRATIONS}/0"
    place.run.add_rollouts(
        DEMONSTRATIONS, episodes=len(episodes), steps=steps, lost=lost, stage=DEMONSTRATIONS, key=key
    )


def _check_hands(place: Workplace, simulator: Simulator) -> None:
    """UserError where a task has no scripted hand, before any of the others is demonstrated."""
    unknown = [task.name for task in simulator.tasks if isinstance(simulator, Libero) and task.name not in SUPPORTED]
    if unknown:
        folder = place.run.path / "episodes"
        raise UserError(
            f"{folder}: expected demonstrations of {unknown[0]}, which has no scripted demonstrator, found none; "
            f"bring them in: wovr convert SOURCE {folder} --purpose {DEMONSTRATIONS}"
        )


def demonstrate(
    simulator: Simulator, starts: list[SimulatorStart], config: Experiment, first: int = 0
) -> list[Episode]:
    """One scripted demonstration per start but for those that the simulator lost; they are numbered from `first` on.

    On the tabletop to the horizon, elsewhere to success.
    """
    observation = simulator.reset(starts)
    hands, view = _hands(simulator, starts, config, first)
    after_success = None if isinstance(simulator, Tabletop) else config.collect.success_frames
    recorded = record(simulator, observation, hands, simulator.horizon, view=view, after_success=after_success)
    tasks = {task.task_id: task.instruction for task in simulator.tasks}
    return [
        Episode(
            **arrays,
            instruction=tasks[start.task_id],
            suite=simulator.suite,
            task_id=start.task_id,
            init_id=start.init_id,
            policy="demonstrator",
            seed=config.seed,
            purpose=DEMONSTRATIONS,
        )
        for arrays, start in zip(recorded, starts, strict=True)
        if arrays is not None
    ]


def _hands(
    simulator: Simulator, starts: list[SimulatorStart], config: Experiment, first: int
) -> tuple[list[Hand], View]:
    streams = [stream(config.seed, "demonstrator", first + i) for i in range(len(starts))]
    if isinstance(simulator, Tabletop):
        goals = [goal(start.task_id) for start in starts]
        return [
            Demonstrator(block, plates[place], config.sft.skill, random, config.sft.offset)
            for (block, place), plates, random in zip(goals, simulator.plates_B22, streams, strict=True)
        ], states
    assert isinstance(simulator, Libero)
    libero, names = simulator, {task.task_id: task.name for task in simulator.tasks}

    def poses(_: Observation) -> list[dict]:
        return libero.poses()

    return [
        LiberoDemonstrator(names[start.task_id], config.sft.skill, random, config.sft.offset)
        for start, random in zip(starts, streams, strict=True)
    ], poses
