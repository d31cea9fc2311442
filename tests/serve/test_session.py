"""The driven world: what is seen step by step is what the library imagines and what the simulator does."""

from dataclasses import replace

import numpy as np
import pytest

from tests.imagine.worlds import A, FakePolicy, H, ScriptedSimulator, make_world
from tests.serve.sessions import SAMPLING, make_session, make_starts
from wovr.core.errors import UserError
from wovr.core.types import SimulatorStart
from wovr.envs.chunked import ChunkedSimulator, TrajectoryKey
from wovr.envs.continued import ContinuedSimulator, RecordedStart
from wovr.envs.tabletop import Tabletop, TabletopConfig
from wovr.imagine.rollout import rollout
from wovr.serve import session as driven
from wovr.serve.session import PLAY, Rule, Session
from wovr.serve.tracks import ImaginedTrack, TrueTrack


def library(start, actions_CHA, seed=3):
    """Frames and probabilities of whole chunks, as the library imagines them: (C * H, ...)."""
    world = make_world()
    world.reset([make_starts()[start].imagined], [TrajectoryKey(seed, PLAY, 1, world=start)])
    chunks = [world.step(actions_HA[None]) for actions_HA in actions_CHA]
    frames = np.concatenate([chunk.frames_BTHWC[0] for chunk in chunks])
    return frames, np.concatenate([chunk.probability_BT[0] for chunk in chunks])


def random_actions(steps, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (steps, A)).astype(np.float32)


def drive(session, actions_TA, world="imagined"):
    frames = []
    for action_A in actions_TA:
        session.step(action_A)
        frames.append(session.glimpses[world].frame_HWC.copy())
    return np.stack(frames)


@pytest.mark.parametrize("start", [0, 1])
def test_a_key_that_is_held_shows_what_the_library_imagines(start):
    session = make_session()
    session.reset(start)
    session.attempt = 1
    held = np.repeat(random_actions(3), H, axis=0)
    frames, probability = library(start, held.reshape(3, H, A))
    assert np.array_equal(drive(session, held), frames)
    assert np.allclose(session.curves["imagined"], probability) and session.depth == 3 * H


def test_keys_that_change_lead_where_the_library_gets_with_the_same_actions():
    session, actions = make_session(), random_actions(3 * H)
    frames, _ = library(0, actions.reshape(3, H, A))
    seen = drive(session, actions)
    for end in (H, 2 * H, 3 * H):  # within a chunk a frame does not know yet what is done later in it
        assert np.array_equal(seen[end - 1], frames[end - 1]), end
    assert not np.array_equal(seen[0], frames[0]), "the test has no bite: later actions do not matter"


def test_nothing_is_imagined_twice_while_the_same_key_is_held(monkeypatch):
    session = make_session()
    world, chunks = session.tracks["imagined"].world, []
    foresee = world.foresee
    monkeypatch.setattr(world, "foresee", lambda actions: chunks.append(actions) or foresee(actions))
    one, other = random_actions(2)
    drive(session, [one] * 5)
    assert len(chunks) == 1
    drive(session, [other] * 3)
    assert len(chunks) == 2 and np.array_equal(chunks[1][0], [one] * 5 + [other] * 3)
    session.prepare(other)
    assert len(chunks) == 3
    drive(session, [other] * H)
    assert len(chunks) == 3, "it was prepared"


def test_a_policy_does_what_it_does_in_a_rollout():
    session = make_session()
    session.reset(1)
    session.attempt = 1  # of the rollout below
    for _ in range(24):
        session.step_policy(FakePolicy(), SAMPLING)
    other = make_world()
    batch = rollout(
        other, FakePolicy(), [make_starts()[1].imagined], seed=3, number=PLAY, first_group=1, limits=[24], record=True
    )
    assert np.array_equal(np.stack(session.actions), batch.actions_NTA[0])
    assert np.allclose(session.curves["imagined"], batch.probability_NT[0])
    assert np.array_equal(session.glimpses["imagined"].frame_HWC, batch.recordings[0].frames_THWC[-1])


def test_another_attempt_draws_other_actions_and_a_hand_drops_the_plan():
    session, policy = make_session(), FakePolicy()
    session.step_policy(policy, SAMPLING)
    first = session.actions[0]
    session.reset(0)
    session.step_policy(policy, SAMPLING)
    assert not np.array_equal(session.actions[0], first)
    session.drop_plan()
    session.step(random_actions(1)[0])
    session.step_policy(policy, SAMPLING)
    assert policy.acted == [1, 1, 1]


def test_the_same_actions_from_the_same_start_show_the_same_again():
    session, actions = make_session(), random_actions(12)
    first = drive(session, actions)
    session.reset(1)
    drive(session, actions)
    session.reset(0)
    assert session.depth == 0 and session.curves["imagined"] == []
    assert np.array_equal(drive(session, actions), first)
    assert not np.array_equal(drive(make_session(seed=4), actions), first)


def tabletop():
    """A session whose true world is the embedded table, from its second start eleven steps into a recording."""
    simulator = Tabletop(TabletopConfig(image_size=16))
    recorded = np.tile(np.array([0.4, 0.9, -1], np.float32), (11, 1))
    starts = [
        make_starts()[0],
        type(make_starts()[0])(make_starts()[1].imagined, RecordedStart(SimulatorStart(2, 60), recorded)),
    ]
    true = ContinuedSimulator(ChunkedSimulator(simulator, 1, every_frame=True))
    world = make_world()
    tracks = {"imagined": ImaginedTrack(world), "true": TrueTrack(true)}
    rules = {"imagined": Rule(world.threshold, 1), "true": Rule(0.5, 1)}
    session = Session(tracks, rules, starts, action_dim=3, chunk_length=H, seed=0)
    session.reset(1)
    return session, recorded


def test_the_true_world_is_the_simulator_under_the_same_actions():
    session, recorded = tabletop()
    session.show(["imagined", "true"])
    simulator = Tabletop(TabletopConfig(image_size=16))
    seen = simulator.reset([SimulatorStart(2, 60)])
    for action_A in recorded:
        seen = simulator.step(action_A[None])
    assert np.array_equal(session.glimpses["true"].frame_HWC, seen.frames_BHWC[0])
    for action_A in random_actions(20):
        session.step(action_A)
        seen = simulator.step(action_A[None])
        assert np.array_equal(session.glimpses["true"].frame_HWC, seen.frames_BHWC[0])
        assert np.array_equal(session.glimpses["true"].chunk.states_BTS[0, 0], seen.states_BS[0])
    assert session.curves["true"] == [0.0] * 20 and len(session.curves["imagined"]) == 20


@pytest.mark.parametrize("steps", [3, H, 2 * H + 5])
def test_a_world_that_is_switched_on_later_is_where_it_would_have_been(steps):
    actions, more = random_actions(steps), random_actions(4, seed=1)
    throughout, late = tabletop()[0], tabletop()[0]
    throughout.show(["imagined", "true"])
    drive(throughout, actions)
    late.show(["true"])
    drive(late, actions, "true")
    assert set(late.glimpses) == {"true"} and late.curves["imagined"] == []
    late.show(["true", "imagined"])
    for session in (throughout, late):
        drive(session, more)
    assert late.shown == throughout.shown == ("imagined", "true")
    assert late.curves["true"] == throughout.curves["true"] and len(late.curves["imagined"]) == steps + 4
    state = [session.glimpses["true"].chunk.states_BTS for session in (throughout, late)]
    assert np.array_equal(*state)
    if (steps + 4) % H == 0:  # at the end of a chunk both have imagined it with all its actions
        assert np.array_equal(*(session.glimpses["imagined"].frame_HWC for session in (throughout, late)))


def test_success_is_judged_by_each_worlds_own_rule():
    session = make_session()
    session.show(["imagined", "true"])
    drive(session, random_actions(9))
    assert session.success_step("true") is None
    drive(session, random_actions(2))  # the scripted simulator succeeds at its tenth step
    assert session.success_step("true") == 10 and session.success_step("imagined") is None
    session.rules["imagined"] = Rule(0.0, 4)  # type: ignore[index]
    assert session.success_step("imagined") == 4
    session.show(["imagined"])
    assert session.success_step("true") is None


def test_a_world_that_is_not_there_says_why():
    session = make_session(missing="LIBERO: expected the package hf-libero, found none")
    with pytest.raises(UserError, match="true world: LIBERO: expected the package"):
        session.show(["true"])
    session = make_session()
    session.show(["true"])
    session.reset(2)
    assert session.shown == ("imagined",) and "nobody recorded" in session.why_missing("true")
    with pytest.raises(UserError, match="nobody recorded"):
        session.show(["imagined", "true"])
    session.reset(0)
    assert session.shown == ("true",), "what was asked for comes back where it can"


def test_a_simulator_that_is_lost_is_an_error_and_imagination_goes_on():
    session, actions = make_session(ScriptedSimulator(loses=(0, 2))), random_actions(H)
    session.show(["imagined", "true"])
    session.step(actions[0])
    with pytest.raises(UserError, match="found its process gone"):
        session.step(actions[1])
    session.show(["imagined"])
    drive(session, actions[1:])
    assert session.depth == len(session.curves["imagined"]) == H
    assert np.array_equal(session.glimpses["imagined"].frame_HWC, library(0, actions[None])[0][-1])


class Mortal(ScriptedSimulator):
    """Is lost from the moment on at which it is told."""

    gone = False

    def _observe(self):
        seen = super()._observe()
        return replace(seen, lost_B=seen.lost_B | self.gone)


@pytest.mark.parametrize("asked", [["imagined", "true"], ["true"]])
def test_a_reset_that_the_simulator_does_not_survive_leaves_imagination(asked):
    simulator, actions = Mortal(), random_actions(H)
    session = make_session(simulator)
    session.show(asked)
    session.step(actions[0])
    simulator.gone = True
    with pytest.raises(UserError, match="found its process gone"):
        session.reset(0)
    assert session.shown == tuple(session.glimpses) == ("imagined",) and session.depth == 0
    assert np.array_equal(drive(session, actions)[-1], library(0, actions[None])[0][-1])
    simulator.gone = False
    session.reset(0)
    assert session.shown == tuple(asked), "what was asked for comes back where it can"


def test_a_simulator_that_is_lost_while_it_catches_up_is_not_shown():
    session = make_session(ScriptedSimulator(loses=(0, 2)))
    drive(session, random_actions(4))
    with pytest.raises(UserError, match="found its process gone"):
        session.show(["imagined", "true"])
    assert session.shown == tuple(session.glimpses) == ("imagined",) and session.curves["true"] == []
    assert session.depth == len(session.curves["imagined"]) == 4


def test_starts_are_drawn_by_kind_and_never_twice_in_a_row():
    session = make_session()
    for _ in range(8):
        start = session.draw("keyframe")
        assert start in (1, 2) and start != session.start
        session.reset(start)
    session.reset(session.draw("first_frame"))
    assert session.start == 0
    with pytest.raises(UserError, match="expected 0 to 2, found 3"):
        session.reset(3)
    assert [make_session().draw("keyframe") for _ in range(3)] == [make_session().draw("keyframe")] * 3


def test_the_gripper_begins_as_the_start_has_it():
    session = make_session()
    for start, closed in ((0, False), (1, bool(make_starts()[1].imagined.memory_actions_MA[-1, -1] > 0))):
        session.reset(start)
        assert session.closed == closed
    session.step(np.ones(A, np.float32))
    assert session.closed


def test_a_trajectory_is_bounded(monkeypatch):
    monkeypatch.setattr(driven, "LONGEST", 5)
    session = make_session()
    drive(session, random_actions(5))
    with pytest.raises(UserError, match="begin anew"):
        session.step(random_actions(1)[0])
    session.reset(0)
    session.step(random_actions(1)[0])
