"""What recordings made elsewhere leave open: which of their frames are successful, and the size of their pictures.

Legend: T env steps, F frames; H W height and width.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wovr.core.errors import UserError
from wovr.core.types import Frames

Success = Literal["recorded", "last", "none"]
"""Which frames count as successful: those that the recording marks; the last one of every episode, as in
demonstrations that were kept because they succeeded; none."""


def success_labels(labels: Success, recorded_T: NDArray[np.bool_] | None, steps: int, place: str) -> NDArray[np.bool_]:
    """`Episode.success_T` of an episode of `steps` env steps.

    `recorded_T` is what the recording says, None where it says nothing; `recorded` then raises UserError, naming
    `place`.
    """
    if labels == "recorded":
        if recorded_T is None:
            raise UserError(
                f"{place}: expected success labels of its frames, found none; take success 'last' where every "
                "episode ends in success, or 'none'"
            )
        return recorded_T.astype(np.bool_)
    success_T = np.zeros(steps, dtype=np.bool_)
    success_T[-1:] = labels == "last"
    return success_T


def resized(frame_HWC: Frames, size: int | None) -> Frames:
    """The whole view as a square of `size` pixels, Lanczos with antialiasing; unchanged with None.

    A wide view is squeezed, as OpenVLA does it (its image strategy `resize-naive`): nothing is cut off, and no
    pixels are spent on bars.
    """
    if size is None or frame_HWC.shape[:2] == (size, size):
        return frame_HWC
    return np.asarray(Image.fromarray(frame_HWC).resize((size, size), Image.Resampling.LANCZOS))


def resize(frames_FHWC: Frames, size: int | None) -> Frames:
    """All frames of an episode `resized`."""
    if size is None or frames_FHWC.shape[1:3] == (size, size):
        return frames_FHWC
    return np.stack([resized(frame_HWC, size) for frame_HWC in frames_FHWC])
