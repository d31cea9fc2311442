"""The scripted demonstrator, in the real simulator where the assets at WOVR_LIBERO_ASSETS are."""

import importlib.util
import os

import numpy as np
import pytest

from wovr.core.errors import UserError
from wovr.core.types import SimulatorStart
from wovr.envs.libero import Libero, LiberoConfig
from wovr.envs.libero.demonstrator import LiberoDemonstrator
from wovr.envs.libero.install import ASSETS_VARIABLE

in_simulator = pytest.mark.skipif(
    importlib.util.find_spec("robosuite") is None or not os.environ.get(ASSETS_VARIABLE),
    reason=f"LIBERO is not installed, or {ASSETS_VARIABLE} names no assets",
)
FAILS_FIRST = 2
"""Initial state and seed with which a demonstrator of skill 0.7 needs a second attempt."""
CHEESE, BOWL, STOVE = "put_the_cream_cheese_in_the_bowl", "put_the_bowl_on_the_plate", "turn_on_the_stove"
DOWN = (0.0, 0.707, 0.707, 0.0)
POSES = {
    "hand": np.array([-0.2, 0.0, 1.2, *DOWN]),
    "fingers": np.array([0.04, -0.04]),
    "cream_cheese_1": np.array([0.0, 0.1, 0.9, 1.0, 0.0, 0.0, 0.0]),
    "akita_black_bowl_1": np.array([-0.1, 0.0, 0.9, 1.0, 0.0, 0.0, 0.0]),
}


def test_a_task_that_it_cannot_do_is_refused_with_the_nearest_that_it_can():
    with pytest.raises(UserError, match=r"'put_the_bowl_on_a_plate'.*put_the_bowl_on_the_plate"):
        LiberoDemonstrator("put_the_bowl_on_a_plate", 1.0, np.random.default_rng(0))
    with pytest.raises(UserError, match="turn_on_the_stove"):
        LiberoDemonstrator("?", 1.0, np.random.default_rng(0))


def test_commands_head_for_the_thing_and_err_only_without_skill_or_by_the_offset():
    def aim(skill, seed, offset=(0.0, 0.0)):
        poses = POSES | {"hand": np.array([0.0, 0.1, 0.91, *DOWN])}
        return LiberoDemonstrator(CHEESE, skill, np.random.default_rng(seed), offset).action(poses)

    far = LiberoDemonstrator(CHEESE, 1.0, np.random.default_rng(0)).action(POSES)
    assert far.dtype == np.float32 and far.shape == (7,) and np.abs(far).max() <= 1
    np.testing.assert_allclose(far, [1, 1, -1, 0, 0, 0, -1], atol=1e-3)
    np.testing.assert_array_equal(aim(1.0, 0), aim(1.0, 1))
    assert np.abs(aim(1.0, 0)[:2]).max() < 0.01 < np.abs(aim(0.5, 0) - aim(0.5, 1)).max()
    assert aim(1.0, 0, (0.01, 0.0))[0] > 0.5 and abs(aim(1.0, 0, (0.01, 0.0))[1]) < 0.01


@pytest.fixture(scope="module")
def libero():
    simulator = Libero(LiberoConfig(tasks=(STOVE, BOWL, CHEESE), image_size=16, workers=2))
    yield simulator
    simulator.close()


def demonstrate(libero, names, skill=1.0, offset=(0.0, 0.0), init=0, limit=200):
    """Step of success per task, 0 for none, and whether its demonstrator believes that it is done."""
    number = {task.name: task.task_id for task in libero.tasks}
    hands = [LiberoDemonstrator(name, skill, np.random.default_rng(init), offset) for name in names]
    libero.reset([SimulatorStart(number[name], init) for name in names])
    steps = np.zeros(len(names), int)
    for step in range(1, limit + 1):
        actions = np.stack([hand.action(poses) for hand, poses in zip(hands, libero.poses(), strict=True)])
        steps[libero.step(actions, steps == 0, render=False).success_B & (steps == 0)] = step
        if (steps > 0).all() or all(hand.done for hand in hands):
            break
    return steps, [hand.done for hand in hands]


@in_simulator
@pytest.mark.parametrize("names", [(BOWL, STOVE), (CHEESE,)])
def test_demonstrations_with_skill_succeed_soon(libero, names):
    steps, _ = demonstrate(libero, names)
    assert (steps > 0).all() and steps.max() < 75


@in_simulator
def test_an_attempt_that_failed_is_tried_again(libero):
    assert demonstrate(libero, (BOWL,), skill=0.7, init=FAILS_FIRST)[0] > 90


@in_simulator
def test_an_offset_makes_it_miss_and_is_not_noticed(libero):
    steps, done = demonstrate(libero, (CHEESE,), offset=(0.045, 0.0))
    assert steps == 0 and done == [True]
