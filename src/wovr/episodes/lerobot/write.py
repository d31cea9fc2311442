"""Episodes as a LeRobot dataset that LeRobot itself reads, one episode in memory at a time.

An episode of T actions and T + 1 frames becomes N = T + 1 samples. The last action led to no frame: it is
`no_motion`, and `next.reward` and `next.success` repeat the sample before, as `padded_samples = 1` in `info.json`
says. Simulator states become `observation.environment_state` in float64, proprioception `observation.state` in float32,
both exact. Frames become video (`video.py`).

Legend: T env steps, N = T + 1 samples, A action dims, S state size, P numbers of proprioception; H W height and width.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wovr.core.checkpoint import new_folder
from wovr.core.errors import UserError
from wovr.core.types import Episode, Frames, no_motion
from wovr.episodes.lerobot.files import CHUNKS_SIZE, FilesV2, FilesV3
from wovr.episodes.lerobot.layout import (
    ACTION,
    CAMERA,
    DATA_PATH,
    DONE,
    INFO,
    PROPRIO,
    REWARD,
    STATE,
    SUCCESS,
    VIDEO_PATH,
    WRIST,
    Facts,
    Written,
)
from wovr.episodes.lerobot.stats import frame_stats, vector_stats
from wovr.episodes.lerobot.video import CODEC, PIXELS

Version = Literal["v2.1", "v3.0"]
Columns = dict[str, NDArray[Any]]


def write_lerobot(
    folder: Path,
    episodes: Iterable[Episode],
    *,
    version: Version,
    fps: int,
    robot: str = "unknown",
    states: bool = True,
) -> None:
    """Write `episodes` as a new dataset, which appears in `folder` when it is complete.

    `fps` is how many env steps a second has. Without `states` simulator states are left out: a dataset holds those
    of one size alone, and the tasks of some suites differ in it. Raises UserError where `folder` exists, episodes
    differ in the shape of anything, frames have an odd side, actions are not finite, or the disk is full.
    """
    if folder.exists():
        raise UserError(f"{folder}: expected a folder that does not exist yet, found one")
    with new_folder(folder) as temporary:
        _write(temporary, episodes, version, fps, robot, states)


def _write(folder: Path, episodes: Iterable[Episode], version: Version, fps: int, robot: str, states: bool) -> None:
    features: dict[str, Any] = {}
    tasks: dict[str, int] = {}
    count = samples = 0
    with (FilesV2 if version == "v2.1" else FilesV3)(folder, fps) as files:
        for count, episode in enumerate(episodes, start=1):
            task_index = tasks.setdefault(episode.instruction, len(tasks))
            columns = _columns(episode, fps, count - 1, samples, task_index, states)
            cameras = {CAMERA: episode.frames_THWC[:]}
            if episode.wrist_THWC is not None:
                cameras[WRIST] = episode.wrist_THWC[:]
            found = _features(columns, cameras, fps)
            features = features or found
            _check(count - 1, columns, features, found)
            facts = {f"wovr/{name}": getattr(episode, name) for name in (*Facts.model_fields, "success")}
            stats = {name: vector_stats(values) for name, values in columns.items()}
            stats |= {name: frame_stats(frames) for name, frames in cameras.items()}
            files.add(_table(columns), cameras, stats, [episode.instruction], facts)
            samples += len(episode) + 1
        if not count:
            raise UserError("LeRobot dataset: expected episodes to write, found none")
        counts = files.finish(tasks)
    info = {
        "codebase_version": version,
        "robot_type": robot,
        "total_episodes": count,
        "total_frames": samples,
        "total_tasks": len(tasks),
        **counts,
        "chunks_size": CHUNKS_SIZE,
        "fps": fps,
        "splits": {"train": f"0:{count}"},
        "data_path": DATA_PATH[version],
        "video_path": VIDEO_PATH[version],
        "features": features,
        "wovr": Written(padded_samples=1, camera=CAMERA, wrist=WRIST if WRIST in features else None).model_dump(),
    }
    (folder / INFO).write_text(json.dumps(info, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def _columns(episode: Episode, fps: int, number: int, first: int, task_index: int, states: bool) -> Columns:
    """What the parquet files hold of one episode, by feature; (N,) where a sample is one number."""
    samples = len(episode) + 1
    actions_NA = np.concatenate([episode.actions_TA, no_motion(episode.actions_TA.shape[1])[None]])
    last = episode.success_T[-1:] if len(episode) else np.zeros(1, dtype=np.bool_)
    success_N = np.concatenate([episode.success_T, last])
    frame_index_N = np.arange(samples)
    columns: Columns = {ACTION: actions_NA.astype(np.float32)}
    if episode.proprio_TP is not None:
        columns[PROPRIO] = episode.proprio_TP
    if states and episode.states_TS.shape[1]:
        columns[STATE] = episode.states_TS.astype(np.float64)
    columns |= {
        REWARD: success_N.astype(np.float32),
        DONE: frame_index_N == samples - 1,
        SUCCESS: success_N,
        "timestamp": (frame_index_N / fps).astype(np.float32),
        "frame_index": frame_index_N,
        "episode_index": np.full(samples, number),
        "index": first + frame_index_N,
        "task_index": np.full(samples, task_index),
    }
    return {name: values[:, 0] if values.shape[1:] == (1,) else values for name, values in columns.items()}


def _features(columns: Columns, cameras: dict[str, Frames], fps: int) -> dict[str, Any]:
    """`info.json`'s description of columns and cameras."""
    features: dict[str, Any] = {
        name: {"dtype": str(values.dtype), "shape": list(values.shape[1:]) or [1], "names": None}
        for name, values in columns.items()
    }
    for name, frames in cameras.items():
        height, width = frames.shape[1:3]
        about = {
            "video.height": height,
            "video.width": width,
            "video.codec": CODEC,
            "video.pix_fmt": PIXELS,
            "video.is_depth_map": False,
            "video.fps": fps,
            "video.channels": 3,
            "has_audio": False,
        }
        shape = {"dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"]}
        features[name] = {**shape, "info": about}
    return features


def _check(number: int, columns: Columns, features: dict[str, Any], found: dict[str, Any]) -> None:
    """Raise UserError unless this episode can be in a dataset of these features."""
    for name in {**features, **found}:
        expected, shape = (about[name]["shape"] if name in about else [] for about in (features, found))
        if expected != shape:
            hint = "; leave simulator states out or write a dataset for each size" if name == STATE else ""
            raise UserError(f"episode {number}: {name}: expected shape {expected} as before, found {shape}{hint}")
        if features[name]["dtype"] == "video" and any(side % 2 for side in shape[:2]):
            raise UserError(f"episode {number}: {name}: expected frames of even height and width, found {shape[:2]}")
    if not np.isfinite(columns[ACTION]).all():
        raise UserError(f"episode {number}: {ACTION}: expected finite numbers, found others")


def _table(columns: Columns) -> pa.Table:
    arrays = {}
    for name, values in columns.items():
        flat = pa.array(values.reshape(-1))
        arrays[name] = flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.table(arrays)
