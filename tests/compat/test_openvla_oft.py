"""OpenVLA-OFT in its published layout: the network against a second one, the full size, and what is refused."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.policy.openvla_oft.reference import CONFIG, KEY, TEXT, P, Reference, observations, shapes, write
from wovr.core.errors import UserError
from wovr.core.seed import normal
from wovr.policy.openvla_oft.config import OpenVLAOFTConfig
from wovr.policy.openvla_oft.language import LanguageModel
from wovr.policy.openvla_oft.model import OpenVLAOFT
from wovr.policy.openvla_oft.published import check_openvla_oft, load_openvla_oft, save_published
from wovr.policy.openvla_oft.vision import VisionTransformer

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("published") / "policy", proprio=True)


def configured(folder: Path, **settings: Any) -> OpenVLAOFTConfig:
    return CONFIG.model_copy(update={"pretrained": folder, **settings})


@pytest.mark.parametrize(
    "settings", [{}, {"views": 2}, {"proprio": P}, {"views": 2, "proprio": P}, {"stop_token": False}], ids=str
)
def test_it_is_the_published_network(folder: Path, settings: dict[str, Any]) -> None:
    """Logits, log-probabilities, entropies and actions of a padded batch, against one observation after the other."""
    config = configured(folder, **settings)
    policy, reference = load_openvla_oft(config).eval(), Reference(folder, config)
    seen = observations(len(TEXT))
    asked = {"frames_BHWC": True, "wrist_BHWC": config.views == 2, "proprio_BP": bool(config.proprio)}
    seen = {name: value for name, value in seen.items() if asked[name]}
    tensors = {name: torch.from_numpy(value) for name, value in seen.items()}
    uniforms_BK = torch.rand(len(TEXT), config.tokens, generator=torch.Generator().manual_seed(0))
    batch = policy.act(**seen, instructions=TEXT, temperature=1.6, uniforms_BK=uniforms_BK)
    logits_BKV = policy(**tensors, instructions=TEXT).double()
    log_probs_BK, entropies_BK = policy.log_probs(
        **tensors, instructions=TEXT, tokens_BK=batch.tokens_BK, temperature=1.6
    )
    assert len({policy.prompts([text]).shape[1] for text in TEXT}) == len(TEXT), "prompts of different lengths"
    for row, text in enumerate(TEXT):
        views = [seen[name][row] for name in ("frames_BHWC", "wrist_BHWC") if name in seen]
        full = reference.logits(views, text, seen["proprio_BP"][row] if config.proprio else None)
        expected = reference.log_probs(full, 1.6)
        torch.testing.assert_close(logits_BKV[row], full[:, 31744:32000], atol=TOLERANCE, rtol=0)
        chosen = expected.gather(1, batch.tokens_BK[row, :, None])[:, 0]
        for found in (log_probs_BK[row], batch.log_probs_BK[row]):
            torch.testing.assert_close(found.double(), chosen, atol=TOLERANCE, rtol=0)
        entropy = -(expected.exp() * expected).sum(1)
        torch.testing.assert_close(entropies_BK[row].double(), entropy, atol=TOLERANCE, rtol=0)
        sampled = (expected.exp().cumsum(1) <= uniforms_BK[row, :, None]).sum(1)
        assert torch.equal(batch.tokens_BK[row], sampled)
        actions_HA = reference.actions(batch.tokens_BK[row])
        np.testing.assert_allclose(batch.actions_BHA[row], actions_HA, atol=1e-6)
    assert log_probs_BK.std() > 0.1 and entropies_BK.min() > 0.1, "nothing is degenerate"


def test_the_vision_transformers_are_those_of_transformers() -> None:
    """A second implementation of both, with the fused q k v taken apart."""
    pictures = normal((2, 3, 42, 42), 0, "pictures")
    shared = {"num_attention_heads": 2, "num_hidden_layers": 2, "image_size": 42, "patch_size": 14}
    shared |= {"hidden_act": "gelu", "layer_norm_eps": 1e-6}
    theirs = {
        True: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**shared, hidden_size=16, mlp_ratio=2)),
        False: SiglipVisionModel(SiglipVisionConfig(**shared, hidden_size=12, intermediate_size=20)),
    }
    for dino, model in theirs.items():
        ours = VisionTransformer(CONFIG.dino if dino else CONFIG.siglip, 9, dino=dino, checkpointing=False)
        for name, parameter in ours.named_parameters():
            parameter.data = 0.3 * normal(tuple(parameter.shape), 0, name)
        _copy(ours, model.eval(), dino)
        expected_BND = model.encoder(model.embeddings(pictures)).last_hidden_state[:, 5 if dino else 0 :]
        torch.testing.assert_close(ours(pictures), expected_BND, atol=TOLERANCE, rtol=0)


def _copy(ours: VisionTransformer, theirs: Any, dino: bool) -> None:
    """Two of our three blocks; the last one computes nothing."""
    w, e = ours.state_dict(), theirs.embeddings
    with torch.no_grad():
        patch = e.patch_embeddings.projection if dino else e.patch_embedding
        patch.weight.copy_(w["patch_embed.proj.weight"])
        patch.bias.copy_(w["patch_embed.proj.bias"])
        if dino:
            e.cls_token.copy_(w["cls_token"])
            e.register_tokens.copy_(w["reg_token"])
            e.position_embeddings.copy_(torch.cat([torch.zeros(1, 1, 16), w["pos_embed"]], dim=1))
        else:
            e.position_embedding.weight.copy_(w["pos_embed"][0])
        for i, block in enumerate(theirs.encoder.layer if dino else theirs.encoder.layers):
            attention = block.attention if dino else block.self_attn
            modules = {
                "norm1": block.norm1 if dino else block.layer_norm1,
                "norm2": block.norm2 if dino else block.layer_norm2,
                "attn.proj": attention.o_proj if dino else attention.out_proj,
                "mlp.fc1": block.mlp.fc1,
                "mlp.fc2": block.mlp.fc2,
            }
            for name, module in modules.items():
                module.weight.copy_(w[f"blocks.{i}.{name}.weight"])
                module.bias.copy_(w[f"blocks.{i}.{name}.bias"])
            for j, projection in enumerate((attention.q_proj, attention.k_proj, attention.v_proj)):
                projection.weight.copy_(w[f"blocks.{i}.attn.qkv.weight"].chunk(3)[j])
                projection.bias.copy_(w[f"blocks.{i}.attn.qkv.bias"].chunk(3)[j])
            if dino:
                block.layer_scale1.lambda1.copy_(w[f"blocks.{i}.ls1.scale_factor"])
                block.layer_scale2.lambda1.copy_(w[f"blocks.{i}.ls2.scale_factor"])


def test_the_language_model_is_llama_with_attention_both_ways() -> None:
    """transformers' own forward pass with a full mask, all logits."""
    ours = LanguageModel(CONFIG)
    size = CONFIG.llama
    config = LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.mlp_width,
        rms_norm_eps=size.norm_eps,
    )
    theirs = LlamaForCausalLM(config).eval()
    theirs.load_state_dict(ours.state_dict())
    x_BSD = normal((2, 12, size.width), 0, "tokens")
    full_mask = torch.ones(2, 1, 12, 12, dtype=torch.bool)
    expected = theirs(inputs_embeds=x_BSD, attention_mask=full_mask).logits[:, 3:8, 31744:32000]
    found_BKV = ours(x_BSD, torch.ones(2, 12, dtype=torch.bool), 3, 5)
    torch.testing.assert_close(found_BKV, expected, atol=TOLERANCE, rtol=0)


def test_the_full_size_is_the_published_one() -> None:
    config = OpenVLAOFTConfig()
    with torch.device("meta"):
        policy = OpenVLAOFT(config)
    found = {name: tuple(value.shape) for name, value in policy.state_dict().items()}
    assert found == shapes(config)
    parts = {"featurizer": 343, "fused_featurizer": 342, "projector": 6, "language_model": 291}
    for part, count in parts.items():
        prefix = f"vision_backbone.{part}." if "featurizer" in part else f"{part}."
        assert sum(name.startswith(prefix) for name in found) == count
    assert len(found) == 982
    assert sum(value.numel() for value in policy.parameters()) == 7_541_237_184
    assert sum(value.bfloat16().nbytes for value in policy.parameters()) == 15_082_474_368
    assert {module.eps for module in policy.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-6}
    assert config.patches == 256 and config.tokens == 56
    logits = policy(torch.zeros(1, 256, 256, 3, dtype=torch.uint8, device="meta"), ["open the drawer"])
    assert logits.shape == (1, 56, 256)


@pytest.mark.parametrize("shard_bytes", [10**9, 10**6])
def test_an_export_is_a_published_folder(folder: Path, tmp_path: Path, shard_bytes: int) -> None:
    config = configured(folder, proprio=P)
    policy = load_openvla_oft(config)
    out = tmp_path / "export"
    save_published(out, policy, torch.float32, shard_bytes)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert (len(list(out.glob("*.safetensors"))) > 1) == (shard_bytes == 10**6)
    assert set(index["weight_map"]) == set(shapes(CONFIG))
    for name, file in index["weight_map"].items():
        assert name in load_file(out / file)
    for name in ("config.json", "tokenizer.json", "dataset_statistics.json", "preprocessor_config.json"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    again = load_openvla_oft(config.model_copy(update={"pretrained": out}))
    for name, value in policy.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    with pytest.raises(UserError, match="new or empty"):
        save_published(out, policy)


def test_exports_are_bf16_unless_told_otherwise(folder: Path, tmp_path: Path) -> None:
    policy = load_openvla_oft(configured(folder))
    save_published(tmp_path / "export", policy)
    again = load_openvla_oft(configured(tmp_path / "export"), torch.bfloat16)
    for name, value in policy.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.bfloat16())
    index = json.loads((tmp_path / "export" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * sum(value.numel() for value in policy.parameters())


def refused(folder: Path, *expected: str, **settings: Any) -> None:
    with pytest.raises(UserError) as caught:
        check_openvla_oft(configured(folder, **settings))
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message, message


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "broken"))


def test_a_missing_file_is_named(broken: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere: expected a folder with a published OpenVLA-OFT checkpoint, found none")
    first = broken / "model-00001-of-00002.safetensors"
    kept = first.read_bytes()
    first.unlink()
    refused(broken, f"{first}: expected this part of the weights", "found none")
    first.write_bytes(kept[:-50])
    refused(broken, str(first), "expected a complete safetensors file")
    (broken / "tokenizer.json").unlink()
    refused(broken, f"{broken}/tokenizer.json: expected this file")
    (broken / "dataset_statistics.json").unlink()
    refused(write(broken / "new"), "one file proprio_projector--N_checkpoint.pt", "found none", proprio=P)


def test_tensors_that_do_not_fit_are_named(broken: Path) -> None:
    file = broken / "model-00001-of-00002.safetensors"
    weights = load_file(file)
    gone, bent = sorted(name for name in weights if name.endswith("qkv.weight"))[:2]
    del weights[gone]
    weights[bent] = weights[bent][1:].clone()
    weights["value_head.weight"] = torch.zeros(1)
    save_file(weights, file)
    (broken / "model.safetensors.index.json").unlink()
    refused(broken, f"1 missing: {gone}", "1 unexpected: value_head.weight", f"1 misshapen: {bent} [")


def test_configuration_that_does_not_fit_is_named(broken: Path) -> None:
    path = broken / "dataset_statistics.json"
    refused(broken, f"{path}: expected the key 'wrong' of `policy.statistics`, found {KEY}, other", statistics="wrong")
    refused(broken, f"key '{KEY}.action.q01': expected 6 numbers as `policy.action_dim` says, found 7", action_dim=6)
    refused(broken, f"key '{KEY}.proprio.q01': expected 4 numbers as `policy.proprio` says, found 8", proprio=4)
    path.write_text(json.dumps({KEY: {"action": {"q01": 3}}}))
    refused(broken, f"key '{KEY}.action.q01': expected 7 numbers, found int")
    path.write_text("{")
    refused(broken, f"{path}: expected JSON")


def test_a_model_of_another_kind_is_refused(broken: Path) -> None:
    path = broken / "config.json"
    path.write_text('{"text_config": {"rms_norm_eps": 1e-5}}')
    refused(broken, f"{path}: key 'rms_norm_eps': expected 1e-06 as in `policy.llama.norm_eps`, found 1e-05")
    path.write_text('{"n_action_bins": 128}')
    refused(broken, f"{path}: key 'n_action_bins': expected 256 as in `policy.bins`, found 128")
    path.unlink()
    (broken / "preprocessor_config.json").write_text('{"means": [[1, 2, 3]]}')
    refused(broken, "preprocessor_config.json: key 'means': expected three numbers for each of two")
    (broken / "tokenizer.json").write_text('{"model": 3}')
    refused(broken, f"{broken}/tokenizer.json: expected a tokenizer, found")


def test_a_tokenizer_of_another_model_is_refused(broken: Path) -> None:
    path = broken / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["model"]["vocab"]["▁"] = 29872
    path.write_text(json.dumps(raw))
    refused(broken, f"{path}: expected 29871 for '▁' as Llama-2 has it, found 29872")


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (eval, ("open('exploded', 'w')",))


def test_a_pickle_with_code_is_not_executed(broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = broken / "proprio_projector--150000_checkpoint.pt"
    file.write_bytes(pickle.dumps({"fc1.weight": Bomb()}))
    refused(broken, str(file), "expected a torch file of tensors by name", proprio=P)
    assert not (tmp_path / "exploded").exists()
    torch.save({"fc1.weight": torch.zeros(3, 3)}, file)
    refused(broken, str(file), "misshapen: proprio_projector.fc1.weight [3, 3] instead of [16, 8]", proprio=P)
    torch.save({}, broken / "proprio_projector--2_checkpoint.pt")
    refused(broken, "expected one file", "proprio_projector--150000_checkpoint.pt, proprio_projector--2", proprio=P)
