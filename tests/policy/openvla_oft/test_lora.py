"""Adapters: nothing at first, the same merged, gone when disabled, and what peft reads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from tests.policy.openvla_oft.reference import CONFIG, TEXT, P, observations, write
from wovr.core.errors import UserError
from wovr.core.seed import seed_everything
from wovr.policy.openvla_oft.config import LoRASettings
from wovr.policy.openvla_oft.lora import add_lora, has_adapters, merged_weights, save_adapters
from wovr.policy.openvla_oft.model import OpenVLAOFT
from wovr.policy.openvla_oft.published import load_openvla_oft, save_published
from wovr.policy.small import sft_loss

SETTINGS = LoRASettings(rank=4, alpha=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("published") / "policy", proprio=True)


def load(folder: Path, **settings: Any) -> OpenVLAOFT:
    seed_everything(0)
    return load_openvla_oft(CONFIG.model_copy(update={"pretrained": folder, "proprio": P, **settings})).eval()


def seen() -> dict[str, Tensor]:
    found = observations(len(TEXT))
    return {name: torch.from_numpy(found[name]) for name in ("frames_BHWC", "proprio_BP")}


def logits(policy: OpenVLAOFT) -> Tensor:
    with torch.no_grad():
        return policy(**seen(), instructions=TEXT)


def train(policy: OpenVLAOFT) -> None:
    batch = {**seen(), "instructions": TEXT, "tokens_BK": torch.arange(42).view(3, 14) * 5}
    trained = [value for value in policy.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        sft_loss(policy, batch)[0].mean().backward()
        assert all(value.grad is not None for value in trained)
        optimizer.step()


def test_adapters_change_nothing_at_first_and_lie_in_every_used_linear_layer(folder: Path) -> None:
    policy = load(folder)
    before = logits(policy)
    add_lora(policy, SETTINGS)
    assert has_adapters(policy) and torch.equal(logits(policy), before)
    trained = {name for name, value in policy.named_parameters() if value.requires_grad}
    assert all(".lora_" in name for name in trained)
    layers = {name.split(".lora_")[0] for name in trained}
    assert len(layers) == 2 * 4 + 2 * 4 + 3 + 2 * 7 + 2 and len(trained) == 2 * len(layers)
    assert "vision_backbone.featurizer.blocks.1.attn.qkv" in layers
    assert not any(".blocks.2." in name or "attn_pool" in name or "lm_head" in name for name in layers)
    with pytest.raises(AssertionError):
        add_lora(policy)


def test_defaults_are_those_of_openvla_oft() -> None:
    assert LoRASettings().scale_numerator == 16 and LoRASettings(rank=4).scale_numerator == 4
    assert LoRASettings(alpha=64).scale_numerator == 64
    policy = add_lora(OpenVLAOFT(CONFIG))
    assert policy.projector.fc1.scaling == {"default": 0.5}  # type: ignore[comparison-overlap]
    weight = policy.get_parameter("projector.fc1.lora_A.default.weight")
    assert weight.shape[0] == 32 and 0.8 < weight.std() * 32 < 1.2


def test_trained_adapters_merge(folder: Path) -> None:
    policy = load(folder, checkpointing=True)
    base = logits(policy)
    train(add_lora(policy, SETTINGS))
    found = logits(policy)
    assert (found - base).abs().max() > 1e-2
    assert {name for name, value in policy.named_parameters() if value.requires_grad and ".lora_" not in name} == set()
    plain = load(folder)
    plain.load_state_dict(merged_weights(policy))
    torch.testing.assert_close(logits(plain), found, atol=1e-5, rtol=0)
    assert torch.equal(logits(policy), found), "the original stays as it was"


def test_bf16_weights_have_float32_adapters(folder: Path) -> None:
    config = CONFIG.model_copy(update={"pretrained": folder, "proprio": P})
    policy = add_lora(load_openvla_oft(config, torch.bfloat16), SETTINGS)
    assert {value.dtype for value in policy.parameters() if value.requires_grad} == {torch.float32}
    train(policy)
    assert {value.dtype for value in merged_weights(policy).values()} == {torch.bfloat16}


def test_peft_reads_an_export(folder: Path, tmp_path: Path) -> None:
    policy = load(folder)
    train(add_lora(policy, SETTINGS))
    save_adapters(tmp_path / "adapters", policy)
    assert {file.name for file in (tmp_path / "adapters").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    base = load(folder)
    again = PeftModel.from_pretrained(base, str(tmp_path / "adapters"))
    torch.testing.assert_close(logits(again.get_base_model()), logits(policy), atol=1e-6, rtol=0)
    with pytest.raises(UserError, match="expected a policy with adapters to export"):
        save_adapters(tmp_path / "none", load(folder))


def test_a_published_export_is_merged(folder: Path, tmp_path: Path) -> None:
    policy = load(folder)
    train(add_lora(policy, SETTINGS))
    save_published(tmp_path / "out", policy, torch.float32)
    torch.testing.assert_close(logits(load(tmp_path / "out")), logits(policy), atol=1e-5, rtol=0)
