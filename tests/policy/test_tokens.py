"""Action bins, sampling and log-probabilities, against float64 references."""

import math

import numpy as np
import pytest
import torch

from wovr.core.seed import normal
from wovr.policy.tokens import (
    ActionBins,
    chosen_and_entropy,
    correlated_uniforms,
    sample_tokens,
    token_log_probs,
)


def test_zero_and_the_extremes_are_bin_centres() -> None:
    bins = ActionBins((-1, -1, -1), (1, 1, 1), 33)
    actions_BHA = torch.tensor([[[-1.0, 0.0, 1.0], [0.5, -0.25, 1.0]]])
    assert torch.equal(bins.decode(bins.encode(actions_BHA)), actions_BHA)
    assert bins.encode(actions_BHA).tolist() == [[0, 16, 32, 24, 12, 32]], "step by step"


def test_encoding_takes_the_nearest_centre_of_each_dimension_and_clips() -> None:
    bins = ActionBins((-0.5, 0.0), (0.5, 10.0), 21)
    generator = torch.Generator().manual_seed(0)
    inside_BHA = torch.rand(5, 4, 2, generator=generator) * torch.tensor([1.0, 10.0]) + torch.tensor([-0.5, 0.0])
    error_BHA = (bins.decode(bins.encode(inside_BHA)) - inside_BHA).abs()
    assert (error_BHA <= torch.tensor([0.025, 0.25]) + 1e-6).all()
    assert bins.decode(bins.encode(torch.tensor([[[-3.0, 99.0]]]))).tolist() == [[[-0.5, 10.0]]]


def test_every_token_survives_decoding() -> None:
    bins = ActionBins((-0.7, -1.0), (0.9, 1.0), 256)
    tokens_BK = torch.arange(256).repeat_interleave(2)[None]
    assert torch.equal(bins.encode(bins.decode(tokens_BK)), tokens_BK)


def test_log_probs_and_entropy_match_float64() -> None:
    logits_BKV = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(1)) * 4
    tokens_BK = torch.randint(7, (3, 4), generator=torch.Generator().manual_seed(2))
    chosen_BK, entropy_BK = chosen_and_entropy(token_log_probs(logits_BKV, 1.6), tokens_BK)
    scaled = logits_BKV.double().numpy() / 1.6
    probability = np.exp(scaled) / np.exp(scaled).sum(-1, keepdims=True)
    expected = np.log(np.take_along_axis(probability, tokens_BK.numpy()[..., None], -1)[..., 0])
    np.testing.assert_allclose(chosen_BK.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(entropy_BK.numpy(), -(probability * np.log(probability)).sum(-1), atol=1e-5)


def test_half_precision_logits_give_float32_log_probs() -> None:
    logits_BKV = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1)).bfloat16()
    log_probs_BKV = token_log_probs(logits_BKV, 1.0)
    assert log_probs_BKV.dtype == torch.float32
    torch.testing.assert_close(log_probs_BKV.exp().sum(-1), torch.ones(2, 3))


def test_inverse_cdf_takes_each_token_for_its_share_of_the_unit_interval() -> None:
    log_probs_BKV = torch.tensor([0.25, 0.0, 0.5, 0.25]).log().expand(1, 5, 4)
    uniforms_BK = torch.tensor([[0.0, 0.2499, 0.25, 0.75, math.nextafter(1.0, 0.0)]])
    assert sample_tokens(log_probs_BKV, uniforms_BK).tolist() == [[0, 0, 2, 3, 3]]


def test_samples_follow_the_distribution() -> None:
    log_probs_V = torch.log_softmax(torch.tensor([0.0, 1.0, -1.0, 2.0]), dim=-1)
    uniforms_BK = (torch.arange(10_000).view(100, 100) + 0.5) / 10_000
    tokens_BK = sample_tokens(log_probs_V.expand(100, 100, 4), uniforms_BK)
    share_V = torch.bincount(tokens_BK.flatten(), minlength=4) / 10_000
    torch.testing.assert_close(share_V, log_probs_V.exp(), atol=2e-4, rtol=0)


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_correlated_draws_keep_each_tokens_distribution(correlation: float) -> None:
    uniforms_BHA = correlated_uniforms(normal((40_000, 8, 3), 0, "test"), correlation).unflatten(1, (8, 3))
    quantiles_QHA = torch.quantile(uniforms_BHA, torch.tensor([0.1, 0.5, 0.9]), dim=0)
    torch.testing.assert_close(
        quantiles_QHA, torch.tensor([0.1, 0.5, 0.9])[:, None, None].expand(3, 8, 3), atol=0.01, rtol=0
    )
    normals_BHA = torch.special.ndtri(uniforms_BHA.double())
    assert (normals_BHA[:, 0] * normals_BHA[:, 1]).mean().item() == pytest.approx(correlation, abs=0.03)
    assert (normals_BHA[:, 0] * normals_BHA[:, 3]).mean().item() == pytest.approx(correlation**3, abs=0.03)
    assert (normals_BHA[:, 2, 0] * normals_BHA[:, 2, 1]).mean().item() == pytest.approx(0, abs=0.03), "dimensions"


def test_a_row_is_sampled_alike_in_any_batch() -> None:
    generator = torch.Generator().manual_seed(3)
    log_probs_BKV = token_log_probs(torch.randn(6, 8, 33, generator=generator), 1.0)
    uniforms_BK = torch.rand(6, 8, generator=generator)
    together_BK = sample_tokens(log_probs_BKV, uniforms_BK)
    order = torch.tensor([4, 1, 5])
    assert torch.equal(sample_tokens(log_probs_BKV[order], uniforms_BK[order]), together_BK[order])
