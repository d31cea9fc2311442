"""What wovr writes as a LeRobot dataset: read back by wovr, and by a reader written from the format's description."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import av
import numpy as np
import pytest

from tests.episodes.lerobot.format_reader import read_dataset
from tests.episodes.lerobot.scenes import FPS, make_episode, psnr
from wovr.core.errors import UserError
from wovr.core.types import Episode
from wovr.episodes.lerobot import files, load_info, read_lerobot, write_lerobot

CAMERA, WRIST = "observation.images.image", "observation.images.image2"
BOTH = pytest.mark.parametrize("version", ["v2.1", "v3.0"])
LOSS = 36.0
"""dB that every episode's frames keep; measured 37 to 42. yuv420p alone leaves 39 to 43 of these sharp edges."""


def read(folder: Path, **arguments: object) -> list[Episode]:
    return list(read_lerobot(folder, purpose="convert", policy="human", **arguments))


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits so small that a few episodes need several files and chunks."""
    monkeypatch.setattr(files, "CHUNKS_SIZE", 2)
    monkeypatch.setattr(files, "DATA_FILE_MB", 0.008)
    monkeypatch.setattr(files, "VIDEO_FILE_MB", 0.005)
    monkeypatch.setattr("wovr.episodes.lerobot.write.CHUNKS_SIZE", 2)
    monkeypatch.setattr(files, "BUFFERED", 4)


@BOTH
@pytest.mark.parametrize("wrist", [False, True])
def test_all_but_the_frames_comes_back_exactly(tmp_path: Path, version: str, wrist: bool, small_files: None) -> None:
    episodes = [make_episode(seed, steps, wrist=wrist) for seed, steps in enumerate((9, 4, 12, 0, 1, 7))]
    write_lerobot(tmp_path / "set", iter(episodes), version=version, fps=FPS)
    for episode, back in zip(episodes, read(tmp_path / "set"), strict=True):
        for field in fields(Episode):
            a, b = getattr(episode, field.name), getattr(back, field.name)
            if field.name in ("frames_THWC", "wrist_THWC") and a is not None:
                assert a.shape == b.shape and psnr(a, b) > LOSS
            elif isinstance(a, np.ndarray):
                assert a.dtype == b.dtype, field.name
                np.testing.assert_array_equal(a, b, err_msg=field.name)
            else:
                assert a == b, field.name
    info = load_info(tmp_path / "set")
    assert (info.total_episodes, info.total_frames) == (6, sum(len(e) + 1 for e in episodes))
    assert info.cameras == ([CAMERA, WRIST] if wrist else [CAMERA])


@BOTH
@pytest.mark.parametrize("size", [8, 1])
def test_proprioception_is_lerobots_observation_state(tmp_path: Path, version: str, size: int) -> None:
    felt = np.random.default_rng(0).normal(size=(10, size)).astype(np.float32)
    episodes = [replace(make_episode(seed, 9 - seed), proprio_TP=felt[seed:]) for seed in range(2)]
    write_lerobot(tmp_path / "set", episodes, version=version, fps=FPS)
    for number, back in enumerate(read(tmp_path / "set")):
        assert back.proprio_TP is not None and back.proprio_TP.dtype == np.float32
        np.testing.assert_array_equal(back.proprio_TP, felt[number:])
        np.testing.assert_array_equal(back.states_TS, episodes[number].states_TS)
    info, recordings, stats = read_dataset(tmp_path / "set")
    feature = info["features"]["observation.state"]
    assert (feature["dtype"], feature["shape"]) == ("float32", [size])
    np.testing.assert_allclose(recordings[1].columns["observation.state"].reshape(-1, size), felt[1:])
    found = stats if version == "v3.0" else stats[0]
    assert np.shape(found["observation.state"]["mean"]) == (size,)
    with pytest.raises(UserError, match=r"observation\.state: expected shape .* as before, found \[\]"):
        write_lerobot(tmp_path / "mixed", [episodes[0], make_episode(1, 4)], version=version, fps=FPS)


@BOTH
def test_frames_are_those_of_the_encoded_stream(tmp_path: Path, version: str, small_files: None) -> None:
    """The only loss is the encoder's: decoding all videos from front to back gives the same frames, in order."""
    episodes = [make_episode(seed, steps) for seed, steps in enumerate((9, 4, 12, 5))]
    write_lerobot(tmp_path / "set", episodes, version=version, fps=FPS)
    decoded = []
    for path in sorted((tmp_path / "set/videos").rglob("*.mp4")):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.average_rate == stream.base_rate == FPS
            for number, frame in enumerate(container.decode(stream)):
                assert frame.pts * frame.time_base * FPS == number, "exact, in the container's own ticks"
                decoded.append(frame.to_ndarray(format="rgb24"))
    back = np.concatenate([episode.frames_THWC for episode in read(tmp_path / "set")])
    np.testing.assert_array_equal(back, np.stack(decoded))


@BOTH
def test_a_reader_of_the_format_finds_everything(tmp_path: Path, version: str, small_files: None) -> None:
    episodes = [make_episode(seed, steps, wrist=True) for seed, steps in enumerate((9, 4, 12, 3))]
    write_lerobot(tmp_path / "set", episodes, version=version, fps=FPS, robot="panda")
    info, recordings, stats = read_dataset(tmp_path / "set")
    assert info["total_episodes"] == len(recordings) == 4 and info["total_tasks"] == 2
    assert info["total_frames"] == 28 + 4 and info["fps"] == FPS and info["robot_type"] == "panda"
    assert info["splits"] == {"train": "0:4"} and info["wovr"]["padded_samples"] == 1
    first = 0
    for number, (episode, found) in enumerate(zip(episodes, recordings, strict=True)):
        samples = len(episode) + 1
        assert found.task == episode.instruction and found.meta["tasks"] == [episode.instruction]
        assert found.meta["length"] == samples and found.meta["episode_index"] == number
        for camera, frames in ((CAMERA, episode.frames_THWC), (WRIST, episode.wrist_THWC)):
            assert frames is not None and found.frames[camera].shape == frames.shape
            assert info["features"][camera]["shape"] == list(frames.shape[1:])
            assert psnr(found.frames[camera], frames) > LOSS
        columns = found.columns
        np.testing.assert_array_equal(columns["action"][:-1].astype(np.float32), episode.actions_TA)
        np.testing.assert_array_equal(columns["action"][-1], [0, 0, -1])
        np.testing.assert_array_equal(columns["observation.environment_state"], episode.states_TS)
        assert columns["next.success"].tolist() == [*episode.success_T, episode.success_T[-1]]
        assert columns["next.reward"].tolist() == columns["next.success"].tolist()
        assert columns["next.done"].tolist() == [False] * (samples - 1) + [True]
        np.testing.assert_allclose(columns["timestamp"], np.arange(samples) / FPS, atol=1e-6)
        assert columns["frame_index"].tolist() == list(range(samples))
        assert columns["index"].tolist() == list(range(first, first + samples))
        assert set(columns["episode_index"]) == {number}
        assert set(columns) == {name for name, about in info["features"].items() if about["dtype"] != "video"}
        by_name = {key.removeprefix("wovr/"): value for key, value in found.meta.items()}
        assert (by_name["suite"], by_name["task_id"], by_name["seed"]) == ("tabletop", episode.task_id, episode.seed)
        assert by_name["success"] == episode.success
        first += samples
    names = {"min", "max", "mean", "std", "count"}
    names |= {"q01", "q10", "q50", "q90", "q99"} if version == "v3.0" else set()
    for by_feature in [stats] if version == "v3.0" else stats.values():
        assert set(by_feature) == set(info["features"])
        assert all(set(values) == names for values in by_feature.values())
        assert np.shape(by_feature[CAMERA]["mean"]) == (3, 1, 1) and np.shape(by_feature["action"]["mean"]) == (3,)
        assert np.shape(by_feature["index"]["mean"]) == (1,)
    if version == "v3.0":
        actions = np.concatenate([found.columns["action"] for found in recordings])
        np.testing.assert_allclose(stats["action"]["mean"], actions.mean(0), rtol=1e-6)
        np.testing.assert_allclose(stats["action"]["std"], actions.std(0), rtol=1e-6)
        pixels = np.concatenate([e.frames_THWC.reshape(-1, 3) for e in episodes]) / 255
        np.testing.assert_allclose(np.ravel(stats[CAMERA]["std"]), pixels.std(0), rtol=1e-6)
        np.testing.assert_allclose(np.ravel(stats[CAMERA]["max"]), pixels.max(0))
        assert stats["action"]["count"] == [32] and recordings[0].meta["stats/action/count"] == [10]


@BOTH
def test_files_and_chunks_are_as_small_as_asked(tmp_path: Path, version: str, small_files: None) -> None:
    write_lerobot(tmp_path / "set", [make_episode(i, 30) for i in range(6)], version=version, fps=FPS)
    folder = tmp_path / "set"
    data, videos = sorted(folder.glob("data/*/*")), sorted(folder.glob("videos/**/*.mp4"))
    assert len(data) > 2 and len(videos) > 2
    assert len({path.parent for path in data}) > 1 and len({path.parent for path in videos}) > 1
    if version == "v3.0":
        assert len(data) < 6 and len(list(folder.glob("meta/episodes/*/*"))) >= 1
        assert all(path.stat().st_size < 0.012 * 2**20 for path in data)


@BOTH
def test_one_number_actions_and_no_states(tmp_path: Path, version: str) -> None:
    episode = make_episode(0, 5, states=0, action_dim=1)
    write_lerobot(tmp_path / "set", [episode], version=version, fps=FPS)
    (back,) = read(tmp_path / "set")
    np.testing.assert_array_equal(back.actions_TA, episode.actions_TA)
    assert back.states_TS.shape == (6, 0)


@BOTH
def test_a_copy_without_the_extra_keys_is_a_plain_dataset(tmp_path: Path, version: str) -> None:
    """LeRobot's own tools drop keys that they do not know; samples and text survive that."""
    episode = make_episode(2, 6)
    write_lerobot(tmp_path / "set", [episode], version=version, fps=FPS)
    path = tmp_path / "set/meta/info.json"
    info = json.loads(path.read_text())
    del info["wovr"]
    path.write_text(json.dumps(info))
    (back,) = read(tmp_path / "set")
    np.testing.assert_array_equal(back.actions_TA, episode.actions_TA)
    np.testing.assert_array_equal(back.success_T, episode.success_T)
    assert (back.instruction, back.suite, back.policy, back.purpose) == (episode.instruction, "set", "human", "convert")


@BOTH
def test_nothing_half_written_appears(tmp_path: Path, version: str) -> None:
    def broken() -> object:
        yield make_episode(0, 4)
        raise RuntimeError("the source ends here")

    with pytest.raises(RuntimeError, match="the source ends here"):
        write_lerobot(tmp_path / "set", broken(), version=version, fps=FPS)
    with pytest.raises(UserError, match="expected episodes to write, found none"):
        write_lerobot(tmp_path / "set", [], version=version, fps=FPS)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="set: expected a folder that does not exist yet"):
        write_lerobot(tmp_path / "set", [make_episode(0, 4)], version=version, fps=FPS)


def nan_actions(episode: Episode) -> Episode:
    return replace(episode, actions_TA=np.full_like(episode.actions_TA, np.nan))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (make_episode(1, 4, states=6), r"observation.environment_state: expected shape \[5\] .* found \[6\]; leave"),
        (make_episode(1, 4, states=0), r"observation.environment_state: expected shape \[5\] as before, found \[\]"),
        (make_episode(1, 4, action_dim=4), r"action: expected shape \[3\] as before, found \[4\]"),
        (make_episode(1, 4, wrist=True), r"image2: expected shape \[\] as before, found \[32, 40, 3\]"),
        (nan_actions(make_episode(1, 4)), "action: expected finite numbers"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, second: Episode, message: str) -> None:
    with pytest.raises(UserError, match=f"episode 1: .*{message}"):
        write_lerobot(tmp_path / "set", [make_episode(0, 4), second], version="v3.0", fps=FPS)


def test_states_of_several_sizes_can_be_left_out(tmp_path: Path) -> None:
    episodes = [make_episode(0, 4, states=5), make_episode(1, 4, states=7)]
    write_lerobot(tmp_path / "set", episodes, version="v3.0", fps=FPS, states=False)
    assert [episode.states_TS.shape for episode in read(tmp_path / "set")] == [(5, 0), (5, 0)]


def test_odd_frames_are_refused(tmp_path: Path) -> None:
    episode = make_episode(0, 4)
    odd = replace(episode, frames_THWC=np.ascontiguousarray(episode.frames_THWC[:, :47]))
    with pytest.raises(UserError, match=r"expected frames of even height and width, found \[47, 48\]"):
        write_lerobot(tmp_path / "set", [odd], version="v2.1", fps=FPS)


def test_the_episode_store_does_not_load_pyarrow_and_av() -> None:
    program = "import sys, wovr.episodes.store; sys.exit(bool({'pyarrow', 'av'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_missing_packages_are_named_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "pyarrow.py").write_text("raise ModuleNotFoundError(\"No module named 'pyarrow'\")")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from wovr.core.errors import UserError\n"
        "try:\n    import wovr.episodes.lerobot\nexcept UserError as error:\n    print(error)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "pip install 'wovr[lerobot]'" in said and "No module named 'pyarrow'" in said and said.count("\n") == 1
