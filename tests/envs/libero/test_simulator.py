"""The real simulator on the tasks that the assets at WOVR_LIBERO_ASSETS serve (libero_goal)."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from wovr.core.errors import UserError
from wovr.core.types import SimulatorStart, no_motion
from wovr.envs.libero import Libero, LiberoConfig, process
from wovr.envs.libero.install import ASSETS_VARIABLE, FOLDERS

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="LIBERO is not installed"),
    pytest.mark.skipif(not os.environ.get(ASSETS_VARIABLE), reason=f"{ASSETS_VARIABLE} names no assets"),
]
STOVE, BOWL = SimulatorStart(7, 3), SimulatorStart(6, 1)
ACTIONS_TA = np.random.default_rng(0).uniform(-1, 1, (6, 7)).astype(np.float32)
SIZE = 64
# Everything that LIBERO's own pictures show, with LIBERO's own environment; then what an economical look leaves out.
REFERENCE = """
import sys, numpy as np
from pathlib import Path
from wovr.core.types import no_motion
from wovr.envs.libero.install import find_assets, find_package, prepare, working_gl
from wovr.envs.libero.suites import load_initial_states, task_file
folder, actions, size = Path(sys.argv[1]), np.load(sys.argv[2]), int(sys.argv[3])
prepare(find_package(), find_assets(), working_gl(), folder)
from libero.libero.envs import OffScreenRenderEnv
from wovr.envs.libero.render import Look
from wovr.envs.libero.scene import Begin, Scene
task = "libero_goal", "turn_on_the_stove"
file, state = str(task_file(*task)), load_initial_states(*task)[3]
env = OffScreenRenderEnv(bddl_file_name=file, camera_heights=size, camera_widths=size)
env.seed(3)
env.reset()
env.set_init_state(state)
shown = [env.step(no_motion(7))[0] for _ in range(15)][-1:]
states = [env.get_sim_state()]
for action in actions:
    shown.append(env.step(action)[0])
    states.append(env.get_sim_state())
env.close()
looks = []
for everything in (False, True):
    scene = Scene(file, Look(size, wrist=True, shadows=False, reflections=False))
    scene._renderer._everything = everything
    glance = scene.reset(Begin(file, 3, state, 15))
    looks.append([glance.frame_HWC, glance.wrist_HWC])
    scene.close()
frames, wrist = ([o[name][::-1, ::-1] for o in shown] for name in ("agentview_image", "robot0_eye_in_hand_image"))
from robosuite.utils.transform_utils import quat2axisangle
proprio = [
    np.concatenate([o["robot0_eef_pos"], quat2axisangle(o["robot0_eef_quat"].copy()), o["robot0_gripper_qpos"]])
    for o in shown
]
np.savez(folder / "reference.npz", frames=frames, wrist=wrist, states=states, looks=looks, proprio=proprio)
"""
# A run with two workers whose process then dies at once.
RUN = """
import os, signal
from wovr.core.types import SimulatorStart
from wovr.envs.libero import Libero, LiberoConfig
libero = Libero(LiberoConfig(tasks=("turn_on_the_stove",), image_size=64, workers=1))
libero.reset([SimulatorStart(7, 0)])
print(libero._workers[0].pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def libero():
    config = LiberoConfig(image_size=SIZE, workers=2, wrist=True, shadows=True, reflections=True)
    simulator = Libero(config)
    yield simulator
    simulator.close()


def play(libero, starts, actions_TA=ACTIONS_TA, **options):
    """States, frames, wrist frames and proprioception, (B, T + 1, ...), of the same actions in all environments."""
    seen = [libero.reset(starts)]
    seen += [libero.step(np.stack([action] * len(starts)), **options) for action in actions_TA]
    names = ("states_BS", "frames_BHWC", "wrist_BHWC", "proprio_BP")
    return [np.stack([getattr(o, name) for o in seen], axis=1) for name in names]


def same(one, other):
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def stove(libero):
    """The trajectory that the others are held against."""
    return [values[0] for values in play(libero, [STOVE])]


def test_simulator_keeps_the_protocol(libero):
    assert len(libero.tasks) == 10 and libero.tasks[7].instruction == "turn on the stove"
    assert (libero.suite, libero.horizon, libero.action_dim, libero.max_batch) == ("libero_goal", 300, 7, 2)
    seen = libero.reset([STOVE, BOWL])
    assert seen.frames_BHWC.shape == seen.wrist_BHWC.shape == (2, SIZE, SIZE, 3)
    assert seen.frames_BHWC.dtype == np.uint8 and seen.states_BS.dtype == np.float64
    assert seen.proprio_BP.shape == (2, 8) and seen.proprio_BP.dtype == np.float32
    assert not seen.success_B.any() and not seen.lost_B.any()
    assert np.isfinite(seen.states_BS[0]).sum() in (79, seen.states_BS.shape[1])
    with pytest.raises(UserError, match="task 11: expected a task of suite libero_goal"):
        libero.reset([SimulatorStart(11, 0)])


def test_what_is_seen_and_felt_and_the_states_are_those_of_libero(stove, tmp_path):
    np.save(tmp_path / "actions.npy", ACTIONS_TA)
    arguments = [str(tmp_path), str(tmp_path / "actions.npy"), str(SIZE)]
    subprocess.run([sys.executable, "-c", REFERENCE, *arguments], check=True)
    reference = np.load(tmp_path / "reference.npz")
    states, frames, wrist, proprio = stove
    np.testing.assert_array_equal(states, reference["states"])
    np.testing.assert_array_equal(frames, reference["frames"])
    np.testing.assert_array_equal(wrist, reference["wrist"])
    np.testing.assert_array_equal(proprio, reference["proprio"].astype(np.float32))
    leaner, complete = reference["looks"]
    np.testing.assert_array_equal(leaner, complete)
    assert (leaner != [frames[0], wrist[0]]).any()


def test_proprioception_is_as_old_as_the_picture_and_told_without_one(libero, stove):
    """robosuite tells of a step what was felt one physics step, 2 ms, before its end: about half a millimetre away."""
    proprio = stove[3]
    assert np.abs(np.diff(proprio[:, :3], axis=0)).max() > 0.002, "the hand moved"
    libero.reset([STOVE, STOVE])
    for number, action in enumerate(ACTIONS_TA, start=1):
        seen = libero.step(np.stack([action] * 2), np.array([True, number < 3]), render=False)
        hand, fingers = libero.poses()[0]["hand"], libero.poses()[0]["fingers"]
        np.testing.assert_array_equal(seen.proprio_BP[0], proprio[number])
        np.testing.assert_array_equal(seen.proprio_BP[1], proprio[min(number, 2)], err_msg="inactive")
        assert 0 < np.abs(seen.proprio_BP[0, :3] - hand[:3]).max() < 0.002
        np.testing.assert_allclose(seen.proprio_BP[0, 6:], fingers, atol=5e-4)


def test_a_start_gives_one_episode_wherever_and_after_whatever(libero, stove):
    other = play(libero, [BOWL, STOVE])
    assert same([values[1] for values in other], stove)
    both = play(libero, [STOVE, STOVE])
    assert same([values[0] for values in both], stove) and same([values[1] for values in both], stove)


def test_only_what_is_looked_at_is_rendered(libero, stove):
    unseen, frames, *_ = play(libero, [STOVE], ACTIONS_TA[:-1], render=False)
    assert (frames == frames[:, :1]).all()
    seen = libero.step(ACTIONS_TA[-1:])
    np.testing.assert_array_equal(unseen[0], stove[0][:-1])
    np.testing.assert_array_equal(seen.frames_BHWC[0], stove[1][-1])


def test_inactive_environments_stay(libero, stove):
    first = libero.reset([STOVE, BOWL])
    then = libero.step(np.stack([ACTIONS_TA[0]] * 2), np.array([True, False]))
    np.testing.assert_array_equal(then.states_BS[1], first.states_BS[1])
    np.testing.assert_array_equal(then.frames_BHWC[1], first.frames_BHWC[1])
    np.testing.assert_array_equal(then.frames_BHWC[0], stove[1][1])


def test_numbers_past_the_shipped_states_are_sampled(libero):
    starts = [SimulatorStart(7, init) for init in (50, 51)]
    states = libero.reset(starts).states_BS
    assert np.abs(states[0] - states[1]).max() > 1e-3
    np.testing.assert_array_equal(libero.reset(starts[::-1]).states_BS, states[::-1])


def test_poses_name_what_a_demonstrator_needs(libero):
    libero.reset([STOVE, BOWL])
    before = libero.poses()
    assert before[0]["hand"].shape == (7,) and before[0]["fingers"].shape == (2,)
    for name in ("flat_stove_1_button", "akita_black_bowl_1", "wooden_cabinet_1", "flat_stove_1_cook_region"):
        assert np.linalg.norm(before[0][name][3:]) == pytest.approx(1)
    up = no_motion(7)
    up[2] = 1
    for _ in range(4):
        libero.step(np.stack([up, no_motion(7)]))
    rise = [after["hand"][2] - was["hand"][2] for after, was in zip(libero.poses(), before, strict=True)]
    assert rise[0] > 0.02 > abs(rise[1])


def test_a_killed_worker_loses_its_environment_and_no_other(libero, stove):
    libero.reset([BOWL, STOVE])
    actions = [np.stack([action] * 2) for action in ACTIONS_TA]
    before = libero.step(actions[0])
    os.kill(libero._running[0].pid, signal.SIGKILL)
    for index in (1, 2):
        seen = libero.step(actions[index])
        np.testing.assert_array_equal(seen.lost_B, [True, False])
        np.testing.assert_array_equal(seen.states_BS[1], stove[0][index + 1])
        np.testing.assert_array_equal(seen.frames_BHWC[1], stove[1][index + 1])
        np.testing.assert_array_equal(seen.frames_BHWC[0], before.frames_BHWC[0])
    assert not before.lost_B.any() and libero.poses()[0] == {}
    os.kill(libero._running[1].pid, signal.SIGKILL)
    assert libero.poses() == [{}, {}]
    assert libero.step(actions[3]).lost_B.all()
    states, frames, *_ = play(libero, [STOVE, STOVE], ACTIONS_TA[:2])
    np.testing.assert_array_equal(states, np.stack([stove[0][:3]] * 2))
    np.testing.assert_array_equal(frames, np.stack([stove[1][:3]] * 2))


def test_workers_that_die_at_every_start_are_reported(monkeypatch):
    monkeypatch.setattr(process, "CODE", "raise SystemExit('no memory left')")
    simulator = Libero(LiberoConfig(image_size=SIZE, workers=1))
    with pytest.raises(UserError, match="3 in a row died; the last said: no memory left"):
        simulator.reset([STOVE])
    simulator.close()
    simulator.close()


def test_a_task_that_lacks_a_file_is_named_with_it(tmp_path):
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
    simulator = Libero(LiberoConfig(image_size=SIZE, workers=1, assets=tmp_path))
    with pytest.raises(UserError, match=rf"task turn_on_the_stove of libero_goal: .*{tmp_path}/\S+\.xml"):
        simulator.reset([STOVE])
    simulator.close()


def test_nothing_is_asked_written_or_left_behind(tmp_path):
    home, place, temporary = (tmp_path / name for name in ("home", "place", "temporary"))
    for folder in (home, place, temporary):
        folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "LIBERO_"))}
    environment |= {"HOME": str(home), "TMPDIR": str(temporary), "MUJOCO_GL": "", "MPLCONFIGDIR": str(temporary)}
    run = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert list(home.rglob("*")) == list(place.rglob("*")) == []
    worker = Path("/proc") / run.stdout.strip()
    deadline = time.monotonic() + 60
    while worker.exists() and "Z" not in (worker / "stat").read_text().rsplit(")")[-1].split()[:1]:
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.05)


def test_fewer_samples_make_edges_jagged():
    shown = []
    for samples in (4, 1):
        libero = Libero(LiberoConfig(tasks=("turn_on_the_stove",), image_size=SIZE, workers=1, samples=samples))
        shown.append(libero.reset([STOVE]).frames_BHWC[0].astype(int))
        libero.close()
    difference = np.abs(shown[0] - shown[1]).max(axis=-1)
    assert 0.01 < (difference > 8).mean() < 0.4, "edges differ, surfaces do not"
