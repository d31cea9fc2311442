"""Tiny random checkpoints in the true formats, written without our own names, and diffusers' network beside ours."""

from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wovr.core.errors import UserError
from wovr.core.seed import normal, seed_everything
from wovr.dit.context import ContextConfig, layout
from wovr.dit.model import ActionDiT, DiTConfig
from wovr.dit.weights import is_wan, load_wan, parts, save_wan
from wovr.stages.pipeline import load_experiment, open_workplace
from wovr.stages.train_wm import backbone

B, C, A, SIDE, WIDTH, HEADS, FFN, DEPTH = 2, 4, 7, 4, 24, 2, 40, 2
LAYOUT = layout(ContextConfig(), 8)
CONFIG = DiTConfig(
    width=WIDTH,
    depth=DEPTH,
    heads=HEADS,
    ffn_width=FFN,
    channels=C,
    action_dim=A,
    gelu="tanh",
    action_positions=False,
    action_sums=False,
)
FULL = CONFIG.model_copy(update={"width": 3072, "depth": 30, "heads": 24, "ffn_width": 14336, "channels": 48})


@pytest.fixture
def wan() -> WanTransformer3DModel:
    seed_everything(0)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=C,
        out_channels=C,
        text_dim=16,
        freq_dim=256,
        ffn_dim=FFN,
        num_layers=DEPTH,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=1e-6,
        rope_max_seq_len=32,
    )
    for parameter in model.parameters():
        nn.init.normal_(
            parameter, std=0.1
        )  # larger, and the last bits of diffusers' float32 sinusoids of time (2e-5) would show
    return model.eval()


def original(wan: WanTransformer3DModel) -> dict[str, Tensor]:
    """Wan's own names, spelled out here once more, block by block."""
    w = wan.state_dict()
    names = {
        "patch_embedding": "patch_embedding",
        "text_embedding.0": "condition_embedder.text_embedder.linear_1",
        "text_embedding.2": "condition_embedder.text_embedder.linear_2",
        "time_embedding.0": "condition_embedder.time_embedder.linear_1",
        "time_embedding.2": "condition_embedder.time_embedder.linear_2",
        "time_projection.1": "condition_embedder.time_proj",
        "head.head": "proj_out",
    }
    found = {"head.modulation": w["scale_shift_table"]}
    for i in range(DEPTH):
        found[f"blocks.{i}.modulation"] = w[f"blocks.{i}.scale_shift_table"]
        for theirs, ours in (("attn1", "self_attn"), ("attn2", "cross_attn")):
            for q in "qkv":
                names[f"blocks.{i}.{ours}.{q}"] = f"blocks.{i}.{theirs}.to_{q}"
            names[f"blocks.{i}.{ours}.o"] = f"blocks.{i}.{theirs}.to_out.0"
            for q in "qk":
                found[f"blocks.{i}.{ours}.norm_{q}.weight"] = w[f"blocks.{i}.{theirs}.norm_{q}.weight"]
        names[f"blocks.{i}.norm3"] = f"blocks.{i}.norm2"
        names[f"blocks.{i}.ffn.0"] = f"blocks.{i}.ffn.net.0.proj"
        names[f"blocks.{i}.ffn.2"] = f"blocks.{i}.ffn.net.2"
    for ours, theirs in names.items():
        found |= {f"{ours}.{kind}": w[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
    assert len(found) == len(w)
    return {name: value.clone() for name, value in found.items()}


def wovr_checkpoint(wan: WanTransformer3DModel) -> dict[str, Tensor]:
    weights = {name: value for name, value in original(wan).items() if not name.startswith("text_embedding.")}
    for mlp, inputs, hidden in (("action_mlp1", A, WIDTH), ("action_mlp2", 4 * A, 4 * WIDTH)):
        for layer, shape in (("0", (hidden, inputs)), ("2", (WIDTH, hidden))):
            weights[f"{mlp}.{layer}.weight"] = normal(shape, 0, f"{mlp}{layer}")
            weights[f"{mlp}.{layer}.bias"] = normal(shape[:1], 0, f"{mlp}{layer}-bias")
    return weights


@pytest.mark.parametrize("kind", ["diffusers", "original", "shards"])
def test_the_network_is_diffusers_wan(wan: WanTransformer3DModel, tmp_path: Path, kind: str) -> None:
    """Values and input gradients, with a timestep per latent frame; cross-attention reads what both are given."""
    path = tmp_path / "model"
    if kind == "diffusers":
        wan.save_pretrained(path)
    elif kind == "original":
        path = tmp_path / "model.safetensors"
        save_file(original(wan), path)
    else:
        wan.save_pretrained(path, max_shard_size="20KB")
        assert len(list(path.glob("*.safetensors"))) > 2
    assert is_wan(path)
    model = load_wan(path, CONFIG, LAYOUT)

    actions_BTA = normal((B, LAYOUT.actions, A), 0, "actions")
    timesteps_BL = torch.tensor([[0.0, 0, 952, 952], [0, 0, 556, 556]])
    latents_BLChw = normal((B, LAYOUT.frames, C, SIDE, SIDE), 0, "latents").requires_grad_()
    ours_BLChw = model(latents_BLChw, timesteps_BL, actions_BTA)
    weight_BLChw = normal(tuple(ours_BLChw.shape), 0, "weight")
    (gradient_BLChw,) = torch.autograd.grad((ours_BLChw * weight_BLChw).sum(), latents_BLChw)

    wan.condition_embedder.text_embedder = nn.Identity()
    tokens_BTD = model.action_encoder.tokens(actions_BTA)
    per_token_BN = timesteps_BL.repeat_interleave((SIDE // 2) ** 2, dim=1)
    theirs_BCLhw = wan(latents_BLChw.transpose(1, 2), per_token_BN, tokens_BTD, return_dict=False)[0]
    (expected_BLChw,) = torch.autograd.grad((theirs_BCLhw.transpose(1, 2) * weight_BLChw).sum(), latents_BLChw)
    assert ours_BLChw.std() > 0.1
    torch.testing.assert_close(ours_BLChw, theirs_BCLhw.transpose(1, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient_BLChw, expected_BLChw, rtol=1e-5, atol=1e-5)


def test_a_base_model_gets_an_adaln_channel_that_adds_nothing(wan: WanTransformer3DModel, tmp_path: Path) -> None:
    save_file(original(wan), tmp_path / "model.safetensors")
    encoder = load_wan(tmp_path / "model.safetensors", CONFIG, LAYOUT).action_encoder
    actions_BTA = normal((B, LAYOUT.actions, A), 0, "actions")
    modulation = encoder.modulation(actions_BTA, LAYOUT)
    assert modulation is not None and not modulation.any()
    assert encoder.tokens(actions_BTA).std() > 0


def test_a_published_checkpoint_brings_its_action_layers(wan: WanTransformer3DModel, tmp_path: Path) -> None:
    """13 tokens from `action_mlp1`; from `action_mlp2` 4 groups of 4 actions, the first action four times."""
    weights = wovr_checkpoint(wan)
    path = tmp_path / "model-00001.safetensors"
    save_file({name: value.bfloat16() for name, value in weights.items()}, path)
    model = load_wan(path, CONFIG, LAYOUT, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}

    model = load_wan(path, CONFIG, LAYOUT)
    w = {name: value.bfloat16().float() for name, value in weights.items()}
    actions_BTA = normal((B, 13, A), 0, "actions")
    hidden = nn.functional.gelu(actions_BTA @ w["action_mlp1.0.weight"].T + w["action_mlp1.0.bias"])
    tokens_BTD = hidden @ w["action_mlp1.2.weight"].T + w["action_mlp1.2.bias"]
    torch.testing.assert_close(model.action_encoder.tokens(actions_BTA), tokens_BTD)
    groups_BLF = torch.cat([actions_BTA[:, :1]] * 3 + [actions_BTA], dim=1).unflatten(1, (4, 4)).flatten(2)
    hidden = nn.functional.silu(groups_BLF @ w["action_mlp2.0.weight"].T + w["action_mlp2.0.bias"])
    added_BLD = hidden @ w["action_mlp2.2.weight"].T + w["action_mlp2.2.bias"]
    torch.testing.assert_close(model.action_encoder.modulation(actions_BTA, LAYOUT), added_BLD)


def test_what_is_written_is_such_a_checkpoint(wan: WanTransformer3DModel, tmp_path: Path) -> None:
    weights = {name: value.bfloat16() for name, value in wovr_checkpoint(wan).items()}
    save_file(weights, tmp_path / "published.safetensors")
    save_wan(tmp_path / "ours.safetensors", load_wan(tmp_path / "published.safetensors", CONFIG, LAYOUT))
    written = load_file(tmp_path / "ours.safetensors")
    assert written.keys() == weights.keys()
    assert all(torch.equal(written[name], value) for name, value in weights.items())


def test_the_full_size_has_829_tensors() -> None:
    with torch.device("meta"):
        model = ActionDiT(FULL, LAYOUT)
    found = [part for name, value in model.state_dict().items() for part in parts(name, tuple(value.shape), FULL)]
    assert len({part.name for part in found}) == len(found) == 829
    assert sum(torch.Size(part.shape).numel() for part in found) == 5_025_334_464


def test_every_tensor_that_does_not_fit_is_named(wan: WanTransformer3DModel, tmp_path: Path) -> None:
    weights = wovr_checkpoint(wan)
    del weights["blocks.1.self_attn.k.weight"]
    weights["blocks.0.ffn.0.bias"] = torch.zeros(8)
    weights["blocks.0.extra"] = torch.zeros(1)
    save_file(weights, tmp_path / "bad.safetensors")
    with pytest.raises(UserError) as caught:
        load_wan(tmp_path / "bad.safetensors", CONFIG, LAYOUT)
    message = str(caught.value)
    assert "1 missing: blocks.1.self_attn.k.weight" in message
    assert "1 unexpected: blocks.0.extra" in message
    assert "1 misshapen: blocks.0.ffn.0.bias [8] instead of [40]" in message
    wider = CONFIG.model_copy(update={"width": 48, "heads": 4})
    save_file(wovr_checkpoint(wan), tmp_path / "good.safetensors")
    with pytest.raises(UserError, match=r"misshapen: .* and \d+ more"):
        load_wan(tmp_path / "good.safetensors", wider, LAYOUT)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match="expected a complete safetensors file"):
        load_wan(tmp_path / "cut.safetensors", CONFIG, LAYOUT)


def test_train_wm_starts_from_such_weights(wan: WanTransformer3DModel, tmp_path: Path) -> None:
    wan.save_pretrained(tmp_path / "wan")
    sizes = {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "ffn_width": FFN, "channels": C, "gelu": "tanh"}
    settings = ", ".join(f"{key}: {value}" for key, value in sizes.items())
    config = Path(__file__).parents[2] / "configs" / "tabletop.yaml"
    experiment = load_experiment(
        config, [f"world_model.pretrained={tmp_path / 'wan'}", f"world_model.dit={{{settings}}}"]
    )
    with open_workplace(experiment, tmp_path / "run", plain=True) as place:
        dit = backbone(place)
    assert dit.config.channels == C
    assert torch.equal(dit.blocks[1].ffn[2].weight, wan.blocks[1].ffn.net[2].weight)
    (tmp_path / "wan" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    with (
        pytest.raises(UserError, match="expected a complete safetensors file"),
        open_workplace(experiment, tmp_path / "other", plain=True),
    ):
        pass
