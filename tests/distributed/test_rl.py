"""RL on several processes is RL on one: same rollouts, same losses, same policy; and it goes on after a kill."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.distributed.ranks import start, wait
from tests.stages.conftest import CONFIG, TOY
from tests.stages.prepared import SIGNAL, experiment, prepare, ready, updates
from wovr.core.checkpoint import load_tensors
from wovr.stages import pipeline
from wovr.stages.rl import IMAGINATION

ZERO_2 = Path(__file__).parents[2] / "configs/deepspeed/zero2.json"
CHANGES = (*TOY, *SIGNAL)
SPLITS = {
    "2 processes": (2, 0, 1),
    "2 processes, 2 micro-batches": (2, 0, 2),
    "4 processes": (4, 0, 1),
    "ZeRO 1": (2, 1, 1),
    "ZeRO 2": (2, 2, 2),
    "ZeRO 3": (2, 3, 1),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "prepared"
    prepare(path)
    return path


@pytest.fixture(scope="module")
def alone(prepared: Path) -> Path:
    """The run after RL in this process."""
    path = Path(shutil.copytree(prepared, prepared.parent / "alone"))
    with pipeline.open_workplace(experiment(), path, plain=True) as place:
        pipeline.run_command(place, "rl")
    return path


def wovr(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wovr_cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def assert_same_updates(one: Path, other: Path, tolerance: float) -> None:
    ours, theirs = updates(one), updates(other)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == [1, 2, 3, 4, 5]
    for line, reference in zip(theirs, ours, strict=True):
        assert line == pytest.approx(reference, rel=tolerance, abs=tolerance)


def assert_same_policy(one: Path, other: Path, tolerance: float) -> None:
    ours, theirs = load_tensors(one / IMAGINATION)[0], load_tensors(other / IMAGINATION)[0]
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=tolerance)


def test_there_is_a_signal(alone: Path) -> None:
    lines = updates(alone)
    assert all(line["rows"] >= 4 and line["loss"] != 0 for line in lines)
    assert 0 < sum(line["success"] for line in lines) / len(lines) < 1
    assert lines[0]["kl_base"] < 1e-9 < lines[4]["kl_base"]
    assert all(line["log_prob_gap"] < 1e-5 for line in lines)


@pytest.mark.parametrize("name", SPLITS)
def test_splits_do_not_change_a_run(prepared: Path, alone: Path, tmp_path: Path, name: str) -> None:
    processes, zero, accumulate = SPLITS[name]
    parts = f"rl.update.accumulate={accumulate}"
    path = ready(prepared, tmp_path / "run", experiment(parts))
    done = wovr("rl", CONFIG, *CHANGES, parts, "--run", path, "--nproc", processes, "--zero", zero)
    assert done.returncode == 0, done.stderr
    assert_same_updates(alone, path, 1e-5)
    assert_same_policy(alone, path, 1e-4)


@pytest.mark.parametrize("zero", [0, 2])
def test_a_policy_acts_as_it_is_trained_in_bf16(prepared: Path, tmp_path: Path, zero: int) -> None:
    """Under autocast, and with bf16 weights under ZeRO: rollout and training find the same log-probabilities."""
    bf16 = ("rl.update.optim={lr: 3.0e-4, precision: bf16}", "rl.updates=2")
    path = ready(prepared, tmp_path / "run", experiment(*bf16))
    done = wovr("rl", CONFIG, *CHANGES, *bf16, "--run", path, "--zero", zero)
    assert done.returncode == 0 and "largest_gap" not in done.stderr, done.stderr
    lines = updates(path)
    assert len(lines) == 2 and all(line["rows"] > 0 and line["log_prob_gap"] < 0.02 for line in lines)
    assert lines[1]["kl_base"] > lines[0]["kl_base"]
    if zero:
        trained = torch.cat([value.flatten() for value in load_tensors(path / IMAGINATION)[0].values()])
        assert trained.dtype == torch.float32 and not torch.equal(trained, trained.bfloat16().float()), "the masters"


def test_two_processes_share_true_rollouts(prepared: Path, tmp_path: Path) -> None:
    online = ("rl.simulator=true", "rl.updates=5", "rl.update.temperature=3.0", "simulator.horizon=16")
    online += ("rl.update.grpo={group_size: 4, min_successes: 0, min_failures: 0, gamma: 0.99}",)
    paths = [ready(prepared, tmp_path / name, experiment(*online)) for name in ("alone", "two")]
    for processes, path in zip((1, 2), paths, strict=True):
        done = wovr("rl", CONFIG, *CHANGES, *online, "--run", path, "--nproc", processes)
        assert done.returncode == 0, done.stderr
    assert_same_updates(*paths, 1e-5)
    ledgers = [(path / "ledger.jsonl").read_text() for path in paths]
    assert ledgers[0] == ledgers[1] and ledgers[0].count('"online"') == 5, "written once, for all"


WORKER = """
import os, signal, sys
from pathlib import Path
from tests.stages.prepared import experiment
from wovr.core.dist import Dist
from wovr.stages import groups, pipeline, rl

folder, zero, where, number = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
dist = Dist(zero)

def killed(owner, name, at):
    inner = getattr(owner, name)
    def call(*args, **kwargs):
        if at(kwargs) and dist.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(*args, **kwargs)
    setattr(owner, name, call)

if where == "rollout":
    killed(groups, "rollout", lambda kwargs: kwargs["number"] == number)
if where == "training":
    steps = []
    killed(rl.Trainer, "step", lambda kwargs: steps.append(0) or len(steps) == 2 * number + 2)
with pipeline.open_workplace(experiment(), folder / "run", plain=True, dist=dist) as place:
    pipeline.run_command(place, "rl")
dist.close()
"""
"""Kills rank 1 in the rollouts of an update, or after one of the two steps of its training."""


@pytest.fixture(scope="module")
def whole(prepared: Path) -> Path:
    """The run after RL in two processes under ZeRO 2."""
    path = prepared.parent / "whole"
    shutil.copytree(prepared, path / "run")
    assert run(path, "nowhere") == [0, 0], (path / "rank_0.log").read_text()
    return path / "run"


@pytest.mark.parametrize("where", ["rollout", "training"])
def test_killed_in_a_phase(prepared: Path, whole: Path, tmp_path: Path, where: str) -> None:
    shutil.copytree(prepared, tmp_path / "run")
    assert -signal.SIGKILL in run(tmp_path, where)
    (state,) = (tmp_path / "run/rl/policy.state").iterdir()
    assert state.name == "step-6", "three updates of two steps"
    assert run(tmp_path, "nowhere") == [0, 0], (tmp_path / "rank_0.log").read_text()
    assert_same_updates(whole, tmp_path / "run", 0)
    assert_same_policy(whole, tmp_path / "run", 0)


def run(folder: Path, where: str) -> list[int]:
    """Exit statuses."""
    return wait(start(WORKER, folder, 2, str(ZERO_2), where, "3"))


def test_ranks_must_divide_the_groups(prepared: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(prepared, tmp_path / "run"))
    done = wovr("rl", CONFIG, *CHANGES, "--run", path, "--nproc", 3)
    assert done.returncode == 2 and done.stderr.count("key 'rl.groups': expected a multiple of 3") == 1, done.stderr


def test_a_dead_rank_ends_all_of_them(prepared: Path, tmp_path: Path) -> None:
    """The launcher's exit status is not 0 within a minute, and what was saved is intact."""
    path = Path(shutil.copytree(prepared, tmp_path / "run"))
    command = [sys.executable, "-m", "wovr_cli", "rl", CONFIG, *CHANGES, "rl.updates=5", "--run", path, "--nproc", 2]
    launcher = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(path.glob("rl/policy.state/step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    victims = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if is_rank(pid, launcher.pid)]
    os.kill(victims[-1], signal.SIGKILL)
    died = time.monotonic()
    assert launcher.wait(timeout=60) != 0 and time.monotonic() - died < 60
    with pipeline.open_workplace(experiment(), path, plain=True) as place:
        pipeline.run_command(place, "rl")
    assert (path / IMAGINATION).is_file()


def is_rank(pid: int, parent: int) -> bool:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().split()[3]) == parent
    except (OSError, IndexError):
        return False
