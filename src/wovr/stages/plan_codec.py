"""What encoding and decoding take. The one place of `wovr plan` that knows codecs apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from wovr.codec import wan
from wovr.codec.conv import CACHED_GROUPS, ENCODED_GROUPS, GROUP, ConvCodec
from wovr.codec.wan import WanCodec
from wovr.core.footprint import Shapes

SAMPLE = 8
"""Rows that a use of a network is counted on: without gradients everything grows in proportion."""


@dataclass(frozen=True, slots=True)
class Use:
    """A network without gradient."""

    flops: float
    bytes: float
    """At the peak, beside the weights."""
    kept: float = 0.0
    """Bytes that are kept between calls."""

    def times(self, factor: float) -> Use:
        """On so many times the rows."""
        return Use(self.flops * factor, self.bytes * factor, self.kept * factor)


@dataclass(frozen=True, slots=True)
class Codec:
    """The codec's figures. FLOPs are per latent."""

    parameters: Mapping[str, int]
    channels: int
    spatial: int
    stride: int
    """Frames from one latent of an episode to the next."""
    encode: Use
    """`bytes` while an episode is encoded."""
    decode: Use
    """`bytes` while a chunk of all trajectories is decoded; `kept` from chunk to chunk."""
    reconstructed: int
    """Latents decoded at once where an episode is reconstructed, at most."""
    start_flops: float = 0.0
    """Per trajectory before its first chunk: what a decoder with a past must be shown."""


def codec_use(codec: ConvCodec | WanCodec, image: tuple[int, int], new: int, shapes: Shapes, *, bf16: bool) -> Codec:
    """Within `shapes`; `decode.bytes` and `.kept` are those of one trajectory, whose chunks have `new` latents."""
    shapes.place(codec, torch.bfloat16 if bf16 else None)
    if isinstance(codec, ConvCodec):
        return _conv(codec, image, new, shapes)
    return _wan(codec, image, new, shapes)


def _conv(codec: ConvCodec, image: tuple[int, int], new: int, shapes: Shapes) -> Codec:
    latents_BChw = torch.zeros(SAMPLE, codec.channels, *(side // codec.spatial_factor for side in image))
    groups_BFHWC = torch.zeros(SAMPLE, GROUP, *image, 3, dtype=torch.uint8)
    encode = shapes.inference(lambda: codec.encode_groups(groups_BFHWC), [codec])
    decode = shapes.inference(lambda: codec.draw(latents_BChw), [codec])
    return Codec(
        parameters=_parameters(codec),
        channels=codec.channels,
        spatial=codec.spatial_factor,
        stride=codec.stride,
        encode=Use(encode.flops / SAMPLE, encode.peak() / SAMPLE * ENCODED_GROUPS),
        decode=Use(decode.flops / SAMPLE, decode.peak() / SAMPLE * new),
        reconstructed=CACHED_GROUPS,
    )


def _wan(codec: WanCodec, image: tuple[int, int], new: int, shapes: Shapes) -> Codec:
    """A decoder's past is there twice while it goes from one to the next: `decode.bytes` counts the new one."""
    latents = 2 * wan.LATENTS_AT_ONCE  # an episode goes through in parts
    frames_1THWC = torch.zeros(1, 1 + wan.GROUP * latents, *image, 3, dtype=torch.uint8)
    window_1LChw = torch.zeros(1, 2 + new, codec.channels, *(side // codec.spatial_factor for side in image))
    first = shapes.inference(lambda: codec.encode(frames_1THWC[:, :1]), [codec])
    whole = shapes.inference(lambda: codec.encode(frames_1THWC), [codec])
    start = shapes.inference(lambda: codec.start(window_1LChw[:, :2]), [codec])
    with torch.no_grad():
        past = codec.start(window_1LChw[:, :2])
    decode = shapes.inference(lambda: codec.decode(window_1LChw[:, 2:], past), [codec])
    return Codec(
        parameters=_parameters(codec),
        channels=codec.channels,
        spatial=codec.spatial_factor,
        stride=codec.stride,
        encode=Use((whole.flops - first.flops) / latents, whole.peak()),
        decode=Use(decode.flops / new, decode.peak(), float(sum(kept.nbytes for kept in past))),
        reconstructed=wan.LATENTS_AT_ONCE,
        start_flops=start.flops,
    )


def _parameters(codec: ConvCodec | WanCodec) -> dict[str, int]:
    return {name: sum(p.numel() for p in part.parameters()) for name, part in codec.named_children()}
