"""Reconstructed episodes: in memory or on disk, made once, the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.stages.test_latents import make_episode, write_codec
from wovr.core.dist import Dist
from wovr.core.errors import UserError
from wovr.core.log import RunLog
from wovr.core.run import RunFolder
from wovr.stages import reconstructions as module
from wovr.stages.experiment import Workplace
from wovr.stages.reconstructions import reconstructions
from wovr.stages.train_codec import reconstruct

EPISODES = [make_episode(number, 16) for number in range(3)]
SIZE = EPISODES[0].frames_THWC[:].nbytes / 1e9


@pytest.fixture
def place(toy, tmp_path: Path):
    """Workplaces of one run folder that hold so many GB of frames."""

    def workplace(limit: float) -> Workplace:
        experiment = toy(f"frame_memory={limit}")
        run = RunFolder.open(tmp_path / "run", experiment.model_dump(mode="json"), ignore={"frame_memory"})
        return Workplace(experiment, run, RunLog(run.path, plain=True), Dist())

    return workplace


@pytest.mark.parametrize(("limit", "files"), [(4.0, 0), (1.5 * SIZE, 2), (0.0, 3)])
def test_what_has_no_room_in_memory_lies_on_disk(place, tmp_path: Path, limit: float, files: int) -> None:
    codec = write_codec(tmp_path / "codec.safetensors")
    for found, episode in zip(reconstructions(place(limit), codec, EPISODES), EPISODES, strict=True):
        np.testing.assert_array_equal(found[:], reconstruct(codec.codec, episode.frames_THWC[:]))
        assert found.shape == episode.frames_THWC.shape
    assert len(list((tmp_path / "run").rglob("reconstructed/*/*.hdf5"))) == files


def test_files_serve_again_but_no_other_codec(place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(module, "reconstruct", lambda codec, frames: made.append(1) or reconstruct(codec, frames))
    codec = write_codec(tmp_path / "codec.safetensors")
    first = reconstructions(place(0), codec, EPISODES[:2])
    again = reconstructions(place(0), codec, EPISODES)
    assert len(made) == 3
    np.testing.assert_array_equal(first[1][:], again[1][:])
    other = reconstructions(place(0), write_codec(tmp_path / "other.safetensors", seed=1), EPISODES[:1])
    assert len(made) == 4 and not np.array_equal(other[0][:], first[0][:])


def test_ranks_share_the_work_by_way_of_the_disk(place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(module, "reconstruct", lambda codec, frames: made.append(1) or reconstruct(codec, frames))
    codec = write_codec(tmp_path / "codec.safetensors")

    def others() -> None:  # while the first rank waits
        assert len(made) == 2
        second = SimpleNamespace(world_size=2, rank=1, barrier=lambda: None)
        reconstructions(replace(here, dist=second), codec, EPISODES)
        assert len(made) == 3

    here = place(4.0)
    found = reconstructions(replace(here, dist=SimpleNamespace(world_size=2, rank=0, barrier=others)), codec, EPISODES)
    assert len(made) == 3 and len(found) == 3
    np.testing.assert_array_equal(found[1][:], reconstruct(codec.codec, EPISODES[1].frames_THWC[:]))


def test_damaged_files_are_named(place, tmp_path: Path) -> None:
    codec = write_codec(tmp_path / "codec.safetensors")
    reconstructions(place(0), codec, EPISODES[:1])
    (path,) = (tmp_path / "run" / "reconstructed").rglob("*.hdf5")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=f"{path.name}: expected a complete HDF5"):
        reconstructions(place(0), codec, EPISODES[:1])
