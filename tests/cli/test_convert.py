"""`wovr convert` from outside: every way between formats, what the caller may say, and one line per error."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner, Result
from wovr_cli.main import app

from tests.episodes.demos import STEPS, recording, write_libero_own, write_robomimic
from wovr.core.types import Episode
from wovr.episodes.store import EpisodeStore
from wovr.kir.bank import KeyframeBank
from wovr.kir.mine import FIRST_FRAME, start_state
from wovr.stages import convert as stage


def convert(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["convert", *(str(argument) for argument in arguments), "--plain"])


def done(*arguments: object) -> str:
    result = convert(*arguments)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 1, result.stdout
    return lines[0]


def refused(*arguments: object) -> str:
    result = convert(*arguments)
    assert result.exit_code == 2 and result.stdout == "", result.output
    lines = [line for line in result.stderr.splitlines() if not line.startswith("convert ")]  # progress
    assert len(lines) == 1 and lines[0].startswith("wovr: "), result.stderr
    return lines[0]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def demos(tmp_path: Path) -> Path:
    """Two tasks of LIBERO, two demonstrations of one and one of the other."""
    folder = tmp_path / "datasets" / "libero_goal"
    write_libero_own(folder / "put_the_bowl_on_the_stove_demo.hdf5", [0, 1])
    write_libero_own(folder / "unheard_of_demo.hdf5", [2])
    return folder


@pytest.fixture
def store(tmp_path: Path, demos: Path) -> Path:
    done(demos, tmp_path / "store")
    return tmp_path / "store"


def assert_same(left: Path, right: Path, **but: object) -> None:
    pairs = zip(EpisodeStore(left).iter(), EpisodeStore(right).iter(), strict=True)
    for a, b in ((replace(a, **but), replace(b, **but)) for a, b in pairs):
        for field in fields(Episode):
            np.testing.assert_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


def test_demonstrations_become_episodes_of_a_run(tmp_path: Path, demos: Path) -> None:
    target = tmp_path / "runs" / "goal" / "episodes"
    said = done(demos, target)
    frames = 3 * STEPS
    assert re.fullmatch(rf"{target}: 3 episodes, {frames} frames, success 100\.0 %, \d+\.\d MB", said), said
    episodes = list(EpisodeStore(target).iter())
    stove = "put the bowl on the stove"
    assert [episode.instruction for episode in episodes] == [stove, stove, "unheard of"]
    assert [episode.task_id for episode in episodes] in ([1, 1, 1], [0, 0, 1]), "LIBERO's number, or the file's"
    assert {(episode.suite, episode.purpose) for episode in episodes} == {("libero_goal", "demonstrations")}
    np.testing.assert_array_equal(episodes[2].frames_THWC, recording(2)["frames"][1:])


def test_what_the_caller_says_goes_first(tmp_path: Path, demos: Path) -> None:
    given = ("--purpose", "collect", "--size", 16, "--success", "none", "--instruction", "do it", "--task", 7)
    assert "success 0.0 %" in done(demos, tmp_path / "a", *given, "--camera", "eye_in_hand_rgb")
    done(tmp_path / "a", tmp_path / "b", "--to", "episodes", "--size", 8, "--success", "last", "--purpose", "refine-1")
    for folder, purpose, size in (("a", "collect", 16), ("b", "refine-1", 8)):
        for episode in EpisodeStore(tmp_path / folder).iter():
            assert (episode.purpose, episode.task_id, episode.instruction) == (purpose, 7, "do it")
            assert episode.frames_THWC.shape[1:] == (size, size, 3) == episode.wrist_THWC.shape[1:]
            assert episode.success_T.tolist() == [False] * (STEPS - 2) + [folder == "b"]


def test_the_store_goes_to_libero_and_back_exactly(tmp_path: Path, store: Path) -> None:
    done(store, tmp_path / "libero_goal", "--to", "libero")
    assert files(tmp_path / "libero_goal") == ["put_the_bowl_on_the_stove_demo.hdf5", "unheard_of_demo.hdf5"]
    done(tmp_path / "libero_goal", tmp_path / "again")
    assert_same(store, tmp_path / "again")
    done(store / "shard_00000.hdf5", tmp_path / "from_a_shard")
    assert_same(store, tmp_path / "from_a_shard")


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_the_store_goes_to_lerobot_and_back(tmp_path: Path, store: Path, version: str) -> None:
    pytest.importorskip("av")
    done(store, tmp_path / "large", "--to", "episodes", "--size", 64)  # video codecs want some pixels
    done(tmp_path / "large", tmp_path / "set", "--to", f"lerobot-{version}", "--fps", 10)
    info = json.loads((tmp_path / "set" / "meta" / "info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_episodes"]) == (version, 10, 3)
    assert stage.recognise(tmp_path / "set") == f"lerobot-{version}"
    done(tmp_path / "set", tmp_path / "again")
    blank = np.zeros((STEPS, 64, 64, 3), dtype=np.uint8)
    assert_same(tmp_path / "large", tmp_path / "again", frames_THWC=blank, wrist_THWC=blank)
    done(tmp_path / "set", tmp_path / "other", "--to", "libero", "--purpose", "collect")
    assert len(files(tmp_path / "other")) == 2


def test_keyframes_go_to_published_files_and_back(tmp_path: Path) -> None:
    made = recording(0, steps=20)
    episode = Episode(
        made["frames"],
        made["actions"].astype(np.float32),
        np.zeros(20, dtype=np.bool_),
        made["states"],
        *("close it", "libero_goal", 0, 0, "base", 0, "collect"),
    )
    steps = {0: FIRST_FRAME, 9: "gripper"}
    bank = KeyframeBank(start_state(episode, "demo_0", step, reason, 4) for step, reason in steps.items())
    bank.save(tmp_path / "bank.safetensors")
    assert "expected --to with one of keyframes, npy" in refused(tmp_path / "bank.safetensors", tmp_path / "dataset")
    said = done(tmp_path / "bank.safetensors", tmp_path / "dataset", "--to", "npy")
    assert re.fullmatch(rf"{tmp_path}/dataset: 2 start states, \d+\.\d MB", said), said
    assert files(tmp_path / "dataset") == ["traj0.npy", "traj0_kir.npy"]
    done(tmp_path / "dataset", tmp_path / "new" / "again.safetensors")
    again = KeyframeBank.load(tmp_path / "new" / "again.safetensors")
    for old, new in zip(bank, again, strict=True):
        np.testing.assert_array_equal(old.memory_MHWC, new.memory_MHWC)
    assert "expected a .safetensors file" in refused(tmp_path / "dataset", tmp_path / "new" / "again.safetensors")
    assert "expected a .safetensors file" in refused(tmp_path / "dataset", tmp_path / "bank")
    assert "expected keyframes, npy to convert npy to, found --to libero" in refused(
        tmp_path / "dataset", tmp_path / "x", "--to", "libero"
    )


def test_memory_holds_one_batch(tmp_path: Path, demos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "BATCH_BYTES", 1)
    done(demos, tmp_path / "store")
    assert files(tmp_path / "store") == [f"shard_0000{number}.hdf5" for number in range(3)]
    monkeypatch.setattr(stage, "BATCH", 2)
    monkeypatch.setattr(stage, "BATCH_BYTES", 10**9)
    done(demos, tmp_path / "pairs")
    assert files(tmp_path / "pairs") == [f"shard_0000{number}.hdf5" for number in range(2)]


def test_the_same_episodes_are_not_added_twice(tmp_path: Path, demos: Path, store: Path) -> None:
    before = files(store)
    assert "expected no episodes of purpose 'demonstrations' yet, found some" in refused(demos, store)
    assert files(store) == before
    done(demos, store, "--purpose", "collect")
    done(demos, store, "--append")
    purposes = [EpisodeStore(store).info(name).purpose for name in EpisodeStore(store).names]
    assert purposes == ["demonstrations"] * 3 + ["collect"] * 3 + ["demonstrations"] * 3


def test_a_damaged_source_leaves_nothing_behind(tmp_path: Path, demos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "BATCH", 1)
    with h5py.File(demos / "unheard_of_demo.hdf5", "r+") as file:
        del file["data/demo_0/actions"]
    for to in ("episodes", "libero"):
        said = refused(demos, tmp_path / "new" / "place", "--to", to)
        assert "unheard_of_demo.hdf5: demo_0: expected a complete HDF5 episode" in said
        assert not (tmp_path / "new").exists()
    (tmp_path / "store").mkdir()
    done(demos / "put_the_bowl_on_the_stove_demo.hdf5", tmp_path / "store")
    before = files(tmp_path / "store")
    refused(demos, tmp_path / "store", "--append")
    assert files(tmp_path / "store") == before, "what was there stays"
    (demos / "unheard_of_demo.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n")
    assert "unheard_of_demo.hdf5: expected a complete HDF5" in refused(demos, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_interrupted(tmp_path: Path, demos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "BATCH", 1)
    append = EpisodeStore.append

    def interrupt(self: EpisodeStore, episodes: list[Episode]) -> list[str]:
        if len(self) == 1:
            raise KeyboardInterrupt
        return append(self, episodes)

    monkeypatch.setattr(EpisodeStore, "append", interrupt)
    assert convert(demos, tmp_path / "store").exit_code == 130
    assert not (tmp_path / "store").exists()


def test_bad_input_is_one_line(tmp_path: Path, demos: Path, store: Path) -> None:
    target = tmp_path / "target"
    assert "none: expected a folder of episodes" in refused(tmp_path / "none", target)
    (tmp_path / "cat.png").touch()
    assert "found something else" in refused(tmp_path / "cat.png", target)
    assert "--to: expected episodes, lerobot-v2.1, " in refused(demos, target, "--to", "zarr")
    assert "--success: expected recorded, last, none, found 'maybe'" in refused(demos, target, "--success", "maybe")
    assert "--purpose: expected collect, demonstrations or refine-1, ..." in refused(
        demos, target, "--purpose", "train"
    )
    assert "expected --to with one of episodes, lerobot-v2.1, " in refused(store, target)
    assert "expected another place than the source's" in refused(store, store, "--to", "episodes", "--append")
    assert "--camera: expected none with episodes" in refused(store, target, "--to", "libero", "--camera", "top")
    write_robomimic(tmp_path / "lift.hdf5", 0, next_obs=True)
    assert "lift.hdf5: expected an instruction in the file" in refused(tmp_path / "lift.hdf5", target)
    assert "found 'front' asked for" in refused(demos, target, "--camera", "front")
    (tmp_path / "set" / "meta").mkdir(parents=True)
    (tmp_path / "set" / "meta" / "info.json").write_text('{"codebase_version": "v1.6"}')
    pytest.importorskip("av")
    assert "info.json: key 'codebase_version'" in refused(tmp_path / "set", target)
    assert not target.exists()


def test_other_files_are_not_mixed_with_episodes(tmp_path: Path, demos: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").touch()
    assert f"its episodes belong in {tmp_path}/run/episodes" in refused(demos, tmp_path / "run")
    assert files(tmp_path / "run") == ["manifest.json"]
    assert "expected a new or empty folder" in refused(demos, tmp_path / "run", "--to", "libero")


def test_help_loads_no_torch_and_fits_a_terminal() -> None:
    script = (
        "import sys\nfrom wovr_cli.main import main\nsys.argv = ['wovr', 'convert', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0, end.code\n"
        "assert 'torch' not in sys.modules, 'torch was loaded'\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert all(len(line) <= 79 for line in found.stdout.splitlines())
    for kind in ("episodes", "lerobot-v2.1", "lerobot-v3.0", "libero", "keyframes", "npy"):
        assert re.search(rf"^    {kind} ", found.stdout, re.MULTILINE), kind
