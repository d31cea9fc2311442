"""What `action_following` measured, for people: a verdict in a sentence, cells of a table, points of a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from wovr.metrics.action_following import NEGATED, SHUFFLED, TOGETHER, dimension
from wovr.stages.world_model_table import WORLDS

HEADER = ("World model", "Episodes", "n", "Follows", "Error", "shuffled", "zero", "negated")
NOTE = (
    "Error: mean squared error of pixels under the recorded actions; then how much it grows under the actions of "
    "another episode, under no motion and under negated actions, and in which share of the replays it grows at all "
    "(chance: 50 %)."
)


def rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Cells under HEADER, a row for each world model and purpose."""
    return [
        [
            world,
            purpose,
            str(found["n"]),
            "yes" if found["follows"] else "NO",
            f"{found['error']['mean']:.1f}",
            *(_growth(found["changes"][name]) for name in TOGETHER),
        ]
        for world, purpose, found in _each(summary)
    ]


def verdicts(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """{follows, text} for each world model and purpose."""
    return [
        {"follows": found["follows"], "text": _verdict(WORLDS[world], purpose, found)}
        for world, purpose, found in _each(summary)
    ]


def points(summary: Mapping[str, Any]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """{title of a plot: {change: (growth of the error, low, high)}}, a plot for each world model and purpose."""
    return {
        f"{WORLDS[world]}, episodes of {purpose}": {
            label: (change["difference"]["mean"], *change["difference"]["ci95"])
            for label, change in _labelled(found).items()
        }
        for world, purpose, found in _each(summary)
    }


def details(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each world model, purpose and change, with `motion`: mean |a_d| where one dimension is changed."""
    found_rows = []
    for world, purpose, found in _each(summary):
        motion = [None] * len(TOGETHER) + found["motion"]
        for (label, change), moved in zip(_labelled(found).items(), motion, strict=True):
            found_rows.append({"world": WORLDS[world], "purpose": purpose, "change": label, "motion": moved, **change})
    return found_rows


def _each(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for world, of in summary["worlds"].items():
        for purpose, found in of.items():
            yield world, purpose, found


def _labelled(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    names = {dimension(d): f"dimension {d} negated" for d in range(len(found["motion"]))}
    return {names.get(name, name): change for name, change in found["changes"].items()}


def _growth(change: Mapping[str, Any]) -> str:
    return f"{change['difference']['mean']:+.1f}, {100 * change['told_apart']['rate']:.0f} %"


def _verdict(world: str, purpose: str, found: Mapping[str, Any]) -> str:
    """In one sentence, and which dimensions it is deaf to in another."""
    shuffled, negated = found["changes"][SHUFFLED], found["changes"][NEGATED]
    errors = [one["error"]["mean"] for one in (found, shuffled, negated)]
    shares = [100 * one["told_apart"]["rate"] for one in (shuffled, negated)]
    text = (
        f"{world}, episodes of {purpose}: {'follows' if found['follows'] else 'DOES NOT FOLLOW'} its actions; "
        f"error {errors[0]:.1f} under the recorded ones, {errors[1]:.1f} under those of another episode, "
        f"{errors[2]:.1f} under negated ones; told apart in {shares[0]:.0f} and {shares[1]:.0f} % of "
        f"{found['n']} replays."
    )
    deaf = [
        f"{d} (mean |a| {moved:.2f})"
        for d, moved in enumerate(found["motion"])
        if not found["changes"][dimension(d)]["told"]
    ]
    return f"{text} Not told beyond chance: dimension {', '.join(deaf)}." if deaf else text
