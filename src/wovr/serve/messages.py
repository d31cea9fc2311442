"""What the page says to the server, checked, and what the server says to the page.

A frame is one binary message: four bytes with the length of a JSON header, the header, and then the pictures in the
order in which the header's `images` names them, lossless WebP. Everything else is JSON text.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import Field, TypeAdapter, ValidationError

from wovr.core.config import Config
from wovr.core.errors import UserError
from wovr.core.types import Frames

SLOWEST, FASTEST = 1.0, 30.0
"""Env steps per second."""
MAX_BYTES = 4096
"""Of a message to the server: the longest that the page sends has some 200."""


class Keys(Config):
    """What the driver holds now."""

    type: Literal["keys"]
    held: tuple[Annotated[str, Field(max_length=32)], ...] = Field(max_length=16)
    """Names of controls."""
    fine: bool = False
    n: int = Field(0, ge=0, lt=2**53)
    """Counts what was sent: frames say which was the last that they contain."""


class Grip(Config):
    """Open the gripper if it is closed, close it otherwise."""

    type: Literal["grip"]
    n: int = Field(0, ge=0, lt=2**53)


class Reset(Config):
    """Begin anew."""

    type: Literal["reset"]
    start: int | Literal["first_frame", "keyframe", "again"]
    """Number of a start, one of a kind at random, or the present one."""


class Worlds(Config):
    """Show these worlds."""

    type: Literal["worlds"]
    shown: tuple[Literal["imagined", "true"], ...] = Field(min_length=1, max_length=2)


class Act(Config):
    """Let a policy drive, or nobody."""

    type: Literal["policy"]
    name: str | None = Field(max_length=64)


class Speed(Config):
    """Env steps per second from now on."""

    type: Literal["speed"]
    steps_per_second: float = Field(ge=SLOWEST, le=FASTEST)


class Drive(Config):
    """Take the controls from whoever has them."""

    type: Literal["drive"]


Command = Grip | Reset | Worlds | Act | Speed
Message = Annotated[Keys | Command | Drive, Field(discriminator="type")]
_MESSAGE: TypeAdapter[Any] = TypeAdapter(Message)


def parse(text: str) -> Keys | Command | Drive:
    """UserError for what is no message."""
    try:
        found: Keys | Command | Drive = _MESSAGE.validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "message"
        said = problem["msg"]
        raise UserError(
            f"message: {where}: {said[0].lower()}{said[1:]}, found {str(problem['input'])[:60]!r}"
        ) from None
    return found


def pack_frame(header: Mapping[str, Any], frames: Mapping[str, Frames]) -> bytes:
    """One binary message."""
    pictures = {world: picture(frame) for world, frame in frames.items()}
    text = json.dumps({**header, "images": {world: len(data) for world, data in pictures.items()}}).encode()
    return b"".join([struct.pack("<I", len(text)), text, *pictures.values()])


def picture(frame_HWC: Frames) -> bytes:
    """Lossless WebP."""
    buffer = io.BytesIO()
    Image.fromarray(frame_HWC).save(buffer, "WEBP", lossless=True, method=0, quality=0)
    return buffer.getvalue()
