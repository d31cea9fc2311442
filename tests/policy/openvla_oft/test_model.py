"""The policy as rollouts and training use it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.policy.openvla_oft.reference import CONFIG, TEXT, P, observations, write
from wovr.core.seed import seed_everything
from wovr.policy.openvla_oft.config import OpenVLAOFTConfig
from wovr.policy.openvla_oft.model import OpenVLAOFT
from wovr.policy.openvla_oft.published import load_openvla_oft
from wovr.policy.small import sft_loss

FULL = {"views": 2, "proprio": P}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("published") / "policy", proprio=True)


def load(folder: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> OpenVLAOFT:
    config = CONFIG.model_copy(update={"pretrained": folder, **FULL, **settings})
    return load_openvla_oft(config, dtype).eval()


def tensors() -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in observations(len(TEXT)).items()}


def uniforms(policy: OpenVLAOFT) -> Tensor:
    return torch.rand(len(TEXT), policy.config.tokens, generator=torch.Generator().manual_seed(0))


def test_rollout_and_training_agree(folder: Path) -> None:
    policy, seen = load(folder), observations(len(TEXT))
    assert (policy.views, policy.proprio_dim, policy.chunk_length, policy.action_dim) == (2, P, 2, 7)
    batch = policy.act(**seen, instructions=TEXT, temperature=1.6, uniforms_BK=uniforms(policy))
    assert batch.actions_BHA.shape == (3, 2, 7) and batch.actions_BHA.dtype == np.float32
    assert set(np.unique(batch.actions_BHA[..., -1])) <= {-1, 1}
    log_probs_BK, _ = policy.log_probs(**tensors(), instructions=TEXT, tokens_BK=batch.tokens_BK, temperature=1.6)
    assert torch.equal(log_probs_BK, batch.log_probs_BK) and log_probs_BK.requires_grad
    numbers_BL = policy.encode_instructions(TEXT)
    assert torch.equal(policy(**tensors(), instructions=numbers_BL), policy(**tensors(), instructions=TEXT))
    greedy = policy.act(**seen, instructions=TEXT, temperature=1.6, uniforms_BK=None)
    assert torch.equal(greedy.tokens_BK, policy(**tensors(), instructions=TEXT).argmax(-1))


def test_a_row_does_not_depend_on_the_others(folder: Path) -> None:
    policy, seen = load(folder), observations(len(TEXT))
    whole = policy.act(**seen, instructions=TEXT, temperature=1.6, uniforms_BK=uniforms(policy))
    logits_BKV = policy(**tensors(), instructions=TEXT)
    lengths = [policy.prompts([text]).shape[1] for text in TEXT]
    assert len(set(lengths)) == 3
    for row, text in enumerate(TEXT):
        alone = {name: value[row : row + 1] for name, value in tensors().items()}
        torch.testing.assert_close(policy(**alone, instructions=[text])[0], logits_BKV[row], atol=1e-5, rtol=0)
        arrays = {name: value[row : row + 1] for name, value in seen.items()}
        batch = policy.act(**arrays, instructions=[text], temperature=1.6, uniforms_BK=uniforms(policy)[row : row + 1])
        assert torch.equal(batch.tokens_BK[0], whole.tokens_BK[row])


def test_gradients_reach_all_that_is_trained_and_checkpointing_changes_none(folder: Path) -> None:
    gradients: list[dict[str, Tensor]] = []
    losses = []
    for checkpointing in (False, True):
        policy = load(folder, checkpointing=checkpointing).train()
        tokens_BK = torch.arange(3 * policy.config.tokens).view(3, -1) % 256
        log_probs_BK, entropies_BK = policy.log_probs(
            **tensors(), instructions=TEXT, tokens_BK=tokens_BK, temperature=1.6
        )
        loss = log_probs_BK.mean() + entropies_BK.mean()
        loss.backward()
        losses.append(loss.detach())
        trained = {name: value for name, value in policy.named_parameters() if value.requires_grad}
        assert all(value.grad is not None and value.grad.any() for value in trained.values())
        gradients.append({name: value.grad for name, value in trained.items() if value.grad is not None})
        frozen = {name for name, _ in policy.named_parameters()} - set(trained)
        assert {name.split(".")[1] + "." + ".".join(name.split(".")[2:4]) for name in frozen} == {
            *("featurizer.blocks.2", "featurizer.norm.weight", "featurizer.norm.bias"),
            *("fused_featurizer.blocks.2", "fused_featurizer.norm.weight", "fused_featurizer.norm.bias"),
            *(f"fused_featurizer.attn_pool.{part}" for part in ("latent", "q", "kv", "proj", "norm", "mlp")),
        }
    assert torch.equal(*losses)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-7, rtol=1e-5)


def test_the_sft_loss_takes_all_that_is_seen(folder: Path) -> None:
    policy = load(folder)
    actions_BHA = torch.linspace(-0.3, 0.3, 3 * 2 * 7).view(3, 2, 7)
    tokens_BK = policy.encode_actions(actions_BHA)
    batch = {**tensors(), "instructions": policy.encode_instructions(TEXT), "tokens_BK": tokens_BK}
    loss_B, logs = sft_loss(policy, batch)
    logits_BKV = policy(**tensors(), instructions=TEXT)
    expected_BK = torch.nn.functional.cross_entropy(logits_BKV.transpose(1, 2), tokens_BK, reduction="none")
    torch.testing.assert_close(loss_B, expected_BK.mean(-1))
    assert set(logs) == {"accuracy", "bins_off"}


def test_a_few_steps_fit_a_few_chunks() -> None:
    seed_everything(0)
    policy = OpenVLAOFT(CONFIG)
    frames = {"frames_BHWC": tensors()["frames_BHWC"]}
    tokens_BK = torch.randint(256, (3, policy.config.tokens), generator=torch.Generator().manual_seed(0))
    batch = {**frames, "instructions": list(TEXT), "tokens_BK": tokens_BK}
    optimizer = torch.optim.AdamW([value for value in policy.parameters() if value.requires_grad], lr=1e-2)
    for _ in range(60):
        loss_B, logs = sft_loss(policy, batch)
        optimizer.zero_grad()
        loss_B.mean().backward()
        optimizer.step()
    assert logs["accuracy"].mean() > 0.9


def test_it_runs_in_bf16(folder: Path) -> None:
    policy, seen = load(folder, torch.bfloat16), observations(len(TEXT))
    assert {value.dtype for value in policy.parameters()} == {torch.bfloat16}
    batch = policy.act(**seen, instructions=TEXT, temperature=1.6, uniforms_BK=uniforms(policy))
    log_probs_BK, _ = policy.log_probs(**tensors(), instructions=TEXT, tokens_BK=batch.tokens_BK, temperature=1.6)
    assert log_probs_BK.dtype == torch.float32 and torch.equal(log_probs_BK, batch.log_probs_BK)
    log_probs_BK.mean().backward()
    exact_BKV, found_BKV = load(folder)(**tensors(), instructions=TEXT), policy(**tensors(), instructions=TEXT)
    assert found_BKV.dtype == torch.float32
    assert (found_BKV - exact_BKV).abs().mean() < 0.1 * exact_BKV.std()


def test_autocast_leaves_logits_in_float32(folder: Path) -> None:
    policy = load(folder)
    exact_BKV = policy(**tensors(), instructions=TEXT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found_BKV = policy(**tensors(), instructions=TEXT)
    assert found_BKV.dtype == torch.float32
    assert (found_BKV - exact_BKV).abs().mean() < 0.1 * exact_BKV.std()
    found_BKV.sum().backward()


def test_what_is_seen_must_be_what_is_asked_for() -> None:
    policy = OpenVLAOFT(CONFIG)
    with pytest.raises(AssertionError, match="1 views"):
        policy(**tensors(), instructions=TEXT)
    defaults = OpenVLAOFTConfig()
    assert (defaults.kind, defaults.views, defaults.tokens, defaults.text_vocab) == ("openvla_oft", 1, 56, 32000)
