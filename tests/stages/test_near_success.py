"""Near-successes in a whole toy run: recognised by what is at hand at each stage, and drawn more often."""

import numpy as np
import pytest

from wovr.core.errors import UserError
from wovr.envs.tabletop import goal_distance
from wovr.stages import latents, near_success, pipeline, train_reward

STAGES = ("sft", "collect", "codec", "reward", "world_model", "decoder", "keyframes", "rl", "refine")
MARGIN = 14.0


def watched(monkeypatch, module, name):
    """The weights that `module` passes to the class of that name, one entry per object."""
    made, seen = getattr(module, name), []

    def make(*args, **kwargs):
        built = made(*args, **kwargs)
        seen.append(kwargs.get("weight_E", args[4] if len(args) > 4 else None))
        return built

    monkeypatch.setattr(module, name, make)
    return seen


def test_every_stage_weighs_what_it_can_recognise(toy, tmp_path, monkeypatch):
    labels = watched(monkeypatch, train_reward, "LabelledFrames")
    windows = watched(monkeypatch, latents, "WindowIndex")
    experiment = toy(f"near_success={{weight: 5, probability: 0, margin: {MARGIN}}}", "rl.updates=1")
    with pipeline.open_workplace(experiment, tmp_path, plain=True) as place:
        for name in STAGES:
            pipeline.run_stage(place, name)
        done = {name: stage["summary"] for name, stage in place.run.stages().items()}
        first, both = (place.training_data(rounds=rounds)[0] for rounds in (0, 1))
    failed = [sum(not episode.success for episode in episodes) for episodes in (first, both)]
    close = [
        [not e.success and goal_distance(e.task_id, e.init_id, e.states_TS).min() <= MARGIN for e in episodes]
        for episodes in (first, both)
    ]
    assert 0 < sum(close[0]) < failed[0], "or the test shows nothing"

    said = {"failed": failed[0], "near_successes": sum(close[0]), "by_probability": None, "by_margin": sum(close[0])}
    assert done["reward"]["near_success"] == said, "there was no classifier yet"
    said |= {"near_successes": failed[0], "by_probability": failed[0]}
    assert done["world_model"]["near_success"] == said, "every probability is at least 0"
    said = {"failed": failed[1], "near_successes": failed[1], "by_probability": failed[1], "by_margin": sum(close[1])}
    assert done["refine"]["round_1"]["reward"]["near_success"] == said, "the classifier of the first training"
    assert done["refine"]["round_1"]["world_model"]["near_success"] == said

    all_failed = [[not episode.success for episode in episodes] for episodes in (first, both)]
    expected = [np.where(mask, 5.0, 1.0).tolist() for mask in (close[0], all_failed[1])]
    assert [weight_E.tolist() for weight_E in labels] == expected
    expected = [2 * np.where(mask, 5.0, 1.0).tolist() for mask in (all_failed[0], all_failed[0], all_failed[1])]
    assert [weight_E.tolist() for weight_E in windows] == expected, (
        "true memories, own memories, refinement; a mirror image is worth its episode"
    )


def test_off_nothing_is_looked_for(toy, tmp_path, monkeypatch):
    labels = watched(monkeypatch, train_reward, "LabelledFrames")
    windows = watched(monkeypatch, latents, "WindowIndex")
    monkeypatch.setattr(near_success, "load_reward", lambda *args: pytest.fail("no probabilities are asked for"))
    with pipeline.open_workplace(toy(), tmp_path, plain=True) as place:
        for name in STAGES[:5]:
            pipeline.run_stage(place, name)
        assert all("near_success" not in stage["summary"] for stage in place.run.stages().values())
    assert labels == [None] and windows == [None, None]


def test_settings_without_a_sign_are_refused(toy):
    with pytest.raises(UserError, match=r"near_success.*expected probability, margin or both"):
        toy("near_success={probability: null, margin: null}")
