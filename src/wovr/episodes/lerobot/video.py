"""mp4 files: frames in, frames out by their timestamps.

Written as H.264 (libx264), yuv420p, crf 18, a keyframe every second frame as LeRobot has it, so that a random frame
costs at most two to decode, and no frame that refers to a later one. LeRobot's own default, AV1 (libsvtav1) at crf 30,
encodes at less than half the speed and loses more. Of 80 rendered frames each, PSNR of the round trip and size:

    LIBERO, 256x256      H.264 crf 18  40.3 dB  4.7 kB/frame      AV1 crf 30  39.5 dB  3.1 kB/frame
    tabletop, 64x64      H.264 crf 18  31.2 dB  0.5 kB/frame      AV1 crf 30  30.9 dB  0.4 kB/frame

Most of the loss is the halved colour resolution of yuv420p, which alone leaves 43.2 and 31.8 dB: small saturated
objects suffer. yuv444p would keep 42.1 and 38.0 dB, but browsers and hardware decoders refuse it.

Legend: T frames; H W height and width.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from numpy.typing import NDArray

from wovr.core.errors import UserError
from wovr.core.types import Frames
from wovr.episodes.foreign import resized

ENCODER, CODEC, PIXELS = "libx264", "h264", "yuv420p"
OPTIONS = {"crf": "18", "g": "2", "bf": "0"}
TOLERANCE = 0.25
"""How far a frame may be from its timestamp, in frames: far above rounding, and never two frames for one timestamp."""
BT601, LIMITED = 6, 1
"""libavutil's numbers for the colour matrix (SMPTE 170M) and the range by which RGB becomes YUV."""


class VideoWriter:
    """One mp4 file of `fps` frames per second. A context manager; the file is complete after it."""

    def __init__(self, path: Path, fps: int, height: int, width: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.frames = 0
        """How many were added."""
        self.size = 0
        """Bytes encoded so far; the last few frames are still in the encoder."""
        self._container = av.open(str(path), "w", options={"movflags": "faststart"})
        stream = self._container.add_stream(ENCODER, rate=fps, options=OPTIONS)
        assert isinstance(stream, av.VideoStream)
        self._stream = stream
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, PIXELS
        self._stream.codec_context.colorspace, self._stream.codec_context.color_range = BT601, LIMITED

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, frames_THWC: Frames) -> None:
        """Append frames; each episode begins with a keyframe."""
        for number, frame_HWC in enumerate(frames_THWC):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
            picture.pts = self.frames
            if number == 0:
                picture.pict_type = av.video.frame.PictureType.I
            self._encode(picture)
            self.frames += 1

    def close(self) -> None:
        """Encode what is pending and finish the file."""
        if self.frames:
            self._encode(None)
        self._container.close()

    def _encode(self, picture: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(picture):
            self.size += packet.size
            self._container.mux(packet)


def read_video(path: Path, times_T: NDArray[np.float64], fps: float, size: int | None, whole: bool) -> Frames:
    """The frames at `times_T` (seconds, ascending, one frame apart), (T, H, W, 3), each by its own timestamp.

    With `whole` the file must hold no frame beyond them. `size` as in `resized`. Raises UserError, without the file's
    name, where frames are missing, too many, or damaged.
    """
    tolerance = TOLERANCE / fps
    frames: list[Frames] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError("expected a video, found none")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            assert stream.time_base is not None
            start = max(times_T[0] - 1 / fps, 0.0)  # a frame early: containers index decoding, not display times
            container.seek(round(start / float(stream.time_base)), stream=stream)
            for picture in container.decode(stream):
                if picture.time is None or picture.time < times_T[0] - tolerance:
                    continue
                if len(frames) == len(times_T):
                    if whole:
                        raise UserError(f"expected {len(times_T)} frames as there are samples, found more")
                    break
                expected = times_T[len(frames)]
                if abs(picture.time - expected) > tolerance:
                    found = f"found {picture.time:.3f} s"
                    raise UserError(f"expected frame {len(frames)} of {len(times_T)} at {expected:.3f} s, {found}")
                if picture.is_corrupt:
                    raise UserError(f"expected an intact frame {len(frames)}, found a damaged one")
                frames.append(resized(np.asarray(picture.to_ndarray(format="rgb24"), np.uint8), size))
    except av.FFmpegError as error:
        raise UserError(f"expected a complete video, found {error.strerror}") from None
    if len(frames) < len(times_T):
        raise UserError(f"expected {len(times_T)} frames, found {len(frames)}")
    return np.stack(frames)
