"""The player of the report: every replay as one sprite of its frames, and the numbers that its script draws.

A sprite holds the true frames, then the imagined ones, row by row; the script cuts the tiles out of it and computes the
difference itself. Small frames are kept without loss, so that the pixels on the page are those that were recorded.
Larger ones would burden the page: they are WebP at some quality, and where that is not enough, every k-th step.

Legend: T replayed env steps; images are height x width x 3, uint8.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from wovr.stages.pictures import LOSSLESS_SIDE, data_uri
from wovr.stages.replay import OUTCOMES, Replay

OUTCOME_LABELS = {
    "both_succeed": "Both succeed",
    "false_success": "False success: imagined, not true",
    "false_failure": "False failure: true, not imagined",
    "both_fail": "Both fail",
}
"""In the order in which groups are listed."""
SPRITE_BYTES = 6_000_000
"""For the sprites of all replays together; base64 makes a third more of it on the page."""
SPRITE_PIXELS = 2**24
"""The largest picture that every browser decodes, phones' too."""
SPRITE_WIDTH = 4096
LADDER = ((1, 80), (2, 80), (2, 50), (4, 50), (8, 50))
"""(every k-th step, quality of WebP): the first that fits into the budget is taken, else the last."""
SAMPLE = 8
"""Steps that tell what a quality costs; encoding all of them takes seconds."""


@dataclass(frozen=True, slots=True)
class Sprite:
    """Frames of both worlds in one picture."""

    webp: bytes
    every: int
    """Of `every` steps, one is in it; so are the first and the last."""
    quality: int | None
    """None is without loss."""
    columns: int
    """Tiles in a row."""
    steps: list[int]
    """The frames in it; the true ones are tiles 0 to len(steps) - 1, the imagined ones follow."""


def player(replays: Sequence[Replay], rule: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """{groups, data, note} for the template: replays by outcome, what the script reads, how frames are kept.

    `rule` is what `success_rule` found.
    """
    if not replays:
        return None
    ordered = sorted(replays, key=lambda one: list(OUTCOME_LABELS).index(one.outcome))
    sprites = [sprite(one, SPRITE_BYTES // len(replays)) for one in ordered]
    shown = [{"number": i, **_facts(one)} for i, one in enumerate(ordered)]
    return {
        "groups": {
            label: [one for one in shown if one["outcome"] == outcome]
            for outcome, label in OUTCOME_LABELS.items()
            if any(one["outcome"] == outcome for one in shown)
        },
        "data": {
            "threshold": rule and rule["threshold"],
            "replays": [_data(*pair) for pair in zip(ordered, sprites, strict=True)],
        },
        "note": _note(sprites),
    }


def sprite(replay: Replay, budget: int) -> Sprite:
    """All frames without loss where they are small, else as many and as good as `budget` bytes hold."""
    frames, height, width = replay.true_THWC.shape[:3]
    least = math.ceil(frames / max(2, SPRITE_PIXELS // (2 * height * width)))
    if max(height, width) <= LOSSLESS_SIDE:
        found = _encoded(replay, least, None)
        if len(found.webp) <= budget:
            return found
    samples = {quality: _encoded(replay, math.ceil(frames / SAMPLE), quality) for quality in {q for _, q in LADDER}}
    for every, quality in LADDER:
        tiles = len(_steps(frames, least * every)) / len(samples[quality].steps)
        if tiles * len(samples[quality].webp) <= budget or (every, quality) == LADDER[-1]:  # else not worth the time
            found = _encoded(replay, least * every, quality)
            if len(found.webp) <= budget:
                break
    return found


def _steps(frames: int, every: int) -> list[int]:
    """Every `every`-th, and the last."""
    return sorted({*range(0, frames, every), frames - 1})


def _encoded(replay: Replay, every: int, quality: int | None) -> Sprite:
    steps, (height, width) = _steps(len(replay.true_THWC), every), replay.true_THWC.shape[1:3]
    columns = min(len(steps), SPRITE_WIDTH // width)
    tiles = np.concatenate([replay.true_THWC[steps], replay.imagined_THWC[steps]])
    rows = math.ceil(len(tiles) / columns)
    grid = np.zeros((rows * columns, height, width, 3), np.uint8)
    grid[: len(tiles)] = tiles
    image = grid.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="WEBP", lossless=quality is None, quality=quality or 80, method=2)
    return Sprite(file.getvalue(), every, quality, columns, steps)


def _facts(replay: Replay) -> dict[str, Any]:
    """What the list says about a replay."""
    return {
        "outcome": replay.outcome,
        "instruction": replay.instruction,
        "origin": replay.episode if replay.step == 0 else f"{replay.episode}, from step {replay.step}",
        "when": {"true": _when(replay, replay.true_first), "imagined": _when(replay, replay.imagined_first)},
    }


def _when(replay: Replay, first: int) -> int | None:
    """The frame that completes success: frame t follows action t - 1."""
    return first + 1 if first < len(replay.probability_T) else None


def _data(replay: Replay, packed: Sprite) -> dict[str, Any]:
    height, width = replay.true_THWC.shape[1:3]
    return {
        **_facts(replay),
        "source": data_uri(packed.webp, "webp"),
        "width": width,
        "height": height,
        "columns": packed.columns,
        "steps": packed.steps,
        "probability": {
            "true": _rounded(replay.true_probability_T.tolist()),
            "imagined": _rounded(replay.probability_T.tolist()),
        },
    }


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in values]


def _note(sprites: Sequence[Sprite]) -> str:
    """How true the pictures are to what was recorded."""
    every, qualities = max(one.every for one in sprites), {one.quality for one in sprites}
    lossy = [quality for quality in qualities if quality is not None]
    kept = f"Pictures are WebP at quality {min(lossy)} or better" if lossy else "Every pixel is as it was recorded"
    return f"{kept}; {'every step is' if every == 1 else f'one step in {every} is'} shown."


def best(replays: Sequence[Replay]) -> Replay:
    """A replay in which both succeed, if there is one: it shows the whole task."""
    return min(replays, key=lambda one: OUTCOMES.index(one.outcome))


def success_rule(judged: Mapping[str, Any], judge: str) -> dict[str, Any] | None:
    """{threshold, hold} of the newest world model's judge, where `compare_reward` has written them down."""
    for by_purpose in reversed(list(judged.values())):
        for judges in by_purpose.values():
            if judge in judges:
                return {key: judges[judge]["imagined"][key] for key in ("threshold", "hold")}
    return None
