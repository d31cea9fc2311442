import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from wovr.core.errors import UserError
from wovr.core.run import RunFolder
from wovr.core.source import source

CONFIG: dict[str, Any] = {"seed": 3, "plain": False, "sft": {"lr": 1e-5, "layers": [1, 2]}}


def refused(call: Any, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_a_stage_stays_done(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "demo"
    with RunFolder.open(path, CONFIG) as run:
        assert not run.stage_done("sft")
        run.mark_done("sft", 12.34567, {"success": 0.4})
        (run.folder("refine/round_1/rl") / "policy").touch()
    with RunFolder.open(path, CONFIG) as run:
        assert run.stage_done("sft") and not run.stage_done("rl")
        now = pytest.approx(time.time(), abs=60)
        assert run.stages() == {
            "sft": {"finished": now, "seconds": 12.346, "source": source(), "summary": {"success": 0.4}}
        }
        assert run.config == CONFIG
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["format"] == 1 and manifest["seed"] == 3 and manifest["wovr"]


def test_another_config_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    path = tmp_path / "demo"
    RunFolder.open(path, CONFIG).close()
    before = (path / "config.yaml").read_text()
    other = {**CONFIG, "sft": {"lr": 2e-5, "layers": [1, 2]}}
    refused(lambda: RunFolder.open(path, other), str(path), "'sft.lr'", "1e-05", "2e-05", "choose another folder name")
    assert (path / "config.yaml").read_text() == before
    RunFolder.open(path, CONFIG).close()  # the lock was given back


def test_keys_that_change_no_result_may_differ(tmp_path: Path) -> None:
    path = tmp_path / "demo"
    RunFolder.open(path, CONFIG).close()
    other = {**CONFIG, "plain": True}
    refused(lambda: RunFolder.open(path, other), "'plain'")
    with RunFolder.open(path, other, ignore={"plain"}) as run:
        assert run.config["plain"] is True


def test_tuples_equal_the_lists_that_are_read_back(tmp_path: Path) -> None:
    class_dump = {"layers": [1, 2], "rate": 1e-5, "none": None, "text": "yes"}
    RunFolder.open(tmp_path / "demo", class_dump).close()
    RunFolder.open(tmp_path / "demo", dict(class_dump)).close()


def test_the_ledger_counts_each_key_once(tmp_path: Path) -> None:
    path = tmp_path / "demo"
    with RunFolder.open(path, CONFIG) as run:
        run.add_rollouts("collect", episodes=60, steps=2000, stage="collect", key="collect/0")
        run.add_rollouts("collect", episodes=40, steps=1000, stage="collect", key="collect/1")
        run.add_rollouts("evaluate", episodes=7, steps=70, stage="eval", key="eval/base")
    with (path / "ledger.jsonl").open("a") as file:
        file.write('{"key": "torn')
    with RunFolder.open(path, CONFIG) as run:
        run.add_rollouts("collect", episodes=40, steps=1000, stage="collect", key="collect/1")
        expected = {"collect": {"episodes": 100, "steps": 3000}, "evaluate": {"episodes": 7, "steps": 70}}
        assert run.ledger() == expected
    assert RunFolder.read(path).ledger() == expected


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "demo"
    holder = (
        "import sys, pathlib; from wovr.core.run import RunFolder;"
        "run = RunFolder.open(pathlib.Path(sys.argv[1]), {}); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        refused(lambda: RunFolder.open(path, {}), str(path), f"process {process.pid}")
        assert not RunFolder.read(path).stage_done("sft")  # looking is free
        process.kill()
    RunFolder.open(path, {}).close()


def test_foreign_and_broken_folders(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    refused(lambda: RunFolder.open(tmp_path / "photos", CONFIG), "photos", "found other files")
    assert [file.name for file in (tmp_path / "photos").iterdir()] == ["cat.png"]
    (tmp_path / "photos" / "episodes").mkdir()
    refused(lambda: RunFolder.open(tmp_path / "photos", CONFIG), "photos", "found other files")
    refused(lambda: RunFolder.read(tmp_path / "none"), "none", "no manifest.json")
    path = tmp_path / "demo"
    RunFolder.open(path, CONFIG).close()
    (path / "manifest.json").write_text('{"format": 99, "stages": {}}')
    refused(lambda: RunFolder.read(path), "'format'", "expected 1, found 99")
    (path / "manifest.json").write_text("{")
    refused(lambda: RunFolder.open(path, CONFIG), "manifest.json", "expected JSON")
    (path / "config.yaml").unlink()
    refused(lambda: RunFolder.open(path, CONFIG), "config.yaml")


def test_an_interruption_before_the_manifest_is_harmless(tmp_path: Path) -> None:
    path = tmp_path / "demo"
    RunFolder.open(path, {"seed": 1}).close()
    (path / "manifest.json").unlink()
    with RunFolder.open(path, CONFIG) as run:
        assert run.config == CONFIG


def test_converted_episodes_may_be_there_first(tmp_path: Path) -> None:
    (tmp_path / "mine" / "episodes").mkdir(parents=True)
    (tmp_path / "mine" / "episodes" / "shard_00000.hdf5").touch()
    with RunFolder.open(tmp_path / "mine", CONFIG) as run:
        run.mark_done("sft", 1.0, {})
        assert [file.name for file in run.folder("episodes").iterdir()] == ["shard_00000.hdf5"]
    with RunFolder.open(tmp_path / "mine", CONFIG) as run:
        assert run.stage_done("sft")


def test_how_long_stages_take_is_known_from_runs_that_differ_in_the_seed(tmp_path: Path) -> None:
    config = {"seed": 0, "rl": {"updates": 4}}
    for name, changes in {"a": {}, "b": {"seed": 1}, "c": {"seed": 2}, "other": {"rl": {"updates": 5}}}.items():
        with RunFolder.open(tmp_path / name, config | changes) as run:
            if name in ("b", "other"):
                run.mark_done("sft", 30.0 if name == "b" else 70.0, {})
                run.mark_done("rl", 300.0, {})
            if name == "c":
                run.mark_done("sft", 40.0, {})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("[]")
    found = RunFolder.read(tmp_path / "a").expected(ignore=("seed",))
    assert found is not None
    assert (found.seconds, found.source) == ({"sft": 30.0, "rl": 300.0}, f"as in {tmp_path}/b")
    found = RunFolder.read(tmp_path / "c").expected(ignore=("seed",))
    assert found is not None and found.seconds == {"sft": 40.0, "rl": 300.0}, "its own where it has some"
    found = RunFolder.read(tmp_path / "other").expected(ignore=("seed",))
    assert found is not None and found.source == "as before"
    (tmp_path / "alone").mkdir()
    with RunFolder.open(tmp_path / "alone" / "d", config) as run:
        assert run.expected(ignore=("seed",)) is None
