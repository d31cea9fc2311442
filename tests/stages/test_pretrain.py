import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from wovr.core.dist import Dist
from wovr.core.errors import UserError
from wovr.core.log import RunLog
from wovr.core.types import no_motion
from wovr.dit.context import ContextConfig, layout
from wovr.imagine.load import load_codec, load_dit
from wovr.stages.latents import WorldBatches
from wovr.stages.pipeline import open_workplace
from wovr.stages.pretrain import PretrainConfig, run
from wovr.stages.train_wm import backbone

TOY = {
    "episodes": 4,
    "steps": 16,
    "codec_episodes": 2,
    "codec": {"channels": 4, "frame_width": 8, "group_width": 16, "blocks": 1},
    "codec_train": {"steps": 1, "batch_size": 2},
    "dit": {"width": 24, "depth": 1, "heads": 2, "ffn_width": 48, "channels": 4},
    "train": {"steps": 2, "batch_size": 2},
    "own_memory": {"rounds": 2, "train": {"steps": 1, "batch_size": 2}},
}


def pretrain(folder: Path, **changes: object) -> None:
    run(PretrainConfig.model_validate(TOY | changes), folder, RunLog(folder, plain=True), Dist())


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    pretrain(folder)
    return folder


def test_weights_load_and_the_card_says_what_they_are(first: Path) -> None:
    assert load_codec(first / "codec.safetensors").channels == 4
    dit, _, _ = load_dit(first / "dit.safetensors")
    card = json.loads((first / "card.json").read_text())
    assert dit.config.width == card["config"]["dit"]["width"] == 24
    assert not list(first.glob("*.state"))


@pytest.mark.parametrize("stopped", [None, 0, 1])
def test_a_stop_in_any_phase_changes_nothing(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: int | None
) -> None:
    def stop(batches: WorldBatches, step: int) -> dict[str, Tensor]:
        if (batches.own and batches.own.number) == stopped:
            raise KeyboardInterrupt
        return at(batches, step)

    at = WorldBatches.at
    with monkeypatch.context() as patch:
        patch.setattr(WorldBatches, "at", stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain(tmp_path)
    assert (tmp_path / "dit.0.safetensors").is_file() == (stopped is not None)
    assert (tmp_path / "dit.1.safetensors").is_file() == (stopped == 1)
    pretrain(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["codec.safetensors", "dit.safetensors"]
    again, once = (load_file(folder / "dit.safetensors") for folder in (tmp_path, first))
    assert all(torch.equal(again[name], value) for name, value in once.items())


def test_training_goes_on_from_an_earlier_one(first: Path, tmp_path: Path) -> None:
    """With memories of its own alone; the card says what was before."""
    pretrain(tmp_path, pretrained=first, seed=1)
    assert (tmp_path / "codec.safetensors").read_bytes() == (first / "codec.safetensors").read_bytes()
    more, before = (load_file(folder / "dit.safetensors") for folder in (tmp_path, first))
    changes = [float((more[name].float() - value.float()).abs().max()) for name, value in before.items()]
    assert 0 < max(changes) < 0.05  # two steps away, and not begun anew
    card = json.loads((tmp_path / "card.json").read_text())
    assert [one["seed"] for one in card["before"]] == [0] and card["config"]["seed"] == 1
    assert card["true_rollouts"] == {"episodes": 8, "steps": 128}
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["codec.safetensors", "dit.safetensors"]
    pretrain(tmp_path / "third", pretrained=tmp_path, seed=1)
    card = json.loads((tmp_path / "third" / "card.json").read_text())
    assert [one["seed"] for one in card["before"]] == [0, 1]
    assert card["true_rollouts"]["episodes"] == 8  # the second's play once more
    with pytest.raises(UserError, match="nowhere"):
        pretrain(tmp_path / "new", pretrained=tmp_path / "nowhere")
    with pytest.raises(ValidationError, match="pretrained: expected own_memory settings"):
        pretrain(tmp_path / "new", pretrained=first, own_memory=None)


def test_without_actions_all_play_looks_alike_to_the_action_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Tensor] = []

    def spy(batches: WorldBatches, step: int) -> dict[str, Tensor]:
        batch = at(batches, step)
        told.append(batch["actions_BTA"])
        return batch

    at = WorldBatches.at
    monkeypatch.setattr(WorldBatches, "at", spy)
    for actions in (True, False):
        pretrain(tmp_path / str(actions), actions=actions)
    still_A = torch.from_numpy(no_motion(3))
    assert [bool((actions_BTA == still_A).all()) for actions_BTA in told] == [False] * 4 + [True] * 4


def test_checkpointing_changes_nothing(first: Path, tmp_path: Path) -> None:
    pretrain(tmp_path, checkpointing="full")
    full, none = (load_file(folder / "dit.safetensors") for folder in (tmp_path, first))
    assert all(torch.equal(full[name], value) for name, value in none.items())


def test_a_network_trained_on_clips_is_read_and_used_as_any(tmp_path: Path) -> None:
    pretrain(tmp_path, loss={"chunks": 2}, steps=32)
    dit, _, _ = load_dit(tmp_path / "dit.safetensors")
    assert dit.layout == layout(ContextConfig(), 8)
    with pytest.raises(ValidationError, match=r"steps: expected 24 or more for loss\.chunks=3, found 16"):
        pretrain(tmp_path / "short", loss={"chunks": 3})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {"copies": 2}}, r"expected loss\.copies=1 without a causal context, found 2"),
        ({"dit": TOY["dit"] | {"channels": 6}}, "expected 4 latent channels as the codec has, found 6"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_before_any_work(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        pretrain(tmp_path / "new", **changes)
    assert not list((tmp_path / "new").glob("*.safetensors"))


def test_true_rollouts_of_the_pretraining_go_to_the_ledger_of_a_run(toy, first: Path, tmp_path: Path) -> None:
    with open_workplace(toy(f"world_model.pretrained={first / 'dit.safetensors'}"), tmp_path, plain=True) as place:
        for _ in range(2):
            assert backbone(place).config.width == 24
        assert place.run.ledger() == {"pretraining": {"episodes": 4, "steps": 64}}
