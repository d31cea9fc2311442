"""A world model that is told absolute actions: training, imagination and the files between them agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.imagine.worlds import make_model
from tests.stages.prepared import experiment, prepare, updates
from tests.stages.test_hallucination import make_episode
from tests.stages.test_latents import write_codec
from wovr.core.errors import UserError
from wovr.core.log import RunLog
from wovr.core.seed import normal, seed_everything
from wovr.core.types import Episode
from wovr.dit.context import ContextConfig, layout
from wovr.dit.model import ActionDiT, DiTConfig
from wovr.flow.schedule import FlowConfig
from wovr.imagine.load import BANK, DIT, WORLD_CODEC, load_dit, load_world_model, save_dit
from wovr.kir.bank import KeyframeBank
from wovr.kir.mine import start_state
from wovr.stages import pipeline
from wovr.stages.latents import LatentEpisodes, WorldLossConfig, check_fit
from wovr.stages.plan_networks import Networks
from wovr.stages.train_wm import backbone

ABSOLUTE = ContextConfig(actions="absolute")
OVERRIDES = ("world_model.context.actions=absolute", "world_model.dit.action_sums=false")
SMALL = {"width": 24, "depth": 1, "heads": 2, "ffn_width": 48, "channels": 4}


def told(episode: Episode, frame: int, actions: str) -> list[float]:
    """What is told of this frame, in float64."""
    if frame <= 0:
        return [0.0, 0.0, -1.0]
    produced_A = episode.actions_TA[frame - 1].astype(np.float64)
    if actions == "absolute":
        produced_A[:-1] = episode.actions_TA[:frame, :-1].astype(np.float64).sum(axis=0) / 8
    found: list[float] = produced_A.tolist()
    return found


def window(episode: Episode, t: int, context: ContextConfig, horizon: int = 8) -> Tensor:
    frames = [0] * context.reference + list(range(t - context.memory_frames + 1, t + horizon + 1))
    return torch.tensor([told(episode, frame, context.actions) for frame in frames], dtype=torch.float64)


def make_data(tmp_path: Path, episodes: list[Episode], context: ContextConfig, horizon: int = 8) -> LatentEpisodes:
    codec = write_codec(tmp_path / "codec.safetensors")
    return LatentEpisodes(episodes, codec, RunLog(tmp_path, plain=True), context, horizon)


@pytest.mark.parametrize("horizon", [8, 24])
@pytest.mark.parametrize(
    "changes", [{}, {"reference": False}, {"memory_frames": 8}, {"memory_frames": 1}, {"actions": "residual"}]
)
def test_training_windows_hold_sums_since_the_first_frame(
    tmp_path: Path, changes: dict[str, object], horizon: int
) -> None:
    context = ContextConfig.model_validate(ABSOLUTE.model_dump() | changes)
    episodes = [make_episode(0, 40), make_episode(1, 48)]
    data = make_data(tmp_path, episodes, context, horizon)
    for number, t in [(0, -horizon), (1, -horizon), (0, 0), (1, 0), (1, 2), (0, 12), (1, 24)]:
        _, (actions_TA,) = data.windows(np.array([number]), np.array([t]))
        expected = window(episodes[number], t, context, horizon)
        assert actions_TA.dtype == torch.float32
        if context.actions == "residual":
            assert torch.equal(actions_TA, expected.float())
        else:
            torch.testing.assert_close(actions_TA.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("memory_frames", [4, 8, 1])
@pytest.mark.parametrize("actions", ["absolute", "residual"])
def test_imagination_is_told_what_training_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, actions: str, memory_frames: int
) -> None:
    """From a first frame and keyframes, over several chunks, with rows that are dropped, turned round and added."""
    context = ContextConfig.model_validate({"actions": actions, "memory_frames": memory_frames})
    episodes = [make_episode(0, 40), make_episode(1, 48)]
    data, model = make_data(tmp_path, episodes, context), make_model(context)
    seen: list[Tensor] = []
    precompute = model.dit.precompute

    def noted(actions_BTA: Tensor, context_BKChw: Tensor) -> object:
        seen.append(actions_BTA)
        return precompute(actions_BTA, context_BKChw)

    monkeypatch.setattr(model.dit, "precompute", noted)
    rows = [(0, 0), (1, 2), (1, 13), (0, 0)]
    state = model.start([start_state(episodes[e], "demo", t, "", memory_frames) for e, t in rows])
    for chunk in range(3):
        if chunk == 1:
            rows, state = [rows[2], rows[0]], state.select([2, 0])
        if chunk == 2:
            rows = [*rows, (1, 5)]
            state = state.join(model.start([start_state(episodes[1], "demo", 5, "", memory_frames)]))
        fed = torch.from_numpy(np.stack([episodes[e].actions_TA[t : t + 8] for e, t in rows]))
        noise = normal((len(rows), *model.noise_shape(state)), 0, "noise", chunk)
        _, _, state = model.step(state, fed, noise)
        _, expected_BTA = data.windows(*np.array(rows).T)
        if actions == "residual":
            assert torch.equal(seen[-1], expected_BTA) and state.moved_BA is None
        else:
            torch.testing.assert_close(seen[-1], expected_BTA, rtol=1e-6, atol=2e-6)
            assert state.moved_BA is not None and not state.moved_BA[:, -1].any()
        rows = [(e, t + 8) for e, t in rows]
    assert len(seen) == 3


def test_sums_of_sums_are_refused() -> None:
    dit = ActionDiT(DiTConfig(**SMALL), layout(ABSOLUTE, 8))
    check_fit(dit, 4, WorldLossConfig(), ContextConfig())
    with pytest.raises(UserError, match=r"expected dit\.action_sums=false with absolute actions, .* found true"):
        check_fit(dit, 4, WorldLossConfig(), ABSOLUTE)


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    seed_everything(0)
    dit = ActionDiT(DiTConfig(**SMALL), layout(ContextConfig(), 8))
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter)
    save_dit(tmp_path / "sums.safetensors", dit, ContextConfig(), FlowConfig())
    return tmp_path / "sums.safetensors"


@pytest.mark.parametrize("channel", ["both", "adaln", "cross_attention"])
def test_a_network_with_sums_begins_without(
    pretrained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], channel: str
) -> None:
    off = {"both": (), "adaln": ("world_model.dit.cross_attention=false",)}
    off["cross_attention"] = ("world_model.dit.adaln=false",)
    config = experiment(f"world_model.pretrained={pretrained}", *OVERRIDES, *off[channel])
    with pipeline.open_workplace(config, tmp_path / "run", plain=True) as place:
        dit = backbone(place)
    before, after = load_dit(pretrained)[0].state_dict(), dit.state_dict()
    first = {"cross_attention": ["action_encoder.action_mlp1.0"], "adaln": ["action_encoder.action_mlp2.0"]}
    fresh = [*first["cross_attention"], *first["adaln"]] if channel == "both" else first[channel]
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {f"{layer}.{kind}" for layer in fresh for kind in ("weight", "bias")}
    assert not dit.config.action_sums
    assert Networks(config, gpu=False).dit_config == dit.config, "what is planned is what is trained"
    said = " ".join(capfd.readouterr().err.split())  # lines are wrapped
    assert "actions=residual" in said and "action_sums=True" in said
    assert said.endswith(f"from scratch: {', '.join(fresh)}")


def test_a_network_of_residual_actions_begins_with_absolute_ones(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "residual.safetensors"
    dit = ActionDiT(DiTConfig(**SMALL, action_sums=False), layout(ContextConfig(), 8))
    save_dit(path, dit, ContextConfig(), FlowConfig())
    for actions, said in (("absolute", "actions=residual"), ("residual", "")):
        config = experiment(f"world_model.pretrained={path}", *OVERRIDES, f"world_model.context.actions={actions}")
        with pipeline.open_workplace(config, tmp_path / actions, plain=True) as place:
            after = backbone(place).state_dict()
        assert all(torch.equal(after[name], value) for name, value in dit.state_dict().items())
        err = " ".join(capfd.readouterr().err.split())
        assert ("was trained with" in err) == bool(said) and said in err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "absolute"
    prepare(path, *OVERRIDES)
    return path


def test_the_loop_runs_with_absolute_actions(trained: Path) -> None:
    assert load_dit(trained / DIT)[1].actions == "absolute"
    bank = KeyframeBank.load(trained / BANK)
    with pipeline.open_workplace(experiment(*OVERRIDES), trained, plain=True) as place:
        episodes = place.episodes()
        for start in bank:
            expected_A = episodes.steps(start.episode)[0][: start.step].astype(np.float64).sum(axis=0)
            expected_A[-1] = 0
            assert start.moved_A is not None
            np.testing.assert_allclose(start.moved_A, expected_A, rtol=1e-6)
        pipeline.run_stage(place, "rl")
    assert len(updates(trained)) == 5

    model = load_world_model(trained / WORLD_CODEC, trained / DIT)
    start = bank[0]
    assert start.moved_A is not None
    far = replace(start, moved_A=start.moved_A + np.float32(8) * np.array([1, 1, 0], np.float32))
    state = model.start([start, far])
    noise = normal(model.noise_shape(state), 0, "noise").expand(2, -1, -1, -1, -1)
    here, there = model.imagine(state, torch.zeros(2, 8, 3), noise)
    assert not torch.allclose(here, there), "the network hears where the hand is"


def test_keyframes_without_sums_are_refused(trained: Path) -> None:
    (start, *_) = KeyframeBank.load(trained / BANK)
    with pytest.raises(UserError, match=rf"{start.episode}: expected the sum of its motions, .* found none"):
        load_world_model(trained / WORLD_CODEC, trained / DIT).start([replace(start, moved_A=None)])
