"""A session from a run folder, which is read and never written: its newest world model and reward, its simulator, its
policies, and some of its starts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from wovr.core.config import validate
from wovr.core.dist import Dist
from wovr.core.errors import UserError
from wovr.core.log import RunLog
from wovr.core.run import CONFIG, EPISODES, RunFolder
from wovr.core.types import SimulatorStart, StartState
from wovr.envs.base import Simulator
from wovr.envs.chunked import ChunkedSimulator
from wovr.envs.continued import ContinuedSimulator, RecordedStart
from wovr.envs.recorded import RecordedConfig
from wovr.episodes.store import EpisodeStore
from wovr.imagine.load import BANK, DIT, REWARD, WORLD_CODEC, load_judge, load_world_model, newest
from wovr.imagine.world import ImaginedWorld
from wovr.kir.bank import KeyframeBank
from wovr.kir.sampler import SamplerConfig, draw_starts
from wovr.policy.base import Policy
from wovr.serve.player import Driver
from wovr.serve.session import PLAY, Rule, Sampling, Session, World
from wovr.serve.tracks import ImaginedTrack, Start, Track, TrueTrack
from wovr.stages.experiment import Experiment, Workplace
from wovr.stages.policies import acting_policy
from wovr.stages.rl import IMAGINATION
from wovr.stages.rounds import last_policy
from wovr.stages.sft import POLICY

STARTS = 48
"""Starts of each kind that one can choose among, drawn by the seed, tasks in turn: a bank may take gigabytes."""


@contextlib.contextmanager
def load_session(run: Path, seed: int) -> Iterator[tuple[Session, Driver]]:
    """What `wovr play` drives, while the simulator is open. UserError where the run has no world model yet."""
    place = _workplace(run)
    experiment = place.experiment
    model = load_world_model(newest(run, WORLD_CODEC), newest(run, DIT), place.dist.device)
    reward = load_judge(experiment.reward.judge, newest(run, REWARD), newest(run, DIT), place.dist.device)
    world = ImaginedWorld(model, reward, experiment.simulator.horizon)
    starts = _starts(run, seed)
    with contextlib.ExitStack() as stack:
        tracks: dict[World, Track] = {"imagined": ImaginedTrack(world)}
        rules: dict[World, Rule] = {"imagined": Rule(world.threshold, world.hold)}
        missing: dict[World, str] = {}
        try:
            simulator = stack.enter_context(closing(_simulator(place)))
        except UserError as error:
            missing["true"] = str(error)
        else:
            true = ContinuedSimulator(ChunkedSimulator(simulator, 1, every_frame=True))
            tracks["true"], rules["true"] = TrueTrack(true), Rule(true.threshold, true.hold)
        session = Session(
            tracks,
            rules,
            starts,
            action_dim=world.action_dim,
            chunk_length=world.chunk_length,
            seed=seed,
            missing=missing,
        )
        session.reset(0)
        sampling = Sampling(experiment.eval.temperature, experiment.eval.greedy)
        driver = Driver(_policies(place), sampling, experiment.simulator.horizon)
        yield session, driver


def _workplace(run: Path) -> Workplace:
    folder = RunFolder.read(run)
    experiment = validate(Experiment, folder.config, str(run / CONFIG))
    if experiment.rl.simulator:
        raise UserError(f"{run}: expected a run with a world model, found key 'rl.simulator': true")
    return Workplace(experiment, folder, RunLog(run, plain=True, active=False), Dist())


def _simulator(place: Workplace) -> Simulator:
    if isinstance(place.experiment.simulator, RecordedConfig):
        raise UserError("these are recordings of a robot that no simulator stands for")
    return place.simulator()


def _starts(run: Path, seed: int) -> list[Start]:
    """First frames, then keyframes."""
    bank = KeyframeBank.load(newest(run, BANK))
    store = EpisodeStore(run / EPISODES)
    known = set(store.names)
    chosen: list[StartState] = []
    for part, share in ((bank.first_frames, 0.0), (bank.keyframes, 1.0)):
        if len(part):
            config = SamplerConfig(keyframe_fraction=share)
            chosen += draw_starts(part, min(STARTS, len(part)), config, seed=seed, update=PLAY)
    unique = {id(start): start for start in chosen}  # a task with few starts has some drawn twice
    return [Start(_apart(start), _way(start, store, known)) for start in unique.values()]


def _apart(start: StartState) -> StartState:
    """A start that does not keep the whole bank alive, nor comes from the disk when it is first looked at."""
    return replace(
        start,
        reference_HWC=start.reference_HWC.copy(),
        memory_MHWC=start.memory_MHWC.copy(),
        memory_actions_MA=start.memory_actions_MA.copy(),
        moved_A=None if start.moved_A is None else start.moved_A.copy(),
    )


def _way(start: StartState, store: EpisodeStore, known: set[str]) -> RecordedStart | None:
    """How the simulator comes to a start, where that was recorded."""
    if start.init_id < 0 or (start.step and start.episode not in known):
        return None
    actions_TA = store.steps(start.episode)[0][: start.step] if start.step else start.memory_actions_MA[:0]
    return RecordedStart(SimulatorStart(start.task_id, start.init_id), np.ascontiguousarray(actions_TA))


def _policies(place: Workplace) -> dict[str, Callable[[], Policy]]:
    """Base first, newest last; those that look at what imagination does not show are left out."""
    run, policy = place.run.path, place.experiment.policy
    if policy.views > 1 or policy.proprio:
        return {}
    found = {"base": run / POLICY, "after RL": run / IMAGINATION}
    refined = last_policy(place)
    if refined is not None and refined not in found.values():
        found["after PACE"] = refined
    return {name: partial(acting_policy, place, path) for name, path in found.items() if path.is_file()}
