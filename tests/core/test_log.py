import builtins
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wovr.core import log as log_module
from wovr.core.errors import UserError
from wovr.core.log import RunLog, append_record, read_records


def test_metrics_are_one_object_per_line(tmp_path: Path) -> None:
    log = RunLog(tmp_path, plain=True)
    log.metrics("sft", 5, {"loss": 0.5})
    RunLog(tmp_path, plain=True).metrics("rl", 1, {"success": 1.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [("sft", 5), ("rl", 1)]
    assert lines[0]["loss"] == 0.5 and lines[0]["time"] > 1e9


def test_other_ranks_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, active=False)
    log.metrics("sft", 1, {"loss": 1.0})
    log.info("hello")
    with log.progress("sft", 2) as bar:
        bar.advance(2, loss=1.0)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")


def test_a_line_stays_one_line_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "[rl]: update 3: :star: " + 20 * "log-probabilities differ "
    RunLog(tmp_path, plain=True).info(text)
    assert capsys.readouterr().err == text + "\n"


@pytest.mark.parametrize("torn", ['{"a": 2', '{"a": 2}', "x" * 200_000])
def test_a_torn_last_line_is_ignored_and_then_cut_off(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "r.jsonl"
    append_record(path, {"a": 1})
    with path.open("a") as file:
        file.write(torn)
    assert read_records(path) == [{"a": 1}]
    append_record(path, {"a": 3})
    assert read_records(path) == [{"a": 1}, {"a": 3}]


def test_a_file_that_is_one_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"a"')
    assert read_records(path) == []
    append_record(path, {"a": 1})
    assert read_records(path) == [{"a": 1}]


def test_records_of_a_missing_and_of_a_broken_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    assert read_records(path) == []
    path.write_text('{"a": 1}\nnonsense\n{"a": 2}\n')
    with pytest.raises(UserError, match=r"r\.jsonl: line 2: expected JSON"):
        read_records(path)


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log_module.os, "fsync", full)
    with pytest.raises(UserError, match=r"r\.jsonl: .* full disk"):
        append_record(tmp_path / "r.jsonl", {"a": 1})


def test_plain_lines_tell_count_rate_and_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(log_module.time, "monotonic", lambda: clock[0])
    with RunLog(tmp_path, plain=True).progress("world model", 100, done=40) as bar:
        for _ in range(60):
            clock[0] += 0.5
            bar.advance(1, loss=0.123456)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 7  # every five seconds, and at the end
    assert lines[0] == "world model 50/100  2.0/s  0:25 left  loss 0.1235"
    assert lines[-1] == "world model 100/100  2.0/s  done in 0:30  loss 0.1235"


def test_wandb_is_imported_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def guarded(name: str, *args: Any, **kwargs: Any) -> Any:
        assert name != "wandb"
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", guarded)
    RunLog(tmp_path, plain=True).metrics("sft", 1, {"loss": 1.0})


def test_wandb_is_offline_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[dict[str, float]] = []
    started: dict[str, Any] = {}

    def init(**options: Any) -> Any:
        started.update(options, mode=log_module.os.environ.get("WANDB_MODE"))
        return SimpleNamespace(log=logged.append, finish=lambda: logged.append({"finished": 1}))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    log = RunLog(tmp_path, plain=True, wandb_project="demo")
    log.metrics("sft", 3, {"loss": 1.0})
    log.close()
    assert started["mode"] == "offline" and started["project"] == "demo"
    assert logged == [{"sft/loss": 1.0, "sft/step": 3}, {"finished": 1}]


def test_success_and_videos_arrive_in_wandbs_offline_files(tmp_path: Path) -> None:
    """In a process of its own, with wandb itself."""
    script = """
import os
import subprocess
import sys
from pathlib import Path
from PIL import Image
from wovr.core.log import RunLog
folder = Path(sys.argv[1])
Image.new("RGB", (8, 8)).save(folder / "film.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])
log = RunLog(folder, plain=True, wandb_project="demo")
log.metrics("rl", 1, {"success": 0.25})
log.success("true", "base, collect", 0.5, step=600)
log.video("rl", folder / "film.gif", step=4)
log.close()
"""
    (tmp_path / "run").mkdir()
    home = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "WANDB_DIR": str(tmp_path / "elsewhere")}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")} | home
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run")], env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    (offline,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    (copy,) = offline.glob("files/media/videos/**/*.gif")
    assert copy.read_bytes() == (tmp_path / "run" / "film.gif").read_bytes()
    (written,) = offline.glob("*.wandb")
    for name in (b"success/true/base, collect", b"rl/success", b"video/rl"):
        assert name in written.read_bytes(), name
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["rl", "success", "video"]
    assert lines[2] | {"time": 0} == {"time": 0, "stage": "video", "step": 4, "of": "rl", "file": "film.gif"}
