"""`wovr train-wm --nproc 2` starts itself in two processes: same artifacts, same errors, same exit statuses."""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from wovr_cli import launch

from tests.stages.conftest import CONFIG, TOY
from wovr.core.config import load_config
from wovr.core.errors import UserError
from wovr.imagine.load import CODEC, DIT, REWARD, WORLD_CODEC, load_dit, load_head, load_world_model
from wovr.stages import pipeline
from wovr.stages.experiment import Experiment
from wovr.stages.near_success import near_weights

CHANGES = (
    "world_model.own_memory=null",
    "world_model.train={steps: 4, batch_size: 4, checkpoint_every: 2, ema_decay: 0.9, log_every: 1}",
)


def wovr(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wovr_cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_all_of_train_wm_under_zero_3(tmp_path: Path) -> None:
    """With near-successes, which both search for and one finds alike, and a reward head."""
    changes = (*CHANGES, "near_success={probability: 0.45, margin: null}", "world_model.reward_head={}")
    experiment = load_config(Experiment, CONFIG, [*TOY, *changes])
    with pipeline.open_workplace(experiment, tmp_path, plain=True) as place:
        for name in ("sft", "collect"):
            pipeline.run_stage(place, name)
    done = wovr("train-wm", CONFIG, *TOY, *changes, "--run", tmp_path, "--nproc", 2, "--zero", 3)
    assert done.returncode == 0, done.stderr
    for artifact in (CODEC, REWARD, DIT, WORLD_CODEC):
        assert (tmp_path / artifact).is_file()
    assert load_world_model(tmp_path / WORLD_CODEC, tmp_path / DIT).chunk_length == 8
    assert all(value.isfinite().all() for value in load_dit(tmp_path / DIT)[0].state_dict().values())
    assert load_head(tmp_path / DIT).hold == 2, "calibrated"
    stages = json.loads((tmp_path / "manifest.json").read_text())["stages"]
    assert list(stages) == ["sft", "collect", "codec", "reward", "world_model", "decoder"]
    with pipeline.open_workplace(experiment, tmp_path, plain=True) as place:
        _, alone = near_weights(place, "world_model", place.training_data()[0], tmp_path / REWARD)
    assert alone["near_success"] == stages["world_model"]["summary"]["near_success"]
    assert alone["near_success"]["by_probability"] > 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["stage"] == "world_model"] == [1, 2, 3, 4]  # rank 0 alone writes
    assert not list(tmp_path.rglob("*.state")) and not list(tmp_path.rglob("*.tmp"))


def test_what_a_user_can_mend_is_said_once(tmp_path: Path) -> None:
    early = wovr("train-wm", CONFIG, "world_model.trian.steps=3", "--nproc", 2)
    assert early.returncode == 2 and early.stderr.count("\n") == 1 and "unknown key" in early.stderr
    late = wovr("train-wm", CONFIG, *TOY, "--run", tmp_path / "new", "--nproc", 2)
    assert late.returncode == 2
    assert late.stderr.count("expected stage 'sft' to be done") == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--zero", "4"], "--zero: expected 0, 1, 2, 3 or a JSON file of DeepSpeed's settings, found '4'"),
        (["--offload"], "--offload: expected --zero 1, 2 or 3 with it, found none"),
        (["--hostfile", "/nowhere"], "expected a hostfile with lines as 'worker-1 slots=8', found none"),
    ],
)
def test_bad_flags_are_one_line(arguments: list[str], complaint: str) -> None:
    done = wovr("train-wm", CONFIG, *arguments)
    assert done.returncode == 2 and complaint in done.stderr and done.stderr.count("\n") == 1


PDSH = """#!/usr/bin/env python3
import subprocess, sys
hosts = sys.argv[sys.argv.index("-w") + 1].split(",")
command = " ".join(sys.argv[sys.argv.index("-w") + 2 :])
nodes = [subprocess.Popen(["bash", "-c", command.replace("%n", str(i))]) for i in range(len(hosts))]
sys.exit(max(node.wait() for node in nodes))
"""


def test_the_machines_of_a_hostfile_work_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for ssh and pdsh, which run every machine's command here."""
    for name, content in (("ssh", "#!/bin/sh\necho 127.0.0.1\n"), ("pdsh", PDSH)):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    hosts = tmp_path / "hosts"
    hosts.write_text("worker-1 slots=1\nworker-2 slots=1\n")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    done = wovr("train-wm", CONFIG, *TOY, "--run", tmp_path / "new", "--hostfile", hosts)
    assert done.returncode != 0 and done.stderr.count("expected stage 'sft' to be done") == 2, done.stderr
    assert (tmp_path / "new" / "manifest.json").is_file(), "rank 0 made the folder, rank 1 followed"
    hosts.write_text("worker-1 slots=1\nworker-2\n")
    bad = wovr("train-wm", CONFIG, "--hostfile", hosts)
    assert bad.returncode == 2 and "line 2: expected a line as 'worker-1 slots=8', found 'worker-2'" in bad.stderr


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    with pytest.raises(UserError, match="--nproc: expected at most 4, this machine's GPUs, found 8"):
        launch.launch(8, None)


def run_here(script: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    command = [sys.executable, "-c", "import os; rank = os.environ['RANK']\n" + textwrap.dedent(script)]
    status = launch._run_here(command, 2, folder)
    return status, capfd.readouterr().err


def test_a_process_that_fails_ends_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "GRACE", 0.5)
    status, said = run_here("import time; time.sleep(60) if rank == '0' else print(1 / 0)", tmp_path, capfd)
    assert status == 1 and "process 1 of 2 ended with status 1" in said and "ZeroDivisionError" in said
    status, said = run_here("import sys; print('no room', file=sys.stderr); sys.exit(2)", tmp_path, capfd)
    assert status == 2 and said == "no room\n"
    assert run_here("import signal; os.kill(os.getpid(), signal.SIGKILL)", tmp_path, capfd)[0] == 1
    assert run_here("pass", tmp_path, capfd) == (0, "")


def test_processes_divide_the_cores_and_meet(tmp_path: Path) -> None:
    script = (
        f"import os; open('{tmp_path}/' + os.environ['RANK'] + '.txt', 'w').write("
        "' '.join(os.environ[name] for name in ('WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')))"
    )
    assert launch._run_here([sys.executable, "-c", script], 2, tmp_path) == 0
    first, second = ((tmp_path / f"{rank}.txt").read_text().split() for rank in (0, 1))
    assert first[:3] == ["2", "0", "127.0.0.1"] and second[1] == "1" and first[3] == second[3]


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_no_process_outlives_the_launcher(tmp_path: Path) -> None:
    child = f"import os, time; open('{tmp_path}/' + os.environ['RANK'], 'w').write(str(os.getpid())); time.sleep(60)"
    parent = (
        "import sys; from pathlib import Path; from wovr_cli import launch; "
        f"launch._run_here([sys.executable, '-c', {child!r}], 2, Path({str(tmp_path)!r}))"
    )
    launcher = subprocess.Popen([sys.executable, "-c", parent])
    deadline = time.monotonic() + 30
    files = [tmp_path / str(rank) for rank in (0, 1)]
    while not all(file.is_file() and file.read_text() for file in files) and time.monotonic() < deadline:
        time.sleep(0.05)
    pids = [int(file.read_text()) for file in files]
    launcher.kill()
    launcher.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
