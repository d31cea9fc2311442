"""The clock: when time runs, what is told, and what is bounded."""

import json
import struct
import threading

import numpy as np
import pytest

from tests.imagine.worlds import FakePolicy
from tests.serve.sessions import SAMPLING, make_driver, make_session
from wovr.core.errors import UserError
from wovr.serve.messages import Act, Grip, Keys, Reset, Speed, Worlds
from wovr.serve.player import GRIP_STEPS, WAITING, Driver, Player


def header(frame):
    (length,) = struct.unpack("<I", frame[:4])
    return json.loads(frame[4 : 4 + length])


class Told:
    """Everything that a player says; `until` waits for something that must come."""

    def __init__(self):
        self.all, self._more = [], threading.Condition()

    def __call__(self, kind, content):
        with self._more:
            self.all.append((kind, header(content) if kind == "frame" else content))
            self._more.notify_all()

    def of(self, kind):
        return [content for what, content in list(self.all) if what == kind]

    def until(self, kind, holds):
        with self._more:
            found = self._more.wait_for(lambda: next((one for one in self.of(kind) if holds(one)), None), timeout=60)
        assert found is not None, self.all
        return found


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def player(told):
    player = Player(make_session(), make_driver(), told)
    player.start()
    player.ask(Speed(type="speed", steps_per_second=30))
    told.until("scene", lambda scene: scene["steps_per_second"] == 30)
    yield player
    player.stop()
    assert player.failure is None and not any(thread.name == "wovr-play" for thread in threading.enumerate())


def test_a_tap_is_one_step_and_then_the_world_waits(player, told):
    player.hold(Keys(type="keys", held=["right"], n=1))
    player.hold(Keys(type="keys", held=[], n=2))
    frame = told.until("frame", lambda frame: frame["depth"] == 1)
    assert frame["n"] == 2 and set(frame["images"]) == {"imagined"}
    player.ask(None)
    told.until("scene", lambda scene: len(scene["curves"]["imagined"]) == 1)
    assert player.session.depth == 1
    assert np.array_equal(player.session.actions[0], [1, 0, -1 if not player.session.closed else 1])


def test_time_runs_while_a_control_is_held(player, told):
    player.hold(Keys(type="keys", held=["left", "up"], fine=True, n=1))
    told.until("frame", lambda frame: frame["depth"] == 9)
    player.hold(Keys(type="keys", held=[], n=2))
    player.ask(Reset(type="reset", start="again"))
    told.until("scene", lambda scene: scene["attempt"] == 2)
    assert told.until("frame", lambda frame: frame["attempt"] == 2)["depth"] == player.session.depth == 0
    depths = [frame["depth"] for frame in told.of("frame") if frame["attempt"] == 1]
    assert depths[-1] >= 9 and depths == sorted(depths), "every step was told"


def test_the_gripper_moves_by_itself(player, told):
    player.ask(Grip(type="grip", n=5))
    told.until("frame", lambda frame: frame["depth"] == GRIP_STEPS and frame["n"] == 5)
    assert {float(action[-1]) for action in player.session.actions} == {1.0 if player.session.closed else -1.0}
    assert not any(action[:-1].any() for action in player.session.actions)


def test_a_policy_drives_to_the_horizon_and_a_key_takes_over(player, told):
    player.ask(Act(type="policy", name="base"))
    frame = told.until("frame", lambda frame: frame["depth"] == 24)
    assert frame["policy"] == "base" and told.until("frame", lambda frame: frame["depth"] == 24 and not frame["policy"])
    player.ask(Reset(type="reset", start=1))
    player.ask(Act(type="policy", name="base"))
    told.until("frame", lambda frame: frame["policy"] == "base" and frame["attempt"] == 2 and frame["depth"] >= 2)
    player.hold(Keys(type="keys", held=["down"], n=9))
    told.until("frame", lambda frame: frame["attempt"] == 2 and frame["n"] == 9 and frame["policy"] is None)
    assert np.array_equal(player.session.actions[-1][:2], [0, 1])


def test_both_worlds_are_told_once_both_are_shown(player, told):
    player.ask(Worlds(type="worlds", shown=["imagined", "true"]))
    scene = told.until("scene", lambda scene: len(scene["shown"]) == 2)
    assert set(scene["curves"]) == {"imagined", "true"}
    player.hold(Keys(type="keys", held=["wait"], n=1))
    frame = told.until("frame", lambda frame: frame["success_step"].get("true") == 10)
    assert set(frame["images"]) == {"imagined", "true"} and frame["depth"] == 10 and frame["success"]["true"] == 1


def test_what_goes_wrong_is_said_and_play_goes_on(player, told):
    player.ask(Act(type="policy", name="broken"))
    assert "expected a policy, found none" in told.until("error", bool)
    player.ask(Act(type="policy", name="best"))
    told.until("error", lambda text: text == "policy: expected base, broken, found 'best'")
    player.ask(Reset(type="reset", start=99))
    told.until("error", lambda text: "expected 0 to 2, found 99" in text)
    with pytest.raises(UserError, match=r"keys: expected .*, found 'jump'"):
        player.hold(Keys(type="keys", held=["jump"]))
    player.hold(Keys(type="keys", held=["right"], n=1))
    told.until("frame", lambda frame: frame["depth"] == 1)


@pytest.fixture
def idle(told):
    """A player that takes nothing until the test starts it."""
    player = Player(make_session(), make_driver(), told)
    yield player
    player.stop()
    assert player.failure is None


def test_a_key_that_is_pressed_while_a_reset_waits_is_for_the_new_attempt(idle, told):
    idle.hold(Keys(type="keys", held=["left"], n=1))
    idle.ask(Reset(type="reset", start=1))
    idle.hold(Keys(type="keys", held=["up"], n=2))
    idle.start()
    told.until("frame", lambda frame: frame["attempt"] == 2 and frame["depth"] == 2)
    assert all(np.array_equal(action[:2], [0, -1]) for action in idle.session.actions[:2])


def test_a_key_that_is_pressed_while_a_policy_is_read_takes_over(idle, told):
    def read():
        idle.hold(Keys(type="keys", held=["up"], n=1))
        return FakePolicy()

    idle.driver = Driver({"large": read}, sampling=SAMPLING, horizon=24)
    idle.ask(Act(type="policy", name="large"))
    idle.start()
    told.until("frame", lambda frame: frame["depth"] == 2 and frame["policy"] is None)
    assert np.array_equal(idle.session.actions[0][:2], [0, -1])


def test_what_a_driver_asked_for_and_left_is_dropped(idle, told):
    idle.ask(Act(type="policy", name="base"))
    idle.ask(Grip(type="grip", n=7))
    idle.let_go()
    idle.start()
    told.until("scene", lambda _: len(told.of("scene")) == 2)
    assert not idle._runs() and not idle._commands and told.of("frame")[-1]["depth"] == 0


def test_only_a_handful_of_commands_wait(told):
    player = Player(make_session(), make_driver(), told)  # not started: nothing is taken
    for _ in range(WAITING):
        player.ask(None)
    with pytest.raises(UserError, match="commands at once"):
        player.ask(None)
    for n in range(100):
        player.hold(Keys(type="keys", held=["right"], n=n))  # the newest state alone counts
    assert player._keys.n == 99


def test_a_fault_ends_the_thread_and_is_kept(told, monkeypatch):
    player = Player(make_session(), make_driver(), told)
    monkeypatch.setattr(player.session, "reset", lambda start: 1 / 0)
    player.start()
    player.ask(Reset(type="reset", start=0))
    told.until("error", lambda text: "terminal" in text)
    player.stop()
    assert isinstance(player.failure, ZeroDivisionError)
