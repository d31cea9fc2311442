"""Frames that are read when they are asked for: the same as arrays, within a budget of memory."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.episodes.test_store import destroy, make_episode
from wovr.core.errors import UserError
from wovr.core.types import Video
from wovr.episodes.store import EpisodeStore
from wovr.episodes.video import FrameMemory

ROWS: list[Any] = [
    0,
    -1,
    np.int64(7),
    slice(None),
    slice(3, 9),
    slice(8, None, -3),
    slice(5, 5),
    np.array([4, 4, 4, 5]),
    np.array([[9, 0], [2, 9]]),
    np.array([-1, 3]),
    np.array([], dtype=np.int64),
]
SIZE = 11 * 8 * 8 * 3
"""Bytes of one video of `stored`."""


def stored(folder: Path, count: int = 1, limit: float = 0) -> EpisodeStore:
    EpisodeStore(folder).append([make_episode(seed, steps=10) for seed in range(count)])
    return EpisodeStore(folder, FrameMemory(limit))


@pytest.mark.parametrize("limit", [0, SIZE - 1, SIZE])
@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_rows_are_those_of_the_array(tmp_path: Path, rows: Any, limit: float) -> None:
    store, array = stored(tmp_path, limit=limit), make_episode(steps=10).frames_THWC
    video = store.open(store.names[0]).frames_THWC
    for _ in range(2):  # what the first access holds, the second finds
        assert video[rows].dtype == np.uint8
        np.testing.assert_array_equal(video[rows], array[rows])
    assert (video.shape, video.dtype, len(video)) == (array.shape, array.dtype, len(array))


@pytest.mark.parametrize("limit", [0, SIZE])
@pytest.mark.parametrize("rows", [11, -12, np.array([0, 11])], ids=str)
def test_rows_that_do_not_exist(tmp_path: Path, rows: Any, limit: float) -> None:
    store = stored(tmp_path, limit=limit)
    with pytest.raises(IndexError):
        store.open(store.names[0]).frames_THWC[rows]


def test_an_open_episode_is_the_episode_that_is_read(tmp_path: Path) -> None:
    store = stored(tmp_path)
    opened, read = store.open(store.names[0]), store.read(store.names[0])
    assert not isinstance(opened.frames_THWC, np.ndarray) and isinstance(read.frames_THWC, np.ndarray)
    np.testing.assert_array_equal(opened.frames_THWC[:], read.frames_THWC)
    np.testing.assert_array_equal(opened.actions_TA, read.actions_TA)
    np.testing.assert_array_equal(opened.states_TS, read.states_TS)
    assert (opened.instruction, opened.success, opened.init_id) == (read.instruction, read.success, read.init_id)
    store.append([opened])  # and can be stored again
    np.testing.assert_array_equal(store.read(store.names[1]).frames_THWC, read.frames_THWC)


def test_memory_is_shared_held_and_given_back(tmp_path: Path) -> None:
    store = stored(tmp_path, count=3, limit=2 * SIZE)
    videos = [store.open(name).frames_THWC for name in store.names]
    assert store.memory.used == 0, "nothing was asked for"
    for video in videos:
        video[0]
    assert store.memory.used == 2 * SIZE
    store.folder.joinpath("shard_00000.hdf5").unlink()
    store = EpisodeStore(tmp_path / "other", store.memory)  # no file is open any more
    view = videos[0][3:5]
    del videos[0]
    assert store.memory.used == 2 * SIZE, "a view keeps its array"
    del view
    assert store.memory.used == SIZE
    del videos[:], video
    assert store.memory.used == 0


def test_what_is_held_is_read_once(tmp_path: Path) -> None:
    store = stored(tmp_path, limit=SIZE)
    video = store.open(store.names[0]).frames_THWC
    before = video[:]
    destroy(tmp_path / "shard_00000.hdf5", range(0))
    np.testing.assert_array_equal(video[np.array([7, 2])], before[[7, 2]])


def test_without_room_only_the_frames_asked_for_are_read(tmp_path: Path) -> None:
    store, array = stored(tmp_path), make_episode(steps=10).frames_THWC
    destroy(tmp_path / "shard_00000.hdf5", range(4, 8))
    video = store.open(store.names[0]).frames_THWC
    np.testing.assert_array_equal(video[np.array([7, 4, 4])], array[[7, 4, 4]])
    with pytest.raises(UserError, match=r"shard_00000\.hdf5: /data/demo_0/obs/agentview_rgb: expected a complete HDF5"):
        video[np.array([4, 8])]


def test_videos_cross_a_pickle_and_a_fork(tmp_path: Path) -> None:
    store, array = stored(tmp_path, limit=SIZE), make_episode(steps=10).frames_THWC
    video = store.open(store.names[0]).frames_THWC
    video[0]
    assert len(pickle.dumps(video)) < 1000, "its frames stay behind"
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        np.testing.assert_array_equal(pool.submit(frames_of, video, slice(2, 6)).result(), array[2:6])
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(store.open(store.names[0]).frames_THWC[:], array) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def frames_of(video: Video, rows: slice) -> Any:
    return video[rows]
