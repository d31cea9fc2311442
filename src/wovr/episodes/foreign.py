"""What recordings made elsewhere leave open: which of their frames are successful, and the size of their pictures.

Legend: T env steps, F frames; H W height and width.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wovr.core.errors import UserError
from wovr.core.types import Frames

SuccessLabels = Literal["recorded", "last", "none"]
"""Which frames meet their task's condition: those that the recording marks, the last of every episode (demonstrations
that were kept because they succeeded), or none."""


def success_labels(
    labels: SuccessLabels, recorded_T: NDArray[np.bool_] | None, steps: int, place: str
) -> NDArray[np.bool_]:
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


def resize(frames_FHWC: NDArray[Any], size: int | None) -> Frames:
    """Frames of `size` x `size`, resampled with Lanczos' filter; None leaves them as they are.

    Pictures that are not square are squeezed rather than cut, so that nothing of the scene is lost.
    """
    if size is None or frames_FHWC.shape[1:3] == (size, size):
        return frames_FHWC
    pictures = (Image.fromarray(frame_HWC) for frame_HWC in frames_FHWC)
    return np.stack([np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS)) for picture in pictures])
