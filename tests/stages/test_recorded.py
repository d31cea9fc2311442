"""The whole method on recordings alone: a LeRobot dataset in, policies judged in imagination, no simulator anywhere."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner
from wovr_cli.main import app

from wovr.core.errors import UserError
from wovr.core.seed import stream
from wovr.core.types import Episode
from wovr.envs.tabletop import Tabletop
from wovr.episodes.lerobot import write_lerobot
from wovr.stages import evaluate, pipeline

INSTRUCTIONS = ("put the spoon in the cup", "close the drawer")


def robot_episode(number: int) -> Episode:
    """A light that moves about a dark table; half of the episodes end in success. 24 or 32 steps."""
    steps = 24 + 8 * (number % 2)
    rng = stream(0, "robot", number)
    actions_TA = rng.uniform(-1, 1, (steps, 3)).astype(np.float32)
    place_T2 = 32 + np.cumsum(np.concatenate([np.zeros((1, 2)), 2 * actions_TA[:, :2]]), axis=0)
    y, x = np.mgrid[:64, :64]
    distance_THW = np.abs(x - place_T2[:, 0, None, None]) + np.abs(y - place_T2[:, 1, None, None])
    light_THW = np.where(distance_THW < 6, 220, 40).astype(np.uint8)
    success_T = np.zeros(steps, dtype=np.bool_)
    success_T[-4:] = number % 4 < 2
    return Episode(
        frames_THWC=np.repeat(light_THW[..., None], 3, axis=-1),
        actions_TA=actions_TA,
        success_T=success_T,
        states_TS=np.zeros((steps + 1, 0)),
        instruction=INSTRUCTIONS[number % 2],
        suite="robot",
        task_id=number % 2,
        init_id=number,
        policy="human",
        seed=0,
        purpose="collect",
    )


@pytest.fixture(autouse=True)
def no_simulator(monkeypatch):
    """Whoever makes or steps one fails."""

    def forbidden(*args, **kwargs):
        raise AssertionError("a simulator was used")

    monkeypatch.setattr(Tabletop, "__init__", forbidden)
    monkeypatch.setattr("wovr.envs.libero.Libero.__init__", forbidden)


def convert(source: Path, run: Path, purpose: str) -> None:
    command = ["convert", str(source), str(run / "episodes"), "--purpose", purpose, "--plain"]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output


def test_from_a_dataset_to_a_better_policy_without_a_simulator(toy, tmp_path):
    run = tmp_path / "run"
    parts = {"demonstrations": range(4), "collect": range(4, 24), "refine-1": range(24, 32)}
    for purpose, numbers in parts.items():
        write_lerobot(tmp_path / purpose, map(robot_episode, numbers), version="v3.0", fps=10)
    for purpose in ("demonstrations", "collect"):
        convert(tmp_path / purpose, run, purpose)
    experiment = toy("simulator={kind: recorded, image_size: 64, horizon: 32, num_tasks: 2}", "rl.updates=1")

    stages = [name for name in pipeline.STAGES if name != "report"]
    with pipeline.open_workplace(experiment, run, plain=True) as place:
        for name in stages[: stages.index("refine")]:
            pipeline.run_stage(place, name)
        with pytest.raises(
            UserError, match="expected recorded episodes of purpose 'refine-1', found none; bring them in"
        ):
            pipeline.run_stage(place, "refine")
    convert(tmp_path / "refine-1", run, "refine-1")
    with pipeline.open_workplace(experiment, run, plain=True) as place:
        pipeline.run_all(place)

    found = json.loads((run / "eval/pace.json").read_text())
    held_out = 4 + 1  # of 20 and of 8 episodes, every fifth
    assert found["world"] == evaluate.IMAGINED and found["success"]["n"] == held_out
    assert set(found["tasks"]) <= set(INSTRUCTIONS)
    followed = json.loads((run / "action_following/summary.json").read_text())["worlds"]
    assert {world: {purpose: one["n"] for purpose, one in of.items()} for world, of in followed.items()} == {
        "base": {"collect": 4},
        "pace": {"collect": 4},
    }
    report = (run / "report/report.html").read_text()
    assert "Success in imagination" in report and "Success in the true simulator" not in report
    spent = {json.loads(line)["purpose"] for line in (run / "ledger.jsonl").read_text().splitlines()}
    assert spent == {"demonstrations", "collect", "refine-1"}


def test_recordings_that_are_missing_are_asked_for(toy, tmp_path):
    experiment = toy("simulator={kind: recorded, image_size: 64, horizon: 32}")
    with pipeline.open_workplace(experiment, tmp_path, plain=True) as place:
        with pytest.raises(UserError, match="purpose 'demonstrations', found none; bring them in: wovr convert SOURCE"):
            pipeline.run_stage(place, "sft")
        place.episodes().append([replace(robot_episode(i), purpose="demonstrations") for i in range(2)])
        pipeline.run_stage(place, "sft")
        with pytest.raises(UserError, match="expected recorded episodes of purpose 'collect', found none"):
            pipeline.run_stage(place, "collect")
    assert os.listdir(tmp_path / "episodes") == ["shard_00000.hdf5"]
