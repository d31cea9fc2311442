"""A reward that can be hacked is planted into imagination: RL exploits it, truth does not follow, the alarm says so."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.stages.conftest import CONFIG, TOY
from tests.stages.prepared import STAGES, ready
from wovr.core.config import load_config
from wovr.core.errors import UserError
from wovr.core.log import read_records
from wovr.envs.chunked import Chunk
from wovr.imagine.load import BANK
from wovr.kir.bank import KeyframeBank
from wovr.stages import pipeline, rl
from wovr.stages.curves import curves
from wovr.stages.experiment import Experiment
from wovr.stages.groups import Imagination

HACKED = (
    "rl.updates=8",
    "rl.groups=8",
    "rl.checkpoint_every=4",
    "rl.rollout_batch=64",
    "rl.starts.keyframe_fraction=0",
    "rl.update={temperature: 1.0, correlation: 0.9, epochs: 2, minibatches: 2, "
    "grpo: {group_size: 8, normalize: std, ratio: token}, optim: {lr: 3.0e-3, precision: fp32}}",
)


class HackableWorld:
    """A still picture, and a reward for pushing the hand to the right, wherever it is."""

    chunk_length, action_dim, horizon, threshold, hold = 8, 3, 32, 0.5, 1
    model, reward = SimpleNamespace(codec=None, dit=None), None

    def __init__(self) -> None:
        self.frames_BHWC = np.zeros((0, 64, 64, 3), dtype=np.uint8)

    def instruction(self, start):
        return start.instruction

    def reset(self, starts, keys):
        self.frames_BHWC = np.stack([start.memory_MHWC[-1] for start in starts])
        return self._chunk(np.zeros((len(starts), 1), dtype=np.float32))

    def step(self, actions_BHA):
        pushed_B = actions_BHA[:, :, 0].mean(axis=1) > 0.8
        return self._chunk(np.repeat(pushed_B[:, None], 8, axis=1).astype(np.float32))

    def keep(self, rows):
        self.frames_BHWC = self.frames_BHWC[np.asarray(rows)]

    def leave(self):
        self.frames_BHWC = self.frames_BHWC[:0]

    def _chunk(self, probability_BT):
        batch, steps = probability_BT.shape
        frames = np.repeat(self.frames_BHWC[:, None], steps, axis=1)
        return Chunk(frames, probability_BT, np.zeros((batch, steps, 0)), np.zeros(batch, dtype=bool))


@pytest.fixture
def hackable(monkeypatch):
    def load(place, folder):
        return Imagination(place, HackableWorld(), KeyframeBank.load(folder / BANK))

    monkeypatch.setattr(Imagination, "load", load)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "prepared"
    experiment = load_config(Experiment, CONFIG, TOY)
    with pipeline.open_workplace(experiment, path, plain=True) as place:
        for name in STAGES:
            pipeline.run_stage(place, name)
    return path


def alarm(action: str, **more: object) -> str:
    settings = {"action": action, "every": 4, "rollouts": 16, **more}
    return "rl.alarm={" + ", ".join(f"{key}: {value}" for key, value in settings.items()) + "}"


def logged(path: Path, stage: str) -> list[dict]:
    return [line for line in read_records(path / "metrics.jsonl") if line["stage"] == stage]


def test_the_alarm_warns_and_rl_goes_on(toy, prepared, tmp_path, hackable, capfd):
    experiment = toy(*HACKED, alarm("warn"))
    path = ready(prepared, tmp_path / "run", experiment)
    with pipeline.open_workplace(experiment, path, plain=True) as place:
        pipeline.run_stage(place, "rl")
    looks = logged(path, "rl/alarm")
    assert [look["step"] for look in looks] == [0, 4, 8]
    assert looks[0]["exploited"] == 0 and looks[2]["exploited"] == 1
    assert looks[2]["imagined_rise"] > 0.4 and looks[2]["true_rise"] < 0.2
    assert len(logged(path, "rl")) == 8
    said = " ".join(capfd.readouterr().err.split())
    assert "the policy exploits the world model or its reward, and refinement is due" in said
    ledger = read_records(path / "ledger.jsonl")
    spent = [line for line in ledger if line["purpose"] == "alarm"]
    assert [line["key"] for line in spent] == ["alarm/rl/0", "alarm/rl/4", "alarm/rl/8"]
    assert [line["episodes"] for line in spent] == [16, 16, 16]
    drawn = "".join(curves(read_records(path / "metrics.jsonl"), online=False))
    assert "RL: how far success has risen" in drawn and "Divergence from the base policy" in drawn


@pytest.mark.parametrize(("action", "goes_on"), [("stop", False), ("refine", True)])
def test_the_alarm_ends_the_phase(toy, prepared, tmp_path, hackable, action, goes_on):
    experiment = toy(*HACKED, alarm(action, every=2), "rl.updates=30", "refine.updates=0")
    path = ready(prepared, tmp_path / "run", experiment)
    with pipeline.open_workplace(experiment, path, plain=True) as place:
        pipeline._run_stages(place, ["rl", "refine"])
        done = place.run.stages()
        assert done["rl"]["summary"]["alarm"]["action"] == action
        assert len(logged(path, "rl")) < 30 and (path / rl.IMAGINATION).is_file()
        assert ("refine" in done) is goes_on
        if not goes_on:  # the same command goes on after it
            pipeline._run_stages(place, ["rl", "refine"])
            assert "refine" in place.run.stages()


def test_an_honest_reward_rings_no_alarm(toy, prepared, tmp_path, hackable, monkeypatch):
    """Truth that rises as imagination does: the simulator pays for the same push."""

    class Pushed:
        def __init__(self, simulator, chunk_length, **_):
            self.world, self.tasks = HackableWorld(), {task.task_id: task.instruction for task in simulator.tasks}

        def __getattr__(self, name):
            return getattr(self.world, name)

        def instruction(self, start):
            return self.tasks[start.task_id]

        def reset(self, starts, keys):
            self.world.frames_BHWC = np.full((len(starts), 64, 64, 3), 128, dtype=np.uint8)
            return self.world._chunk(np.zeros((len(starts), 1), dtype=np.float32))

    monkeypatch.setattr("wovr.stages.alarm.ChunkedSimulator", Pushed)
    experiment = toy(*HACKED, alarm("stop"))
    path = ready(prepared, tmp_path / "run", experiment)
    with pipeline.open_workplace(experiment, path, plain=True) as place:
        pipeline.run_stage(place, "rl")
    looks = logged(path, "rl/alarm")
    assert looks[-1]["imagined_rise"] > 0.4 and not any(look["exploited"] for look in looks)
    assert len(logged(path, "rl")) == 8


def test_looks_are_repeated_after_an_interruption_from_disk(toy, prepared, tmp_path, hackable, monkeypatch):
    experiment = toy(*HACKED, alarm("warn"))
    whole = ready(prepared, tmp_path / "whole", experiment)
    with pipeline.open_workplace(experiment, whole, plain=True) as place:
        pipeline.run_stage(place, "rl")
    path, update = ready(prepared, tmp_path / "parts", experiment), rl.update_policy

    def interrupted(*args, number, **kwargs):
        if number == 5:
            raise KeyboardInterrupt
        return update(*args, number=number, **kwargs)

    with monkeypatch.context() as patch, pipeline.open_workplace(experiment, path, plain=True) as place:
        patch.setattr(rl, "update_policy", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run_stage(place, "rl")
    with pipeline.open_workplace(experiment, path, plain=True) as place:
        pipeline.run_stage(place, "rl")
    assert (path / "rl/alarm.json").read_text() == (whole / "rl/alarm.json").read_text()
    ledgers = [read_records(folder / "ledger.jsonl") for folder in (whole, path)]
    assert ledgers[0] == ledgers[1], "nothing is paid for twice"


def test_recordings_stand_for_a_simulator(toy, prepared, tmp_path, hackable, monkeypatch):
    """Of held-out episodes, the successful ones are weighed against the others by what the policy makes of them."""
    experiment = toy(
        *HACKED,
        alarm("warn", every=8),
        "simulator={kind: recorded, image_size: 64, horizon: 32}",
        "collect.held_out=0.5",
    )
    path = ready(prepared, tmp_path / "run", experiment)
    with pipeline.open_workplace(experiment, path, plain=True) as place:
        pipeline.run_stage(place, "rl")
    first, last = json.loads((path / "rl/alarm.json").read_text())
    assert first["true"]["success"] == last["true"]["success"] and len(first["true"]["success"]) > 4
    assert first["true"]["log_prob"] != last["true"]["log_prob"]
    looks = logged(path, "rl/alarm")
    assert looks[0]["true_rise"] == 0 and looks[1]["imagined_rise"] > 0.4
    assert not [line for line in read_records(path / "ledger.jsonl") if line["purpose"] == "alarm"]


def test_online_rl_has_no_imagination_to_be_fooled_by(toy):
    with pytest.raises(UserError, match=r"alarm\.action: expected off with simulator=true"):
        toy("rl.simulator=true", alarm("warn"))
