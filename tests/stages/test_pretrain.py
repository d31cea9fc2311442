import json
from pathlib import Path

import pytest

from wovr.core.dist import Dist
from wovr.core.errors import UserError
from wovr.core.log import RunLog
from wovr.imagine.load import load_codec, load_dit
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
    assert not list(first.glob("*.state.safetensors"))


def test_it_goes_on_from_earlier_weights(first: Path, tmp_path: Path) -> None:
    pretrain(tmp_path, init=first, dit=TOY["dit"] | {"causal_context": True}, loss={"copies": 2})
    assert (tmp_path / "codec.safetensors").read_bytes() == (first / "codec.safetensors").read_bytes()
    before, after = (load_dit(folder / "dit.safetensors")[0] for folder in (first, tmp_path))
    assert after.config.causal_context
    for name, value in after.state_dict().items():
        assert (value - before.state_dict()[name]).abs().max() < 0.01, f"{name} starts elsewhere"
    assert json.loads((tmp_path / "card.json").read_text())["init"] == json.loads((first / "card.json").read_text())


def test_another_network_is_refused_before_any_work(first: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dit\.safetensors: expected the network of this config"):
        pretrain(tmp_path / "new", init=first, dit=TOY["dit"] | {"depth": 2})
    assert not list((tmp_path / "new").glob("*.safetensors"))


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


def test_earlier_weights_without_their_card_are_refused_before_any_work(first: Path, tmp_path: Path) -> None:
    for name in ("codec.safetensors", "dit.safetensors"):
        (tmp_path / name).write_bytes((first / name).read_bytes())
    with pytest.raises(UserError, match=r"card\.json: expected a JSON file"):
        pretrain(tmp_path / "new", init=tmp_path)
    assert not list((tmp_path / "new").glob("*.safetensors"))
