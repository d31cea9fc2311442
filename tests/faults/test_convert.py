"""`wovr convert` where the source is hostile, the disk is full, or the process is killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.episodes.demos import STEPS, write_libero_own
from wovr.core.errors import UserError
from wovr.core.log import RunLog
from wovr.episodes.store import EpisodeStore
from wovr.stages.convert import Options, convert


class Code:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wovr_cli", "convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_file_with_code_in_it_is_one_line_and_nothing_is_executed(tmp_path: Path) -> None:
    frames = np.empty(1, dtype=object)
    frames[0] = {
        "image": np.zeros((4, 4, 3), np.uint8),
        "delta_action": np.zeros(7),
        "instruction": Code(tmp_path / "x"),
    }
    (tmp_path / "dataset").mkdir()
    np.save(tmp_path / "dataset" / "traj0.npy", frames, allow_pickle=True)
    found = run(tmp_path / "dataset", tmp_path / "new" / "bank.safetensors")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == (
        f"wovr: {tmp_path}/dataset/traj0.npy: expected an array of frames with plain data, "
        "found posix.mkdir in its pickle, which is not executed\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset"]


def test_killed_it_leaves_whole_shards_and_is_not_repeated_on_top(tmp_path: Path) -> None:
    write_libero_own(tmp_path / "a_demo.hdf5", [0, 1, 2])
    child = os.fork()
    if child == 0:
        from wovr.stages import convert as stage

        def killed(self: EpisodeStore, episodes: list, append=EpisodeStore.append) -> list[str]:
            if len(self) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return append(self, episodes)

        stage.BATCH, EpisodeStore.append = 1, killed
        stage.convert(tmp_path / "a_demo.hdf5", tmp_path / "store", None, Options(), RunLog(tmp_path, plain=True))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [len(episode) for episode in EpisodeStore(tmp_path / "store").iter()] == [STEPS - 1] * 2
    found = run(tmp_path / "a_demo.hdf5", tmp_path / "store")
    assert found.returncode == 2 and "expected no episodes of purpose 'demonstrations' yet" in found.stderr
    assert len(EpisodeStore(tmp_path / "store")) == 2


@pytest.mark.parametrize("to", ["episodes", "libero"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_libero_own(tmp_path / "a_demo.hdf5", [0])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("wovr.core.checkpoint.os.replace", full)
    with pytest.raises(UserError, match=r"out.*: expected room to write it, found a full disk"):
        convert(tmp_path / "a_demo.hdf5", tmp_path / "new" / "out", to, Options(), RunLog(tmp_path, plain=True))
    assert [path.name for path in tmp_path.iterdir()] == ["a_demo.hdf5"]
