"""Policies in both worlds: a perfect imagination agrees with truth, and a planted dream of success is found out."""

from pathlib import Path

import numpy as np
import pytest

from tests.stages.prepared import experiment, prepare, ready
from wovr.core.checkpoint import read_json
from wovr.envs.chunked import ChunkedSimulator
from wovr.envs.continued import ContinuedSimulator
from wovr.stages import closed_loop, pipeline
from wovr.stages.report import REPORT

SETTINGS = ("closed_loop={first_frames: 6, keyframes: 4}", "rl.updates=3", "rl.keep_every=1", "refine.updates=2")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("closed") / "run"
    prepare(path, *SETTINGS)
    with pipeline.open_workplace(experiment(*SETTINGS), path, plain=True) as place:
        for stage in ("rl", "refine", "closed_loop"):
            pipeline.run_stage(place, stage)
    return path


def test_every_policy_acts_in_every_world_from_every_kind_of_start(done: Path) -> None:
    found = read_json(done / closed_loop.SUMMARY)
    assert found["policies"] == ["base", "rl-1", "rl-2", "imagination", "refine-1-1", "pace"]
    assert list(found["worlds"]) == ["base", "pace"]
    for by_start in found["worlds"].values():
        assert {kind: one["agreement"]["n"] for kind, one in by_start.items()} == {
            "first_frame": 6 * 6,
            "keyframe": 6 * 4,
        }
        for one in by_start.values():
            for policy in one["by_policy"].values():
                assert policy["true_by_depth"][-1] == policy["true"]["rate"]
    truth = [
        [policy["true"] for policy in by_start["first_frame"]["by_policy"].values()]
        for by_start in found["worlds"].values()
    ]
    assert truth[0] == truth[1]  # whatever the world model


def test_true_rollouts_are_paid_for_once(done: Path) -> None:
    with pipeline.open_workplace(experiment(*SETTINGS), done, plain=True) as place:
        before = place.run.ledger()["evaluation"]
        assert before["episodes"] == 6 * (6 + 4)
        closed_loop.run(place)
        assert place.run.ledger()["evaluation"] == before


def test_fewer_policies_are_spread_over_the_run(done: Path) -> None:
    few = (*SETTINGS, "closed_loop.policies=3")
    with pipeline.open_workplace(experiment(*few), done, plain=True) as place:
        assert list(closed_loop._policies(place)) == ["base", "rl-2", "pace"]


def test_a_perfect_imagination_agrees_and_a_dream_of_success_does_not(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of the world model stands the simulator itself, judged as it is or always called a success."""
    config = experiment(*SETTINGS, "simulator.horizon=32")
    path = ready(done, tmp_path / "run", config)

    class Perfect:
        def __init__(self, model: object, reward: object, horizon: int) -> None:
            self.world = ContinuedSimulator(ChunkedSimulator(place.simulator(), 8))

        def __getattr__(self, name: str) -> object:
            return getattr(self.world, name)

        def reset(self, starts, keys):
            return self.world.reset([twin[id(start)] for start in starts], keys)

        def instruction(self, start):
            return start.instruction

    class Dream(Perfect):
        def step(self, actions_BHA):
            chunk = self.world.step(actions_BHA)
            chunk.probability_BT[:] = 1.0
            return chunk

    twin: dict[int, object] = {}
    compare = closed_loop.Starts

    def noted(imagined, true, limit):
        twin.update({id(one): other for one, other in zip(imagined, true, strict=True)})
        kept.append(imagined)
        return compare(imagined, true, limit)

    kept: list[object] = []
    monkeypatch.setattr(closed_loop, "Starts", noted)
    with pipeline.open_workplace(config, path, plain=True) as place:
        monkeypatch.setattr(closed_loop, "ImaginedWorld", Perfect)
        perfect = closed_loop.run(place)
        monkeypatch.setattr(closed_loop, "ImaginedWorld", Dream)
        closed_loop.run(place)
    assert all(one["agreement"]["rate"] == 1 for by_start in perfect.values() for one in by_start.values())
    dream = read_json(path / closed_loop.SUMMARY)["worlds"]["base"]["first_frame"]
    failed = dream["counts"]["false_success"] + dream["counts"]["both_fail"]
    assert failed > 0 and dream["false_success_rate"]["rate"] == 1.0
    assert np.isclose(dream["by_policy"]["base"]["imagined_by_depth"][0], 1.0)
    assert dream["correlation"]["value"] is None  # success is the same for all


def test_the_report_shows_it(done: Path) -> None:
    with pipeline.open_workplace(experiment(*SETTINGS), done, plain=True) as place:
        pipeline.run_stage(place, "report")
    text = (done / REPORT).read_text()
    assert "In closed loop" in text and "refine-1-1" in text
