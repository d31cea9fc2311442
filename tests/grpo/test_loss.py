"""The loss against Eq. 10 and 11 written as loops in float64, and its independence of the batch split."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from wovr.grpo.advantage import discounted_return, group_advantages
from wovr.grpo.config import GRPOConfig
from wovr.grpo.loss import grpo_loss
from wovr.grpo.mask import chunk_rows, valid_steps
from wovr.metrics.success import first_success

P, G, C, H, A, V = 3, 4, 3, 4, 2, 5  # groups, group size, chunks, env steps per chunk, action dims, bins
N, T = P * G, C * H


@pytest.fixture
def rollouts():
    """Groups with early, late, mid-chunk and no success; the last group fails throughout."""
    generator = torch.Generator().manual_seed(1)
    probability_NT = torch.zeros(N, T, dtype=torch.float64)
    for trajectory, step in {0: 0, 1: 6, 2: 11, 4: 3, 6: 4, 7: 9}.items():
        probability_NT[trajectory, step:] = 0.9
    old_NCKV = torch.randn(N, C, H * A, V, generator=generator, dtype=torch.float64)
    logits_NCKV = old_NCKV + 0.3 * torch.randn(old_NCKV.shape, generator=generator, dtype=torch.float64)
    tokens_NCK = torch.randint(V, (N, C, H * A), generator=generator)
    return SimpleNamespace(probability=probability_NT, old=old_NCKV, logits=logits_NCKV, tokens=tokens_NCK)


def paper_objective(rollouts, logits_NCKV: Tensor, config: GRPOConfig) -> Tensor:
    """Eq. 10 and 11 by loops, one env step at a time, over groups of mixed outcome."""

    def log_prob(logits, i, t):
        total = torch.zeros((), dtype=torch.float64)
        for a in range(A):
            k = (t % H) * A + a
            distribution = logits[i, t // H, k].log_softmax(-1)
            total = total + distribution[rollouts.tokens[i, t // H, k]]
        return total

    objectives = []
    for p in range(P):
        members = range(p * G, (p + 1) * G)
        T_valid, R = {}, {}
        for i in members:
            T_valid[i], R[i] = T, 0.0
            for t in range(1, T + 1):
                if rollouts.probability[i, t - 1] >= 0.5:
                    R[i] = config.gamma ** (t - 1)
                    if config.mask_after_success:
                        T_valid[i] = t
                    break
        if len({r > 0 for r in R.values()}) == 1:
            continue
        group = torch.zeros((), dtype=torch.float64)
        for i in members:
            advantage = R[i] - sum(R.values()) / G
            trajectory = torch.zeros((), dtype=torch.float64)
            for t in range(T_valid[i]):
                rho = (log_prob(logits_NCKV, i, t) - log_prob(rollouts.old, i, t)).exp()
                clipped = rho.clamp(1 - config.clip_low, 1 + config.clip_high)
                trajectory = trajectory + torch.min(rho * advantage, clipped * advantage)
            group = group + trajectory / T_valid[i]
        objectives.append(group / G)
    return torch.stack(objectives).mean()


def update_rows(rollouts, config: GRPOConfig):
    first_N = first_success(rollouts.probability, 0.5)
    returns_N = discounted_return(first_N, T, config.gamma).double()
    advantages = group_advantages(returns_N, torch.arange(P).repeat_interleave(G), config)
    valid_N = valid_steps(first_N, T, mask_after_success=config.mask_after_success)
    return advantages.advantage_N, chunk_rows(valid_N, advantages.keep_N, H)


def row_losses(rollouts, logits_NCKV: Tensor, config: GRPOConfig, chosen: slice = slice(None)):
    """What a trainer does with the rows `chosen` of the update: (losses, logs, rows of the whole update)."""
    advantage_N, rows = update_rows(rollouts, config)
    trajectory_B, chunk_B = rows.trajectory_B[chosen], rows.chunk_B[chosen]
    tokens_BK1 = rollouts.tokens[trajectory_B, chunk_B, :, None]
    log_BKV = logits_NCKV[trajectory_B, chunk_B].log_softmax(-1)
    old_BKV = rollouts.old[trajectory_B, chunk_B].log_softmax(-1)
    loss_B, logs = grpo_loss(
        log_BKV.gather(2, tokens_BK1).squeeze(2),
        -(log_BKV.exp() * log_BKV).sum(-1),
        old_log_probs_BK=old_BKV.gather(2, tokens_BK1).squeeze(2),
        advantage_B=advantage_N[trajectory_B],
        weight_B=rows.weight_B[chosen].double(),
        mask_BH=rows.mask_BH[chosen],
        config=config,
    )
    return loss_B, logs, rows


def gradient(value: Tensor, leaf: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value, leaf)
    return found


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("gamma", [1.0, 0.95])
@pytest.mark.parametrize("clip", [(0.2, 0.2), (0.2, 0.28), (0.05, 0.02)])
def test_mean_loss_and_gradient_are_minus_eq_11(rollouts, gamma, clip, masked):
    """Without the mask Eq. 11 has T in place of T_valid."""
    config = GRPOConfig(group_size=G, gamma=gamma, clip_low=clip[0], clip_high=clip[1], mask_after_success=masked)
    leaf = rollouts.logits.clone().requires_grad_()
    expected = -paper_objective(rollouts, leaf, config)
    loss_B, logs, _ = row_losses(rollouts, leaf, config)
    assert loss_B.mean().item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(gradient(loss_B.mean(), leaf), gradient(expected, leaf), rtol=1e-6, atol=1e-9)
    assert logs["clip_fraction"].mean() > 0, "a test that never clips proves little"


@pytest.mark.parametrize("ratio", ["step", "token", "chunk"])
@pytest.mark.parametrize("micro_batches", [2, 3, 14])
def test_micro_batches_do_not_change_the_gradient(rollouts, ratio, micro_batches):
    config = GRPOConfig(group_size=G, ratio=ratio, entropy_bonus=0.01)
    leaf = rollouts.logits.clone().requires_grad_()
    whole_B, _, rows = row_losses(rollouts, leaf, config)
    expected = gradient(whole_B.sum() / len(rows), leaf)

    total = torch.zeros_like(leaf)
    edges = torch.linspace(0, len(rows), micro_batches + 1).round().int().tolist()
    for low, high in pairwise(edges):
        part_B, _, _ = row_losses(rollouts, leaf, config, slice(low, high))
        total += gradient(part_B.sum() / len(rows), leaf)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("ratio", ["token", "chunk"])
def test_on_policy_gradient_does_not_depend_on_the_ratio(rollouts, ratio):
    leaf = rollouts.old.clone().requires_grad_()
    expected = gradient(row_losses(rollouts, leaf, GRPOConfig(group_size=G))[0].mean(), leaf)
    found = gradient(row_losses(rollouts, leaf, GRPOConfig(group_size=G, ratio=ratio))[0].mean(), leaf)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize(("ratio", "per_row"), [("token", H * A), ("step", H), ("chunk", 1)])
def test_ratio_spans_what_its_name_says(ratio, per_row):
    log_BK = torch.full((1, H * A), 0.1, dtype=torch.float64)
    config = GRPOConfig(ratio=ratio, clip_high=100.0)
    loss_B, logs = grpo_loss(
        log_BK,
        torch.ones_like(log_BK),
        old_log_probs_BK=torch.zeros_like(log_BK),
        advantage_B=torch.tensor([2.0], dtype=torch.float64),
        weight_B=torch.tensor([0.5], dtype=torch.float64),
        mask_BH=torch.ones(1, H, dtype=torch.bool),
        config=config,
    )
    rho = math.exp(0.1 * H * A / per_row)
    assert logs["ratio"].item() == pytest.approx(rho)
    assert loss_B.item() == pytest.approx(-0.5 * 2.0 * per_row * rho)
    assert logs["kl"].item() == pytest.approx(rho - 1 - math.log(rho))
    assert logs["entropy"].item() == pytest.approx(1.0)


@pytest.mark.parametrize("ratio", ["step", "token", "chunk"])
def test_masked_steps_touch_neither_loss_nor_gradient_even_where_they_overflow(rollouts, ratio):
    config = GRPOConfig(group_size=G, ratio=ratio, entropy_bonus=0.01)
    _, rows = update_rows(rollouts, config)
    used_NCH = torch.zeros(N, C, H, dtype=torch.bool)
    used_NCH[rows.trajectory_B, rows.chunk_B] = rows.mask_BH
    masked_NCK = ~used_NCH.repeat_interleave(A, dim=2)
    expected = row_losses(rollouts, rollouts.logits, config)[0]

    wild = torch.where(masked_NCK[..., None], rollouts.logits * 1e5, rollouts.logits).requires_grad_()
    loss_B, _, _ = row_losses(rollouts, wild, config)
    torch.testing.assert_close(loss_B, expected)
    found = gradient(loss_B.mean(), wild)
    assert found.isfinite().all()
    assert (found[masked_NCK] == 0).all()
    assert (found[~masked_NCK].abs().sum(-1) > 0).float().mean() > 0.5


def test_an_all_masked_row_is_padding():
    log_BK = torch.full((1, H * A), 50.0)
    loss_B, logs = grpo_loss(
        log_BK,
        torch.ones_like(log_BK),
        old_log_probs_BK=torch.zeros_like(log_BK),
        advantage_B=torch.ones(1),
        weight_B=torch.ones(1),
        mask_BH=torch.zeros(1, H, dtype=torch.bool),
        config=GRPOConfig(entropy_bonus=0.1),
    )
    assert loss_B.item() == 0
    assert all(value.item() == 0 for value in logs.values())
