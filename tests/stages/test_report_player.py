"""How frames are kept for the player: without loss where they are small, within a budget where they are not."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from tests.stages.reported import STEPS, make_replay
from wovr.stages import report_player
from wovr.stages.replay import Replay
from wovr.stages.report_player import player, sprite, success_rule


def tiles(packed, height, width):
    """(2 worlds, frames, height, width, 3)."""
    with Image.open(io.BytesIO(packed.webp)) as file:
        image = np.asarray(file.convert("RGB"))
    rows = image.shape[0] // height
    found = image.reshape(rows, height, packed.columns, width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)
    return found[: 2 * len(packed.steps)].reshape(2, len(packed.steps), height, width, 3)


def noise(steps, side):
    """Frames that nothing can compress."""
    rng = np.random.default_rng(0)
    true, imagined = rng.integers(0, 256, (2, steps + 1, side, side, 3), dtype=np.uint8)
    probability = np.zeros(steps, np.float32)
    return Replay("shard_00000/demo_0", 0, "", imagined, true, probability, steps, steps, probability)


def test_small_frames_are_kept_as_they_are(monkeypatch):
    monkeypatch.setattr(report_player, "SPRITE_WIDTH", 300)  # several rows, the last one not full
    replay = make_replay()
    packed = sprite(replay, report_player.SPRITE_BYTES)
    assert packed.quality is None and packed.steps == list(range(STEPS + 1)) and packed.columns == 4
    true, imagined = tiles(packed, 64, 64)
    np.testing.assert_array_equal(true, replay.true_THWC)
    np.testing.assert_array_equal(imagined, replay.imagined_THWC)


@pytest.mark.parametrize(("budget", "every"), [(1_600_000, 1), (650_000, 2), (350_000, 4)])
def test_large_frames_fit_the_budget(budget, every):
    replay = noise(22, 160)
    packed = sprite(replay, budget)
    assert len(packed.webp) <= budget and packed.quality is not None
    assert packed.steps[0] == 0 and packed.steps[-1] == 22, "the first and the last step are always there"
    assert packed.every == every
    assert np.abs(tiles(packed, 160, 160)[0].astype(int) - replay.true_THWC[packed.steps]).mean() < 80


def test_no_sprite_is_larger_than_browsers_decode(monkeypatch):
    monkeypatch.setattr(report_player, "SPRITE_PIXELS", 64 * 64 * 2 * 8)
    packed = sprite(make_replay(), report_player.SPRITE_BYTES)
    assert packed.every == math.ceil((STEPS + 1) / 8) and packed.steps == [0, 3, 6, 9, 12, 15, 16]


def test_replays_are_grouped_by_outcome():
    replays = [make_replay(0, STEPS, STEPS), make_replay(1), make_replay(2, true_first=STEPS), make_replay(3)]
    found = player(replays, None)
    assert {label: [one["origin"][-1] for one in group] for label, group in found["groups"].items()} == {
        "Both succeed": ["1", "3"],
        "False success: imagined, not true": ["2"],
        "Both fail": ["0"],
    }
    first = found["data"]["replays"][0]
    assert first["when"] == {"true": 9, "imagined": 10}, "frame t follows action t - 1"
    assert found["data"]["replays"][2]["when"] == {"true": None, "imagined": 10}
    assert found["note"] == "Every pixel is as it was recorded; every step is shown."
    assert player([], None) is None


def test_a_page_that_lost_pixels_says_so(monkeypatch):
    monkeypatch.setattr(report_player, "SPRITE_BYTES", 650_000)
    assert player([noise(22, 160)], None)["note"].startswith("Pictures are WebP at quality 50 or better; one step in 2")


def test_the_rule_is_that_of_the_newest_judge():
    def judged(threshold):
        return {"collect": {"classifier": {"imagined": {"threshold": threshold, "hold": 2, "brier": 0.1}}}}

    measured = {"base": judged(0.5), "pace": judged(0.25)}
    assert success_rule(measured, "classifier") == {"threshold": 0.25, "hold": 2}
    assert success_rule(measured, "joint") is None
