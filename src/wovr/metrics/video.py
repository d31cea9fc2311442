"""How close imagined frames are to true ones: PSNR and SSIM per frame, and their course over depth.

Agreement of success says whether a world model serves (`wovr.metrics.hallucination`); these say where it starts
to fail. Measures that need published networks (LPIPS, FID, FVD, FloLPIPS): `wovr.metrics.perceptual`.

Legend: B rollouts, T frames that an action produced, H W image height and width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wovr.core.errors import UserError

PSNR_CAP = 100.0
"""dB, given to equal frames so that means stay finite; one wrong count in a 256x256 image is 101 dB."""


def squared_error(imagined_BTHWC: Tensor, true_BTHWC: Tensor) -> Tensor:
    """Mean squared error of each frame in squared counts (0 to 255^2), over all pixels and channels.

    Args:
        imagined_BTHWC: uint8 (B, T, H, W, 3).
        true_BTHWC: the same shape.

    Returns:
        float64 (B, T).
    """
    _check(imagined_BTHWC, true_BTHWC)
    # One rollout at a time: the float copy of a whole evaluation would not fit a laptop.
    return torch.stack(
        [
            (imagined.float() - true.float()).square().mean(dim=(1, 2, 3), dtype=torch.float64)
            for imagined, true in zip(imagined_BTHWC, true_BTHWC, strict=True)
        ]
    )


def psnr(imagined_BTHWC: Tensor, true_BTHWC: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame in dB, over all pixels and channels.

    Args:
        imagined_BTHWC: uint8 (B, T, H, W, 3).
        true_BTHWC: the same shape.

    Returns:
        float64 (B, T), at most `PSNR_CAP`.
    """
    mse_BT = squared_error(imagined_BTHWC, true_BTHWC)
    return (20 * math.log10(255) - 10 * mse_BT.log10()).clamp(max=PSNR_CAP)


def ssim(imagined_BTHWC: Tensor, true_BTHWC: Tensor) -> Tensor:
    """Structural similarity of each frame (Wang et al., 2004: 11x11 Gaussian window, sigma 1.5).

    Args:
        imagined_BTHWC: uint8 (B, T, H, W, 3), at least 11 pixels wide and high.
        true_BTHWC: the same shape.

    Returns:
        float32 (B, T), 1 for equal frames.

    Raises UserError where torchmetrics does not load, which a torchvision of another build of torch brings about.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"SSIM: expected torchmetrics to load, found {' '.join(str(error).split())}; "
            f"remove torchvision, or install the build of it that fits torch {torch.__version__}"
        ) from None

    _check(imagined_BTHWC, true_BTHWC)
    ssim_BT = imagined_BTHWC.new_empty(imagined_BTHWC.shape[:2], dtype=torch.float32)
    for b, (imagined, true) in enumerate(zip(imagined_BTHWC, true_BTHWC, strict=True)):
        ssim_T = structural_similarity_index_measure(
            imagined.movedim(-1, 1).float(), true.movedim(-1, 1).float(), data_range=255.0, reduction="none"
        )
        assert isinstance(ssim_T, Tensor)  # it is a pair only where the full image is asked for
        ssim_BT[b] = ssim_T
    return ssim_BT


def by_depth(value_BT: Tensor, chunk_length: int) -> list[float]:
    """Mean of each imagined chunk, first chunk first. NaN marks frames that do not count; a chunk of such is NaN."""
    return [chunk_BH.nanmean().item() for chunk_BH in value_BT.split(chunk_length, dim=1)]


def _check(imagined_BTHWC: Tensor, true_BTHWC: Tensor) -> None:
    assert imagined_BTHWC.dtype == true_BTHWC.dtype == torch.uint8, "frames are uint8"
    assert imagined_BTHWC.shape == true_BTHWC.shape and imagined_BTHWC.ndim == 5, "two batches of the same videos"
