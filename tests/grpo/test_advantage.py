"""Eq. 10 against loops in float64, and the skipping of groups without a signal."""

import pytest
import torch

from wovr.grpo.advantage import discounted_return, group_advantages
from wovr.grpo.config import GRPOConfig

G = 4


def outcomes(pattern: str) -> torch.Tensor:
    return torch.tensor([float(c) for c in pattern], dtype=torch.float64)


@pytest.mark.parametrize("gamma", [1.0, 0.97])
def test_return_is_the_discounted_sum_of_a_reward_at_first_success(gamma):
    T = 6
    first_N = torch.tensor([0, 3, 5, 6])
    for first, found in zip(first_N.tolist(), discounted_return(first_N, T, gamma).tolist(), strict=True):
        rewards = [1.0 if t == first + 1 else 0.0 for t in range(1, T + 1)]
        assert found == pytest.approx(sum(gamma ** (t - 1) * r for t, r in enumerate(rewards, start=1)), rel=1e-6)


def test_success_beyond_the_trajectory_own_length_earns_nothing():
    assert discounted_return(torch.tensor([3, 3]), torch.tensor([3, 4]), 1.0).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("normalize", ["mean", "std"])
def test_advantage_matches_loops_whatever_the_order(normalize):
    generator = torch.Generator().manual_seed(0)
    returns_N = torch.rand(5 * G, generator=generator, dtype=torch.float64)
    returns_N[::G] = 0.0
    group_N = torch.arange(5).repeat_interleave(G) * 7
    shuffle_N = torch.randperm(len(group_N), generator=generator)
    returns_N, group_N = returns_N[shuffle_N], group_N[shuffle_N]

    config = GRPOConfig(group_size=G, normalize=normalize, min_successes=0, min_failures=0)
    found = group_advantages(returns_N, group_N, config)

    for i in range(len(group_N)):
        mates = [returns_N[j].item() for j in range(len(group_N)) if group_N[j] == group_N[i]]
        mean = sum(mates) / G
        expected = returns_N[i].item() - mean
        if normalize == "std":
            expected /= (sum((r - mean) ** 2 for r in mates) / (G - 1)) ** 0.5 + 1e-6
        assert found.advantage_N[i].item() == pytest.approx(expected, abs=1e-12)
    assert found.keep_N.all()
    assert found.advantage_N.sum().item() == pytest.approx(0, abs=1e-9)


def test_groups_without_signal_are_skipped_and_counted():
    group_N = torch.arange(4).repeat_interleave(G)
    found = group_advantages(outcomes("0000111101100001"), group_N, GRPOConfig(group_size=G))
    assert (found.groups, found.skipped, found.skipped_failed, found.skipped_succeeded) == (4, 2, 1, 1)
    assert found.keep_N.tolist() == [False] * 8 + [True] * 8
    assert found.advantage_N[:8].tolist() == [0.0] * 8
    assert found.advantage_N[8:].tolist() == [-0.5, 0.5, 0.5, -0.5, -0.25, -0.25, -0.25, 0.75]


def test_all_succeeded_teaches_speed_only_where_asked_and_only_if_returns_differ():
    group_N = torch.arange(2).repeat_interleave(G)
    returns_N = torch.tensor([1.0, 0.9, 0.9, 0.8, 0.9, 0.9, 0.9, 0.9])
    assert group_advantages(returns_N, group_N, GRPOConfig(group_size=G)).skipped_succeeded == 2
    found = group_advantages(returns_N, group_N, GRPOConfig(group_size=G, min_failures=0))
    assert (found.skipped_succeeded, found.skipped_equal) == (0, 1)
    assert found.keep_N.tolist() == [True] * 4 + [False] * 4


def test_partial_groups_are_refused():
    with pytest.raises(AssertionError, match="groups of 4"):
        group_advantages(outcomes("01010"), torch.tensor([0, 0, 0, 0, 1]), GRPOConfig(group_size=G))
