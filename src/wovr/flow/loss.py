"""The rectified-flow objective, Eq. 7.

Legend: B batch, L latent frames, C latent channels, h w latent height and width.
"""

from __future__ import annotations

from torch import Tensor


def velocity_loss(prediction_BLChw: Tensor, target_BLChw: Tensor, weights_BLhw: Tensor | None = None) -> Tensor:
    """Squared velocity error per sample (B,), float32: the mean over all frames, channels and cells.

    Only new latents belong in it: give it those frames alone, as `ActionDiT(..., new_only=True)` returns them.
    `weights_BLhw` lets some cells (what moves) count more; the mean stays over cells, not over weights, so a
    sample in which much moves counts more too.
    """
    assert prediction_BLChw.shape == target_BLChw.shape
    error_BLhw = (prediction_BLChw.float() - target_BLChw.float()).square().mean(2)
    if weights_BLhw is not None:
        error_BLhw = error_BLhw * weights_BLhw
    return error_BLhw.flatten(1).mean(1)
