"""The episode store: layout, round trips, cost of windows, bad files."""

from __future__ import annotations

import json
import os
import tracemalloc
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from wovr.core.errors import UserError
from wovr.core.types import Episode
from wovr.episodes import video
from wovr.episodes.store import EpisodeStore


def make_episode(seed: int = 0, steps: int = 9, size: int = 8, action_dim: int = 3, states: int = 5) -> Episode:
    rng = np.random.default_rng(seed)
    return Episode(
        frames_THWC=rng.integers(0, 256, (steps + 1, size, size, 3), dtype=np.uint8),
        actions_TA=rng.normal(size=(steps, action_dim)).astype(np.float32),
        success_T=rng.random(steps) < 0.3,
        states_TS=rng.normal(size=(steps + 1, states)),
        instruction="put the red block on the green plate",
        suite="tabletop",
        task_id=seed % 4,
        init_id=seed,
        policy="base",
        seed=seed,
        purpose="collect",
    )


def assert_same(left: Episode, right: Episode) -> None:
    for field in fields(Episode):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, field.name
            np.testing.assert_array_equal(a, b, err_msg=field.name)
        else:
            assert a == b and type(a) is type(b), field.name


def test_round_trip_is_exact(tmp_path: Path) -> None:
    episodes = [make_episode(0), make_episode(1, steps=4, states=0), make_episode(2, steps=0), make_episode(3, steps=1)]
    names = EpisodeStore(tmp_path).append(episodes)
    assert names == [f"shard_00000/demo_{i}" for i in range(4)]
    store = EpisodeStore(tmp_path)
    assert store.names == names and len(store) == 4
    for name, episode in zip(names, episodes, strict=True):
        assert_same(store.read(name), episode)
        actions_TA, success_T = store.steps(name)
        np.testing.assert_array_equal(actions_TA, episode.actions_TA)
        np.testing.assert_array_equal(success_T, episode.success_T)
        info = store.info(name)
        assert (info.length, info.success, info.seed) == (len(episode), episode.success, episode.seed)


def test_proprioception_is_kept_where_there_is_some(tmp_path: Path) -> None:
    felt = np.random.default_rng(0).normal(size=(10, 8)).astype(np.float32)
    plain, feeling = make_episode(0), replace(make_episode(1), proprio_TP=felt)
    still = replace(make_episode(2, steps=0), proprio_TP=felt[:1])
    names = EpisodeStore(tmp_path).append([plain, feeling, still])
    store = EpisodeStore(tmp_path)
    for name, episode in zip(names, (plain, feeling, still), strict=True):
        assert_same(store.read(name), episode)
        opened = store.open(name).proprio_TP
        assert np.array_equal(opened, episode.proprio_TP) if opened is not None else episode is plain
    with h5py.File(tmp_path / "shard_00000.hdf5", locking=False) as file:
        assert "proprio" not in file["data/demo_0/obs"], "as earlier versions wrote all of theirs"
        assert file["data/demo_1/obs/proprio"].shape == (10, 8) and file["data/demo_1/obs/proprio"].dtype == np.float32


def test_a_second_camera_is_kept_where_there_is_one(tmp_path: Path) -> None:
    plain, seen = make_episode(0), replace(make_episode(1), wrist_THWC=make_episode(2).frames_THWC)
    store = EpisodeStore(tmp_path)
    for name, episode in zip(store.append([plain, seen]), (plain, seen), strict=True):
        assert_same(store.read(name), episode)


def test_more_than_ten_episodes_and_shards_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_OPEN_FILES", 16)
    store = EpisodeStore(tmp_path)
    for batch in range(20):  # more shards than files held open
        store.append([make_episode(batch * 12 + i, steps=1) for i in range(12 if batch < 2 else 1)])
    reopened = EpisodeStore(tmp_path)
    assert reopened.names == store.names
    assert [e.seed for e in reopened.iter()] == [*range(24), *range(24, 240, 12)]


def test_purpose_selects(tmp_path: Path) -> None:
    store = EpisodeStore(tmp_path)
    store.append([make_episode(0), replace(make_episode(1), purpose="refine-1"), make_episode(2)])
    assert [e.seed for e in store.iter()] == [0, 1, 2]
    assert [e.seed for e in store.iter("refine-1")] == [1]


def test_plain_h5py_sees_the_libero_layout(tmp_path: Path) -> None:
    episode = replace(make_episode(steps=6), success_T=np.array([0, 0, 0, 0, 1, 1], dtype=np.bool_))
    EpisodeStore(tmp_path).append([episode, make_episode(1, steps=2)])
    with h5py.File(tmp_path / "shard_00000.hdf5") as file:
        data = file["data"]
        assert sorted(data) == ["demo_0", "demo_1"]
        assert data.attrs["total"] == 7 + 3
        assert json.loads(data.attrs["problem_info"])["language_instruction"] == episode.instruction
        assert json.loads(data.attrs["env_args"])["env_name"] == "tabletop"
        demo = data["demo_0"]
        lengths = {len(demo[key]) for key in ("obs/agentview_rgb", "actions", "rewards", "dones", "states")}
        assert lengths == {7} == {demo.attrs["num_samples"]}
        assert demo["obs/agentview_rgb"].dtype == np.uint8
        np.testing.assert_array_equal(demo["actions"][-1], [0, 0, -1])
        assert demo["rewards"][:].tolist() == [0, 0, 0, 0, 1, 1, 1]
        assert demo["dones"][:].tolist() == [0, 0, 0, 0, 0, 0, 1]


def destroy(path: Path, spare: range) -> list[tuple[int, ...]]:
    """Overwrite every chunk of the first episode's frames but those of the frames in `spare`; the chunks' places."""
    with h5py.File(path, locking=False) as file:
        dataset = file["data/demo_0/obs/agentview_rgb"]
        chunks = [dataset.id.get_chunk_info(i) for i in range(dataset.id.get_num_chunks())]
    with path.open("r+b") as raw:
        for chunk in chunks:
            if chunk.chunk_offset[0] not in spare:
                raw.seek(chunk.byte_offset)
                raw.write(os.urandom(chunk.size))
    return [chunk.chunk_offset for chunk in chunks]


def test_window_reads_only_its_frames(tmp_path: Path) -> None:
    """Every frame but the window's is destroyed on disk; the window still reads, its neighbour does not."""
    episode = make_episode(steps=20)
    (name,) = EpisodeStore(tmp_path).append([episode])
    assert [place[0] for place in destroy(tmp_path / "shard_00000.hdf5", range(4, 8))] == [0, 4, 8, 12, 16, 20]
    store = EpisodeStore(tmp_path)
    np.testing.assert_array_equal(store.frames(name, 4, 8), episode.frames_THWC[4:8])
    with pytest.raises(UserError, match=r"shard_00000.hdf5: demo_0: expected a complete HDF5 episode"):
        store.frames(name, 4, 9)


def test_a_still_background_is_stored_once_per_chunk(tmp_path: Path) -> None:
    """A frame of 128 px is larger than what gzip looks back on, unless it lies in tiles: noise that stays is found."""
    still = np.repeat(make_episode(size=128).frames_THWC[:1], 12, axis=0)
    episode = replace(make_episode(steps=11), frames_THWC=still)
    EpisodeStore(tmp_path).append([episode])
    assert (tmp_path / "shard_00000.hdf5").stat().st_size < still.nbytes / 3


def test_frames_in_chunks_of_one_are_read(tmp_path: Path) -> None:
    """As earlier versions wrote them, and as other programs may."""
    episode = make_episode(steps=6)
    (name,) = EpisodeStore(tmp_path).append([episode])
    with h5py.File(tmp_path / "shard_00000.hdf5", "r+") as file:
        frames = file["data/demo_0/obs/agentview_rgb"][:]
        del file["data/demo_0/obs/agentview_rgb"]
        file.create_dataset("data/demo_0/obs/agentview_rgb", data=frames, chunks=(1, 8, 8, 3), compression="gzip")
    store = EpisodeStore(tmp_path)
    assert_same(store.read(name), episode)
    np.testing.assert_array_equal(store.open(name).frames_THWC[2:5], episode.frames_THWC[2:5])


def test_a_shard_is_built_in_one_buffer(tmp_path: Path) -> None:
    episodes = [make_episode(seed, steps=15, size=64) for seed in range(8)]  # noise, which does not pack
    store = EpisodeStore(tmp_path)
    tracemalloc.start()
    store.append(episodes)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * (tmp_path / "shard_00000.hdf5").stat().st_size


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_truncated_shard_is_named(tmp_path: Path, keep: float) -> None:
    EpisodeStore(tmp_path).append([make_episode()])
    path = tmp_path / "shard_00000.hdf5"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
    with pytest.raises(UserError, match=r"shard_00000\.hdf5: expected a complete HDF5"):
        EpisodeStore(tmp_path)


def test_vanished_shard_and_unknown_episode_are_named(tmp_path: Path) -> None:
    EpisodeStore(tmp_path).append([make_episode()])
    store = EpisodeStore(tmp_path)
    with pytest.raises(UserError, match=r"shard_00000\.hdf5: demo_7"):
        store.read("shard_00000/demo_7")
    with pytest.raises(UserError, match=r"shard_00001\.hdf5: demo_0"):
        store.info("shard_00001/demo_0")


def test_check_names_what_does_not_fit(tmp_path: Path) -> None:
    store = EpisodeStore(tmp_path / "episodes")
    with pytest.raises(UserError, match=r"expected episodes .* found none"):
        store.check(8, 3)
    store.append([make_episode()])
    store.check(8, 3)
    with pytest.raises(UserError, match=r"shard_00000\.hdf5: demo_0: expected 64x64 .* found 8x8 and 3"):
        store.check(64, 3)
    with pytest.raises(UserError, match=r"7 action numbers, found 8x8 and 3"):
        store.check(8, 7)


def test_a_store_crosses_a_fork(tmp_path: Path) -> None:
    episode = make_episode()
    (name,) = EpisodeStore(tmp_path).append([episode])
    store = EpisodeStore(tmp_path)
    store.frames(name, 0, 1)  # the parent holds the file open
    child = os.fork()
    if child == 0:
        same = np.array_equal(store.read(name).frames_THWC, episode.frames_THWC)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert_same(store.read(name), episode)
