"""The joint head by itself: interface, loss, and that it learns the relation of places that the text names."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from wovr.core.text import word_ids
from wovr.flow.schedule import FlowConfig, train_sigmas
from wovr.reward.base import Seen
from wovr.reward.joint import RewardHead, RewardHeadConfig, balance, head_loss, sight

WIDTH, SIDE = 12, 6
TINY = RewardHeadConfig(channels=16, keypoints=8, text_width=16, hidden_width=32)
INSTRUCTIONS = ["put the red block on the plate", "put the blue block on the plate"]


@pytest.fixture
def head() -> RewardHead:
    torch.manual_seed(0)
    return RewardHead(TINY, WIDTH)


def features(batch: int, latents: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, latents, SIDE, SIDE + 2, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_four_frames_of_every_latent_are_judged_each_trajectory_by_itself(head: RewardHead) -> None:
    some, ids = features(3, latents=5), word_ids([INSTRUCTIONS[0]] * 3)
    logits_BT = head(some, ids)
    assert logits_BT.shape == (3, 20) and logits_BT.dtype == torch.float32
    torch.testing.assert_close(head(some[1:2], ids[1:2]), logits_BT[1:2], atol=1e-5, rtol=1e-5)
    other = some.clone()
    other[:, 3] += features(3, latents=1, seed=1)[:, 0]
    changed = (head(other, ids) - logits_BT).abs().amax(0) > 1e-6
    assert changed.view(5, 4).all(dim=1).tolist() == [False, False, False, True, False], "the frames of their latent"
    judged = head.judge(Seen(torch.empty(0), some), INSTRUCTIONS[:1] * 3)
    torch.testing.assert_close(judged, logits_BT.sigmoid())
    assert not judged.requires_grad


def test_the_instruction_matters(head: RewardHead) -> None:
    some = features(1).expand(2, -1, -1, -1, -1)
    red, blue = head.judge(Seen(torch.empty(0), some), INSTRUCTIONS)
    assert not torch.allclose(red, blue)


def test_bf16_features_are_judged_in_fp32(head: RewardHead) -> None:
    some = features(2).bfloat16()
    judged = head.judge(Seen(torch.empty(0), some), INSTRUCTIONS)
    torch.testing.assert_close(judged, head.judge(Seen(torch.empty(0), some.float()), INSTRUCTIONS))


def test_loss_is_balanced_cross_entropy_per_window() -> None:
    """Against float64, term by term: a window's loss is the mean over its copies and frames, by class and sigma."""
    generator = torch.Generator().manual_seed(0)
    logits_RT = torch.randn(6, 8, generator=generator)
    labels_BT = (torch.rand(3, 8, generator=generator) < 0.3).float()
    sight_RT = torch.rand(6, 8, generator=generator)
    share, copies = 0.2, 2
    loss_B, logs = head_loss(logits_RT, labels_BT, balance(labels_BT, share), sight_RT)
    for b in range(3):
        expected, right = 0.0, 0
        for copy in range(copies):
            for t in range(8):
                p = torch.sigmoid(logits_RT[copies * b + copy, t].double())
                positive = labels_BT[b, t] > 0
                term = p.log() * 0.5 / share if positive else (1 - p).log() * 0.5 / (1 - share)
                expected -= float(term * sight_RT[copies * b + copy, t])
                right += int((p > 0.5) == positive)
        assert float(loss_B[b]) == pytest.approx(expected / 16, rel=1e-5)
        assert float(logs["reward_accuracy"][b]) == right / 16
    assert torch.equal(logs["reward_loss"], loss_B)


def test_weights_give_both_classes_half_of_the_loss() -> None:
    labels = torch.zeros(1000)
    labels[:125] = 1
    weights = balance(labels, 0.125)
    assert float(weights[:125].sum()) == float(weights[125:].sum()) == pytest.approx(500)


@pytest.mark.parametrize("sigmas", ["grid", "uniform"])
def test_frames_count_most_where_they_can_be_seen(sigmas: Literal["grid", "uniform"]) -> None:
    flow = FlowConfig(train_sigmas=sigmas)
    drawn = train_sigmas(flow, (torch.arange(5000) + 0.5) / 5000)
    weights = sight(flow, drawn)
    assert float(weights.mean()) == pytest.approx(1, rel=1e-3)
    assert float(weights.min()) > 0, "a little at any"
    scale = float(weights[-1] / (0.01 + (1 - drawn[-1]) ** 2))
    torch.testing.assert_close(weights.double(), scale * (0.01 + (1 - drawn.double()) ** 2), rtol=1e-4, atol=1e-6)
    assert torch.equal(sight(FlowConfig(steps=1, train_sigmas="grid"), torch.ones(2)), torch.ones(2))


def test_it_learns_whether_the_named_thing_lies_on_the_goal() -> None:
    """Two things and a goal are marks on the grid of tokens; success is that the named one is where the goal is."""

    def batch(step: int, size: int = 64) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        named = torch.randint(0, 2, (size,), generator=generator)
        on = torch.randint(0, 2, (size,), generator=generator)
        cell = torch.stack([torch.randperm(SIDE * SIDE, generator=generator)[:2] for _ in range(size)])
        tokens = 0.1 * torch.randn(size, 1, SIDE * SIDE, WIDTH, generator=generator)
        rows = torch.arange(size)
        tokens[rows, 0, cell[:, 0], 2] += 3  # the goal
        tokens[rows, 0, cell[:, 0], on] += 3
        tokens[rows, 0, cell[:, 1], 1 - on] += 3
        labels = (named == on).float()[:, None].expand(-1, 4)
        return tokens.unflatten(2, (SIDE, SIDE)), word_ids([INSTRUCTIONS[i] for i in named.tolist()]), labels

    torch.manual_seed(0)
    head = RewardHead(TINY, WIDTH)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    for step in range(250):
        tokens, ids, labels = batch(step)
        loss_B, _ = head_loss(head(tokens, ids), labels, balance(labels, 0.5), torch.ones(len(labels), 4))
        optimizer.zero_grad()
        loss_B.mean().backward()
        optimizer.step()
    tokens, ids, labels = batch(10_000, 256)
    assert float(((head(tokens, ids) > 0) == (labels > 0)).float().mean()) > 0.9
