"""Sessions over worlds that are small enough to compute exactly."""

import numpy as np

from tests.imagine.worlds import A, FakePolicy, H, ScriptedSimulator, make_start, make_world
from wovr.core.types import SimulatorStart
from wovr.envs.chunked import ChunkedSimulator
from wovr.envs.continued import ContinuedSimulator, RecordedStart
from wovr.serve.player import Driver
from wovr.serve.session import Rule, Sampling, Session
from wovr.serve.tracks import ImaginedTrack, Start, TrueTrack

SAMPLING = Sampling(temperature=1.0, greedy=False)
NONE_TA = np.zeros((0, A), np.float32)


def make_starts():
    """A first frame, a keyframe three steps on, and one whose way nobody recorded."""
    some_TA = np.full((3, A), 0.5, np.float32)
    return [
        Start(make_start(1, first=True), RecordedStart(SimulatorStart(1, 0), NONE_TA)),
        Start(make_start(2), RecordedStart(SimulatorStart(1, 0), some_TA)),
        Start(make_start(4), None),
    ]


def make_session(simulator=None, missing=None, seed=3, threshold=100.0):
    world = make_world(threshold=threshold)
    tracks, rules = {"imagined": ImaginedTrack(world)}, {"imagined": Rule(world.threshold, world.hold)}
    if not missing:
        true = ContinuedSimulator(ChunkedSimulator(simulator or ScriptedSimulator(), 1, every_frame=True))
        tracks["true"], rules["true"] = TrueTrack(true), Rule(true.threshold, true.hold)
    session = Session(
        tracks,
        rules,
        make_starts(),
        action_dim=A,
        chunk_length=H,
        seed=seed,
        missing={"true": missing} if missing else {},
    )
    session.reset(0)
    return session


def make_driver(horizon=24):
    return Driver({"base": FakePolicy, "broken": _broken}, sampling=SAMPLING, horizon=horizon)


def _broken():
    from wovr.core.errors import UserError

    raise UserError("policy.safetensors: expected a policy, found none")
