"""The reward head trained with the world model: batches, loss, files, and a whole run that it judges."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.stages.test_hallucination import make_episode
from tests.stages.test_latents import LAYOUT, write_codec
from wovr.core.checkpoint import load_tensors, read_header
from wovr.core.config import load_config
from wovr.core.dist import Dist
from wovr.core.errors import UserError
from wovr.core.log import RunLog
from wovr.core.seed import normal, seed_everything, stream
from wovr.core.text import word_ids
from wovr.core.train import TrainConfig, Trainer
from wovr.dit.context import ContextConfig
from wovr.dit.model import ActionDiT, DiTConfig
from wovr.episodes.windows import WindowConfig
from wovr.flow.schedule import FlowConfig, train_sigmas
from wovr.imagine.load import DIT, REWARD, load_dit, load_head, make_imagined, save_dit
from wovr.reward.joint import RewardHead, RewardHeadConfig, balance, head_loss, sight
from wovr.stages import compare_reward, groups, pipeline
from wovr.stages.compare_reward_table import curves, details, rows
from wovr.stages.experiment import Experiment
from wovr.stages.latents import LatentEpisodes, OwnMemory, WorldBatches, WorldLossConfig, world_loss
from wovr.stages.pipeline import load_experiment

SMALL = DiTConfig(width=24, depth=2, heads=2, ffn_width=48, channels=3, causal_context=True)
HEAD = RewardHeadConfig(channels=16, keypoints=4, text_width=16, hidden_width=32, weight=0.5)
CONTEXT = ContextConfig()


def data_of(tmp_path: Path, *episodes: Any, chunks: int = 1) -> LatentEpisodes:
    tmp_path.mkdir(exist_ok=True)
    codec = write_codec(tmp_path / "codec.safetensors")
    return LatentEpisodes(list(episodes), codec, RunLog(tmp_path, plain=True), CONTEXT, 8 * chunks)


def batches(
    data: LatentEpisodes, labels: bool, size: int = 16, windows: WindowConfig | None = None, **more: Any
) -> Any:
    config = windows or WindowConfig()
    window = LAYOUT.packed(data.horizon // 8)
    return WorldBatches(data, config, window, batch_size=size, copies=2, seed=0, labels=labels, **more)


def network(seed: int = 0, head: bool = True) -> ActionDiT:
    seed_everything(seed)
    dit = ActionDiT(SMALL, LAYOUT)
    dit.reward_head = RewardHead(HEAD, SMALL.width) if head else None
    return dit


def test_labels_are_of_the_new_frames_of_each_window(tmp_path: Path) -> None:
    made = [make_episode(0, 32, success_at=20), replace(make_episode(1, 24), instruction="lift it")]
    data = data_of(tmp_path, *made)
    windows = WindowConfig(cold_start=0.2, static=0.2)
    batch = batches(data, True, 64, windows).at(3)
    episode_B, t_B = batches(data, True, 64, windows).index.draw(stream(0, "world-windows", 3), 64)
    for row, (e, t) in enumerate(zip(episode_B.tolist(), t_B.tolist(), strict=True)):
        frames = range(t + 1, t + 9)
        expected = [float(frame > 0 and bool(made[e].success_T[frame - 1])) for frame in frames]
        assert batch["labels_BT"][row].tolist() == expected
        assert torch.equal(batch["instruction_BL"][row], word_ids([made[e].instruction])[0])
    assert 0 < float(batch["labels_BT"].mean()) < 1


def test_classes_are_balanced_over_all_draws(tmp_path: Path) -> None:
    data = data_of(tmp_path, make_episode(0, 32, success_at=20), make_episode(1, 24))
    drawn = batches(data, True, 256, WindowConfig(cold_start=0.1, static=0.1))
    parts = [drawn.at(step) for step in range(20)]
    labels, weights = (torch.cat([part[key] for part in parts]) for key in ("labels_BT", "balance_BT"))
    assert float(labels.mean()) == pytest.approx(drawn.success_share, rel=0.05)
    for label in (0, 1):
        assert float((weights * (labels == label)).sum() / labels.numel()) == pytest.approx(0.5, abs=0.03)


def test_own_memories_bring_their_own_labels(tmp_path: Path) -> None:
    data = data_of(tmp_path, make_episode(0, 24, success_at=10), make_episode(1, 24))
    own = OwnMemory(torch.zeros(1, 3, 2, 2), [(0, 8)], share=0.5)
    batch = batches(data, True, 8, own=own).at(0)
    expected = torch.from_numpy(data.episodes[0].success_T[8:16]).float()
    assert all(torch.equal(row, expected) for row in batch["labels_BT"][:4])


@pytest.mark.parametrize(("success_at", "found"), [(None, "no frame with success"), (-1, "no frame without")])
def test_one_class_alone_is_refused(tmp_path: Path, success_at: int | None, found: str) -> None:
    episode = make_episode(0, 16)
    if success_at is not None:
        episode = replace(episode, success_T=np.ones(16, dtype=bool))
    data = data_of(tmp_path, episode)
    with pytest.raises(UserError, match=f"reward_head: expected windows with and without success, found {found}"):
        batches(data, True, windows=WindowConfig(cold_start=0, static=0))


def test_a_head_changes_neither_draws_nor_the_networks_beginning(tmp_path: Path) -> None:
    data = data_of(tmp_path, make_episode(0, 32, success_at=20))
    with_labels, without = (batches(data, labels).at(2) for labels in (True, False))
    assert set(with_labels) - set(without) == {"labels_BT", "balance_BT", "instruction_BL"}
    assert all(torch.equal(with_labels[key], value) for key, value in without.items())
    plain = network(head=False).state_dict()
    headed = network().state_dict()
    assert all(torch.equal(headed[name], value) for name, value in plain.items())
    assert {name.split(".")[0] for name in headed.keys() - plain.keys()} == {"reward_head"}


@pytest.mark.parametrize("chunks", [1, 2])
def test_its_loss_is_added_to_the_flow_loss_by_its_weight(tmp_path: Path, chunks: int) -> None:
    batch = batches(data_of(tmp_path, make_episode(0, 32, success_at=12), chunks=chunks), True).at(0)
    dit = network()
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    seen: list[Tensor] = []
    dit.reward_head.register_forward_hook(lambda _, inputs, output: seen.extend((*inputs, output)))
    flow = FlowConfig()
    loss = world_loss(CONTEXT, flow, LAYOUT.packed(chunks), WorldLossConfig(copies=2, chunks=chunks))
    both_B, logs = loss(dit, batch)
    features, ids, logits_RT = seen
    assert features.shape[:2] == (32, 2 * chunks) and batch["labels_BT"].shape == (16, 8 * chunks)
    assert torch.equal(ids, batch["instruction_BL"].repeat_interleave(2, 0))
    head, dit.reward_head = dit.reward_head, None
    flow_B, _ = loss(dit, batch)
    p = logits_RT.double().sigmoid().unflatten(0, (16, 2))
    y, weight = batch["labels_BT"][:, None].double(), batch["balance_BT"][:, None].double()
    uniform_BCK = (batch["uniform_BK"][:, None] + torch.tensor([0.0, 0.5])[:, None]) % 1
    sight_BCT = sight(flow, train_sigmas(flow, uniform_BCK)).repeat_interleave(8, 2).double()
    expected_B = -(sight_BCT * weight * (y * p.log() + (1 - y) * (1 - p).log())).mean(dim=(1, 2))
    torch.testing.assert_close(logs["reward_loss"].double(), expected_B, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((both_B - flow_B).double(), 0.5 * expected_B, rtol=1e-3, atol=1e-4)
    assert isinstance(head, RewardHead)


def test_micro_batches_do_not_change_its_training(tmp_path: Path) -> None:
    drawn = batches(data_of(tmp_path, make_episode(0, 32, success_at=12)), True)
    trained = []
    for parts in (1, 4):
        dit = network()
        settings = TrainConfig(steps=2, precision="fp32")
        trainer = Trainer(dit, settings, Dist(), 2)
        for step in range(2):
            trainer.step(drawn.at(step), world_loss(CONTEXT, FlowConfig(), LAYOUT, WorldLossConfig(copies=2)), parts)
        trained.append(dit.state_dict())
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, rtol=1e-4, atol=1e-5)


def test_success_that_shows_in_latents_is_learned_and_teaches_the_network(tmp_path: Path) -> None:
    """One channel of the latents tells success. Trained together, the head tells held-out windows apart."""

    def shown(folder: str, seeds: range) -> LatentEpisodes:
        made = []
        for seed in seeds:
            lasting = np.zeros(24, dtype=bool)
            lasting[int(stream(seed, "success").integers(4, 20)) :] = seed % 2 == 0
            made.append(replace(make_episode(seed, 24), success_T=lasting))
        data = data_of(tmp_path / folder, *made)
        data.latents_NChw = normal(tuple(data.latents_NChw.shape), seeds.start, "latents")
        data.latents_NChw[:, 0] += torch.where(torch.from_numpy(data.success_N), 2.0, -2.0)[:, None, None]
        return data

    drawn = batches(shown("train", range(24)), True)
    held = batches(shown("held", range(24, 32)), True, 128).at(0)
    dit = network()
    first = {name: value.clone() for name, value in dit.blocks[0].state_dict().items()}
    loss = world_loss(CONTEXT, FlowConfig(train_sigmas="grid"), LAYOUT, WorldLossConfig(copies=2))
    trainer = Trainer(dit, TrainConfig(steps=150, lr=3e-3, precision="fp32"), Dist(), 150)
    logs = [trainer.step(drawn.at(step), loss) for step in range(150)]
    assert np.mean([one["reward_loss"] for one in logs[-20:]]) < 0.6 * np.mean(
        [one["reward_loss"] for one in logs[:20]]
    )
    assert any(not torch.equal(dit.blocks[0].state_dict()[name], value) for name, value in first.items())

    scores: list[Tensor] = []
    dit.eval().reward_head.register_forward_hook(lambda _, inputs, output: scores.append(output))
    with torch.no_grad():
        loss(dit, held)
    score, label = scores[0].flatten(), held["labels_BT"].repeat_interleave(2, 0).flatten() > 0
    auc = (score[label][:, None] > score[~label][None]).float().mean()
    assert float(auc) > 0.8, "half is chance"


def test_its_gradient_reaches_the_network(tmp_path: Path) -> None:
    batch = batches(data_of(tmp_path, make_episode(0, 32, success_at=12)), True).at(0)
    dit = network()
    logits: list[Tensor] = []
    dit.reward_head.register_forward_hook(lambda _, inputs, output: logits.append(output))
    world_loss(CONTEXT, FlowConfig(), LAYOUT, WorldLossConfig(copies=2))(dit, batch)
    labels_BT = batch["labels_BT"]
    head_loss(logits[0], labels_BT, balance(labels_BT, 0.5), torch.ones_like(logits[0]))[0].mean().backward()
    assert float(dit.patch_embedding.weight.grad.abs().sum()) > 0
    assert dit.head.head.weight.grad is None, "which makes the velocity alone"


def test_head_and_threshold_travel_in_the_networks_file(tmp_path: Path) -> None:
    dit = network()
    dit.reward_head.calibrated(0.3, 2)
    save_dit(tmp_path / "dit.safetensors", dit, CONTEXT, FlowConfig())
    again, _, _ = load_dit(tmp_path / "dit.safetensors")
    judge = load_head(tmp_path / "dit.safetensors")
    assert (again.reward_head.threshold, judge.threshold, judge.hold) == (0.3, 0.3, 2)
    for name, value in dit.reward_head.state_dict().items():
        assert torch.equal(again.reward_head.state_dict()[name], value)
        assert torch.equal(judge.state_dict()[name], value)
    save_dit(tmp_path / "plain.safetensors", network(head=False), CONTEXT, FlowConfig())
    assert "reward_head" not in read_header(tmp_path / "plain.safetensors")
    assert load_dit(tmp_path / "plain.safetensors")[0].reward_head is None
    with pytest.raises(UserError, match=r"expected a reward head in it, found none; set reward\.judge=classifier"):
        load_head(tmp_path / "plain.safetensors")


def test_a_joint_judge_asks_for_a_head() -> None:
    config = Path(__file__).parents[2] / "configs" / "tabletop.yaml"
    with pytest.raises(UserError, match=r"key 'world_model': expected a reward_head, for example \{\}, with"):
        load_experiment(config, ["reward.judge=joint"])
    assert load_experiment(config, ["reward.judge=joint", "world_model.reward_head={}"]).reward.judge == "joint"


JOINT = ("reward.judge=joint", "world_model.reward_head={channels: 16, hidden_width: 32}", "sft.demonstrations=4")


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A whole toy run, and which reward models its rollouts of RL were judged by."""
    from tests.stages.conftest import CONFIG, TOY

    path, judges = tmp_path_factory.mktemp("joint") / "run", []
    load = groups.load_judge

    def noted(*arguments: Any) -> Any:
        found = load(*arguments)
        judges.append(type(found).__name__)
        return found

    experiment = load_config(Experiment, CONFIG, [*TOY, *JOINT])
    with pytest.MonkeyPatch.context() as patch, pipeline.open_workplace(experiment, path, plain=True) as place:
        patch.setattr(groups, "load_judge", noted)
        for name in pipeline.STAGES:
            pipeline.run_stage(place, name)
    return path, judges


def test_a_whole_run_is_judged_by_the_head(judged: tuple[Path, list[str]]) -> None:
    path, judges = judged
    assert judges == ["RewardHead", "RewardHead"], "RL, and RL after refinement"
    assert (path / REWARD).is_file(), "the classifier is trained either way"
    world = make_imagined(path, max_episode_steps=32).world
    newest = load_head(path / "refine/round_1" / DIT)
    assert isinstance(world.reward, RewardHead) and world.threshold == newest.threshold and world.hold == 2
    assert make_imagined(path, max_episode_steps=32, judge="classifier").world.reward.reads_features is False
    before, after = (load_tensors(folder / DIT)[0] for folder in (path, path / "refine/round_1"))
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("reward_head."))


def test_its_threshold_is_calibrated_on_held_out_episodes(judged: tuple[Path, list[str]]) -> None:
    path, _ = judged
    stages = json.loads((path / "manifest.json").read_text())["stages"]
    found = stages["world_model"]["summary"]
    assert load_head(path / DIT).threshold == found["reward_threshold"]
    assert found["reward_failed"] + found["reward_succeeded"] == 3, "every fifth of sixteen"
    refined = stages["refine"]["summary"]["round_1"]["world_model"]
    assert load_head(path / "refine/round_1" / DIT).threshold == refined["reward_threshold"]
    assert refined["reward_failed"] + refined["reward_succeeded"] == 4


def test_both_judges_are_compared_on_true_and_imagined_frames(judged: tuple[Path, list[str]]) -> None:
    path, _ = judged
    measured = json.loads((path / compare_reward.SUMMARY).read_text())
    assert {world: set(of) for world, of in measured.items()} == {
        world: {"collect", "refine-1"} for world in ("base", "pace")
    }
    for of in measured.values():
        for judges in of.values():
            assert {judge: set(found) for judge, found in judges.items()} == {
                judge: {"true", "imagined"} for judge in ("classifier", "joint")
            }
    joint = measured["base"]["collect"]["joint"]
    assert joint["true"]["threshold"] == load_head(path / DIT).threshold
    assert joint["true"]["brier"] != joint["imagined"]["brier"]
    assert (
        joint["true"]["frames"]["n"]
        == joint["imagined"]["frames"]["n"]
        == measured["base"]["collect"]["classifier"]["true"]["frames"]["n"]
    )
    assert len(rows(measured)) == len(details(measured)) == 16
    (title, lines), *rest = curves(measured).items()
    assert title == "base world model, episodes of collect" and len(rest) == 3
    assert [one.label for one in lines][::2] == ["classifier, true frames", "joint head, true frames", "calibrated"]
    report = (path / "report/report.html").read_text()
    assert "joint head, imagined frames" in report and "true successes, %" in report
