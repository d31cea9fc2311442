"""Demonstration files as others write them, of a made-up recording whose frames and states tell their step."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

STEPS, SIZE = 6, 8
BDDL = "bddl_files/libero_spatial/pick_up_the_black_bowl.bddl"


def recording(seed: int, steps: int = STEPS) -> dict[str, np.ndarray]:
    """`steps` actions, and one frame, wrist frame and state more. A state is time, 7 joint angles and one more."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(steps + 1, 9))
    states[:, 0] = np.arange(steps + 1)
    return {
        "frames": rng.integers(0, 256, (steps + 1, SIZE, SIZE, 3), dtype=np.uint8),
        "wrist": rng.integers(0, 256, (steps + 1, SIZE, SIZE, 3), dtype=np.uint8),
        "actions": np.concatenate([rng.uniform(-1, 1, (steps, 6)), np.ones((steps, 1))], axis=1),
        "states": states,
    }


def write_libero_own(path: Path, seeds: list[int], *, joints: bool = True) -> None:
    """As LIBERO's `scripts/create_dataset.py`: sample i holds action i, the frame after it and the state before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_name"] = "Libero_Tabletop_Manipulation"
        data.attrs["problem_info"] = json.dumps(
            {
                "problem_name": "libero_tabletop_manipulation",
                "domain_name": "robosuite",
                "language_instruction": "Pick the akita black bowl",
            }
        )
        data.attrs["macros_image_convention"] = "opengl"
        data.attrs["bddl_file_name"] = BDDL
        data.attrs["env_args"] = json.dumps({"type": 1, "env_name": "Libero_Tabletop_Manipulation", "env_kwargs": {}})
        data.attrs["num_demos"], data.attrs["total"] = len(seeds), STEPS * len(seeds)
        for number, seed in enumerate(seeds):
            made = recording(seed)
            demo = data.create_group(f"demo_{number}")
            _samples(demo, made, frames=slice(1, None), states=slice(0, -1), turned=True, joints=joints)
            demo.attrs["num_samples"] = STEPS
            demo.attrs["model_file"], demo.attrs["init_state"] = "<mujoco/>", made["states"][0]


def write_regenerated(path: Path, seed: int) -> None:
    """As OpenVLA's `regenerate_libero_dataset.py`: sample i holds what action i was taken at; no attributes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        made = recording(seed)
        _samples(file.create_group("data/demo_0"), made, frames=slice(0, -1), states=slice(0, -1), turned=True)


def write_robomimic(path: Path, seed: int, *, next_obs: bool) -> None:
    """As robomimic's `dataset_states_to_obs.py`: upright pictures, other names, no instruction."""
    made = recording(seed)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {}})
        data.attrs["total"] = STEPS
        demo = data.create_group("demo_0")
        demo.attrs["num_samples"] = STEPS
        for group, part in {"obs": slice(0, -1), "next_obs": slice(1, None)}.items():
            if group == "obs" or next_obs:
                demo[f"{group}/agentview_image"] = made["frames"][part]
                demo[f"{group}/robot0_eye_in_hand_image"] = made["wrist"][part]
                demo[f"{group}/robot0_eef_pos"] = made["states"][part, :3]
        demo["actions"], demo["states"] = made["actions"], made["states"][:-1]
        demo["rewards"] = demo["dones"] = (np.arange(STEPS) >= STEPS - 2).astype(np.float64)


def _samples(
    demo: h5py.Group, made: dict[str, np.ndarray], *, frames: slice, states: slice, turned: bool, joints: bool = True
) -> None:
    step = -1 if turned else 1
    demo["obs/agentview_rgb"] = made["frames"][frames, ::step, ::step]
    demo["obs/eye_in_hand_rgb"] = made["wrist"][frames, ::step, ::step]
    demo["obs/ee_states"] = made["states"][frames, :6]
    if joints:  # read a substep earlier than the state, so not quite equal
        demo["obs/joint_states"] = made["states"][frames, 1:8] + 1e-3
    demo["robot_states"] = made["states"][frames]
    demo["actions"], demo["states"] = made["actions"], made["states"][states]
    demo["rewards"] = demo["dones"] = (np.arange(len(made["actions"])) == len(made["actions"]) - 1).astype(np.uint8)
