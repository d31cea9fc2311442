"""One LIBERO environment in this process: reset by number, step, look. Imports mujoco and hf-libero when made.

robosuite's own environment renders every camera at every step, with the mirror images of floor and table, and builds
everything anew at a reset. Here a picture is rendered when it is asked for, and a task's model is built once.

Legend: A action dims, S simulator state size, P numbers of proprioception; images are height x width x 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wovr.core.types import Actions, Frames, no_motion
from wovr.envs.libero.render import Look, Renderer

CAMERA, WRIST = "agentview", "robot0_eye_in_hand"
ACTION_DIM = 7
PROPRIO = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
"""robosuite's observables of which proprioception is made."""
PROPRIO_DIM = 8
"""P: see `Glance`."""
PLACEMENTS = 50
"""Placements that are tried: the samplers give up now and then."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a process needs to know before it imports LIBERO."""

    package: Path
    assets: Path
    gl: str
    folder: Path
    """For what the libraries write; the parent removes it."""
    look: Look


@dataclass(frozen=True, slots=True)
class Begin:
    """One start."""

    task_file: str
    seed: int
    """Places the fixtures, and everything else where no state is given."""
    state_S: NDArray[np.float64] | None
    """The shipped initial state."""
    settle_steps: int


@dataclass(frozen=True, slots=True)
class Glance:
    """What one environment shows: (height, width, 3) pictures, None where none was rendered."""

    frame_HWC: Frames | None
    wrist_HWC: Frames | None
    success: bool
    state_S: NDArray[np.float64]
    proprio_P: NDArray[np.float32]
    """Position of the hand in the world (metres), its orientation as axis and angle (radians), the fingers' joints
    (metres)."""


class Scene:
    """The environment of one task."""

    def __init__(self, task_file: str, look: Look) -> None:
        from libero.libero.envs.env_wrapper import ControlEnv
        from robosuite.utils.errors import RandomizationError
        from robosuite.utils.observables import Observable

        self._misplaced, self._sampled = RandomizationError, True
        self._look = look
        for seed in range(PLACEMENTS):
            np.random.seed(seed)  # noqa: NPY002  (robosuite draws from the global state)
            try:
                control = ControlEnv(
                    bddl_file_name=task_file,
                    use_camera_obs=False,
                    has_offscreen_renderer=False,
                    ignore_done=True,
                    hard_reset=False,
                )
                break
            except RandomizationError:
                continue
        else:
            raise RuntimeError(f"no placement found in {PLACEMENTS} trials")
        self._env: Any = control.env
        model = self._env.sim.model._model
        self._renderer = Renderer(model, look)
        # Of robosuite's observations those of proprioception stay, and what a picture shows joins them. robosuite
        # samples all of them in the midst of a step.
        shown = Observable("shown", self._sensor(model), sampling_rate=self._env.control_freq)
        self._felt = {name: self._env._observables[name] for name in PROPRIO}
        self._env._observables = {"shown": shown, **self._felt}
        # What an episode changes in the model: fixtures are placed, and the stove's burner glows.
        self._kept = {name: getattr(model, name).copy() for name in ("body_pos", "body_quat", "site_rgba")}

    def reset(self, begin: Begin) -> Glance:
        """Begin at the given state, or at one that the task's samplers draw; the same start gives the same episode."""
        env = self._env
        model = env.sim.model._model
        self._sampled = True
        for name, values in self._kept.items():
            getattr(model, name)[:] = values
        # The gripper's command is integrated, and goes back to zero only where robosuite builds everything anew.
        for robot in env.robots:
            robot.gripper.current_action = np.zeros(robot.gripper.dof)
        np.random.seed(begin.seed)  # noqa: NPY002
        # Not ControlEnv.reset, which swallows every exception and tries again for ever.
        for trial in range(PLACEMENTS):
            try:
                env.reset()
                break
            except self._misplaced:
                if trial == PLACEMENTS - 1:
                    raise
        if begin.state_S is not None:
            env.sim.set_state_from_flattened(begin.state_S)
            env.sim.forward()
            env._check_success()
            env._post_process()
            env._update_observables(force=True)
        for _ in range(begin.settle_steps):
            env.step(no_motion(ACTION_DIM))
        return self._glance(render=True)

    def step(self, action_A: Actions, *, render: bool) -> Glance:
        """One env step: 25 physics steps of 2 ms under the controller of end-effector deltas."""
        self._sampled = render
        self._env.step(action_A)
        return self._glance(render)

    def poses(self) -> dict[str, NDArray[np.float64]]:
        """Privileged state by name; see `Libero.poses`."""
        sim = self._env.sim
        model, data = sim.model, sim.data
        poses = {
            name: np.concatenate([data.body_xpos[i], data.body_xquat[i]])
            for i, name in enumerate(model.body_names)
            if not name.startswith(("robot0_", "gripper0_", "mount0_"))
        }
        for name, body in self._env.obj_body_id.items():
            poses[name] = np.concatenate([data.body_xpos[body], data.body_xquat[body]])
        for name, number in [(name, model.site_name2id(name)) for name in self._env.object_sites_dict]:
            poses[name] = _site_pose(data, number)
        poses["hand"] = _site_pose(data, model.site_name2id("gripper0_grip_site"))
        poses["fingers"] = np.array([data.get_joint_qpos(f"gripper0_finger_joint{i}") for i in (1, 2)])
        return poses

    def close(self) -> None:
        self._renderer.close()

    def _glance(self, render: bool) -> Glance:
        sim = self._env.sim
        frame = wrist = None
        if render:
            frame = self._picture(CAMERA)
            wrist = self._picture(WRIST) if self._look.wrist else None
        return Glance(frame, wrist, bool(self._env._check_success()), sim.get_state().flatten(), self._proprio())

    def _proprio(self) -> NDArray[np.float32]:
        """(P,), from what LIBERO's own environment would tell after this step, so as old as a picture.

        Demonstrations and evaluation of OpenVLA-OFT have it so (`prepare_observation`), and so do LIBERO's own files.
        """
        position, quaternion, fingers = (np.asarray(observable.obs) for observable in self._felt.values())
        return np.concatenate([position, axis_angle(quaternion), fingers]).astype(np.float32)

    def _sensor(self, model: Any) -> Any:
        """Keeps what a picture would show at the moment at which robosuite takes it.

        LIBERO's picture of a step is one or two physics steps older than the state after it, and older than what the
        step changes in the model, as the glow of the burner. Policies have learned from such pictures.
        """
        import mujoco
        from robosuite.utils.observables import sensor

        self._shown, self._shown_rgba = mujoco.MjData(model), model.site_rgba.copy()

        @sensor(modality="image")
        def shown(_: object) -> NDArray[np.float64]:
            if self._sampled:
                mujoco.mj_copyData(self._shown, model, self._env.sim.data._data)
                self._shown_rgba[:] = model.site_rgba
            return np.zeros(1)

        return shown

    def _picture(self, camera: str) -> Frames:
        sites = self._env.sim.model._model.site_rgba
        present = sites.copy()
        sites[:] = self._shown_rgba
        picture = self._renderer.picture(self._shown, camera)
        sites[:] = present
        return picture


def axis_angle(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3,), the axis times the angle in radians, of a unit quaternion xyzw.

    As robosuite's and OpenVLA's `quat2axisangle`, which do not bring the angle below pi: q and -q give two results.
    """
    w = min(max(float(quaternion[3]), -1.0), 1.0)
    sine = math.sqrt(1.0 - w * w)
    if sine == 0.0:
        return np.zeros(3)
    return quaternion[:3] * 2.0 * math.acos(w) / sine


def _site_pose(data: Any, site: int) -> NDArray[np.float64]:
    import mujoco

    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, data.site_xmat[site].reshape(9))
    return np.concatenate([data.site_xpos[site], quaternion])
