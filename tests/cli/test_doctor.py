"""`wovr doctor` from outside: what it prints and its exit codes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result
from wovr_cli.main import app

from wovr.stages.doctor import Check, Probed

TABLETOP = Path(__file__).parents[2] / "configs" / "tabletop.yaml"


def wovr(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    """What the machine is made to look like."""
    checks: list[Check] = []
    monkeypatch.setattr("wovr_cli.doctor.survey", lambda load, run: checks)
    return checks


def test_this_machine_runs_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = wovr("doctor", TABLETOP)
    assert result.exit_code == 0, result.output
    for name in ("python", "torch", "GPU", "torchvision", "memory", "disk", "codec", "world model"):
        assert re.search(rf"^ok +{name}  ", result.stdout, re.MULTILINE), name
    for name in ("LIBERO", "GL", "LIBERO assets", "DeepSpeed", "LeRobot", "wandb", "compilers"):
        assert re.search(rf"^(ok|optional missing) +{name}  ", result.stdout, re.MULTILINE), name
    assert result.stdout.splitlines()[-1] == f"{TABLETOP} can run here."
    assert not any(tmp_path.iterdir()), "nothing is written"


def test_what_is_missing_is_one_line_each(found: list[Check]) -> None:
    found += [
        Check("disk", "1 GB free", "too little", "take another: --run PATH"),
        Check("tasks", "", "x" * 300, "simulator.tasks=[0, 1]"),
        Check("wandb", problem="no key", mend="wandb login", needed=False),
        Check("torch", "2.13.0"),
    ]
    result = wovr("doctor", "mine.yaml")
    assert result.exit_code == 1
    disk, tasks, wandb, torch, verdict = (line.rstrip() for line in result.stdout.splitlines())
    assert re.fullmatch(r"missing +disk +1 GB free; too little; mend: take another: --run PATH", disk)
    assert tasks.endswith("x" * 300 + "; mend: simulator.tasks=[0, 1]")
    assert re.fullmatch(r"optional missing +wandb +no key; mend: wandb login", wandb)
    assert re.fullmatch(r"ok +torch +2.13.0", torch)
    assert verdict == "mine.yaml cannot run here before this is mended: disk, tasks."


def test_what_is_optional_does_not_stop(found: list[Check]) -> None:
    found.append(Check("LIBERO", problem="none", needed=False))
    result = wovr("doctor")
    assert result.exit_code == 0 and result.stdout.splitlines()[-1].endswith("configs/tabletop.yaml can run here.")


def test_a_missing_file_and_a_bad_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"version": "2.13.0", "cuda": None, "unusable": "", "gpus": []}
    monkeypatch.setattr("wovr.stages.doctor.probe_python", lambda code: Probed(json.dumps(facts)))
    monkeypatch.setattr("wovr.envs.libero.install.working_gl", lambda asked: "egl")
    monkeypatch.setattr("wovr.stages.doctor_resources.check_resources", lambda *_: [])
    gone = wovr("doctor", TABLETOP, "codec.pretrained=gone.safetensors", "--run", tmp_path / "new")
    assert gone.exit_code == 1, gone.output
    assert re.search(r"^missing +codec +gone.safetensors: expected .*; mend: ", gone.stdout, re.MULTILINE)
    assert gone.stdout.splitlines()[-1].endswith("cannot run here before this is mended: codec.")
    for wrong in ([TABLETOP, "rl.upates=3"], [tmp_path / "none.yaml"]):
        result = wovr("doctor", *wrong)
        assert result.exit_code == 2 and result.stdout == "", result.output
        assert result.stderr.startswith("wovr: ") and len(result.stderr.splitlines()) == 1


def test_the_doctor_needs_no_torch() -> None:
    script = "import sys, wovr_cli.doctor, wovr_cli.main; assert not {'torch', 'libero', 'mujoco'} & {*sys.modules}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
