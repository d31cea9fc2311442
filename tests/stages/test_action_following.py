"""Worlds that follow their actions and worlds that do not, and what the stage says of them."""

import json
from dataclasses import replace

import pytest
import torch

from tests.imagine.worlds import A, FakeReward, H, make_model
from tests.stages.test_hallucination import make_episode, write_world
from wovr.codec.conv import ConvCodec, ConvCodecConfig
from wovr.core.checkpoint import read_json, save_model
from wovr.core.errors import UserError
from wovr.core.train import TrainConfig
from wovr.imagine.load import DIT, WORLD_CODEC, load_dit, load_world_model, save_dit
from wovr.stages import action_following, action_following_table
from wovr.stages.action_following import follow_actions
from wovr.stages.eval_config import ActionFollowingConfig
from wovr.stages.experiment import CodecStageConfig, Experiment
from wovr.stages.pipeline import STAGES, open_workplace, run_command
from wovr.stages.replay import replay

EXPERIMENT = Experiment(codec=CodecStageConfig(pretrained=None, train=TrainConfig(steps=1)))
STEPS = 16
SETTINGS = {"steps": STEPS, "batch_size": 4, "seed": 0}


def episodes(n, steps=STEPS):
    return [(make_episode(seed, steps), f"demo_{seed}") for seed in range(n)]


def as_imagined(model, named, batch_size=4):
    """The same episodes as if `model` were the true world."""
    steps = len(named[0][0])
    replays = replay(model, FakeReward(), named, [0] * len(named), horizon=steps, batch_size=batch_size, seed=0)
    return [
        (replace(episode, frames_THWC=one.imagined_THWC), name)
        for (episode, name), one in zip(named, replays, strict=True)
    ]


def ignore_actions(dit):
    """Every action is embedded alike."""
    for channel in (dit.action_encoder.action_mlp1, dit.action_encoder.action_mlp2):
        torch.nn.init.zeros_(channel[-1].weight)
    return dit


def test_the_true_world_follows_its_actions():
    model = make_model()
    calls = []
    found = follow_actions(
        model, FakeReward(), as_imagined(model, episodes(6)), advance=lambda: calls.append(1), **SETTINGS
    )
    assert found.follows and found.n == 6 and len(calls) == 6 * 7
    assert found.error["mean"] == 0
    for change in found.changes.values():
        assert change.told and change.told_apart.rate == 1 and len(change.error_by_chunk) == STEPS / H


def test_a_world_that_ignores_its_actions_fails():
    """Its frames are the same whatever it is told, and so are its errors; those of its own kind of truth too."""
    model = make_model()
    true = as_imagined(model, episodes(6))
    ignore_actions(model.dit)
    for named in (true, as_imagined(model, episodes(6))):
        found = follow_actions(model, FakeReward(), named, **SETTINGS)
        assert not found.follows
        for change in found.changes.values():
            assert change.told_apart.rate == 0 and change.difference["mean"] == 0


def test_a_dimension_that_a_world_ignores_is_named():
    model = make_model()
    for channel in (model.dit.action_encoder.action_mlp1, model.dit.action_encoder.action_mlp2):
        channel[0].weight[:, 1::A] = 0  # each reads A dims, and sums of A dims, one or four times
    found = follow_actions(model, FakeReward(), as_imagined(model, episodes(6)), **SETTINGS)
    assert found.follows
    assert {name for name, change in found.changes.items() if not change.told} == {"dimension_1"}
    assert found.changes["dimension_1"].told_apart.rate == 0


def test_a_world_that_heeds_its_actions_in_another_way_fails():
    found = follow_actions(make_model(), FakeReward(), episodes(16), **SETTINGS)
    assert not found.follows
    for change in found.changes.values():
        assert 0.1 < change.told_apart.rate < 0.9, "chance is a half"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The base world model is the true world of the held-out episodes, and PACE made it ignore its actions."""
    path = tmp_path_factory.mktemp("following") / "run"
    with open_workplace(EXPERIMENT, path, plain=True) as place:
        codec = ConvCodecConfig(channels=4, frame_width=8, group_width=16, blocks=1)
        for folder in (path, path / "refine/round_1"):
            torch.manual_seed(0)
            save_model(folder / WORLD_CODEC, ConvCodec(codec), codec)
            write_world(folder, reward_threshold=0.5)
        dit, context, flow = load_dit(path / DIT)
        for parameter in dit.parameters():  # or actions would not matter
            parameter.data += 0.2 * torch.randn_like(parameter)
        save_dit(path / DIT, dit, context, flow)
        save_dit(path / "refine/round_1" / DIT, ignore_actions(dit), context, flow)
        made = [make_episode(i, 8 if i == 43 else 24) for i in range(44)]
        true = as_imagined(load_world_model(path / WORLD_CODEC, path / DIT), [(made[i], "") for i in (10, 21, 32)])
        for i, (episode, _) in zip((10, 21, 32), true, strict=True):  # held out, with 43
            made[i] = episode
        place.episodes().append([*made, *(replace(make_episode(i), purpose="refine-1") for i in range(11))])
        for name in [*STAGES][: [*STAGES].index("decoder") + 1]:
            place.run.mark_done(name, 0, {})
    return path


def look(path, **settings):
    changed = EXPERIMENT.model_copy(update={"action_following": ActionFollowingConfig(**settings)})
    with open_workplace(changed, path, plain=True) as place:
        run_command(place, "eval", ["action_following"])
        return place.run.stages()["action_following"]


def test_the_stage_judges_both_worlds(trained, capsys):
    summary = look(trained)["summary"]
    measured = read_json(trained / action_following.SUMMARY)
    assert set(measured["worlds"]["base"]) == {"collect"}, "one episode cannot be shuffled"
    assert "'refine-1' left out, fewer than two of its 1 held-out episodes have 16 steps" in " ".join(
        capsys.readouterr().err.split()
    )
    base, pace = (measured["worlds"][world]["collect"] for world in ("base", "pace"))
    assert (base["n"], base["follows"], base["error"]["mean"]) == (3, True, 0), "one of the four is too short"
    assert (pace["n"], pace["follows"]) == (3, False)
    assert {one["told_apart"]["rate"] for one in pace["changes"].values()} == {0}
    assert summary["base"]["collect"]["follows"] and not summary["pace"]["collect"]["follows"]
    json.dumps(summary)

    verdict, failed = action_following_table.verdicts(measured)
    assert "follows its actions" in verdict["text"] and "DOES NOT FOLLOW" in failed["text"]
    assert "dimension 0 (mean |a| 0." in failed["text"] and "Not told" not in verdict["text"]
    assert [row[3] for row in action_following_table.rows(measured)] == ["yes", "NO"]
    assert len(action_following_table.details(measured)) == 2 * 6


def test_other_settings_repeat_it_and_the_same_do_not(trained):
    times = [look(trained, trajectories=2, steps=steps)["finished"] for steps in (8, 8, 16)]
    assert times[0] == times[1] < times[2]
    assert read_json(trained / action_following.SUMMARY)["settings"] == {"trajectories": 2, "steps": 16}
    assert read_json(trained / action_following.SUMMARY)["worlds"]["base"]["collect"]["n"] == 2


def test_steps_are_whole_chunks(trained):
    with pytest.raises(
        UserError, match=r"action_following\.steps: expected a multiple of the chunk length 8, found 12"
    ):
        look(trained, steps=12)


def test_where_no_episode_is_so_long_nothing_is_measured(trained):
    look(trained, steps=512)
    measured = read_json(trained / action_following.SUMMARY)
    assert measured["worlds"] == {"base": {}, "pace": {}} and action_following_table.verdicts(measured) == []
