"""Episodes survive `kill -9` of their writer and a full disk."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wovr.core.errors import UserError
from wovr.core.types import Episode
from wovr.episodes.store import EpisodeStore

BATCH = 3


def episode(number: int) -> Episode:
    """An episode that is a function of its number, so that what is read can be checked."""
    rng = np.random.default_rng(number)
    return Episode(
        frames_THWC=rng.integers(0, 256, (9, 64, 64, 3), dtype=np.uint8),
        actions_TA=rng.normal(size=(8, 3)).astype(np.float32),
        success_T=rng.random(8) < 0.5,
        states_TS=rng.normal(size=(9, 4)),
        instruction="put the red block on the green plate",
        suite="tabletop",
        task_id=0,
        init_id=number,
        policy="base",
        seed=number,
        purpose="collect",
    )


def append_next(store: EpisodeStore) -> None:
    store.append([episode(len(store) + i) for i in range(BATCH)])


def assert_intact(folder: Path) -> int:
    """Every stored episode is the next of its kind and complete; returns how many there are."""
    stored = list(EpisodeStore(folder).iter())
    for number, found in enumerate(stored):
        wanted = episode(number)
        assert found.seed == number
        np.testing.assert_array_equal(found.frames_THWC, wanted.frames_THWC)
        np.testing.assert_array_equal(found.actions_TA, wanted.actions_TA)
        np.testing.assert_array_equal(found.states_TS, wanted.states_TS)
    return len(stored)


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked process; returns its process id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return child


def test_kill_at_random_moments_loses_no_finished_batch(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    finished = 0
    for attempt in itertools.count():
        if attempt >= 25 and finished:
            break
        read_end, write_end = os.pipe()

        def write_forever(acknowledge: int = write_end) -> None:
            store = EpisodeStore(tmp_path)
            while True:
                append_next(store)
                os.write(acknowledge, b"x")

        child = in_child(write_forever)
        os.close(write_end)
        time.sleep(rng.uniform(0.0, 0.06) * (1 + attempt // 25))  # a busy machine gets more time
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        with os.fdopen(read_end, "rb") as acknowledged:
            finished += BATCH * len(acknowledged.read())
        stored = assert_intact(tmp_path)
        assert stored in (finished, finished + BATCH)  # killed between the rename and the acknowledgement
        finished = stored


@pytest.mark.parametrize("moment", ["write_bytes", "fsync", "replace"])
def test_kill_before_the_rename_leaves_only_a_leftover_that_the_next_append_removes(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_next(EpisodeStore(tmp_path))

    def die(*arguments: object) -> None:
        if moment == "write_bytes":
            with open(str(arguments[0]), "wb") as half:
                half.write(b"half a shard")
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(Path if moment == "write_bytes" else os, moment, die)
        child = in_child(lambda: append_next(EpisodeStore(tmp_path)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2, "one shard and a leftover"
    assert assert_intact(tmp_path) == BATCH
    append_next(EpisodeStore(tmp_path))
    assert assert_intact(tmp_path) == 2 * BATCH
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shard_00000.hdf5", "shard_00001.hdf5"]


def test_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EpisodeStore(tmp_path)
    append_next(store)

    def fill(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fill)
        with pytest.raises(UserError, match=r"shard_00001\.hdf5: .*full disk"):
            append_next(store)
    assert [path.name for path in tmp_path.iterdir()] == ["shard_00000.hdf5"]
    assert len(store) == BATCH
    append_next(store)  # the same store goes on once there is room
    assert assert_intact(tmp_path) == 2 * BATCH
