"""The masked, length-normalised GRPO loss (Eq. 11).

Departures from the paper, each an option of `GRPOConfig`: separate clip ranges below and above (equal ones are
Eq. 11), a ratio per action token or per chunk instead of per env step, an entropy bonus. There is no KL term, as in
paper and reference.

Whatever the ratio spans, the gradient at theta = theta_old is the same, - weight * A * the summed gradients of the
valid tokens' log-probabilities: the options differ only in what is clipped together.

Legend: B rows (action chunks), H env steps per chunk, A action dims, K = H * A tokens (step-major), U ratios per row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wovr.grpo.config import GRPOConfig


def grpo_loss(
    log_probs_BK: Tensor,
    entropies_BK: Tensor,
    *,
    old_log_probs_BK: Tensor,
    advantage_B: Tensor,
    weight_B: Tensor,
    mask_BH: Tensor,
    config: GRPOConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Per-row losses; their mean over all rows of the update is minus Eq. 11.

    Args:
        log_probs_BK: log pi_theta of the tokens that were acted, with gradient.
        entropies_BK: entropy of each token's distribution in nats, with gradient.
        old_log_probs_BK: log pi_theta_old of the same tokens at the same temperature.
        advantage_B: A of the row's trajectory.
        weight_B: `Rows.weight_B`, which holds 1/T_valid and the global counts.
        mask_BH: the env steps that count, `Rows.mask_BH`. A row without any is padding: loss and logs are 0.
        config: clipping, ratio and entropy bonus.

    Returns:
        Losses (B,), and logs without gradient, each (B,), a mean over the row's valid part: `ratio`, `clip_fraction`
        (ratios whose gradient the clip removes), `kl` (of new from old policy, nats per ratio, the always positive
        estimate rho - 1 - log rho), `entropy` (nats per token), `log_prob_gap` (nats per token between new and old,
        whatever the sign: 0 before the first step, but for what rollout and training compute differently).
    """
    B, H = mask_BH.shape
    assert log_probs_BK.shape == old_log_probs_BK.shape == entropies_BK.shape, "one value per token in all three"
    valid_BHA = mask_BH[:, :, None].expand(B, H, log_probs_BK.shape[1] // H)
    # Masked before exp: a masked token's ratio may overflow, and inf * 0 is NaN.
    log_ratio_BHA = torch.where(valid_BHA, (log_probs_BK - old_log_probs_BK).view(B, H, -1), 0.0)
    match config.ratio:
        case "token":
            log_ratio_BU, valid_BU = log_ratio_BHA.flatten(1), valid_BHA.flatten(1)
        case "step":
            log_ratio_BU, valid_BU = log_ratio_BHA.sum(dim=2), mask_BH
        case "chunk":
            log_ratio_BU, valid_BU = log_ratio_BHA.sum(dim=(1, 2))[:, None], mask_BH.any(dim=1, keepdim=True)

    ratio_BU = log_ratio_BU.exp()
    clipped_BU = ratio_BU.clamp(1 - config.clip_low, 1 + config.clip_high)
    free_BU, bound_BU = ratio_BU * advantage_B[:, None], clipped_BU * advantage_B[:, None]
    objective_B = weight_B * (torch.minimum(free_BU, bound_BU) * valid_BU).sum(dim=1)
    entropy_B = _mean(entropies_BK, valid_BHA.flatten(1))
    loss_B = -objective_B
    if config.entropy_bonus:
        loss_B = loss_B - config.entropy_bonus * entropy_B
    assert loss_B.shape == (B,)

    logs = {
        "ratio": _mean(ratio_BU, valid_BU),
        "clip_fraction": _mean((bound_BU < free_BU).to(ratio_BU.dtype), valid_BU),
        "kl": _mean(ratio_BU - 1 - log_ratio_BU, valid_BU),
        "entropy": entropy_B,
        "log_prob_gap": _mean(log_ratio_BHA.abs().flatten(1), valid_BHA.flatten(1)),
    }
    return loss_B, {name: value_B.detach() for name, value_B in logs.items()}


def _mean(value_BU: Tensor, valid_BU: Tensor) -> Tensor:
    return (value_BU * valid_BU).sum(dim=1) / valid_BU.sum(dim=1).clamp(min=1)
