"""The embedded VLA: interface, log-probabilities and that it learns to localise what the text names."""

import numpy as np
import pytest
import torch
import torch.utils.flop_counter

from wovr.core.seed import stream
from wovr.policy.small import SmallVLA, SmallVLAConfig, chunk_targets, sft_loss

COLOURS = {"red": (200, 40, 40), "blue": (40, 60, 200)}
TINY = SmallVLAConfig(chunk_length=2, action_low=(-1, -1), action_high=(1, 1), channels=16, blocks=1, trunk_width=64)


def squares(count: int, seed: int) -> tuple[torch.Tensor, list[str], torch.Tensor]:
    """Frames with one square of each colour, the text that names one, and where its centre is, in (-1, 1)."""
    rng = stream(seed, "squares")
    frames_BHWC = np.full((count, 32, 32, 3), 180, np.uint8)
    instructions, targets_B2 = [], np.zeros((count, 2), np.float32)
    for row in range(count):
        named = list(COLOURS)[rng.integers(2)]
        instructions.append(f"go to the {named} square")
        (left, right), (top, bottom) = rng.integers((0, 16), (13, 29), size=2), rng.integers(0, 29, size=2)
        corners = [(left, top), (right, bottom)] if rng.random() < 0.5 else [(right, bottom), (left, top)]
        for (name, colour), (x, y) in zip(COLOURS.items(), corners, strict=True):
            frames_BHWC[row, y : y + 4, x : x + 4] = colour
            if name == named:
                targets_B2[row] = ((x + 2) / 16 - 1, (y + 2) / 16 - 1)
    return torch.from_numpy(frames_BHWC), instructions, torch.from_numpy(targets_B2)


@pytest.fixture
def policy() -> SmallVLA:
    torch.manual_seed(0)
    return SmallVLA(TINY)


def test_rollout_and_training_agree_on_log_probs(policy: SmallVLA) -> None:
    frames_BHWC, instructions, _ = squares(5, seed=1)
    uniforms_BK = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
    batch = policy.act(frames_BHWC.numpy(), instructions, temperature=1.6, uniforms_BK=uniforms_BK)
    assert batch.actions_BHA.shape == (5, 2, 2) and batch.actions_BHA.dtype == np.float32
    log_probs_BK, entropy_BK = policy.log_probs(frames_BHWC, instructions, batch.tokens_BK, temperature=1.6)
    torch.testing.assert_close(log_probs_BK, batch.log_probs_BK)
    assert log_probs_BK.requires_grad and (entropy_BK > 0).all()
    assert torch.equal(policy.bins.encode(torch.from_numpy(batch.actions_BHA)), batch.tokens_BK)


def test_sampling_and_greedy(policy: SmallVLA) -> None:
    frames_BHWC, instructions, _ = squares(4, seed=1)
    frames, uniforms_BK = frames_BHWC.numpy(), torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    whole = policy.act(frames, instructions, temperature=1.0, uniforms_BK=uniforms_BK)
    part = policy.act(frames[2:], instructions[2:], temperature=1.0, uniforms_BK=uniforms_BK[2:])
    assert torch.equal(part.tokens_BK, whole.tokens_BK[2:])
    greedy = policy.act(frames, instructions, temperature=1.0, uniforms_BK=None)
    assert torch.equal(greedy.tokens_BK, policy(frames_BHWC, instructions).argmax(-1))
    assert not torch.equal(greedy.tokens_BK, whole.tokens_BK)


def test_loss_is_the_mean_cross_entropy_per_sample(policy: SmallVLA) -> None:
    frames_BHWC, instructions, _ = squares(3, seed=1)
    tokens_BK = torch.randint(33, (3, 4), generator=torch.Generator().manual_seed(0))
    batch = {"frames_BHWC": frames_BHWC, "instructions": instructions, "tokens_BK": tokens_BK}
    loss_B, logs = sft_loss(policy, batch)
    logits_BKV = policy(frames_BHWC, instructions)
    expected_BK = torch.nn.functional.cross_entropy(logits_BKV.transpose(1, 2), tokens_BK, reduction="none")
    torch.testing.assert_close(loss_B, expected_BK.mean(-1))
    assert set(logs) == {"accuracy", "bins_off"} and all(value.shape == (3,) for value in logs.values())


def test_soft_targets_are_least_at_a_gaussian_around_the_target() -> None:
    tokens_BK = torch.tensor([[10, 0]])
    bins_V = torch.arange(33)
    gaussian_BKV = -0.5 * ((bins_V - tokens_BK[..., None]).float() / 1.5) ** 2

    class Fixed(torch.nn.Module):
        def forward(self, frames: torch.Tensor, instructions: list[str]) -> torch.Tensor:
            return frames

    def loss(logits_BKV: torch.Tensor) -> float:
        batch = {"frames_BHWC": logits_BKV, "instructions": [""], "tokens_BK": tokens_BK}
        return sft_loss(Fixed(), batch, target_sigma=1.5)[0].item()

    noise_BKV = torch.randn(1, 2, 33, generator=torch.Generator().manual_seed(0))
    assert loss(gaussian_BKV) < loss(gaussian_BKV + 0.1 * noise_BKV)
    assert loss(gaussian_BKV) < loss(gaussian_BKV * 4)


def test_chunk_past_the_end_stands_still_and_keeps_the_gripper() -> None:
    actions_TA = np.array([[1, 0, -1], [0.5, 1, 1]], np.float32)
    assert chunk_targets(actions_TA, 0, 2).tolist() == actions_TA.tolist()
    assert chunk_targets(actions_TA, 1, 3).tolist() == [[0.5, 1, 1], [0, 0, 1], [0, 0, 1]]
    assert chunk_targets(actions_TA, 2, 2).tolist() == [[0, 0, 1], [0, 0, 1]]


def test_default_size_stays_cheap() -> None:
    policy = SmallVLA(SmallVLAConfig())
    counter = torch.utils.flop_counter.FlopCounterMode(display=False)
    with counter, torch.no_grad():
        policy(torch.zeros(1, 64, 64, 3, dtype=torch.uint8), ["go"])
    assert counter.get_total_flops() < 25e6
    assert sum(parameter.numel() for parameter in policy.parameters()) < 1.5e6


def test_it_learns_to_localise_the_named_square(policy: SmallVLA) -> None:
    frames_BHWC, instructions, targets_B2 = squares(1024, seed=2)
    tokens_BK = policy.bins.encode(targets_B2[:, None].expand(-1, 2, -1))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for step in range(200):
        rows = torch.from_numpy(stream(0, "rows", step).integers(1024, size=64))
        batch = {
            "frames_BHWC": frames_BHWC[rows],
            "instructions": [instructions[row] for row in rows],
            "tokens_BK": tokens_BK[rows],
        }
        loss_B, _ = sft_loss(policy, batch, target_sigma=1.0)
        optimizer.zero_grad()
        loss_B.mean().backward()
        optimizer.step()
    frames_BHWC, instructions, targets_B2 = squares(100, seed=3)
    actions_BHA = policy.act(frames_BHWC.numpy(), instructions, temperature=1.0, uniforms_BK=None).actions_BHA
    error_B = np.abs(actions_BHA[:, 0] - targets_B2.numpy()).max(-1)
    assert np.median(error_B) <= 2 / 16, "within two pixels; a policy that ignores the text is off by about sixteen"
