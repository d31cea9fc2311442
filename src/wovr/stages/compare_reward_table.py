"""What `compare_reward` measured, for people: cells of a table, and curves of a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from wovr.stages.plots import Series
from wovr.stages.world_model_table import WORLDS

HEADER = ("World", "Episodes", "Judge", "Frames", "n", "Precision", "Recall", "Right", "Brier", "ECE")
NOTE = (
    "Precision and recall of single frames at the judge's threshold; Right: share of the n episodes whose outcome is "
    "called right. Frames of one episode are not independent: go by episodes where the two differ. Brier: mean squared "
    "error of the probabilities; ECE: their mean distance from the share of successes. Judges are trained on balanced "
    "classes, so that probabilities lie above shares; thresholds are calibrated. Curves leave out bins of less than "
    "five frames."
)
LEAST = 5
"""Frames of a bin whose share of successes says anything."""
JUDGES = {"classifier": "classifier", "joint": "joint head"}


def rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Cells under HEADER, in percent where they are shares."""
    return [
        [
            world,
            purpose,
            judge,
            frames,
            str(found["episodes"]["n"]),
            _percent(found["frames"]["precision"]),
            _percent(found["frames"]["recall"]),
            _percent(found["episodes"]["agreement"]),
            f"{found['brier']:.3f}",
            f"{found['calibration_error']:.3f}",
        ]
        for world, purpose, judge, frames, found in _each(summary)
    ]


def details(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each world model, purpose, judge and kind of frames, with whole rates."""
    return [
        {"world": WORLDS[world], "purpose": purpose, "judge": JUDGES[judge], "seen": frames, **found}
        for world, purpose, judge, frames, found in _each(summary)
    ]


def curves(summary: Mapping[str, Any]) -> dict[str, list[Series]]:
    """{title of a plot: its calibration curves}, a plot for each world model and purpose; of imagined frames dashed."""
    plots: dict[str, list[Series]] = {}
    for world, purpose, judge, frames, found in _each(summary):
        bins = [one for one in found["bins"] if one["success"]["n"] >= LEAST]
        plots.setdefault(f"{WORLDS[world]}, episodes of {purpose}", []).append(
            Series(
                f"{JUDGES[judge]}, {frames} frames",
                [100 * one["probability"] for one in bins],
                [one["success"]["rate"] for one in bins],
                dashed=frames == "imagined",
                colour=list(JUDGES).index(judge),
            )
        )
    return {title: [*series, Series("calibrated", [0, 100], [0, 1], colour=-1)] for title, series in plots.items()}


def _each(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str, Mapping[str, Any]]]:
    for world, purposes in summary.items():
        for purpose, judges in purposes.items():
            for judge, by_frames in judges.items():
                for frames, found in by_frames.items():
                    yield world, purpose, judge, frames, found


def _percent(rate: Mapping[str, Any]) -> str:
    return "–" if rate["rate"] is None else f"{100 * rate['rate']:.0f} %"
