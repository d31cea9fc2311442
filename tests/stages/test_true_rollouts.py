"""True rollouts under a simulator that loses environments: collection, evaluation, online RL."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wovr.core.errors import UserError
from wovr.core.types import SimulatorStart
from wovr.envs.base import Observation
from wovr.envs.tabletop import Tabletop
from wovr.envs.tabletop.physics import Table
from wovr.episodes.store import EpisodeStore
from wovr.stages import collect, evaluate, pipeline
from wovr.stages.experiment import Workplace


class Losing(Tabletop):
    """A tabletop that loses the environments whose start is in `doomed`, at their third step."""

    max_batch = 3

    def __init__(self, config, doomed):
        super().__init__(config)
        self.doomed, self.started, self.closed = doomed, [], False

    def reset(self, starts):
        assert len(starts) <= self.max_batch
        self.started += starts
        self._doomed_B = np.array([start in self.doomed for start in starts])
        self._steps = 0
        return super().reset(starts)

    def step(self, actions_BA, active_B=None, *, render=True) -> Observation:
        self._steps += 1
        seen = super().step(actions_BA, active_B, render=render)
        return replace(seen, lost_B=self._doomed_B & (self._steps >= 3))

    def close(self):
        self.closed = True


@pytest.fixture
def losing(monkeypatch):
    """Makes every workplace's simulator lose these starts; returns those that were made."""
    made = []

    def use(*doomed: tuple[int, int]):
        def simulator(place):
            made.append(Losing(place.experiment.simulator, [SimulatorStart(*start) for start in doomed]))
            return made[-1]

        monkeypatch.setattr(Workplace, "simulator", simulator)
        return made

    return use


def ledger(path: Path, purpose: str) -> list[dict]:
    lines = [json.loads(line) for line in (path / "ledger.jsonl").read_text().splitlines()]
    return [line for line in lines if line["purpose"] == purpose]


def run(experiment, path, *stages):
    with pipeline.open_workplace(experiment, path, plain=True) as place:
        for stage in stages:
            pipeline.run_stage(place, stage)


def collected(path: Path) -> list[tuple[int, int]]:
    store = EpisodeStore(path / "episodes")
    infos = [store.info(name) for name in store.names]
    return [(info.task_id, info.init_id) for info in infos if info.purpose == "collect"]


def test_what_is_lost_is_counted_and_made_up_for(toy, tmp_path, losing):
    experiment = toy("collect.episodes=10", "collect.shard=4")
    run(experiment, tmp_path, "sft")
    made = losing((1, 50), (2, 51))
    run(experiment, tmp_path, "collect")
    starts = [(i % 4, 50 + i // 4) for i in range(12)]
    assert collected(tmp_path) == [start for start in starts if start not in ((1, 50), (2, 51))]
    lines = ledger(tmp_path, "collect")
    assert [(line["key"], line["episodes"], line.get("lost", 0)) for line in lines] == [
        ("collect/0", 3, 1),
        ("collect/4", 3, 1),
        ("collect/8", 4, 0),
    ]
    assert made[0].closed


def test_an_interrupted_collection_goes_on_with_the_next_start(toy, tmp_path, losing, monkeypatch):
    experiment = toy("collect.episodes=10", "collect.shard=4")
    losing((1, 50))
    run(experiment, tmp_path / "whole", "sft", "collect")
    run(experiment, tmp_path / "parts", "sft")
    append = EpisodeStore.append

    def interrupted(store, episodes):
        if any(episode.init_id == 51 for episode in episodes):
            raise KeyboardInterrupt
        return append(store, episodes)

    with monkeypatch.context() as patch:
        patch.setattr(EpisodeStore, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(experiment, tmp_path / "parts", "collect")
    run(experiment, tmp_path / "parts", "collect")
    assert collected(tmp_path / "parts") == collected(tmp_path / "whole")
    assert ledger(tmp_path / "parts", "collect") == ledger(tmp_path / "whole", "collect")
    whole, parts = (EpisodeStore(tmp_path / name / "episodes") for name in ("whole", "parts"))
    assert np.array_equal(whole.read(whole.names[-1]).actions_TA, parts.read(parts.names[-1]).actions_TA)


def test_a_simulator_that_loses_everything_ends_the_collection(toy, tmp_path, losing):
    experiment = toy("collect.episodes=4", "collect.shard=4")
    run(experiment, tmp_path, "sft")
    losing(*((task, 50) for task in range(4)))
    with pytest.raises(UserError, match="collect collect: expected rollouts, found 4 in a row lost"):
        run(experiment, tmp_path, "collect")


def test_lost_evaluations_leave_the_others_paired(toy, tmp_path, losing):
    experiment = toy()
    run(experiment, tmp_path, "sft")
    losing((3, 0))
    run(experiment, tmp_path, "eval")
    found = json.loads((tmp_path / "eval/base.json").read_text())
    assert found["success"]["n"] == 3 and found["world"] == evaluate.TRUE
    assert sorted(episode["task_id"] for episode in found["episodes"]) == [0, 1, 2]
    assert ledger(tmp_path, "evaluation")[0]["lost"] == 1


def test_online_groups_with_a_lost_trajectory_are_dropped(toy, tmp_path, losing):
    experiment = toy("rl.simulator=true", "rl.updates=1", "rl.groups=3", "collect.episodes=16")
    run(experiment, tmp_path, "sft", "collect", "codec", "reward", "world_model", "decoder", "keyframes")
    losing((1, 50))
    run(experiment, tmp_path, "rl")
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (update,) = [line for line in metrics if "groups" in line]
    assert update["groups"] == 2
    (line,) = ledger(tmp_path, "online")
    assert (line["episodes"], line["lost"]) == (4, 2)


@pytest.mark.parametrize(("masked", "steps"), [("true", 8), ("false", 32)])
def test_the_ledger_pays_for_what_ran_after_success(toy, tmp_path, monkeypatch, masked, steps):
    experiment = toy("rl.simulator=true", "rl.updates=1", f"rl.update.grpo.mask_after_success={masked}")
    run(experiment, tmp_path, "sft")
    monkeypatch.setattr(Table, "success", lambda table, task_id: True)
    run(experiment, tmp_path, "rl")
    (line,) = ledger(tmp_path, "online")
    assert (line["episodes"], line["steps"]) == (4, 4 * steps)


def test_online_rl_needs_no_world_model(toy, tmp_path):
    """The whole run: nothing is collected, trained or imagined but the policy."""
    experiment = toy(
        "rl.simulator=true", "rl.updates=2", "codec.pretrained=/nowhere/codec.safetensors", "codec.train=null"
    )
    with pipeline.open_workplace(experiment, tmp_path, plain=True) as place:
        pipeline.run_all(place)
        assert list(place.run.stages()) == ["sft", "rl", "eval", "report"]
        with pytest.raises(UserError, match="refine: expected an experiment with a world model"):
            pipeline.run_command(place, "refine")
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"episodes", "sft", "rl", "eval", "report"}
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [line["purpose"] for line in lines] == ["demonstrations", "online", "online", "evaluation", "evaluation"]


def test_closing_follows_an_error_too(toy, tmp_path, losing, monkeypatch):
    experiment = toy()
    run(experiment, tmp_path, "sft")
    made = losing()
    monkeypatch.setattr(collect, "acting_policy", lambda place, path: None)
    with pytest.raises(AttributeError):
        run(experiment, tmp_path, "collect")
    assert made[0].closed


def test_episodes_brought_from_elsewhere_count_and_are_gone_on_from(toy, tmp_path, losing):
    experiment = toy("collect.episodes=4", "collect.shard=4")
    run(experiment, tmp_path, "sft")
    store = EpisodeStore(tmp_path / "episodes")
    shown = store.read(store.names[0])
    store.append([replace(shown, purpose="collect", task_id=task, init_id=init) for task, init in ((9, 60), (1, 0))])
    losing()
    run(experiment, tmp_path, "collect")
    assert collected(tmp_path) == [(9, 60), (1, 0), (0, 50), (1, 50)]
