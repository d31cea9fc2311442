"""More rounds of refinement than one, and when they end."""

import json

import numpy as np
import pytest

from wovr.core.checkpoint import load_tensors
from wovr.core.types import Episode
from wovr.stages import pipeline, refine
from wovr.stages.rounds import OPENING, last_policy, open_round, policy_after, round_folder

STAGES = ("sft", "collect", "codec", "reward", "world_model", "decoder", "keyframes", "rl", "refine", "eval")


def run(experiment, path, stages=STAGES):
    with pipeline.open_workplace(experiment, path, plain=True) as place:
        for name in stages:
            pipeline.run_stage(place, name)
        return {name: stage["summary"] for name, stage in place.run.stages().items()}


def purposes(path):
    return {json.loads(line)["purpose"] for line in (path / "ledger.jsonl").read_text().splitlines()}


def episode(purpose, success):
    return Episode(
        frames_THWC=np.zeros((2, 4, 4, 3), np.uint8),
        actions_TA=np.zeros((1, 3), np.float32),
        success_T=np.array([success]),
        states_TS=np.zeros((2, 0)),
        instruction="do it",
        suite="test",
        task_id=0,
        init_id=0,
        policy="test",
        seed=0,
        purpose=purpose,
    )


def rollouts(place, number, *rates):
    """Rollouts of the collection and of refinement rounds, and the policies that they say there were."""
    for purpose, rate in zip(("collect", "refine-1", "refine-2"), rates, strict=False):
        place.episodes().append([episode(purpose, i < round(20 * rate)) for i in range(20)])
    for before in range(-1, number):
        policy_after(place, before).parent.mkdir(parents=True, exist_ok=True)
        policy_after(place, before).touch()


@pytest.mark.parametrize(
    ("number", "rates", "stands"),
    [
        (1, (0.3, 0.35), None),  # a gain of 0.05, but for rounding
        (1, (0.3, 0.3), "rl/policy.safetensors"),
        (1, (0.3, 0.25), "sft/policy.safetensors"),
        (2, (0.9, 0.3, 0.5), None),  # the collection no longer counts
        (2, (0.1, 0.5, 0.5), "refine/round_1/rl/policy.safetensors"),
        (2, (0.1, 0.5, 0.2), "rl/policy.safetensors"),
    ],
)
def test_the_better_policy_stands_where_the_gain_is_too_small(toy, tmp_path, capfd, number, rates, stands):
    experiment = toy("refine.rounds=3", "refine.min_gain=0.05")
    with pipeline.open_workplace(experiment, tmp_path, plain=True) as place:
        rollouts(place, number, *rates)
        found = open_round(place, number)
        assert found.get("stands") == stands
        assert (found["before"]["rate"], found["success"]["rate"]) == rates[-2:]
        assert found["ci95"][0] < found["difference"] < found["ci95"][1]
        assert open_round(place, number) == found, "once and for all"
        last = last_policy(place)
    if stands is None:
        assert last == (None if number == 1 else tmp_path / "refine/round_1/rl/policy.safetensors")
    else:
        assert last == tmp_path / stands
    said = " ".join(capfd.readouterr().err.split())
    assert said.count(f"rounds end before round {number} trains anything") == (stands is not None)


def test_rounds_end_where_the_gain_is_too_small(toy, tmp_path, monkeypatch):
    """All that is left of the round that ended is its rollouts; the policy that stands is not evaluated twice."""
    experiment = toy("refine.rounds=2", "refine.min_gain=1")
    summary = run(experiment, tmp_path)
    opening = summary["refine"]["round_1"]["opening"]
    assert list(summary["refine"]) == ["round_1"] and list(summary["refine"]["round_1"]) == ["opening"]
    assert opening["before"]["n"] == 16 and opening["success"]["n"] == 8
    assert [path.name for path in (tmp_path / "refine").rglob("*") if path.is_file()] == [OPENING.name]
    assert purposes(tmp_path) == {"demonstrations", "collect", "refine-1", "evaluation"}

    name = "imagination" if opening["difference"] >= 0 else "base"
    assert summary["eval"]["pace_is"] == name and summary["eval"]["pace"] == summary["eval"][name]
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines[-2:]] == ["evaluation/base", "evaluation/imagination"]

    monkeypatch.setattr(refine, "train_policy", lambda *args, **kwargs: pytest.fail("the round had ended"))
    with pipeline.open_workplace(experiment, tmp_path, plain=True) as place:
        pipeline.run_stage(place, "refine")  # done
        assert refine.run(place) == summary["refine"], "and as after an interruption"
    assert purposes(tmp_path) == {"demonstrations", "collect", "refine-1", "evaluation"}


def test_rounds_go_on_where_the_gain_is_met(toy, tmp_path):
    few = ("rl.updates=1", "refine.rounds=2")
    summary = run(toy(*few, "refine.min_gain=-1"), tmp_path / "asked")
    first, second = (summary["refine"][f"round_{number}"] for number in (1, 2))
    assert "stands" not in first["opening"] and "stands" not in second["opening"]
    assert second["opening"]["before"] == first["opening"]["success"]
    assert {"reward", "world_model", "rl"} <= set(second)
    with pipeline.open_workplace(toy(*few, "refine.min_gain=-1"), tmp_path / "asked", plain=True) as place:
        assert last_policy(place) == round_folder(place, 2) / "rl/policy.safetensors"
    assert "pace_is" not in summary["eval"]

    run(toy(*few), tmp_path / "plain", STAGES[:-1])
    artifact = "refine/round_2/rl/policy.safetensors"
    ours, plain = (load_tensors(tmp_path / name / artifact)[0] for name in ("asked", "plain"))
    assert all((value == plain[name]).all() for name, value in ours.items()), "the rule changes no training"
