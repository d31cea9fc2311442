"""A LeRobot dataset as episodes, one in memory at a time.

LeRobot has N frames and N actions, action i taken at frame i; an `Episode` has one frame more than actions. So
T = N - 1: the last action led to no recorded frame and is dropped. What its result tells of success is kept, as
being true of the last recorded frame, one step early: most datasets mark success nowhere else.

Of a dataset that wovr wrote everything comes back as it was, but for the loss of the video codec: the dropped action
is padding there. Of others, `suite` is the folder's name, `task_id` the task's index, `init_id` the episode's index
(every recording starts from a state of its own), `seed` 0, and `states_TS` is empty: what LeRobot calls
`observation.environment_state` need not be a state that a simulator can be set to. Its `observation.state` is what the
robot feels of itself, and so is proprioception here.

Legend: N samples and frames, T = N - 1 env steps, A action dims, S state size, P numbers of proprioception; H W height
and width.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from wovr.core.errors import UserError
from wovr.core.types import Actions, Episode, Frames
from wovr.episodes.foreign import Success, resized
from wovr.episodes.lerobot.layout import (
    ACTION,
    INFO,
    PROPRIO,
    REWARD,
    STATE,
    SUCCESS,
    DatasetInfo,
    Facts,
    load_info,
)
from wovr.episodes.lerobot.metadata import Record, load_records, load_tasks, readable
from wovr.episodes.lerobot.video import read_video

ROWS = 128
"""Rows read from a parquet file at a time; they may hold pictures."""


def read_lerobot(
    folder: Path,
    *,
    camera: str | None = None,
    wrist: str | None = None,
    success: Success = "recorded",
    size: int | None = None,
    purpose: str,
    policy: str,
) -> Iterator[Episode]:
    """Episodes of the dataset in `folder`, in its order.

    `camera` and `wrist` are keys of cameras, needed where the dataset has several and does not say which is which;
    `size` makes frames square (`resized`). Recorded success is that of `next.success`, or else a `next.reward` of 0 or
    1. `policy` and `purpose` go to episodes that do not bring their own.
    Metadata are checked here, samples and frames as they are read. Raises UserError naming the file and the episode.
    """
    info = load_info(folder)
    camera, wrist = _choose_cameras(folder, info, camera, wrist)
    if ACTION not in info.features or len(info.features[ACTION].shape) != 1:
        raise UserError(
            f"{folder / INFO}: expected a feature 'action' of one dimension, found {', '.join(info.features)}"
        )
    if success == "recorded" and not {SUCCESS, REWARD} & set(info.features):
        raise UserError(
            f"{folder / INFO}: expected {SUCCESS} or {REWARD} among the features, found neither; "
            "say which frames count as successful: success=last or success=none"
        )
    records = load_records(folder, info, [camera, wrist] if wrist else [camera])
    tasks = load_tasks(folder, info)
    reader = _Reader(folder, info, tasks, camera, wrist, success, size, purpose, policy)
    return reader.episodes(records)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads whole episodes of one dataset; fields as the arguments of `read_lerobot`."""

    folder: Path
    info: DatasetInfo
    tasks: dict[int, str]
    camera: str
    wrist: str | None
    success: Success
    size: int | None
    purpose: str
    policy: str

    @property
    def result(self) -> str | None:
        """The column that tells of success."""
        return next((name for name in (SUCCESS, REWARD) if name in self.info.features), None)

    @property
    def proprio(self) -> bool:
        """Whether there is proprioception: one row of numbers per sample."""
        feature = self.info.features.get(PROPRIO)
        return feature is not None and len(feature.shape) == 1 and feature.dtype.startswith(("float", "int"))

    @property
    def columns(self) -> list[str]:
        """What is read of the parquet files."""
        names = ["timestamp", "frame_index", "episode_index", "task_index", ACTION]
        names += [self.result] if self.result and self.success == "recorded" else []
        names += [STATE] if self.info.wovr and STATE in self.info.features else []
        names += [PROPRIO] if self.proprio else []
        return names + [key for key in (self.camera, self.wrist) if key and self.info.features[key].dtype == "image"]

    def episodes(self, records: Sequence[Record]) -> Iterator[Episode]:
        """Whole episodes; every data file is read once, front to back."""
        for path, group in groupby(records, key=lambda record: record.data):
            samples = _by_episode(path, self.columns)
            for record in group:
                index, table = next(samples, (None, None))
                if table is None or index != record.index or len(table) != record.length:
                    found = "the end of the file" if table is None else f"{len(table)} of episode {index}"
                    raise UserError(f"{path}: expected {record.length} rows of episode {record.index}, found {found}")
                yield self._episode(record, table)

    def _episode(self, record: Record, table: pa.Table) -> Episode:
        place = f"{record.data}: episode {record.index}"
        steps = record.length - 1
        frame_index_N = _numbers(table, "frame_index", place, np.int64)
        if not np.array_equal(frame_index_N, np.arange(record.length)):
            raise UserError(f"{place}: column 'frame_index': expected 0 to {steps} in order, found {frame_index_N}")
        task_N = _numbers(table, "task_index", place, np.int64)
        if len(set(task_N)) > 1 or task_N[0] not in self.tasks:
            raise UserError(
                f"{place}: column 'task_index': expected one task of the {len(self.tasks)} in meta, "
                f"found {', '.join(map(str, sorted(set(task_N))))}"
            )
        facts = record.facts or Facts(
            suite=self.folder.resolve().name,
            task_id=task_N[0],
            init_id=record.index,
            policy=self.policy,
            seed=0,
            purpose=self.purpose,
        )
        states_NS = np.zeros((record.length, 0))
        if STATE in self.columns:
            states_NS = _numbers(table, STATE, place, np.float64).reshape(record.length, -1)
        proprio_NP = None
        if self.proprio:
            proprio_NP = _numbers(table, PROPRIO, place, np.float32).reshape(record.length, -1)
        return Episode(
            frames_THWC=self._frames(record, table, self.camera),
            actions_TA=self._actions(table, place)[:steps],
            success_T=self._success(table, place),
            states_TS=states_NS,
            instruction=self.tasks[task_N[0]],
            wrist_THWC=self._frames(record, table, self.wrist) if self.wrist else None,
            proprio_TP=proprio_NP,
            **facts.model_dump(),
        )

    def _actions(self, table: pa.Table, place: str) -> Actions:
        action_dim = self.info.features[ACTION].shape[0]
        actions_NA = _numbers(table, ACTION, place, np.float32).reshape(len(table), -1)
        if actions_NA.shape[1] != action_dim:
            raise UserError(f"{place}: expected {action_dim} action numbers, found {actions_NA.shape[1]}")
        return actions_NA

    def _success(self, table: pa.Table, place: str) -> NDArray[np.bool_]:
        """(T,), see `Success` and the module's docstring."""
        steps = len(table) - 1
        success_T = np.zeros(steps, dtype=np.bool_)
        if self.success == "last":
            success_T[-1:] = True
        if self.success == "recorded":
            assert self.result is not None
            result_N = _numbers(table, self.result, place, np.float64)
            strange = result_N[(result_N != 0) & (result_N != 1)]
            if len(strange):
                raise UserError(
                    f"{place}: column {self.result!r}: expected 0 or 1, found {strange[0]:g}; "
                    "say which frames count as successful: success=last or success=none"
                )
            success_T = result_N[:steps] == 1
            success_T[-1:] |= result_N[-1] == 1
        return success_T

    def _frames(self, record: Record, table: pa.Table, camera: str) -> Frames:
        if camera not in record.clips:
            return _pictures(table, camera, self.size, f"{record.data}: episode {record.index}")
        clip = record.clips[camera]
        place = f"{clip.path}: episode {record.index}"
        times_N = clip.start + _numbers(table, "timestamp", place, np.float64)
        try:
            return read_video(clip.path, times_N, self.info.fps, self.size, clip.whole)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None


def _choose_cameras(folder: Path, info: DatasetInfo, camera: str | None, wrist: str | None) -> tuple[str, str | None]:
    """The two keys; by default those that wovr wrote, or the only camera and none."""
    if info.wovr:
        camera, wrist = camera or info.wovr.camera, wrist or info.wovr.wrist
    if camera is None and len(info.cameras) == 1:
        camera = info.cameras[0]
    if camera is None:
        found = f"{len(info.cameras)}: {', '.join(info.cameras)}" if info.cameras else "none"
        raise UserError(f"{folder / INFO}: expected one colour camera or the key of one as camera, found {found}")
    for key in (camera, wrist):
        if key is not None and key not in info.cameras:
            raise UserError(f"{folder / INFO}: camera {key!r}: expected one of {', '.join(info.cameras)}")
    return camera, wrist


def _by_episode(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    """(episode index, its rows) for every run of rows of one episode."""
    pending: list[pa.RecordBatch] = []
    current = -1
    with readable(path), pq.ParquetFile(path) as file:
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise UserError(f"{path}: expected a column {missing[0]!r}, found {', '.join(file.schema_arrow.names)}")
        for batch in file.iter_batches(ROWS, columns=list(columns)):
            index_N = batch.column("episode_index").to_numpy(zero_copy_only=False)
            cuts = np.flatnonzero(np.diff(index_N)) + 1
            for start, stop in pairwise([0, *cuts.tolist(), len(batch)]):
                if pending and index_N[start] != current:
                    yield current, pa.Table.from_batches(pending)
                    pending = []
                current = int(index_N[start])
                pending.append(batch.slice(start, stop - start))
        if pending:
            yield current, pa.Table.from_batches(pending)


def _numbers(table: pa.Table, name: str, place: str, dtype: type[np.generic]) -> NDArray[Any]:
    """A column as (N,) or (N, M) finite numbers; UserError where some are missing or not finite."""
    try:
        values = np.array(table[name].to_pylist(), dtype=dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{place}: column {name!r}: expected numbers, found {error}") from None
    if not np.isfinite(values).all():
        raise UserError(f"{place}: column {name!r}: expected finite numbers, found {values[~np.isfinite(values)][0]}")
    return values


def _pictures(table: pa.Table, camera: str, size: int | None, place: str) -> Frames:
    """(N, H, W, 3) from a column of encoded pictures, {bytes, path} each."""
    frames = []
    for number, picture in enumerate(table[camera].to_pylist()):
        try:
            frames.append(resized(np.asarray(Image.open(io.BytesIO(picture["bytes"])).convert("RGB")), size))
        except (OSError, ValueError, TypeError, KeyError, Image.DecompressionBombError) as error:
            raise UserError(f"{place}: column {camera!r}, sample {number}: expected a picture, found {error}") from None
    if len({frame.shape for frame in frames}) > 1:
        raise UserError(f"{place}: column {camera!r}: expected pictures of one size, found several")
    return np.stack(frames)
