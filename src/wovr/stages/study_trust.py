"""How far one variant's imagination can be trusted: success in closed loop beside the truth, recorded actions beside
what they did.

Cells of other settings than today's are left out: worlds of two kinds have no common rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from typing import Any

from wovr.metrics.hallucination import Confusion
from wovr.stages.data import COLLECT
from wovr.stages.study_text import markdown, rate_text

WORLDS = {"base": "base", "pace": "refined"}
"""World models by their name in a cell, as the tables call them."""
STEPS = {"base": "base policy", "imagination": "before PACE", "pace": "after PACE"}
STARTS = {"first_frame": "first frames", "keyframe": "keyframes"}

Cell = Mapping[str, Any]


def closed_loop_table(cells: Sequence[Cell]) -> str:
    """Success of every policy of a run from the same first frames, in truth and in each world model."""
    rows: list[list[str]] = []
    for cell in cells:
        policies, worlds = cell["closed_loop"]["policies"], cell["closed_loop"]["worlds"]
        if not rows:
            rows.append(["", *(_step(name) for name in policies)])
        for world, of in worlds.items():
            by_policy = [of["first_frame"]["by_policy"][name] for name in policies]
            if world == next(iter(worlds)):
                rows.append([f"seed {cell['seed']}: true", *(_percent(one["true"]) for one in by_policy)])
            rows.append([f"imagined, {WORLDS[world]} world model", *(_percent(one["imagined"]) for one in by_policy)])
    return markdown(rows) if rows else "No cell yet."


def correlation_table(cells: Sequence[Cell]) -> str:
    """Correlation of imagined and true success over a run's policies, seed by seed."""
    rows = [["world model", "from", *(f"seed {cell['seed']}" for cell in cells)]]
    for world, shown in WORLDS.items():
        for start, of in STARTS.items():
            found = [cell["closed_loop"]["worlds"].get(world, {}).get(start, {}).get("correlation") for cell in cells]
            rows.append([shown, of, *map(_correlation, found)])
    return markdown(rows)


def recorded_table(cells: Sequence[Cell]) -> str:
    """Whether both worlds agree about success under the recorded actions of held-out episodes, all seeds together."""
    rows = [["world model", "episodes of", "agreement", "false success", "false failure"]]
    for world, shown in WORLDS.items():
        sources = dict.fromkeys(name for cell in cells for name in cell["hallucination"].get(world, {}))
        for source in sources:
            of = [cell["hallucination"].get(world, {}).get(source) for cell in cells]
            found = _total(one["overall"]["counts"] for one in of if one)
            policy = "base policy" if source == COLLECT else "evolved policy"
            rates = found.agreement, found.false_success_rate, found.false_failure_rate
            rows.append([shown, policy, *map(rate_text, rates)])
    return markdown(rows)


def _step(policy: str) -> str:
    """`rl-12` and `refine-1-12` say after how many updates a policy was kept."""
    kept = policy.rsplit("-", 1)[-1]
    return STEPS.get(policy) or (f"{kept} updates" if policy.startswith("rl-") else f"PACE, {kept}")


def _percent(rate: Mapping[str, Any]) -> str:
    return f"{100 * rate['rate']:.0f} %"


def _correlation(found: Mapping[str, Any] | None) -> str:
    """None, or no interval, where one of the sides does not vary."""
    if not found or found["ci95"] is None:
        return "–"
    low, high = found["ci95"]
    return f"{found['value']:.2f} ({low:.2f} to {high:.2f})"


def _total(counts: Iterable[Mapping[str, int]]) -> Confusion:
    return Confusion(*(sum(column) for column in zip(*(astuple(Confusion(**one)) for one in counts), strict=True)))
