"""LIBERO's demonstration files: what they are called, and how they are written. `wovr.episodes.robomimic` reads them.

Legend: T env steps, F = T + 1 frames, P numbers of proprioception; H W height and width.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wovr.core.checkpoint import new_folder
from wovr.core.types import Episode
from wovr.episodes.libero_names import SUITE, libero_task_names, task_language

CAMERA, WRIST = "agentview_rgb", "eye_in_hand_rgb"
"""Keys under `obs`."""
HAND = {"ee_pos": slice(0, 3), "ee_ori": slice(3, 6), "gripper_states": slice(6, 8)}
"""Likewise, and which numbers of LIBERO's proprioception they hold: position, axis-angle orientation, fingers."""
PROPRIO = "proprio"
"""Likewise, all numbers of another robot's, and of every one in the store."""
ORIGIN = ("instruction", "suite", "task_id", "init_id", "policy", "seed", "purpose")
"""Fields of Episode that are attributes of a demonstration in our files."""
PACKING: dict[str, Any] = {"compression": "gzip", "compression_opts": 1}


def write_libero(folder: Path, episodes: Iterable[Episode]) -> int:
    """Write a folder of `{task}_demo.hdf5`, one per task, and return how many episodes there were.

    N = T samples, pictures turned back to LIBERO's convention, and attributes as LIBERO's files have them. Frame i is
    the one that action i was taken at, as every reader takes it, and so is proprioception. The last frame and state,
    and what else we know of an episode, stand beside (`final_obs`, `final_state`, attributes), where other readers do
    not look.

    The folder must not exist or be empty; it appears by rename. UserError where it is not, or the disk is full.
    """
    files: dict[tuple[str, int, str], h5py.File] = {}
    count = 0
    with new_folder(folder) as temporary, ExitStack() as opened:
        for episode in episodes:
            task = (episode.suite, episode.task_id, episode.instruction)
            if task not in files:
                files[task] = opened.enter_context(_new_file(temporary, *task))
            _write_demo(files[task]["data"], episode)
            count += 1
    return count


def _new_file(folder: Path, suite: str, task_id: int, instruction: str) -> h5py.File:
    names = dict(enumerate(libero_task_names(suite)))
    name = names.get(task_id, "")
    if task_language(name) != instruction:
        name = re.sub(r"[^A-Za-z0-9]+", "_", instruction).strip("_") or suite
    if (folder / f"{name}_demo.hdf5").exists():  # another task of the same words
        name = f"{name}_{task_id}"
    file = h5py.File(folder / f"{name}_demo.hdf5", "x")
    problem = {"problem_name": suite, "domain_name": "robosuite", "language_instruction": instruction}
    environment: dict[str, Any] = {"type": 1, "env_name": suite, "problem_name": suite, "env_kwargs": {}}
    data = file.create_group("data")
    if SUITE.fullmatch(suite):
        environment["bddl_file"] = data.attrs["bddl_file_name"] = f"bddl_files/{suite}/{name}.bddl"
    data.attrs.update(
        env_name=suite,
        problem_info=json.dumps(problem),
        env_args=json.dumps(environment),
        macros_image_convention="opengl",
        num_demos=0,
        total=0,
    )
    return file


def _write_demo(data: h5py.Group, episode: Episode) -> None:
    steps = len(episode)
    demo = data.create_group(f"demo_{data.attrs['num_demos']}")
    arrays: dict[str, NDArray[Any]] = {
        "actions": episode.actions_TA,
        "rewards": episode.success_T.astype(np.uint8),
        "dones": (np.arange(steps) == steps - 1).astype(np.uint8),
        "states": episode.states_TS[:steps],
        "final_state": episode.states_TS[steps:],
    }
    cameras = {CAMERA: episode.frames_THWC, WRIST: episode.wrist_THWC}
    for camera, frames_THWC in cameras.items():
        if frames_THWC is not None:
            turned = frames_THWC[:][:, ::-1, ::-1]
            arrays |= {f"obs/{camera}": turned[:steps], f"final_obs/{camera}": turned[steps:]}
    for key, values_TP in _proprio(episode).items():
        arrays |= {f"obs/{key}": values_TP[:steps], f"final_obs/{key}": values_TP[steps:]}
    for name, array in arrays.items():
        packing = {"chunks": (1, *array.shape[1:]), **PACKING} if array.ndim == 4 and array.size else {}
        demo.create_dataset(name, data=array, **packing)
    demo.attrs.update({key: getattr(episode, key) for key in ORIGIN}, num_samples=steps)
    if episode.states_TS.size:
        demo.attrs["init_state"] = episode.states_TS[0]
    data.attrs["num_demos"] += 1
    data.attrs["total"] += steps


def _proprio(episode: Episode) -> dict[str, NDArray[np.float32]]:
    """Proprioception by keys under `obs`: LIBERO's where it is LIBERO's robot."""
    if episode.proprio_TP is None:
        return {}
    if SUITE.fullmatch(episode.suite) and episode.proprio_TP.shape[1] == 8:
        return {key: episode.proprio_TP[:, part] for key, part in HAND.items()}
    return {PROPRIO: episode.proprio_TP}
