"""Collection in the real LIBERO simulator, one of whose workers is killed amid an episode."""

import importlib.util
import json
import os
import signal

import numpy as np
import pytest

from wovr.core.errors import UserError
from wovr.envs.libero import Libero
from wovr.envs.libero.install import ASSETS_VARIABLE
from wovr.episodes.store import EpisodeStore
from wovr.stages import pipeline

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="LIBERO is not installed"),
    pytest.mark.skipif(not os.environ.get(ASSETS_VARIABLE), reason=f"{ASSETS_VARIABLE} names no assets"),
]
LIBERO = (
    "simulator={kind: libero, tasks: [put_the_bowl_on_the_plate], image_size: 64, horizon: 72, workers: 2}",
    "simulator.wrist=true",
    "policy={action_low: [-1, -1, -1, -1, -1, -1, -1], action_high: [1, 1, 1, 1, 1, 1, 1]}",
    "world_model.dit.action_dim=7",
    "sft.demonstrations=1",
    "sft.skill=1.0",
    "sft.offset=[0.0, 0.0]",
    "collect.episodes=3",
    "collect.shard=2",
)


def test_a_killed_worker_costs_its_episode_alone(toy, tmp_path, monkeypatch):
    step, steps, killed = Libero.step, [], []

    def stepped(simulator, *args, **kwargs):
        steps.append(simulator)
        if len(steps) == 10:
            killed.append(simulator._running[1].pid)
            os.kill(killed[0], signal.SIGKILL)
        return step(simulator, *args, **kwargs)

    with pipeline.open_workplace(toy(*LIBERO), tmp_path, plain=True) as place:
        pipeline.run_stage(place, "sft")
        monkeypatch.setattr(Libero, "step", stepped)
        pipeline.run_stage(place, "collect")
        assert place.run.ledger()["collect"]["lost"] == 1
    store = EpisodeStore(tmp_path / "episodes")
    infos = [store.info(name) for name in store.names]
    assert [info.success for info in infos if info.purpose == "demonstrations"] == [True]
    collected = [(info.init_id, info.purpose) for info in infos[1:]]
    assert collected == [(50, "collect"), (52, "collect"), (53, "collect")], "51 was lost, and another made up for it"
    episode = store.read(store.names[1])
    assert episode.frames_THWC.shape == (73, 64, 64, 3) and np.isfinite(episode.states_TS).all()
    shown = store.read(store.names[0])
    for one in (shown, episode):
        assert one.proprio_TP.shape == (len(one) + 1, 8) and one.wrist_THWC.shape == one.frames_THWC.shape
        # States begin with time and the arm's seven joints, which the fingers' two follow.
        np.testing.assert_allclose(one.proprio_TP[:, 6:], one.states_TS[:, 8:10], atol=2e-3)
    assert np.ptp(shown.proprio_TP[:, :3], axis=0).max() > 0.1, "the hand travels, metres"
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [(line["key"], line["episodes"], line.get("lost", 0)) for line in lines[1:]] == [
        ("collect/0", 1, 1),
        ("collect/2", 2, 0),
    ]


def test_a_policy_of_two_views_and_proprioception(toy, tmp_path):
    """Fitted to demonstrations, rolled out and trained online; imagination shows neither, and says so at once."""
    vit = "{width: 16, depth: 2, heads: 2, mlp_width: 16}"
    oft = (
        f"policy={{kind: openvla_oft, views: 2, proprio: 8, image_size: 28, dino: {vit}, siglip: {vit}, "
        "llama: {width: 16, layers: 1, heads: 2, mlp_width: 16}}"
    )
    few = ("simulator.horizon=16", "collect.episodes=2", "rl.updates=1", "rl.groups=2", "rl.update.temperature=3.0")
    overrides = [oft if one.startswith("policy=") else one for one in LIBERO]
    with pipeline.open_workplace(toy(*overrides, *few, "rl.simulator=true"), tmp_path / "run", plain=True) as place:
        for name in ("sft", "collect", "rl"):
            pipeline.run_stage(place, name)
        assert place.run.ledger()["online"]["episodes"] == 4
    with (
        pipeline.open_workplace(toy(*overrides, *few), tmp_path / "other", plain=True) as place,
        pytest.raises(UserError, match=r"key 'policy\.views': expected 1 .* imagination"),
    ):
        pipeline.run_all(place)


def test_a_task_without_a_scripted_hand_asks_for_recordings(toy, tmp_path):
    overrides = [one.replace("put_the_bowl_on_the_plate", "put_the_wine_bottle_on_the_rack") for one in LIBERO]
    with (
        pipeline.open_workplace(toy(*overrides), tmp_path, plain=True) as place,
        pytest.raises(UserError, match=r"demonstrations of put_the_wine_bottle_on_the_rack.*wovr convert SOURCE"),
    ):
        pipeline.run_stage(place, "sft")
