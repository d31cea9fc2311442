"""Imagined videos of recorded episodes: what is imagined, which episodes a horizon counts, what is written."""

import numpy as np
import pytest
import torch

from tests.imagine.worlds import FakeReward, make_model
from tests.stages.test_hallucination import make_episode, write_world
from wovr.codec.conv import ConvCodec, ConvCodecConfig
from wovr.core.checkpoint import read_json, save_model
from wovr.core.dist import Dist
from wovr.core.errors import UserError
from wovr.core.log import RunLog
from wovr.core.run import RunFolder
from wovr.core.train import TrainConfig
from wovr.episodes.store import EpisodeStore
from wovr.imagine.load import WORLD_CODEC
from wovr.metrics.video import psnr
from wovr.stages import world_model_eval
from wovr.stages.eval_config import WorldModelEvalConfig
from wovr.stages.experiment import CodecStageConfig, Experiment, Workplace
from wovr.stages.replay import replay
from wovr.stages.world_model_eval import Speed, imagine
from wovr.stages.world_model_table import markdown


def test_rollouts_are_the_replays_from_first_frames_whatever_the_batch():
    episodes, steps = [make_episode(seed) for seed in range(3)], [24, 8, 16]
    together = imagine(make_model(), episodes, steps, seed=3, first=0, speed=Speed())
    alone = [
        imagine(make_model(), [episode], [T], seed=3, first=number, speed=Speed())[0]
        for number, (episode, T) in enumerate(zip(episodes, steps, strict=True))
    ]
    named = [(episode, f"demo_{i}") for i, episode in enumerate(episodes)]
    replays = list(replay(make_model(), FakeReward(), named, [0] * 3, horizon=24, batch_size=3, seed=3))
    for a, b, one, T in zip(together, alone, replays, steps, strict=True):
        assert a.shape == (T, *one.true_THWC.shape[1:])
        np.testing.assert_allclose(a.int(), b.int(), atol=1)
        np.testing.assert_allclose(a.int(), one.imagined_THWC[1 : T + 1].astype(int), atol=1)


def test_only_the_first_frame_is_seen():
    episode, other = make_episode(0), make_episode(1)
    mixed = np.concatenate([episode.frames_THWC[:1], other.frames_THWC[1:]])
    changed = type(episode)(**{name: getattr(episode, name) for name in episode.__slots__} | {"frames_THWC": mixed})
    a, b = (imagine(make_model(), [one], [24], seed=3, first=0, speed=Speed())[0] for one in (episode, changed))
    assert torch.equal(a, b)


def test_speed_leaves_out_the_first_chunk():
    speed = Speed()
    speed.add(8, 100.0)
    assert speed.fps is None
    speed.add(80, 2.0)
    speed.add(40, 1.0)
    assert speed.fps == 40


@pytest.fixture
def workplace(tmp_path):
    """Two world models; of 33 episodes 11, 22 and 33 are held out, of 32, 16 and 32 steps."""

    def open_place(**settings):
        experiment = Experiment(
            codec=CodecStageConfig(pretrained=None, train=TrainConfig(steps=1)),
            world_model_eval=WorldModelEvalConfig(**{"horizons": (8, 32, 64), **settings}),
        )
        run = RunFolder.open(tmp_path / "run", experiment.model_dump(mode="json"), ignore={"world_model_eval"})
        return Workplace(experiment, run, RunLog(run.path, plain=True), Dist())

    place = open_place()
    codec = ConvCodecConfig(channels=4, frame_width=8, group_width=16, blocks=1)
    for folder in (place.run.path, place.run.path / "refine/round_1"):
        torch.manual_seed(0)
        save_model(folder / WORLD_CODEC, ConvCodec(codec), codec)
        write_world(folder, reward_threshold=0.5)
    lengths = [16 if i == 21 else 32 for i in range(33)]
    EpisodeStore(place.run.folder("episodes")).append([make_episode(i, steps) for i, steps in enumerate(lengths)])
    place.run.close()
    return open_place


def test_the_stage_measures_both_worlds_by_horizon(workplace, capsys):
    with (place := workplace()).run as run:
        summary = world_model_eval.run(place)
        measured = read_json(run.path / world_model_eval.SUMMARY)
        table = (run.path / world_model_eval.TABLE).read_text()
    for world in ("base", "pace"):
        found = measured["worlds"][world]["episodes"]["collect"]
        assert {horizon: row["n"] for horizon, row in found["horizons"].items()} == {"8": 3, "32": 2}
        assert len(found["by_frame"]["psnr"]) == len(found["by_frame"]["ssim"]) == 32
        low, high = found["horizons"]["8"]["psnr"]["ci95"]
        assert low <= found["horizons"]["8"]["psnr"]["mean"] <= high
        assert measured["worlds"][world]["fps"] > 0
        assert summary[world]["collect"] == {"32": found["horizons"]["32"]}
    assert measured["left_out"] == [64] and "64" in capsys.readouterr().err
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    assert lines[0] == "| World model | Episodes | Rollout | n | FPS ↑ | PSNR ↑ | SSIM ↑ |"
    assert [line.split(" | ")[:4] for line in lines[2:]] == [
        ["| base world model", "collect", "32", "2"],
        ["| base world model", "collect", "8", "3"],
        ["| after PACE", "collect", "32", "2"],
        ["| after PACE", "collect", "8", "3"],
    ]
    assert "Left out, no held-out episode is so long: 64." in table


def test_values_are_those_of_the_videos(workplace):
    with (place := workplace(horizons=(8,), trajectories=2, batch_size=1)).run as run:
        world_model_eval.run(place)
        row = read_json(run.path / world_model_eval.SUMMARY)["worlds"]["base"]["episodes"]["collect"]["horizons"]["8"]
        model = world_model_eval.load_world_model(
            run.path / WORLD_CODEC, run.path / world_model_eval.DIT, place.dist.device
        )
        store = place.episodes()
        episodes = [store.read(store.names[i]) for i in (10, 21)]
        videos = imagine(model, episodes, [8, 8], seed=place.experiment.seed, first=0, speed=Speed())
    true = torch.stack([torch.from_numpy(episode.frames_THWC[1:9]) for episode in episodes])
    assert row["n"] == 2
    assert row["psnr"]["mean"] == pytest.approx(psnr(torch.stack(videos), true).mean().item(), abs=0.05)


def test_metrics_of_networks_become_columns(workplace, monkeypatch):
    seen = []

    def measures(metrics, folder, device):
        return {"lpips": lambda imagined, true: torch.full((len(true),), 0.25)}

    def features(metrics, folder, device):
        def of_video(frames_THWC, horizons):
            seen.append(list(horizons))
            return [frames_THWC[:horizon].float().mean(dim=(0, 1, 2))[None] for horizon in horizons]

        return {"fvd": of_video}

    monkeypatch.setattr(world_model_eval, "load_pair_measures", measures)
    monkeypatch.setattr(world_model_eval, "load_features", features)
    with (place := workplace(metrics=("lpips", "fvd"), horizons=(16, 32), trajectories=2)).run as run:
        world_model_eval.run(place)
        measured = read_json(run.path / world_model_eval.SUMMARY)
    rows = measured["worlds"]["base"]["episodes"]["collect"]["horizons"]
    assert rows["16"]["lpips"] == {"mean": 0.25, "ci95": [0.25, 0.25]} and rows["16"]["fvd"] > 0
    assert rows["32"]["n"] == 1 and rows["32"]["fvd"] is None, "one video has no covariance"
    assert seen == [[16, 32], [16, 32], [16], [16]] * 2, "of every world: imagined and true of both episodes"
    text = markdown(measured)
    assert "| PSNR ↑ | SSIM ↑ | LPIPS ↓ | FVD ↓ |" in text and "| 0.250 | – |" in text


def test_missing_weights_are_found_before_anything_is_imagined(workplace, monkeypatch, tmp_path):
    monkeypatch.setattr(world_model_eval, "imagine", lambda *args, **kwargs: pytest.fail("too late"))
    with (place := workplace(metrics=("fid",), weights=tmp_path)).run, pytest.raises(UserError, match="pt_inception"):
        world_model_eval.run(place)


def test_horizons_are_whole_chunks_in_order(workplace):
    with (place := workplace(horizons=(8, 12))).run, pytest.raises(UserError, match="multiples of the chunk length 8"):
        world_model_eval.run(place)
    for horizons in ((16, 8), (8, 8), (0, 8)):
        with pytest.raises(ValueError, match="each above the one before"):
            WorldModelEvalConfig(horizons=horizons)
    with pytest.raises(ValueError, match="fvd: expected horizons of 9 steps or more"):
        WorldModelEvalConfig(horizons=(8, 16), metrics=("fvd",))


def test_a_horizon_that_none_reaches_leaves_an_empty_table(workplace):
    with (place := workplace(horizons=(512,))).run as run:
        summary = world_model_eval.run(place)
        measured = read_json(run.path / world_model_eval.SUMMARY)
    assert summary["base"] == {"fps": None} and measured["left_out"] == [512]
    assert "512" in markdown(measured)
