"""What `hallucination` and `closed_loop` measured, for people: cells of a table, plots of imagined and true success."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from wovr.stages.plots import Series, intervals, lines, scatter
from wovr.stages.replay import KEYFRAME
from wovr.stages.world_model_table import WORLDS

HEADER = ("World model", "Actions", "Start", "n", "Agreement", "False success", "False failure", "Correlation")
NOTE = (
    "False success: imagined, of true failures. False failure: of true successes. Replays take the recorded actions of "
    "held-out episodes. In closed loop the policies act in each world for themselves; the correlation of imagined with "
    "true success is that over policies, with its 95 % interval."
)
CLOSED = "policies'"
"""In place of the purpose of recorded actions."""


def rows(replayed: Mapping[str, Any], closed: Mapping[str, Any]) -> list[list[str]]:
    """Cells under HEADER, replays first."""
    found = [
        [WORLDS[world], purpose, kind, *_rates(one), ""]
        for world, by_purpose in replayed.items()
        for purpose, report in by_purpose.items()
        for kind, one in report["by_start"].items()
    ]
    found += [
        [WORLDS[world], CLOSED, kind, *_rates(one), _correlation(one["correlation"])]
        for world, kind, one in _each(closed)
    ]
    return [[cell.replace("_", " ") for cell in row] for row in found]


def replayed_rows(replayed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per world model, purpose of the replayed episodes and kind of start."""
    return [
        {"world": WORLDS[world], "purpose": purpose, "start": kind.replace("_", " "), **found}
        for world, by_purpose in replayed.items()
        for purpose, report in by_purpose.items()
        for kind, found in report["by_start"].items()
    ]


def error_plots(replayed: Mapping[str, Any]) -> list[Markup]:
    """Both kinds of error with their intervals: a point for each row that has trials, world models by colour."""
    found = []
    for key, title in (
        ("false_success_rate", "Imagined success, of true failures"),
        ("false_failure_rate", "Imagined failure, of true successes"),
    ):
        rows = [row for row in replayed_rows(replayed) if row[key]["rate"] is not None]
        rows.sort(key=lambda row: (row["purpose"], row["start"]))  # world models side by side
        worlds = [list(WORLDS.values()).index(row["world"]) for row in rows]
        values = {
            f"{[*WORLDS][world]}: {row['purpose']}, {row['start']}": (row[key]["rate"], *row[key]["ci95"])
            for world, row in zip(worlds, rows, strict=True)
        }
        if values:
            found.append(intervals(values, title=title, left=1.6, colours=worlds))
    return found


def depth_plots(replayed: Mapping[str, Any]) -> list[Markup]:
    """Error by depth, for each purpose: world models by colour, keyframes dashed."""
    purposes = dict.fromkeys(purpose for by_purpose in replayed.values() for purpose in by_purpose)
    return [
        lines(
            [
                Series(
                    f"{WORLDS[world]}, {kind.replace('_', ' ')}",
                    range(1, len(found[key]) + 1),
                    found[key],
                    dashed=kind == KEYFRAME,
                    colour=list(WORLDS).index(world),
                )
                for world, by_purpose in replayed.items()
                for kind, found in by_purpose.get(purpose, {"by_start": {}})["by_start"].items()
                if key in found  # a run that was measured by an older version has no gap
            ],
            title=f"{title}, {purpose}",
            x="imagined chunk",
            y=unit,
        )
        for purpose in purposes
        for key, title, unit in (
            ("psnr_by_depth", "PSNR by depth", "dB"),
            ("gap_by_depth", "Gap of probabilities by depth", "|imagined − true|"),
        )
    ]


def closed_rows(closed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per world model and kind of start, and of it one per policy."""
    return [{"world": WORLDS[world], "start": kind.replace("_", " "), **one} for world, kind, one in _each(closed)]


def closed_plots(closed: Mapping[str, Any]) -> list[Markup]:
    """Imagined against true success of every policy, then how both come about by depth for the first and last."""
    against, by_depth = [], []
    for world, kind, one in _each(closed):
        title = f"{WORLDS[world]}, {kind.replace('_', ' ')}s"
        points = {
            name: (policy["true"]["rate"], policy["imagined"]["rate"]) for name, policy in one["by_policy"].items()
        }
        against.append(scatter(points, title=f"Policies: {title}", x="true success, %", y="imagined, %"))
        names = list(dict.fromkeys([next(iter(points)), list(points)[-1]]))
        series = [
            Series(
                f"{name}, {side}",
                range(1, len(values) + 1),
                values,
                dashed=side == "imagined",
                colour=number,
            )
            for number, name in enumerate(names)
            for side in ("true", "imagined")
            if (values := one["by_policy"][name][f"{side}_by_depth"])
        ]
        by_depth.append(lines(series, title=f"By depth: {title}", x="chunk", y="succeeded, %", percent=True))
    return against + by_depth


def _each(closed: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for world, by_start in closed.get("worlds", {}).items():
        for kind, one in by_start.items():
            yield world, kind, one


def _rates(one: Mapping[str, Any]) -> list[str]:
    rates = [one[name] for name in ("agreement", "false_success_rate", "false_failure_rate")]
    return [str(rates[0]["n"]), *map(_rate, rates)]


def _rate(rate: Mapping[str, Any]) -> str:
    if rate["rate"] is None:
        return "–"
    low, high = rate["ci95"]
    return f"{100 * rate['rate']:.1f} % [{100 * low:.0f}, {100 * high:.0f}]"


def _correlation(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return f"– of {found['policies']}"
    return "{:.2f} [{:.2f}, {:.2f}] of {}".format(found["value"], *found["ci95"], found["policies"])
